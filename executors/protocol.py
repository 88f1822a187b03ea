"""What a job offers and what an executor promises; the only thing the two sides share.

An executor runs numbered blocks of a job somewhere: in this process, in worker processes, on a cluster. It knows nothing
of arrays or expressions. A job knows nothing of processes or queues. Blocks are idempotent: running one twice, or in any
order, gives the same bytes, so an executor may retry, requeue and duplicate them freely.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

__all__ = [
    "MAX_ATTEMPTS",
    "BlockFailure",
    "BlockFailures",
    "Cancelled",
    "Event",
    "Executor",
    "Hints",
    "Job",
    "Resources",
    "WorkersFailed",
    "detached_runs",
    "job_file",
    "parse_bytes",
]

MAX_ATTEMPTS = 3
"""A block that failed this often is set aside; the other blocks go on."""


@dataclass(frozen=True)
class Resources:
    """What one block of a job needs while it runs.

    Attributes
    ----------
    memory_bytes : int
        Projected peak memory of a worker, interpreter included.
    gpu_bytes : int
        Projected peak memory on the device; 0 for a job that uses none.
    cpus : int
        Cores that one block can use.
    threads : int
        Blocks that one worker computes at the same time, each in a thread of its own.
    writes : int
        Blocks that one worker writes at the same time, behind those that it computes.
    seconds_per_block : float
        Estimated wall time of one block; 0 when nothing is known.
    """

    memory_bytes: int = 0
    gpu_bytes: int = 0
    cpus: int = 1
    threads: int = 1
    writes: int = 1
    seconds_per_block: float = 0.0


@runtime_checkable
class Job(Protocol):
    """An indexable range of independent blocks.

    A job travels to workers as a file (dill), so it holds no open handles; those are made in `setup`.

    Attributes
    ----------
    key : str
        Identity of the job: equal keys mean equal results. Safe as a file name.
    name : str
        What a reader sees in progress bars and logs.
    needs : tuple of str
        Keys of the jobs that must be complete before the first block of this one starts.
    n_blocks : int
        Blocks are numbered 0 to n_blocks - 1.
    resources : Resources
    folder : str
        A folder for job files and logs, on storage that all workers see. May not exist yet.
    """

    key: str
    name: str
    needs: tuple[str, ...]
    n_blocks: int
    resources: Resources
    folder: str

    def pending(self) -> Iterator[range]:
        """Ranges of blocks that the ledger does not record as done, in the order in which they should run.

        Asked when the job starts, and again at its end by executors whose workers are other machines; reads the ledger at
        that moment. Executors keep the ranges but never a list of blocks, so few long ranges are cheap however many blocks
        they hold.
        """
        ...

    def setup(self, device: str) -> None:
        """Prepare this process to run blocks on `device` ("cpu", "cuda:0"): open stores, load tables. Called once."""
        ...

    def read(self, i: int) -> Any:
        """Start to read what block `i` needs and return at once with whatever `compute` will wait for.

        Called while the block before it is still to be computed; at most one block ahead.
        """
        ...

    def compute(self, work: Any) -> Any:
        """Turn what `read` gave into what `write` takes; called from so many threads at once as `resources.threads` says."""
        ...

    def write(self, result: Any) -> Any:
        """Store a result durably, then append to the ledger. Returns a small picklable record.

        Called in a thread of its own, beside `compute` of later blocks; from `resources.writes` threads at once.
        """
        ...

    def close(self) -> None:
        """Release what `setup` opened in this process; called once, also after an error in `setup` itself."""
        ...

    def finish(self) -> None:
        """Complete the job once no block is pending; running it again changes nothing.

        Runs in the driver, after `close` or without any `setup` there, and not at all after `BlockFailures`.
        """
        ...

    def describe(self, i: int) -> str:
        """Where block `i` lies, and a one-line command that runs it alone; for error messages.

        The command is ``python -m executors.worker FILE i`` with `job_file` of this job.
        """
        ...


def job_file(job: Job) -> Path:
    """Where executors save a job: the file that workers load and that the command in `Job.describe` names."""
    return Path(job.folder) / f"{job.key}.job"


def detached_runs(folder: str | Path) -> list[Path]:
    """Folders of runs that go on without a driver, within a job's folder.

    An executor whose runs outlive the driver keeps such a folder for each, with a file ``state.json`` whose "phase" is "done",
    "failed" or "cancelled" once no job of the run is wanted any more.
    """
    found = []
    for path in sorted(Path(folder).glob("*/state.json")):
        if json.loads(path.read_text())["phase"] not in ("done", "failed", "cancelled"):
            found.append(path.parent)
    return found


@dataclass(frozen=True)
class Event:
    """Something that happened to a block or to a job.

    Attributes
    ----------
    kind : str
        "job_started" (`total` pending blocks), "started", "done", "failed" (one attempt, `message` holds the traceback),
        "lost" (the worker died while it held the block, `message` says how), "workers" (`message` says how many run and wait,
        where that changes), "job_done".
    job : str
        Key of the job.
    block : int or None
        None for events about the whole job.
    attempt : int
        1 for the first try; 0 for a block that was lost before it started.
    worker : str
        Name of the worker, for example "pid 4711".
    seconds : float
        Wall time that a "done" block took in its worker.
    record : object
        What `Job.write` returned, for "done".
    peak_bytes : int
        Peak resident memory of the worker so far, for "done", or since it took up the job where it can tell; 0 where unknown.
    """

    kind: Literal["job_started", "started", "done", "failed", "lost", "workers", "job_done"]
    job: str
    block: int | None = None
    attempt: int = 1
    worker: str = ""
    message: str = ""
    seconds: float = 0.0
    record: Any = None
    total: int = 0
    peak_bytes: int = 0


@dataclass(frozen=True)
class BlockFailure:
    """A block that was set aside after its last attempt.

    Attributes
    ----------
    where : str
        What `Job.describe` said of it.
    traceback : str
        Of the last attempt; for a worker that died, how it died.
    """

    job: str
    block: int
    attempts: int
    worker: str
    where: str
    traceback: str


class BlockFailures(Exception):
    """Blocks of a job failed for good. All other blocks of that job are done and recorded; later jobs did not start."""

    def __init__(self, failures: Sequence[BlockFailure], name: str, n_done: int = 0) -> None:
        self.failures = tuple(failures)
        self.name = name
        self.n_done = n_done
        super().__init__(self._text())

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.failures, self.name, self.n_done))

    def _text(self) -> str:
        n = len(self.failures)
        lines = [
            f"{n} block{'s' * (n != 1)} of {self.name!r} failed after {MAX_ATTEMPTS} attempts; {self.n_done} succeeded and "
            "are recorded. Mend the cause and run the same line again: only what is missing is computed."
        ]
        shown = self.failures[:5]
        for f in shown:
            lines += ["", f"block {f.block} ({f.worker}, attempt {f.attempts}): {f.where}"]
            lines += ["    " + line for line in f.traceback.rstrip().splitlines()]
        if n > len(shown):
            lines += ["", f"and {n - len(shown)} more: blocks {', '.join(str(f.block) for f in self.failures[5:55])}"]
        return "\n".join(lines)


class WorkersFailed(Exception):
    """Workers could not prepare a job, or died one after another without completing a block; says how they died."""


class Cancelled(Exception):
    """The run was stopped on request; what is recorded stays, and the same line continues it."""


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_bytes(size: int | str) -> int:
    """Bytes of a size given as a number of bytes or as text.

    Parameters
    ----------
    size : int or str
        ``4_000_000_000``, ``"4GB"`` (powers of 1000) or ``"500 MiB"`` (powers of 1024).

    Raises
    ------
    ValueError
        The text is not a number with one of these units, or the size is below one byte.

    Examples
    --------
    >>> parse_bytes("4GB"), parse_bytes("1.5 MiB"), parse_bytes(10)
    (4000000000, 1572864, 10)
    """
    match = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?I?)B?\s*", str(size).upper())
    try:
        n = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    except (KeyError, ValueError):
        n = 0
    if n < 1:
        raise ValueError(f"memory={size!r} is no size of at least one byte; give bytes, or text such as '4GB' or '500 MiB'")
    return n


@dataclass(frozen=True)
class Hints:
    """What an executor tells the planner.

    Attributes
    ----------
    workers : int
        Processes that run blocks at the same time.
    block : tuple of int or None
        Execution block in voxels of the space axes that the user asked for; rounded up to whole write units.
    memory_bytes : int or None
        Memory that one worker may use; None lets the planner divide what the machine allows.
    threads : int
        Blocks that one worker may compute at the same time, where what they run allows it.
    """

    workers: int = 1
    block: tuple[int, ...] | None = None
    memory_bytes: int | None = None
    threads: int = 1

    @classmethod
    def of(cls, workers: int, block: Sequence[int] | None = None, memory: int | str | None = None, threads: int = 1) -> Hints:
        """Hints from what a user gives to an executor; `memory` as `parse_bytes` takes it.

        Raises
        ------
        ValueError
            Workers or a block side below 1, or a size that cannot be read.
        """
        if workers < 1:
            raise ValueError(f"n={workers} workers can run nothing; give 1 or more, or None for the CPUs of this process")
        if block is not None and (not block or min(block) < 1):
            raise ValueError(f"block={tuple(block)} has no voxels; give one side of 1 or more for each space axis")
        if threads < 1:
            raise ValueError(f"threads={threads} compute nothing; give 1 or more, or None for the CPUs of this process")
        sides = None if block is None else tuple(int(side) for side in block)
        return cls(workers, sides, None if memory is None else parse_bytes(memory), threads)


class Executor(Protocol):
    """Runs jobs.

    Attributes
    ----------
    hints : Hints
    in_process : bool
        Blocks run in the calling process, so results may be handed over in memory.
    """

    hints: Hints
    in_process: bool

    def run(
        self,
        jobs: Sequence[Job],
        on_event: Callable[[Event], None] = ...,
        should_stop: Callable[[], bool] = ...,
    ) -> None:
        """Run every pending block of every job; return when all are done and finished.

        Jobs run in the order given, which must respect `needs`. A block gets `MAX_ATTEMPTS` attempts; then it is set
        aside, the others go on, and at the end of its job `BlockFailures` is raised and no later job starts.
        KeyboardInterrupt, and `should_stop()` turning true (`Cancelled`), leave a state that a second call continues;
        no process that the executor started outlives the call, unless the executor keeps workers on request.
        """
        ...
