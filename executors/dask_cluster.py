"""Run blocks on a Dask cluster: a local one, or one that dask-jobqueue, Kubernetes or a cloud started.

Blocks travel in batches, a few batches at a time, so that the scheduler never sees more than it can hold. A batch notes its
steps in a file, its *journal*, beside the job, which the driver reads when the task has ended. When a worker dies, Dask runs the
task again elsewhere; that finds the journal of its forerunner and leaves it to the driver to judge what killed the worker.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import re
import shutil
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from traceback import format_exc, format_tb
from typing import Any

try:
    from distributed import Client, KilledWorker, Worker, get_worker
    from distributed.comm.core import CommClosedError
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("executors.Dask needs Dask's scheduler; pip install 'volara_expr[dask]'") from error

from executors.bookkeeping import BlockQueue, check_order, ignore, never
from executors.protocol import Cancelled, Event, Hints, Job, WorkersFailed, job_file
from executors.worker import load_job, run_blocks, save_job

__all__ = ["Dask"]

logger = logging.getLogger("volara_expr")

_DEATH = (
    "the Dask worker was killed or left the cluster, or its task was cancelled; the worker's log says why. The usual reason is "
    "memory: see what the plan projects, and give workers more, or Dask(memory=...) less"
)

_AHEAD = 2
"""Batches in the scheduler per thread of the cluster: one runs, one waits."""

_MAX_BATCH = 500
"""Blocks in a batch at most, so that what a batch reports stays small."""

_KEPT_JOURNALS = 1000
"""A worker that dies takes results along; Dask may run such a task again, until it hears that they were booked."""

_TICK_S = 0.1
"""How often `should_stop` is asked."""

_LOOK_S = 5.0
"""How often the cluster is asked for its size."""

_IDLE_S = 60.0
"""A run in which nothing happens for so long looks for the reason."""

_GRACE_S = 5.0
"""How long workers may go on with the block at hand once the run stops."""

_MAX_EARLY_DEATHS = 3
"""So many workers may fail to prepare a job, no block completed between, before the run stops."""

_MAX_DEATHS = 20
"""So many workers may die in a row, no block completed between, before the run stops."""

_MAX_ROUNDS = 3
"""So often blocks that were done, but whose records went down with a machine, are run again."""

_SETTLE_S = 0.5
"""Age of a worker at its first batch: a nanny loses track of a worker that dies while it still registers."""

_MEMORY_FRACTION = 0.7
"""Share of a worker's memory limit that blocks may use; Dask itself pauses workers at 0.8 and kills them at 0.95."""


