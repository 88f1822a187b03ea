"""Compile kernels of later stages while the first one runs, by calls on next to nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from executors.protocol import Event, Executor
from volara_expr.run.block import resolve
from volara_expr.run.job import BlockJob, TableJob

__all__ = ["compiling_ahead"]

ENDS = np.array([0, 1], np.uint32)
IDS = np.array([1, 2], np.uint64)
CALLS: dict[str, Callable[[Any], object]] = {
    "volara_expr.kernels.graph:mutex_watershed": lambda kernel: kernel(ENDS, ENDS[::-1], np.array([0.5, -0.5]), 2),
    "volara_expr.kernels.graph:components": lambda kernel: kernel(ENDS, ENDS[::-1], 2),
    "volara_expr.kernels.relabel:relabel": lambda kernel: kernel(IDS, IDS, IDS, missing="keep"),
}
"""By the kernel's name: a call with the types that runs give it. Others are compiled when they are first called."""


@contextmanager
def compiling_ahead(
    executor: Executor, jobs: Sequence[BlockJob | TableJob], on_event: Callable[[Event], None]
) -> Iterator[Callable[[Event], None]]:
    """Yield what takes the events of a run; a thread compiles from the first finished block on, so that it does not delay that one.

    Parameters
    ----------
    executor : Executor
        One of another process gets no help: its workers compile while this process waits.
    jobs : sequence of job
    on_event : callable
        Takes every event in the end.
    """
    named = (getattr(kind, "kernel", "") for j in jobs[1:] for kind, *_ in j.packed)
    kernels = [k for k in dict.fromkeys(named) if k in CALLS]

    def compile_all() -> None:
        for name in kernels:
            CALLS[name](resolve(name))

    thread = threading.Thread(target=compile_all, name="compile ahead", daemon=True)
    idle = bool(kernels) and executor.in_process

    def watch(event: Event) -> None:
        nonlocal idle
        if idle and event.kind == "done":
            idle = False
            thread.start()
        on_event(event)

    try:
        yield watch
    finally:
        if thread.ident is not None:  # a thread in the compiler must not outlive the interpreter
            thread.join()
