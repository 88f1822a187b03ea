"""Kernels compiled, or loaded, while the first block is read: each by one process of a machine, others by others meanwhile.

numba compiles a kernel for the types that it is called with, so each is called on next to nothing.
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from volara_expr.expr import ArrayNode, Node
from volara_expr.plan.fusion import Table
from volara_expr.plan.region import Region
from volara_expr.run.block import resolve

__all__ = ["Call", "Compiler", "Input", "by_text", "calls_of", "load_numba"]

POLL_S = 0.01


@dataclass(frozen=True)
class Input:
    """What a kernel gets for an array.

    Attributes
    ----------
    dtype : str
    coded : bool
        Values are codes of this type, with a table.
    """

    dtype: str = "uint64"
    coded: bool = False

    def zeros(self, *shape: int) -> npt.NDArray[Any]:
        """Return values, or codes."""
        return np.zeros(shape, self.dtype)

    def table(self, dtype: npt.DTypeLike) -> npt.NDArray[Any] | None:
        """Return what codes stand for."""
        return np.zeros(1 << 8 * np.dtype(self.dtype).itemsize, dtype) if self.coded else None


@dataclass(frozen=True)
class Call:
    """A kernel, by name, and what it gets for the arrays of its node."""

    kernel: str
    inputs: tuple[Input, ...] = ()

    def __call__(self) -> None:
        """Compile the kernel, or load it."""
        CALLS[self.kernel](resolve(self.kernel), *self.inputs)


AT, STEP = (0, 0, 0), [(0, 0, 1)]
ENDS = np.array([0, 1], np.uint32)
IDS = np.array([1, 2], np.uint64)
CALLS: dict[str, Callable[..., object]] = {
    "volara_expr.kernels.mutex_watershed:fragments": lambda kernel, affs, *_: kernel(
        affs.zeros(1, 8, 8, 8),
        STEP,
        bias=[-0.5],
        table=affs.table(np.float64),  # enough for its tables to grow
    ),
    "volara_expr.kernels.edges:node_sums": lambda kernel, labels, *_: kernel(labels.zeros(1, 1, 2), AT),
    "volara_expr.kernels.edges:edge_sums": lambda kernel, labels, affs: kernel(
        labels.zeros(1, 1, 2), AT, affs.zeros(1, 1, 1, 2), AT, STEP, [0], 1, AT, (1, 1, 2), table=affs.table(np.int64)
    ),
    "volara_expr.kernels.graph:mutex_watershed": lambda kernel: kernel(ENDS, ENDS[::-1], np.array([0.5, -0.5]), 2),
    "volara_expr.kernels.graph:components": lambda kernel: kernel(ENDS, ENDS[::-1], 2),
    "volara_expr.kernels.relabel:relabel": lambda kernel, labels: kernel(labels.zeros(2), IDS, IDS),
}
"""By the kernel's name: a call with the types that runs give it. Others are compiled when they are first called."""


def calls_of(nodes: Iterable[Node], region: Region | None = None) -> list[Call]:
    """Return the calls that compile the kernels of nodes.

    Parameters
    ----------
    nodes : iterable of Node
    region : Region, optional
        What computes the arrays that they take, fused.
    """
    steps = {} if region is None else region.steps

    def given(node: ArrayNode) -> Input:
        step = steps.get(id(node))
        return Input(step.arrays[0].spec.dtype.name, True) if isinstance(step, Table) else Input(node.spec.dtype.name)

    named = [(getattr(n, "kernel", ""), getattr(n, "arrays", ())) for n in nodes]
    return list(dict.fromkeys(Call(kernel, tuple(map(given, arrays))) for kernel, arrays in named if kernel in CALLS))


def by_text(calls: Iterable[Call]) -> dict[str, Callable[[], object]]:
    """Return calls as `Compiler` takes them."""
    return {str(c): c for c in calls}


class Compiler:
    """A thread that calls what compiles or loads kernels. No two processes of a machine make the same call at a time.

    Parameters
    ----------
    now : mapping of str to callable
        Calls before the first block, by a text that is the same in all processes.
    later : mapping of str to callable
        Calls of later stages, made while other processes make those of `now`, and afterwards; left out where others make them.
    """

    def __init__(self, now: Mapping[str, Callable[[], object]], later: Mapping[str, Callable[[], object]]) -> None:
        self._now = dict(now)
        self._later = {key: call for key, call in later.items() if key not in now}
        self._ready = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="compile", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait for the calls of `now`."""
        self._ready.wait()

    def close(self) -> None:
        """Leave out the calls not yet begun, and wait for the one at hand: no thread in the compiler may outlive the interpreter."""
        self._closed = True
        self._thread.join()

    def _run(self) -> None:
        try:
            if any(isinstance(call, Call) for call in self._now.values()):
                load_numba()
            while self._now and not self._closed:
                if not any(map(make_one, (self._now, self._later))):
                    time.sleep(POLL_S)
        finally:
            self._ready.set()
        while not self._closed and make_one(self._later):
            pass


def load_numba() -> None:
    """Import numba and what it imports at its first use, a third of a second in which no other process should wait for a kernel."""
    from numba.core.registry import cpu_target

    cpu_target.typing_context.refresh()
    cpu_target.target_context.refresh()


def make_one(calls: dict[str, Callable[[], object]]) -> bool:
    """Make the first call that no other process is at, and drop it; False if there is none."""
    for key, call in calls.items():
        with locked(key) as mine:
            if mine:
                del calls[key]
                with suppress(Exception):  # the block that needs it says what is wrong, and where
                    call()
                return True
    return False


@contextmanager
def locked(key: str) -> Iterator[bool]:
    """Keep other processes of this machine from a call; yields False where one of them is at it."""
    from volara_expr.kernels.loops import cache_folder  # here, so that planning imports no compiler

    name = blake2b(f"{socket.gethostname()} {key}".encode(), digest_size=12).hexdigest()
    fd = os.open(cache_folder() / f"{name}.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = True
    except OSError as error:  # a file system without locks lets both compile
        mine = not isinstance(error, BlockingIOError)
    try:
        yield mine
    finally:
        os.close(fd)