class Dask:
    """Runs blocks on a Dask cluster (``pip install volara_expr[dask]``).

    Outputs and their workspace must lie on storage that all workers and this process see. Workers need the same packages. Best
    give each worker process one thread. The cluster may grow and shrink while a run goes on, and outlives it.

    Parameters
    ----------
    client : distributed.Client or str, optional
        A client, or the address of a scheduler; the current client where not given.
    block : sequence of int, optional
        Execution block in voxels of the space axes; chosen by the planner where not given. Never changes a result.
    memory : int or str, optional
        Memory that *one* thread of a worker may use: bytes, or text such as "4GB". By default 70 % of the workers' limits.
    workers : int, optional
        Threads to plan for, where the cluster is yet to grow; by default those that it has now.
    resources : mapping, optional
        Dask resources that each batch takes, such as ``{"GPU": 1}``.
    device : str, optional
        What blocks run on, "cpu" or "cuda:0"; by default "cuda:0" for a batch that takes the resource "GPU".
    batch_seconds : float
        Work to put into one task; blocks of longer than that run one to a task.

    Raises
    ------
    ValueError
        There is no client, or the client is asynchronous.
    """

    in_process = False

    def __init__(
        self,
        client: Client | str | None = None,
        block: Sequence[int] | None = None,
        memory: int | str | None = None,
        workers: int | None = None,
        resources: Mapping[str, float] | None = None,
        device: str | None = None,
        batch_seconds: float = 10.0,
    ) -> None:
        if client is None:
            try:
                client = Client.current()
            except ValueError as error:
                raise ValueError("there is no Dask client; give Dask(...) a client or the address of a scheduler") from error
        self.client: Any = Client(client, set_as_default=False) if isinstance(client, str) else client
        if self.client.asynchronous:
            raise ValueError("Dask(...) needs a client that waits; make it with asynchronous=False, in a thread of its own")
        self.resources = dict(resources or {})
        self.device = device or ("cuda:0" if "GPU" in self.resources else "cpu")
        self.batch_seconds = batch_seconds
        infos = self.client.scheduler_info()["workers"].values()
        limits = [int(_MEMORY_FRACTION * w["memory_limit"] / w["nthreads"]) for w in infos if w["memory_limit"]]
        self.hints = Hints.of(workers or n_threads(self.client), block, memory or min(limits, default=None))

    def __repr__(self) -> str:
        return f"Dask({self.client.scheduler.address!r}, workers={self.hints.workers}, block={self.hints.block})"

    def run(
        self,
        jobs: Sequence[Job],
        on_event: Callable[[Event], None] = ignore,
        should_stop: Callable[[], bool] = never,
    ) -> None:
        """Run every pending block of every job, as `executors.protocol.Executor.run` promises.

        Raises
        ------
        BlockFailures
            Blocks failed, or killed their worker, `MAX_ATTEMPTS` times.
        WorkersFailed
            Workers could not prepare a job, or died one after another without completing a block.
        Cancelled
            `should_stop` returned True.
        ValueError
            A job comes before one that it needs.
        """
        check_order(jobs)
        for job in jobs:
            if should_stop():
                raise Cancelled(f"stopped before {job.name!r}")
            blocks = BlockQueue(job, on_event)
            for _ in range(_MAX_ROUNDS):
                if not blocks.n_unfinished:
                    break
                save_job(job, job_file(job))
                _Run(self, blocks, should_stop).run()
                blocks.recheck()
            blocks.finish()


def n_threads(client: Any) -> int:
    """Threads of all workers that the cluster has now, at least 1."""
    return max(1, sum(map(int, client.nthreads().values())))


@dataclass
class _Report:
    """What became of a batch."""

    worker: str = "Dask"
    ready: bool | None = None
    """The job was set up; None where the batch had not begun."""
    events: list[Event] = field(default_factory=list)
    death: str = _DEATH
    """Why blocks are unfinished, if some are."""


