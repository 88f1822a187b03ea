"""Run blocks in worker processes of this machine."""

from __future__ import annotations

import codecs
import os
import pickle
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import multiprocess
from multiprocess.connection import wait
from multiprocess.resource_tracker import ensure_running

from executors.bookkeeping import BlockQueue, available_cpus, check_order, ignore, never
from executors.protocol import Cancelled, Event, Hints, Job, WorkersFailed, job_file
from executors.worker import save_job, serve

__all__ = ["Multiprocessing", "WorkerPool"]

_AHEAD = 3
"""Blocks that a worker needs: one being written, one computed, one read."""

_RUN = 8
"""Blocks that it is given at once while there are many: neighbours, so that it has read a part of each before."""

_TICK_S = 0.1
"""How often `should_stop`, Ctrl-C and silent deaths are looked for."""

_GRACE_S = 5.0
"""How long workers may go on with the block at hand once the run stops."""

_MAX_EARLY_DEATHS = 3
"""So many workers may die while they prepare a job before no more are started."""

_MAX_DEATHS = 20
"""So many workers may die in a row, no block completed between, before no more are started."""

_TAIL_CHARACTERS = 3000


class Multiprocessing:
    """Runs blocks in worker processes of this machine.

    Workers are spawned, never forked, and live through all jobs of one run. Scripts need no ``__main__`` guard. What workers
    print appears on this process's stderr. POSIX only.

    A new worker imports what it needs, which takes most of a second. Within ``with`` workers are kept from run to run; they
    keep the modules that they imported, too, so leave the block after editing one::

        with Multiprocessing(4) as executor:
            smooth.write("out.zarr/smooth", executor=executor)
            labels.write("out.zarr/labels", executor=executor)

    A run that fails or is stopped ends its workers; the next one starts others. Of runs at the same time one has the kept
    workers.

    Parameters
    ----------
    n : int, optional
        Workers; as many as `available_cpus` counts where not given. With more than one, the numeric libraries in each are
        kept to one thread.
    block : sequence of int, optional
        Execution block in voxels of the space axes; chosen by the planner where not given. Never changes a result.
    memory : int or str, optional
        Memory that *one* worker may use: bytes, or text such as "4GB" or "500 MiB".

    Examples
    --------
    >>> Multiprocessing(4, memory="500 MiB").hints
    Hints(workers=4, block=None, memory_bytes=524288000, threads=1)
    """

    in_process = False

    def __init__(self, n: int | None = None, block: Sequence[int] | None = None, memory: int | str | None = None) -> None:
        self.hints = Hints.of(available_cpus() if n is None else n, block, memory)
        self._kept: WorkerPool | None = None

    def __enter__(self) -> Multiprocessing:
        if self._kept is not None:
            raise RuntimeError(f"the workers of {self!r} are kept already; give the inner block an executor of its own")
        self._kept = WorkerPool(self.hints.workers)
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for a run that has the workers, in another thread, and end them."""
        kept, self._kept = self._kept, None
        assert kept is not None
        with kept.in_use:
            kept.close()

    def __repr__(self) -> str:
        return f"Multiprocessing({self.hints.workers}, block={self.hints.block}, memory={self.hints.memory_bytes})"

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
        with self._pool() as pool:
            for job in jobs:
                blocks = BlockQueue(job, on_event)
                pool.run(blocks, should_stop)
                blocks.finish()

    @contextmanager
    def _pool(self) -> Iterator[WorkerPool]:
        """Workers for one run: those that are kept, or else new ones."""
        kept = self._kept
        if kept is None or not kept.in_use.acquire(blocking=False):
            with WorkerPool(self.hints.workers) as pool:
                yield pool
            return
        try:
            yield kept
            kept.rest()
        except BaseException:
            kept.dismiss()
            raise
        finally:
            kept.in_use.release()


@dataclass
class _Worker:
    """A worker process as the driver sees it."""

    process: Any
    connection: Any
    output: Any
    name: str
    device: str
    held: dict[int, bool] = field(default_factory=dict)
    """Blocks in the order in which they were given, and whether each was started."""
    job: str | None = None
    """Path of the job that it has set up, empty once it has closed the last one of a run; None before the first."""
    tail: str = ""
    """The end of what it printed."""
    decoder: Any = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def send(self, message: str | list[int] | None) -> None:
        with suppress(OSError):  # it died; the other end of the pipe says so when it is read
            self.connection.send_bytes(pickle.dumps(message))

    def forward_output(self) -> bool:
        """Wait for something that it printed and pass it on; False at the end."""
        data = os.read(self.output.fileno(), 1 << 16)
        text = self.decoder.decode(data)
        self.tail = (self.tail + text)[-_TAIL_CHARACTERS:]
        sys.stderr.write(text)
        return bool(data)

    def bury(self) -> str:
        """End the process if it still runs, release it, and say how it ended."""
        self.process.join(1)
        self.process.kill()
        self.process.join()
        while self.output.poll() and self.forward_output():
            pass
        code = self.process.exitcode
        for resource in (self.connection, self.output, self.process):
            resource.close()
        how = f"exited with code {code}"
        if code < 0:
            how = f"was killed by signal {-code} ({signal.strsignal(-code)})"
        if code == -signal.SIGKILL:
            how += "; the kernel does that to processes beyond the memory limit"
        return f"worker {self.name} {how}" + (f". It had printed:\n{self.tail}" if self.tail else "")


class WorkerPool:
    """Worker processes, started when there are blocks for them; leaving the context ends them all.

    Parameters
    ----------
    n : int
        Workers at most.
    grace_s : callable, optional
        Seconds that workers may go on with the block at hand once the run stops; asked again while they do.
    devices : sequence of str
        What `Job.setup` is given; shared evenly among the workers.

    Attributes
    ----------
    in_use : threading.Lock
        For those who share a pool: held by the one whose run it serves.
    """

    def __init__(
        self,
        n: int,
        grace_s: Callable[[], float] = lambda: _GRACE_S,
        devices: Sequence[str] = ("cpu",),
    ) -> None:
        self.in_use = threading.Lock()
        self._n = n
        self._grace_s = grace_s
        self._devices = devices
        self._workers: list[_Worker] = []
        self._deaths: list[str] = []  # since a block was last completed
        self._early_deaths = 0  # those of them in which a job was being prepared
        self._next_tick = 0.0
        self._between_runs = True
        self._starter = ThreadPoolExecutor(1, "start workers")  # Linux kills workers when the thread that started them ends

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all workers, for good."""
        self.dismiss()
        self._starter.shutdown()

    def dismiss(self) -> None:
        """End all workers; a further run starts others."""
        try:
            self._tell(None)
        finally:
            while self._workers:
                worker = self._workers.pop()
                worker.process.kill()
                worker.bury()
        self._deaths, self._early_deaths = [], 0

    def rest(self) -> None:
        """Let workers close the last job, and wait until they have: then nothing of the run is open, and they wait for another."""
        self._tell("")

    def _tell(self, message: str | None) -> None:
        """Send a message that ends the run and wait, for as long as `grace_s` says, until all workers are idle or gone."""
        self._between_runs = True
        began = time.monotonic()
        for worker in self._workers:
            worker.send(message)
        while any(message is None or w.job != message for w in self._workers) and time.monotonic() - began < self._grace_s():
            self._listen()

    def run(self, blocks: BlockQueue, should_stop: Callable[[], bool], path: Path | None = None) -> None:
        """Run a job's blocks until none is unfinished.

        Parameters
        ----------
        blocks : BlockQueue
        should_stop : callable
        path : Path, optional
            Where the job is saved already; by default it is saved as `job_file`.
        """
        self._blocks = blocks
        if should_stop():
            raise Cancelled(f"stopped before {blocks.job.name!r}")
        if not blocks.n_unfinished:
            return
        self._path = path or job_file(blocks.job)
        if path is None:
            save_job(blocks.job, self._path)
        for worker in list(self._workers):
            if self._between_runs and worker.process.exitcode is not None:
                self._lose(worker)  # while it had nothing to do, which says nothing of this job
            else:
                worker.send(str(self._path))
        self._between_runs = False
        with _deferred_interrupt() as interrupted:
            while blocks.n_unfinished:
                self._staff()
                for worker in self._workers:
                    self._feed(worker)
                ticked = self._listen()
                if interrupted.is_set():
                    raise KeyboardInterrupt
                if ticked and should_stop():
                    raise Cancelled(f"stopped after {blocks.n_done} of {blocks.total} blocks of {blocks.job.name!r}")

    def _staff(self) -> None:
        """Start the workers that are missing."""
        blocks = self._blocks
        hopeful = self._early_deaths < _MAX_EARLY_DEATHS and len(self._deaths) < _MAX_DEATHS
        while hopeful and len(self._workers) < min(self._n, blocks.n_unfinished):
            self._feed(self._start())
        if not self._workers:
            raise WorkersFailed(
                f"{len(self._deaths)} workers died, no block completed between, while they worked on {blocks.job.name!r} "
                f"({blocks.n_done} of {blocks.total} blocks are recorded). Serial() runs it in this process, under a debugger "
                f"if need be. The last death: {self._deaths[-1]}"
            )

    def _start(self) -> _Worker:
        context = multiprocess.get_context("spawn")
        connection, their_connection = context.Pipe()
        output, their_output = context.Pipe(duplex=False)
        used = [worker.device for worker in self._workers]
        device = min(self._devices, key=used.count)
        arguments = (their_connection, their_output, os.getpid(), self._n > 1, device)
        process = context.Process(target=serve, args=arguments, daemon=True)
        self._starter.submit(_spawn, process).result()
        their_connection.close()
        their_output.close()
        worker = _Worker(process, connection, output, f"pid {process.pid}", device)
        worker.send(str(self._path))
        self._workers.append(worker)
        return worker

    def _feed(self, worker: _Worker) -> None:
        """Give a worker enough blocks to read ahead, but no more than its share of those that are left."""
        left = self._blocks.n_unfinished
        share = max(1, min(_AHEAD, left // self._n)) - len(worker.held)
        if share > 0:
            share = max(share, min(_RUN, left // (4 * self._n)))
        given = [block for _ in range(share) if (block := self._blocks.take()) is not None]
        if not given and not worker.held and (block := self._blocks.take_retry()) is not None:
            given = [block]  # alone, since no fresh block is left
        if given:
            worker.held.update(dict.fromkeys(given, False))
            worker.send(given)

    def _listen(self) -> bool:
        """Take what workers report and print, and notice those that died; True when a tick has passed."""
        channels = {channel: worker for worker in self._workers for channel in (worker.connection, worker.output)}
        # A pipe ends with its process, unless that left a child behind which holds the pipe: hence the look at exit codes.
        dead = []
        for channel in wait(list(channels), _TICK_S):
            worker = channels[channel]
            if not (worker.forward_output() if channel is worker.output else self._receive(worker)):
                dead.append(worker)
        ticked = time.monotonic() >= self._next_tick
        if ticked:
            self._next_tick = time.monotonic() + _TICK_S
            dead += [worker for worker in self._workers if worker.process.exitcode is not None]
        for worker in dead:
            if worker in self._workers:
                self._lose(worker)
        return ticked

    def _receive(self, worker: _Worker) -> bool:
        """Wait for a message and book it; False at the end."""
        try:
            data = worker.connection.recv_bytes()
        except (EOFError, OSError):
            return False
        event: Event | str = pickle.loads(data)
        if isinstance(event, str):
            worker.job = event
            return True
        block = self._blocks.update(event, worker.name)
        if event.kind == "started":
            worker.held[block] = True
        else:
            del worker.held[block]
        if event.kind == "done":
            self._deaths.clear()
            self._early_deaths = 0
        return True

    def _lose(self, worker: _Worker) -> None:
        while worker.connection.poll() and self._receive(worker):
            pass
        self._workers.remove(worker)
        how = worker.bury()
        if self._between_runs:
            return
        ready = worker.job == str(self._path)
        self._deaths.append(how)
        self._early_deaths += not ready
        if ready and worker.held and not any(worker.held.values()):
            first = next(iter(worker.held))  # it died while it read its first block
            worker.held[first] = True
            self._blocks.update(Event("started", self._blocks.job.key, first), worker.name)
        for block, started in worker.held.items():
            self._blocks.lost(block, worker.name, how, started)


_SPAWNING = threading.Lock()


def _spawn(process: Any) -> None:
    """Start a process. Hide ``__main__``, so that it does not run the user's script again, and hold SIGINT back until it ignores that."""
    with _SPAWNING:
        ensure_running()  # else the start of this helper of `multiprocess` would let SIGINT through again
        script = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            sys.modules["__main__"] = script


@contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Let Ctrl-C set an event, because an exception in the middle of a message would garble the rest of its pipe."""
    interrupted = threading.Event()
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield interrupted
        return
    signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
