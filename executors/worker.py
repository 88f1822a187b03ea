"""What runs blocks: the loop that overlaps reading, computing and writing, and the body of a worker process.

``python -m executors.worker JOB_FILE BLOCK...`` runs single blocks in the foreground, with the full traceback: the one-line
reproducer of a block that failed.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import os
import pickle
import queue
import resource
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import dill

from executors.protocol import Event, Job

__all__ = ["load_job", "main", "peak_rss_bytes", "run_blocks", "save_job", "serve"]


def save_job(job: Job, path: Path) -> None:
    """Write a job to a file with all that it refers to in the user's script, lambdas and closures included.

    The file appears whole or not at all. Its folder is made where it is missing.

    Raises
    ------
    TypeError
        The job refers to something that cannot be pickled; the cause says what.
    """
    try:
        data = dill.dumps(job, recurse=True)
    except Exception as error:
        raise TypeError(
            f"job {job.name!r} cannot go to another process: {error}. Make what it refers to inside the function that uses it "
            "(open files, locks, connections), or run it with Serial()"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def load_job(path: Path) -> Job:
    """Read a job that `save_job` wrote. Unpickling runs code: load only files that you trust."""
    job: Job = dill.loads(Path(path).read_bytes())
    return job


def peak_rss_bytes() -> int:
    """Peak resident memory of this process, in bytes.

    Linux hands ``ru_maxrss`` of a parent down to the programs that it starts, so a small worker of a large driver would report
    the driver's peak; ``VmHWM`` is the process's own.
    """
    try:
        status = Path("/proc/self/status").read_bytes()
        return int(status.split(b"VmHWM:", 1)[1].split(maxsplit=1)[0]) * 1024
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _forget_peak() -> None:
    """Let `peak_rss_bytes` count from now on, where the kernel can: another run's peak is not this one's."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _give_back_memory() -> None:
    """Let glibc return what it keeps: the next job may take its memory from elsewhere, as DuckDB does."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class _Peak:
    """Peak memory for events of blocks, looked up only so often: it costs as much as a small block."""

    EVERY_S = 0.02

    def __init__(self) -> None:
        self._looked, self._bytes = float("-inf"), 0

    def now(self) -> int:
        """Return the peak, at most `EVERY_S` old."""
        now = time.monotonic()
        if now - self._looked >= self.EVERY_S:
            self._looked, self._bytes = now, peak_rss_bytes()
        return self._bytes


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Of mallopt(3)."""


@cache
def keep_freed_memory() -> None:
    """Let glibc keep the memory of a block for the next one; else the kernel clears the same pages again for every block.

    All threads share what is kept: with a heap of its own, each thread that decodes would keep as much. A thread that has a
    heap already goes on with it, so a process that runs blocks only calls this first of all.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and sys.platform == "linux":
        for option, size in ((M_ARENA_MAX, 1), (M_TRIM_THRESHOLD, 128 << 20), (M_MMAP_THRESHOLD, 32 << 20)):
            mallopt(option, size)


@dataclass
class _Read:
    """A block whose read has begun, or failed to begin with a traceback."""

    block: int
    work: Any = None
    error: str = ""


def run_blocks(job: Job, blocks: Iterable[int | None], emit: Callable[[Event], None]) -> None:
    """Run blocks of a job that is set up, overlapping the read of the next and the writes of those before.

    An exception of a block ends in a "failed" event with the traceback; the other blocks go on. A job whose
    `resources.threads` is 1 computes in the calling thread, any other in so many threads.

    Parameters
    ----------
    job : Job
    blocks : iterable of int or None
        Asked, in the calling thread, for one block more before each is computed. None means "no further block at this
        moment": all that is at hand is then completed before `blocks` is asked again, so that it may wait, or end, then. An
        exception that it raises passes through, after what is being computed and written; blocks that were not yet computed
        are dropped.
    emit : callable
        Receives the events "started", "done" and "failed" of every block, without worker and attempt. Called from several
        threads.
    """
    keep_freed_memory()
    threads = job.resources.threads
    room = threading.Semaphore(job.resources.writes)  # as many computed blocks may be in the writer's hands
    peak = _Peak()
    computing: set[Future[None]] = set()
    writing: deque[Future[None]] = deque()

    def run(read: _Read) -> None:
        started = time.perf_counter()
        result = _compute(job, read, emit)
        if result is not None:
            room.acquire()
            writing.append(writer.submit(write, read.block, result, started))

    def write(block: int, result: list[Any], started: float) -> None:
        try:
            record = job.write(result.pop())
        except Exception:
            emit(Event("failed", job.key, block, message=traceback.format_exc()))
        else:
            seconds = time.perf_counter() - started
            emit(Event("done", job.key, block, seconds=seconds, record=record, peak_bytes=peak.now()))
        finally:
            room.release()

    with ThreadPoolExecutor(job.resources.writes, "write") as writer, ThreadPoolExecutor(threads, "compute") as pool:
        waiting: _Read | None = None
        source = iter(blocks)
        more = True
        while more:
            try:
                block = next(source)
            except StopIteration:
                block, more = None, False
            ahead = None if block is None else _begin(job, block)
            if waiting is not None and threads == 1:
                run(waiting)
            elif waiting is not None:
                computing.add(pool.submit(run, waiting))
            while computing and (block is None or len(computing) == threads):
                done, computing = wait(computing, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
            while writing and (block is None or writing[0].done()):
                writing.popleft().result()
            waiting = ahead


def _begin(job: Job, block: int) -> _Read:
    try:
        return _Read(block, job.read(block))
    except Exception:
        return _Read(block, error=traceback.format_exc())


def _compute(job: Job, read: _Read, emit: Callable[[Event], None]) -> list[Any] | None:
    """Compute a block; its result in a list, to be emptied by who writes it, or None if it failed."""
    emit(Event("started", job.key, read.block))
    error = read.error
    if not error:
        work, read.work = read.work, None  # so that `compute` may free what it read
        try:
            return [job.compute(work)]
        except Exception:
            error = traceback.format_exc()
    emit(Event("failed", job.key, read.block, message=error))
    return None


class _Stopped(Exception):
    """The driver wants no more blocks."""


class _Inbox:
    """Messages of the driver: the path of a job, a list of its blocks, an empty path at the end of a run, or None to stop.

    A thread receives them, so that a stop overtakes blocks that wait, and a driver that vanished ends this process at once.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stopped = False
        self.job_path = ""
        threading.Thread(target=self._receive, daemon=True).start()

    def _receive(self) -> None:
        try:
            while True:
                message = pickle.loads(self._connection.recv_bytes())
                self._stopped = message is None
                for item in message if isinstance(message, list) else [message]:
                    self._items.put(item)
        except (EOFError, OSError):
            os._exit(1)

    def _get(self, wait: bool) -> Any:
        item = self._items.get(wait)
        if self._stopped:
            raise _Stopped
        return item

    def wait_for_job(self) -> None:
        """Wait until `job_path` is known."""
        while not self.job_path:
            self.job_path = self._get(wait=True)

    def blocks(self) -> Iterator[int | None]:
        """Blocks of the present job, as `run_blocks` wants them; ends when the path of the next job has come, or an empty one."""
        while True:
            try:
                item = self._get(wait=False)
            except queue.Empty:
                yield None
                item = self._get(wait=True)
            if isinstance(item, str):
                self.job_path = item
                return
            yield item