class _Run:
    """One job's blocks on their way through the cluster."""

    def __init__(self, executor: Dask, blocks: BlockQueue, should_stop: Callable[[], bool]) -> None:
        self._executor = executor
        self._client = executor.client
        self._blocks = blocks
        self._should_stop = should_stop
        name = uuid.uuid4().hex[:8]
        self._path = job_file(blocks.job)
        self._folder = self._path.with_suffix(f".{name}.dask")
        self._key = re.sub(r"\W+", "_", blocks.job.name) + f"-{name}"
        self._flying: dict[int, tuple[list[int], Any]] = {}
        self._ended: deque[int] = deque()
        self._wake = threading.Event()
        self._booked: deque[Path] = deque()  # journals
        self._n_batches = 0
        self._slots = n_threads(self._client)
        self._seconds = blocks.job.resources.seconds_per_block
        self._deaths: list[str] = []  # since a block was last completed
        self._early_deaths = 0

    def run(self) -> None:
        """Run blocks until none is unfinished."""
        look = quiet = time.monotonic()
        with self._ending():
            while self._blocks.n_unfinished:
                self._submit()
                if self._book(self._wait()):
                    quiet = time.monotonic()
                if self._should_stop():
                    done, total = self._blocks.n_done, self._blocks.total
                    raise Cancelled(f"stopped after {done} of {total} blocks of {self._blocks.job.name!r}")
                if self._client.status == "closed":
                    raise WorkersFailed(
                        f"the Dask scheduler is gone; {self._blocks.n_done} blocks are recorded, run the same line again"
                    )
                if time.monotonic() - look > _LOOK_S and self._client.status == "running":
                    look, self._slots = time.monotonic(), n_threads(self._client)
                if time.monotonic() - quiet > _IDLE_S and self._client.status == "running":
                    quiet = time.monotonic()
                    self._look_for_workers()

    def _submit(self) -> None:
        """Keep as many batches in the scheduler as the cluster can soon run."""
        while len(self._flying) < _AHEAD * self._slots and (batch := self._next_batch()):
            number = self._n_batches
            self._n_batches += 1
            arguments = (str(self._path), str(self._folder / str(number)), batch, self._executor.device)
            resources = self._executor.resources or None
            future = self._client.submit(run_batch, *arguments, key=f"{self._key}-{number}", resources=resources, pure=False)
            self._flying[number] = batch, future
            future.add_done_callback(lambda _, number=number: self._end(number))

    def _next_batch(self) -> list[int]:
        blocks = self._blocks
        share = -(-blocks.n_fresh // (_AHEAD * self._slots))
        size = int(self._executor.batch_seconds / self._seconds) if self._seconds else 1
        batch = [b for _ in range(max(1, min(size, share, _MAX_BATCH))) if (b := blocks.take()) is not None]
        if not batch and (block := blocks.take_retry()) is not None:
            return [block]  # alone, since no fresh block is left
        return batch

    def _wait(self) -> list[int]:
        """Wait a moment for batches that ended."""
        self._wake.wait(_TICK_S)
        self._wake.clear()
        return [self._ended.popleft() for _ in range(len(self._ended))]

    def _end(self, number: int) -> None:
        self._ended.append(number)
        self._wake.set()

    def _book(self, numbers: Sequence[int]) -> bool:
        """Book what became of batches; False where there are none."""
        for number in numbers:
            batch, future = self._flying.pop(number)
            report = read_journal(self._folder / str(number))
            error = future.exception() if future.status == "error" else None
            if error is not None and not isinstance(error, KilledWorker):
                report.ready = False
                trace = "".join(format_tb(future.traceback()))
                report.death = f"a worker could not run {self._blocks.job.name!r}: {error!r}\n{trace}"
            future.release()
            self._book_report(report, batch)
            self._booked.append(self._folder / str(number))
            if len(self._booked) > _KEPT_JOURNALS:
                self._booked.popleft().unlink(missing_ok=True)
        return bool(numbers)

    def _book_report(self, report: _Report, batch: Sequence[int]) -> None:
        started = dict.fromkeys(batch, False)
        for event in report.events:
            block = self._blocks.update(event, report.worker)
            if event.kind == "started":
                started[block] = True
                continue
            del started[block]
            if event.kind == "done":
                self._deaths.clear()
                self._early_deaths = 0
                self._seconds += (event.seconds - self._seconds) * (0.1 if self._seconds else 1.0)
        if not started:
            return
        self._deaths.append(report.death)
        self._early_deaths += report.ready is False
        if report.ready and not any(started.values()):
            first = next(iter(started))  # the worker died while it read this
            started[first] = True
            self._blocks.update(Event("started", self._blocks.job.key, first), report.worker)
        for block, was_started in started.items():
            self._blocks.lost(block, report.worker, report.death, was_started)
        if self._early_deaths >= _MAX_EARLY_DEATHS or len(self._deaths) >= _MAX_DEATHS:
            raise WorkersFailed(
                f"{len(self._deaths)} batches of {self._blocks.job.name!r} were lost, no block completed between "
                f"({self._blocks.n_done} of {self._blocks.total} blocks are recorded). Serial() runs it in this process, under a "
                f"debugger if need be. The last loss: {report.death}"
            )

    def _look_for_workers(self) -> None:
        """Say that nothing happens, where no worker has anything to do."""
        tasks_of_workers = self._client.processing()
        if not any(tasks_of_workers.values()):
            needed = f" that offers {self._executor.resources}" if self._executor.resources else ""
            last = f". The last loss: {self._deaths[-1]}" if self._deaths else ""
            n = len(tasks_of_workers)
            logger.warning("%s waits for a Dask worker%s; the cluster has %d%s", self._blocks.job.name, needed, n, last)

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """However the block ends, leave no batch running and no job open on the cluster, and no journal behind."""
        self._folder.mkdir(parents=True)
        try:
            try:
                yield
            except BaseException:
                if self._client.status == "running":
                    self._client.cancel([future for _, future in self._flying.values()], force=True)
                    self._close()
                raise
            self._close()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _close(self) -> None:
        for answer in self._client.run(close_jobs, str(self._folder), _GRACE_S, on_error="return").values():
            if isinstance(answer, Exception) and not isinstance(answer, CommClosedError):
                raise answer


# --- in the workers ------------------------------------------------------------------------------------------------------

_born = time.monotonic()
_lock = threading.Lock()
_open: dict[str, list[Job]] = {}  # jobs that are set up and wait for their next batch, by folder of journals
_running: Counter[str] = Counter()  # batches, by folder of journals


def run_batch(path: str, journal_path: str, blocks: list[int], device: str) -> None:
    """Run blocks of the job in the file `path`; what a task does. Raises what loading the job and `Job.setup` raise."""
    time.sleep(max(0.0, _born + _SETTLE_S - time.monotonic()))
    worker = get_worker()
    key = worker.get_current_task()
    folder = os.path.dirname(journal_path)
    try:
        journal = open(journal_path, "xb", buffering=0)  # noqa: SIM115
    except FileExistsError:
        return  # another worker ran this and died; the driver reads in the journal how far it came
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"Dask worker {worker.address} does not see {folder}; outputs must lie on storage that all workers and the driver share"
        ) from error

    def emit(event: Event) -> None:
        try:
            data = pickle.dumps(event)
        except Exception:
            message = f"Job.write returned a record that cannot be pickled; return plain values\n{format_exc()}"
            data = pickle.dumps(Event("failed", event.job, event.block, message=message))
        journal.write(data)

    with journal:
        journal.write(pickle.dumps(f"{worker.address} pid {os.getpid()}"))
        with _lock:
            _running[folder] += 1
        try:
            job = take_job(path, folder, device)
            journal.write(pickle.dumps(True))
            try:
                run_blocks(job, until_cancelled(blocks, worker, key), emit)
            except BaseException:
                job.close()
                raise
            with _lock:
                _open.setdefault(folder, []).append(job)  # for the next batch
        finally:
            with _lock:
                _running[folder] -= 1


