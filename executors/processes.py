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
        with WorkerPool(self.hints.workers, should_stop) as pool:
            for job in jobs:
                blocks = BlockQueue(job, on_event)
                pool.run(blocks)
                blocks.finish()


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
    ready: bool = False
    """The present job is set up."""
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
    """The worker processes of one run; leaving the context ends them all.

    Parameters
    ----------
    n : int
        Workers at most.
    should_stop : callable
    grace_s : callable, optional
        Seconds that workers may go on with the block at hand once the run stops; asked again while they do.
    devices : sequence of str
        What `Job.setup` is given; shared evenly among the workers.
    """

    def __init__(
        self,
        n: int,
        should_stop: Callable[[], bool],
        grace_s: Callable[[], float] = lambda: _GRACE_S,
        devices: Sequence[str] = ("cpu",),
    ) -> None:
        self._n = n
        self._should_stop = should_stop
        self._grace_s = grace_s
        self._devices = devices
        self._workers: list[_Worker] = []
        self._deaths: list[str] = []  # since a block was last completed
        self._early_deaths = 0  # those of them in which a job was being prepared
        self._next_tick = 0.0
        self._stopping = False

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        began = time.monotonic()
        try:
            for worker in self._workers:
                worker.send(None)
            while self._workers and time.monotonic() - began < self._grace_s():
                self._listen()
        finally:
            for worker in self._workers:
                worker.process.kill()
                worker.bury()

    def run(self, blocks: BlockQueue, path: Path | None = None) -> None:
        """Run a job's blocks until none is unfinished.

        Parameters
        ----------
        blocks : BlockQueue
        path : Path, optional
            Where the job is saved already; by default it is saved as `job_file`.
        """
        self._blocks = blocks
        if self._should_stop():
            raise Cancelled(f"stopped before {blocks.job.name!r}")
        if not blocks.n_unfinished:
            return
        self._path = path or job_file(blocks.job)
        if path is None:
            save_job(blocks.job, self._path)
        for worker in self._workers:
            worker.ready = False
            worker.send(str(self._path))
        with _deferred_interrupt() as interrupted:
            while blocks.n_unfinished:
                self._staff()
                for worker in self._workers:
                    self._feed(worker)
                ticked = self._listen()
                if interrupted.is_set():
                    raise KeyboardInterrupt
                if ticked and self._should_stop():
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
        with _spawning():
            process.start()
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
            worker.ready = event == str(self._path)
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
        if self._stopping:
            return
        self._deaths.append(how)
        self._early_deaths += not worker.ready
        if worker.ready and worker.held and not any(worker.held.values()):
            first = next(iter(worker.held))  # it died while it read its first block
            worker.held[first] = True
            self._blocks.update(Event("started", self._blocks.job.key, first), worker.name)
        for block, started in worker.held.items():
            self._blocks.lost(block, worker.name, how, started)


@contextmanager
def _spawning() -> Iterator[None]:
    """Hide ``__main__``, so that a child does not run the user's script again, and hold SIGINT back until it ignores that."""
    ensure_running()  # else the start of this helper of `multiprocess` would let SIGINT through again
    script = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
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
