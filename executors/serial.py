"""Run blocks in the calling process."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

from executors.bookkeeping import BlockQueue, available_cpus, check_order, ignore, never
from executors.protocol import BlockFailures, Cancelled, Event, Hints, Job, job_file
from executors.worker import run_blocks, save_job

__all__ = ["Serial"]

MOST_THREADS = 8
"""Beyond, threads wait for the interpreter's lock more than they compute; `Multiprocessing` has none to wait for."""


class Serial:
    """Runs blocks in this process, so that results may be handed over in memory.

    Functions of the user's (`map_blocks`) run in the calling thread, one block after another, so breakpoints work in them. All
    else is code that lets threads run side by side. Reads run ahead and writes follow behind in threads of their own.

    Parameters
    ----------
    block : sequence of int, optional
        Execution block in voxels of the space axes; chosen by the planner where not given. Never changes a result.
    memory : int or str, optional
        Memory that this process may use: bytes, or text such as "4GB" or "500 MiB".
    threads : int, optional
        Blocks to compute at the same time, if memory allows; as many as this process may use CPUs where not given, but not more
        than 8. With 1, everything is computed in the calling thread.

    Examples
    --------
    >>> Serial(block=(64, 64, 64), memory="4GB", threads=1).hints
    Hints(workers=1, block=(64, 64, 64), memory_bytes=4000000000, threads=1)
    """

    in_process = True

    def __init__(self, block: Sequence[int] | None = None, memory: int | str | None = None, threads: int | None = None) -> None:
        self.hints = Hints.of(1, block, memory, min(available_cpus(), MOST_THREADS) if threads is None else threads)

    def __repr__(self) -> str:
        return f"Serial(block={self.hints.block}, memory={self.hints.memory_bytes}, threads={self.hints.threads})"

    def run(
        self,
        jobs: Sequence[Job],
        on_event: Callable[[Event], None] = ignore,
        should_stop: Callable[[], bool] = never,
    ) -> None:
        """Run every pending block of every job, as `executors.protocol.Executor.run` promises.

        `should_stop` is asked before each block.

        Raises
        ------
        BlockFailures
            Blocks failed `MAX_ATTEMPTS` times.
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
            if blocks.n_unfinished:
                _run(blocks, should_stop)
            try:
                blocks.finish()
            except BlockFailures as failures:
                try:
                    save_job(job, job_file(job))  # for the command that each failure names
                except (TypeError, OSError) as error:
                    failures.add_note(f"There is no job file to run a block alone: {error}")
                raise


def _run(blocks: BlockQueue, should_stop: Callable[[], bool]) -> None:
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()  # filled by two threads, booked in this one
    worker = f"pid {os.getpid()}"

    def book() -> None:
        while not events.empty():
            blocks.update(events.get(), worker)

    def source() -> Iterator[int | None]:
        while True:
            book()
            if should_stop():
                raise Cancelled(f"stopped after {blocks.n_done} of {blocks.total} blocks of {blocks.job.name!r}")
            if not blocks.n_unfinished:
                return
            block = blocks.take()
            yield blocks.take_retry() if block is None else block

    try:
        with closing(blocks.job) as job:
            job.setup("cpu")
            run_blocks(job, source(), events.put)
    finally:
        book()