def read_journal(path: Path) -> _Report:
    """Read what a batch has noted; nothing where it did not begin, and no half of a note."""
    report = _Report()
    with suppress(EOFError, pickle.UnpicklingError, FileNotFoundError), open(path, "rb") as journal:
        report.worker = pickle.load(journal)
        report.ready = False
        report.ready = pickle.load(journal)
        while True:
            report.events.append(pickle.load(journal))
    return report


def until_cancelled(blocks: Sequence[int], worker: Worker, key: Any) -> Iterator[int]:
    """Yield blocks until the task is cancelled, or its client is gone, which cancels it too."""
    for block in blocks:
        task = worker.state.tasks.get(key)
        if task is None or task.state == "cancelled":
            raise Cancelled("the run has stopped")
        yield block


def take_job(path: str, folder: str, device: str) -> Job:
    """Return a job that is set up and that no other thread uses."""
    with _lock:
        if _open.get(folder):
            return _open[folder].pop()
        others = [job for name in list(_open) if name != folder for job in _open.pop(name)]
    for other in others:  # of a run whose driver was killed
        other.close()
    job = load_job(Path(path))
    try:
        job.setup(device)
    except BaseException:
        job.close()
        raise
    return job


async def close_jobs(folder: str, grace_s: float) -> None:
    """Close what a run holds open in this worker, once its batches have ended."""
    deadline = time.monotonic() + grace_s
    while _running[folder] and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    for job in _open.pop(folder, []):
        await asyncio.to_thread(job.close)
