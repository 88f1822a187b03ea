"""Which blocks of a job are to run, are running and have failed: the bookkeeping that executors share."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType

from executors.protocol import MAX_ATTEMPTS, BlockFailure, BlockFailures, Event, Job

__all__ = ["BlockQueue", "available_cpus", "check_order", "ignore", "never"]


def ignore(event: Event) -> None:
    """Do nothing; the `on_event` of a run that nobody watches."""


def never() -> bool:
    """Return False; the `should_stop` of a run that nobody stops."""
    return False


def available_cpus() -> int:
    """CPUs that this process may use: its affinity, and the quota of its Linux control groups (version 2), rounded up."""
    affinity = getattr(os, "sched_getaffinity", None)
    cpus = len(affinity(0)) if affinity else os.cpu_count() or 1
    own = Path("/proc/self/cgroup")
    if not own.exists():
        return cpus
    group = Path("/sys/fs/cgroup") / own.read_text().rpartition("0::/")[2].strip()
    for folder in (group, *group.parents):
        limit = folder / "cpu.max"
        if limit.exists():
            quota, period = limit.read_text().split()
            if quota != "max":
                cpus = min(cpus, -(-int(quota) // int(period)))
    return cpus


def check_order(jobs: Sequence[Job]) -> None:
    """Check that no job comes before one that it needs.

    Raises
    ------
    ValueError
        Names the two jobs. Needs that are not among `jobs` are taken as complete.
    """
    position = {job.key: at for at, job in enumerate(jobs)}
    for at, job in enumerate(jobs):
        for need in job.needs:
            if position.get(need, -1) >= at:
                raise ValueError(
                    f"job {job.name!r} at position {at} needs {jobs[position[need]].name!r}, which runs at position "
                    f"{position[need]}; give the jobs in an order in which needs come first"
                )


class BlockQueue:
    """The blocks of one job during one run.

    Fresh blocks come in the order of `Job.pending`. A block that failed or was lost comes again once no fresh block is left,
    up to `MAX_ATTEMPTS` attempts; then it is set aside. Not thread-safe. Memory grows with the blocks at hand and those that
    failed, not with those that are pending or done.

    Parameters
    ----------
    job : Job
        Its `pending` is asked here.
    on_event : callable
        Receives every `Event`, beginning with "job_started", in the thread that calls these methods.
    retry : mapping of int to int, optional
        Blocks to try again after so many attempts in an earlier process; `Job.pending` of `job` leaves them out.

    Attributes
    ----------
    total, n_fresh, n_done, n_unfinished : int
        Blocks that were pending when the run began; that were not yet taken; that succeeded; that neither succeeded nor
        were set aside.
    failures : list of BlockFailure
        Blocks that were set aside.
    """

    def __init__(
        self, job: Job, on_event: Callable[[Event], None] = ignore, retry: Mapping[int, int] = MappingProxyType({})
    ) -> None:
        ranges = list(job.pending())
        self.job = job
        self.n_fresh = sum(map(len, ranges))
        self.total = self.n_unfinished = self.n_fresh + len(retry)
        self.n_done = 0
        self._fresh: Iterator[int] = chain.from_iterable(ranges)
        self._retry = deque(retry)
        self._attempts = dict(retry)
        self.failures: list[BlockFailure] = []
        self._on_event = on_event
        on_event(Event("job_started", job.key, total=self.total))

    def take(self) -> int | None:
        """Take the next block that no worker had yet; None if there is none."""
        if not self.n_fresh:
            return None
        self.n_fresh -= 1
        return next(self._fresh)

    def take_retry(self) -> int | None:
        """Take the next block that failed or was lost; None if there is none.

        Run it alone where it may kill its worker: then nothing but the block itself can be blamed.
        """
        return self._retry.popleft() if self._retry else None

    def update(self, event: Event, worker: str) -> int:
        """Book what a worker reports ("started", "done" or "failed"), pass it on with its attempt, and return the block."""
        block = event.block
        if block is None:
            raise ValueError(f"event {event.kind!r} names no block; only events of blocks are booked")
        if event.kind == "started":
            self._attempts[block] = self._attempts.get(block, 0) + 1
        self._on_event(replace(event, worker=worker, attempt=self._attempts[block]))
        if event.kind == "done":
            del self._attempts[block]
            self.n_done += 1
            self.n_unfinished -= 1
        elif event.kind == "failed":
            self._retry_or_set_aside(block, worker, event.message)
        return block

    def lost(self, block: int, worker: str, message: str, started: bool) -> None:
        """Book that a worker died while it held a block; this costs an attempt only if that worker had `started` it."""
        attempt = self._attempts.get(block, 0)
        self._on_event(Event("lost", self.job.key, block, attempt, worker, message))
        if started:
            self._retry_or_set_aside(block, worker, message)
        else:
            self._retry.append(block)

    def recheck(self) -> None:
        """Ask `Job.pending` again, once no block is unfinished: blocks whose records went down with a machine are fresh again."""
        ranges = list(self.job.pending())
        set_aside = {failure.block for failure in self.failures}
        self.n_fresh = sum(map(len, ranges)) - sum(block in blocks for block in set_aside for blocks in ranges)
        self._fresh = (block for block in chain.from_iterable(ranges) if block not in set_aside)
        self.n_done -= self.n_fresh
        self.n_unfinished = self.n_fresh

    def finish(self) -> None:
        """Finish the job, once no block is unfinished.

        Raises
        ------
        BlockFailures
            Blocks were set aside; `Job.finish` was not called.
        """
        if self.failures:
            raise BlockFailures(self.failures, self.job.name, self.n_done)
        self.job.finish()
        self._on_event(Event("job_done", self.job.key, total=self.total))

    def _retry_or_set_aside(self, block: int, worker: str, message: str) -> None:
        attempts = self._attempts[block]
        if attempts < MAX_ATTEMPTS:
            self._retry.append(block)
        else:
            del self._attempts[block]
            self.n_unfinished -= 1
            self.failures.append(BlockFailure(self.job.key, block, attempts, worker, self.job.describe(block), message))