def serve(connection: Any, output: Any, driver_pid: int, single_threaded: bool, device: str = "cpu") -> None:
    """Run as a worker process until the driver says stop or is gone.

    It takes what `_Inbox` describes, and sends the path of a job that is set up, then an `Event` of each step of its blocks, and
    an empty path once it has closed the last job of a run.

    Parameters
    ----------
    connection : multiprocess.connection.Connection
        Both ways, to the driver.
    output : multiprocess.connection.Connection
        Takes what this process prints, stdout and stderr alike.
    driver_pid : int
    single_threaded : bool
        Keep libraries from starting threads of their own, because each CPU has its worker.
    device : str
        What `Job.setup` is given.
    """
    _die_with(driver_pid)
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver decides when workers stop
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(
        signal.SIGTERM, lambda *_: None
    )  # so does a batch system's; a handler, for a block's own children to have none
    for fd in (1, 2):
        os.dup2(output.fileno(), fd)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    faulthandler.enable()
    if single_threaded:
        for library in ("OMP", "MKL", "OPENBLAS", "NUMBA", "VECLIB"):
            os.environ[f"{library}_NUM_THREADS"] = "1"

    sending = threading.Lock()

    def emit(event: Event) -> None:
        try:
            data = pickle.dumps(event)
        except Exception:
            message = f"Job.write returned a record that cannot be pickled; return plain values\n{traceback.format_exc()}"
            data = pickle.dumps(replace(event, kind="failed", record=None, message=message))
        with sending:
            connection.send_bytes(data)

    inbox = _Inbox(connection)
    try:
        while True:
            inbox.wait_for_job()
            _forget_peak()
            job = load_job(Path(inbox.job_path))
            with closing(job):
                job.setup(device)
                connection.send_bytes(pickle.dumps(inbox.job_path))
                run_blocks(job, inbox.blocks(), emit)
            _give_back_memory()
            if not inbox.job_path:
                connection.send_bytes(pickle.dumps(""))
    except _Stopped:
        return


def _die_with(driver_pid: int) -> None:
    """Let the kernel kill this process when its driver ends, however that ends (Linux; elsewhere `_Inbox` notices)."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != driver_pid:
        os._exit(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run single blocks of a job file in this process and print what each recorded; exceptions pass through."""
    parser = argparse.ArgumentParser(prog="python -m executors.worker", description=main.__doc__)
    parser.add_argument("job_file", type=Path)
    parser.add_argument("blocks", type=int, nargs="+", metavar="block")
    parser.add_argument("--device", default="cpu", help='"cpu" (default) or "cuda:0"')
    given = parser.parse_args(arguments)
    with closing(load_job(given.job_file)) as job:
        job.setup(given.device)
        for block in given.blocks:
            print(f"block {block}: {job.write(job.compute(job.read(block)))}")


if __name__ == "__main__":
    main()
