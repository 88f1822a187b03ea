"""A task of a SLURM array: runs a batch of blocks in worker processes and notes what happens to each.

Started by a job script as ``python -m executors.slurm_task RUN_FOLDER STAGE ROUND``.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from executors.bookkeeping import BlockQueue
from executors.processes import WorkerPool
from executors.protocol import Cancelled, Event, Job, WorkersFailed
from executors.slurm_files import Entry, EventLog, RoundFolder, RunFolder, read_events

__all__ = ["among", "held", "main", "without"]

_TERM_GRACE_S = 20.0
"""How long workers may go on after SIGTERM; SLURM kills after KillWait, 30 s at most sites."""

_EARLY_GRACE_S = 100.0
"""The same after the early signal, which comes two minutes before the walltime."""


@dataclass(frozen=True)
class _Batch:
    """The blocks of one task, as `BlockQueue` sees them; the job itself is loaded by the workers only."""

    key: str
    name: str
    ranges: tuple[range, ...]

    def pending(self) -> Iterator[range]:
        yield from self.ranges

    def describe(self, i: int) -> str:
        return f"block {i}"


class _Stop:
    """Whether this task should end: its time is over, SLURM said so, or the process that started it is gone."""

    def __init__(self, log: EventLog, seconds: float) -> None:
        self._log = log
        self._seconds = seconds
        self._end = float("inf")
        self._parent = os.getppid()
        self._stopping = False
        self._grace_s = float("inf")
        self._told_at = 0.0
        signal.signal(signal.SIGTERM, lambda *_: self._tell(_TERM_GRACE_S))
        signal.signal(signal.SIGUSR1, lambda *_: self._tell(_EARLY_GRACE_S))

    def start_clock(self) -> None:
        """Let the time of this task begin, unless it has: with its first block, however long the workers took to get there."""
        self._end = min(self._end, time.monotonic() + self._seconds)

    def _tell(self, grace_s: float) -> None:
        self._grace_s = min(self._grace_s, grace_s)
        self._told_at = self._told_at or time.monotonic()

    def __call__(self) -> bool:
        """Whether to stop. What is then at hand and does not get done costs its blocks no attempt."""
        if os.getppid() != self._parent:
            self._tell(0.0)
        if not self._stopping and (self._told_at or time.monotonic() > self._end):
            self._stopping = True
            self._log.append(Entry("stopping"))
        return self._stopping

    def grace_s(self) -> float:
        """Seconds that the blocks at hand may take."""
        self()
        return self._grace_s


def held(log: Path) -> tuple[dict[int, Entry], bool]:
    """Blocks that were started and not ended when a task ended, by the entry of their start, and whether it was told to end.

    Where it was not told, something killed it, and that may have been one of these blocks.
    """
    open_: dict[int, Entry] = {}
    told = False
    for entry, _ in read_events(log):
        if entry.kind == "started":
            open_[entry.block] = entry
        told = told or entry.kind == "stopping"
        if entry.kind in ("done", "failed", "lost"):
            open_.pop(entry.block, None)
    return open_, told


def _done(logs: Sequence[Path]) -> set[int]:
    return {entry.block for log in logs for entry, _ in read_events(log) if entry.kind == "done"}


def run_task(run: RunFolder, tag: str, task: int, restart: int) -> bool:
    """Run a batch; returns whether the workers could work.

    A task that SLURM requeued leaves out what it has done before.
    """
    round_: RoundFolder = run.round(tag)
    stage = run.about["stages"][int(tag.split("-")[0])]
    options = run.options.of_stage(stage["name"])
    attempts, seconds = round_.header()
    earlier = round_.event_logs(task)
    done = _done(earlier)
    for path in earlier:
        open_, told = held(path)
        if not told:
            attempts |= {block: entry.attempt for block, entry in open_.items()}
    batch = round_.batch(task)
    retry = {block: attempts[block] for block in among(batch, attempts.keys() - done)}
    job = cast("Job", _Batch(stage["key"], stage["name"], tuple(without(batch, done | retry.keys()))))
    node = os.environ.get("SLURMD_NODENAME", "this node")
    log = round_.new_event_log(task, restart)

    def note(event: Event) -> None:
        if event.block is not None:
            stop.start_clock()
            worker = f"{event.worker} of task {task} on {node}"
            record = pickle.dumps(event.record)
            log.append(
                Entry(event.kind, event.block, event.attempt, worker, event.message, event.seconds, record, event.peak_bytes)
            )

    stop = _Stop(log, seconds)
    blocks = BlockQueue(job, note, retry)
    try:
        devices = [f"cuda:{k}" for k in range(options.gpus)] or ["cpu"]
        with WorkerPool(options.cpus, stop.grace_s, devices) as pool:
            pool.run(blocks, stop, run.job_path(stage["key"]))
    except Cancelled:
        print(f"stopped after {blocks.n_done} of {blocks.total} blocks", file=sys.stderr)
    except WorkersFailed as error:
        log.append(Entry("fatal", message=str(error), worker=f"task {task} on {node}"))
        print(error, file=sys.stderr)
        return False
    finally:
        log.close()
    return True


def among(ranges: Iterable[range], blocks: Iterable[int]) -> Iterator[int]:
    """Yield those of some blocks that lie in ranges, in the order of these."""
    ordered = sorted(blocks)
    for r in ranges:
        yield from ordered[bisect_left(ordered, r.start) : bisect_left(ordered, r.stop)]


def without(ranges: Iterable[range], blocks: Iterable[int]) -> Iterator[range]:
    """Yield what remains of ranges when some blocks are taken out."""
    ordered = sorted(blocks)
    for r in ranges:
        start = r.start
        for block in ordered[bisect_left(ordered, r.start) : bisect_left(ordered, r.stop)]:
            if block > start:
                yield range(start, block)
            start = block + 1
        if start < r.stop:
            yield range(start, r.stop)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the batch of the array index that SLURM gives."""
    folder, tag = arguments or sys.argv[1:]
    run = RunFolder(folder)
    sys.path[:] = run.about["sys_path"]
    task = int(os.environ["SLURM_ARRAY_TASK_ID"])
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    sys.exit(0 if run_task(run, tag, task, restart) else 1)


if __name__ == "__main__":
    main()
