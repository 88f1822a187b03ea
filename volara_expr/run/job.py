"""Stages as jobs: what an executor runs. A job is a file's worth of plain data until `setup` opens what it names."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from executors.protocol import Resources
from volara_expr.expr import ArrayNode, BlockTable, Node, Patch, TableNode, unpack
from volara_expr.expr.node import Packed
from volara_expr.expr.origin import explained
from volara_expr.geometry import Box
from volara_expr.geometry.grid import BlockGrid
from volara_expr.ops.sources import InMemory, StoredArray
from volara_expr.plan.blocks import Demand, demands
from volara_expr.plan.region import Region
from volara_expr.plan.stages import totals
from volara_expr.plan.targets import Target
from volara_expr.run.block import Program, resolve
from volara_expr.run.compiler import Call, Compiler, by_text, calls_of
from volara_expr.run.ledger import LedgerWriter
from volara_expr.run.places import Place, Workspace, ship
from volara_expr.run.tables import TableFiles, leaf_table
from volara_expr.store import Arrays

__all__ = ["BlockError", "BlockJob", "MemoryResult", "Record", "StageJob", "open_table", "unit_box", "units"]


class BlockError(RuntimeError):
    """A block that could not be computed: which, where, why and what to do."""


class MemoryResult:
    """An array that is filled in memory instead of in a store; only for executors that run in this process."""

    def __init__(self, node: ArrayNode) -> None:
        self.box = node.spec.box
        self.blocks: set[int] = set()
        self.data: npt.NDArray[Any] = np.zeros(node.spec.shape, node.spec.dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError(
            "a result in memory cannot leave this process; give compute() an executor that runs in it, or write() instead"
        )


@dataclass(frozen=True)
class Record:
    """What a block reports.

    Attributes
    ----------
    voxels : int
        Of the execution block.
    read_s, compute_s, write_s : float
        Waiting for reads, computing, and writing.
    """

    voxels: int
    read_s: float
    compute_s: float
    write_s: float


@dataclass
class _Work:
    number: int
    block: Box
    reads: list[tuple[Demand, dict[ArrayNode, Box], dict[int, Any]]]


@dataclass
class _Result:
    number: int
    block: Box
    arrays: list[tuple[int, Box, npt.NDArray[Any]]]
    rows: dict[int, list[tuple[int, Mapping[str, npt.NDArray[Any]]]]]
    read_s: float
    compute_s: float


@dataclass
class StageJob:
    """What `BlockJob` and `TableJob` share.

    Attributes
    ----------
    packed : list
        The nodes, flat.
    stored : list of str
        Digests of the nodes that the job stores, in the plan's order.
    places : dict
        Where each stored node lies, by digest: those the job stores, and those that it reads.
    later : sequence of Call
        What compiles the kernels of later jobs.
    """

    key: str
    name: str
    needs: tuple[str, ...]
    resources: Resources
    folder: str
    packed: Packed
    stored: list[str]
    places: dict[str, Place]
    cache_bytes: int
    n_blocks: int = 1
    later: Sequence[Call] = ()

    def nodes(self) -> dict[str, Node]:
        """Return the nodes, by digest; rebuilt once in each process."""
        if "_nodes" not in self.__dict__:
            self._nodes = {n.digest: n for n in unpack(self.packed)}
        return self._nodes

    def describe(self, i: int) -> str:
        """Say where block `i` lies and how to run it alone."""
        return f"{self.where(i)}\nrun it alone: python -m executors.worker {os.path.join(self.folder, self.key)}.job {i}"

    def where(self, i: int) -> str:
        """Say where block `i` lies."""
        return f"{self.name}, block {i}"

    def finish(self) -> None:
        """Check that every write unit of every output is recorded."""
        for digest in self.stored:
            place = self.places.get(digest)
            if place is not None and not place.complete():
                raise BlockError(
                    f"{self.name}: the ledger {place.folder} lacks blocks although none failed; was the output changed or deleted "
                    "while the run was going on? Run the same line again"
                )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what `setup` opened. NumPy arrays go to the workspace, since who loads the file cannot see this memory."""
        workspace = Workspace(os.path.dirname(self.folder))
        arrays = [n for n in self.nodes().values() if isinstance(n, InMemory) and n.digest not in self.places]
        places = self.places | {n.digest: ship(n, workspace) for n in arrays}
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_")} | {"places": places}


@dataclass
class BlockJob(StageJob):
    """A stage that runs block by block.

    Attributes
    ----------
    grid : BlockGrid
        The execution grid, along the axes of the first target's frame.
    io_threads : int
        Threads that decode, encode and open files.
    results : dict
        For arrays handed over in memory, by digest.
    """

    grid: BlockGrid = field(default_factory=lambda: BlockGrid(Box((0,), (1,)), (1,), (0,)))
    io_threads: int = 1
    results: dict[str, MemoryResult] = field(default_factory=dict)

    def where(self, i: int) -> str:
        """Say where block `i` lies."""
        return f"{self.name}, block {i} of {self.n_blocks}: voxels {self.grid.box(i)}"

    def finish(self) -> None:
        """Check that every write unit of every output is recorded, or in memory."""
        super().finish()
        for memory in self.results.values():
            if len(memory.blocks) < self.n_blocks:
                raise BlockError(
                    f"{self.name}: {len(memory.blocks)} of {self.n_blocks} blocks are in memory although none failed; the executor "
                    "lost the others"
                )

    def pending(self) -> Iterator[range]:
        """Ranges of blocks of which some write unit is not recorded."""
        nodes = self.nodes()
        checks = []
        for digest in self.stored:
            if digest in self.results:
                yield range(self.n_blocks)
                return
            place = self.places[digest]
            done = place.ledger.done()
            if done is None:
                yield range(self.n_blocks)
                return
            if not done.all():
                checks.append((Target(nodes[digest], ""), place, done))
        if not checks:
            return
        if self.n_blocks == 1:
            yield range(1)
            return
        open_ = np.zeros(self.grid.shape, bool)
        for target, place, done in checks:
            open_ |= self._blocks_of(target, place, ~done)
        numbers = self.grid.numbers(open_)
        ends = np.append(np.flatnonzero(np.diff(numbers) != 1), len(numbers) - 1)
        start = 0
        for end in ends.tolist():
            yield range(int(numbers[start]), int(numbers[end]) + 1)
            start = end + 1

    def _blocks_of(self, target: Target, place: Place, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Return which blocks cover a chosen write unit, axis by axis, since blocks consist of whole write units."""
        assert target.frame is not None
        at = target.frame.at
        chosen = np.asarray(chosen.any(axis=tuple(i for i in range(chosen.ndim) if i not in at)))
        for k, n in enumerate(self.grid.shape):
            indices = [tuple(j if axis == k else 0 for axis in range(len(self.grid.shape))) for j in range(n)]
            starts = [units(target, place, self.grid.box_at(index)).lo[at[k]] for index in indices]
            chosen = np.logical_or.reduceat(chosen, starts, axis=k)
        return chosen

    def calls(self) -> list[Call]:
        """Return the calls that compile the kernels of the blocks."""
        targets, program = self._built()
        return calls_of([*program.computed, *(t.node for t in targets)], program)

    def _built(self) -> tuple[list[Target], Program]:
        if "_targets" not in self.__dict__:
            self._targets, self._program = self._build()
        return self._targets, self._program

    def _build(self) -> tuple[list[Target], Program]:
        nodes = self.nodes()
        targets = [Target(nodes[d], "") for d in self.stored]
        stored = {id(t.node) for t in targets}
        leaves = [n for d, n in nodes.items() if d in self.places and id(n) not in stored]
        roots: list[ArrayNode] = []
        for t in targets:
            roots += [t.node] if isinstance(t.node, ArrayNode) else t.node.arrays
        whole = totals(targets, Region(dict.fromkeys(roots), leaves))
        return targets, Program(dict.fromkeys(roots), leaves, whole)

    def setup(self, device: str) -> None:
        """Open stores and tables."""
        self._built()
        now = {f"loops of {self.key}": self._program.compile, **by_text(self.calls())}
        self._compiler = Compiler(now, by_text(self.later))  # while the first block is read
        self._arrays = Arrays(self.cache_bytes if self._shares_chunks() else 0, threads=self.io_threads)
        self._tables: dict[int, Any] = {}
        self._worker = f"{socket.gethostname()}-{os.getpid()}"
        self._logs: dict[str, LedgerWriter] = {}
        self._lock = threading.Lock()

    def _shares_chunks(self) -> bool:
        """Whether blocks cut through chunks of what they read; if not, a cache of decoded chunks only costs."""
        block = self.grid.box_at(tuple(n // 2 for n in self.grid.shape))
        for demand in demands(self._targets, block):
            for node, box in self._program.demand(demand.boxes).items():
                place = self.places.get(node.digest)
                if place is not None:
                    chunks, origin = place.grid.block, place.lo
                elif isinstance(node, StoredArray):
                    chunks, origin = node.chunks, node.spec.box.lo
                else:
                    continue
                if id(node) in self._program.leaves and box.snap(chunks, origin).clip(node.spec.box) != box:
                    return True
        return False

    def close(self) -> None:
        """Close ledgers and stores."""
        if not hasattr(self, "_logs"):
            return
        self._compiler.close()
        logs, arrays = self._logs, self._arrays
        for name in [k for k in self.__dict__ if k.startswith("_")]:
            del self.__dict__[name]
        with ExitStack() as each:  # an error of one, such as a full disk, leaves none open
            each.callback(arrays.close)
            for log in logs.values():
                each.callback(log.close)

    def _table(self, node: Node) -> Any:
        with self._lock:
            if id(node) not in self._tables:
                assert isinstance(node, TableNode)
                self._tables[id(node)] = open_table(node, self.places.get(node.digest))
            return self._tables[id(node)]

    def read(self, i: int) -> _Work:
        """Start all reads of a block."""
        reads = []
        block = self.grid.box(i)
        for demand in demands(self._targets, block):
            boxes = self._program.demand(demand.boxes)
            pending = {id(n): self._start(n, boxes[n]) for n in self._program.leaves.values() if n in boxes}
            reads.append((demand, boxes, pending))
        return _Work(i, block, reads)

    def _start(self, node: ArrayNode, box: Box) -> Any:
        place = self.places.get(node.digest)
        if place is not None:
            return self._arrays.read(place.url, box.shift(tuple(-v for v in place.lo)))
        if isinstance(node, InMemory):
            data = node.data
            if data is None:
                raise BlockError(f"the NumPy array {node.content[:8]} was not shipped to this process")
            return data[box.slices(node.spec.box.lo)]
        if isinstance(node, StoredArray):
            return self._arrays.read(node.url, box.shift(tuple(-v for v in node.spec.box.lo)))
        return None  # a source that makes its voxels itself

    def compute(self, work: _Work) -> _Result:
        """Wait for the reads and evaluate the region."""
        from volara_expr.kernels.fused import plain  # here, so that planning imports no compiler

        self._compiler.wait()
        started = time.perf_counter()
        waited = 0.0
        arrays: list[tuple[int, Box, npt.NDArray[Any]]] = []
        rows: dict[int, list[tuple[int, Any]]] = {}
        slabs: dict[tuple[int, int], list[Any]] = {}
        joint: dict[int, dict[ArrayNode, Patch]] = {}
        block = work.block
        for demand, boxes, pending in work.reads:
            t0 = time.perf_counter()
            data = {k: p.result() if hasattr(p, "result") else p for k, p in pending.items()}
            pending.clear()
            waited += time.perf_counter() - t0

            def read(node: ArrayNode, box: Box, data: dict[int, Any] = data) -> Any:
                return data.pop(id(node))

            patches = self._program.evaluate(boxes, read, self._table, demand.boxes)
            for k in demand.targets:
                node = self._targets[k].node
                if isinstance(node, ArrayNode):
                    frame = self._targets[k].frame
                    assert frame is not None
                    patch = patches[node].cut(frame.full(block))
                    arrays.append((k, patch.box, np.asarray(plain(patch.data), node.spec.dtype, order="C")))
                elif demand.cell is not None:
                    assert isinstance(node, BlockTable)
                    slabs.setdefault((k, demand.cell), []).append(
                        [patches[x].cut(demand.boxes[x].clip(x.spec.box)) for x in node.arrays]
                    )
                else:
                    joint[k] = patches
        for k, target in enumerate(self._targets):
            node = target.node
            if not isinstance(node, BlockTable):
                continue
            assert target.frame is not None
            made = rows.setdefault(k, [])
            for index, cell in node.cells.blocks(target.frame.full(block)):
                number = node.cells.number(index)
                if k in joint:
                    (need,) = node.demands(cell)
                    parts = [
                        [joint[k][x].cut(b.clip(x.spec.box)) for x, b in zip(node.arrays, need, strict=True) if b is not None]
                    ]
                else:
                    parts = slabs.get((k, number), [])
                tables = [self._table(t) for t in node.tables]
                with explained(node.label, node.origin):
                    made.append((number, node.rows(resolve(node.kernel), cell, parts, tables)))
        return _Result(work.number, block, arrays, rows, waited, time.perf_counter() - started - waited)

    def write(self, result: _Result) -> Record:
        """Write arrays and rows, wait until they are stored, then record them."""
        t0 = time.perf_counter()
        block = result.block
        writes = []
        while result.arrays:  # tensorstore copies what it is given, so no array is held here until it is written
            k, box, data = result.arrays.pop()
            digest = self.stored[k]
            if digest in self.results:
                memory = self.results[digest]
                memory.data[box.slices(memory.box.lo)] = data
                memory.blocks.add(result.number)
            else:
                place = self.places[digest]
                writes.append(self._arrays.write(place.url, box.shift(tuple(-v for v in place.lo)), data))
            del data
        parts: dict[int, int] = {}
        for k, made in result.rows.items():
            from volara_expr.store.tables import write_part

            log = self._log(self.stored[k])
            with self._lock:
                parts[k], path = log.next_part()
            try:
                write_part(path, [rows for _, rows in made])
            except OSError as e:
                raise OSError(
                    e.errno,
                    f"cannot write these rows ({e}); mend that and run the same line again, what is recorded is kept",
                    path,
                ) from e
        for w in writes:
            w.result()
        for k, target in enumerate(self._targets):
            digest = self.stored[k]
            if digest in self.results:
                continue
            if k in parts:
                cells = self.places[digest].grid
                entries = [(unit_box(cells.index(number)), g) for g, (number, _) in enumerate(result.rows[k])]
            else:
                entries = [(units(target, self.places[digest], block), 0)]
            log = self._log(digest)
            with self._lock:
                log.append(entries, parts.get(k))
        return Record(block.size, result.read_s, result.compute_s, time.perf_counter() - t0)

    def _log(self, digest: str) -> LedgerWriter:
        with self._lock:
            if digest not in self._logs:
                self._logs[digest] = self.places[digest].ledger.writer(self._worker, self.places[digest].url)
            return self._logs[digest]


def open_table(node: TableNode, place: Place | None) -> TableFiles:
    """Open a table: one that a stage made, or one that was given."""
    table = leaf_table(node)
    if table is not None:
        return table
    if place is None:
        raise BlockError(f"the table {node.label} ({node.digest[:8]}) was not made by any stage")
    if place.kind == "rows":
        return TableFiles(parts=place.ledger.groups(), columns=node.columns)
    return TableFiles(path=place.url, columns=node.columns)


def unit_box(index: tuple[int, ...]) -> Box:
    """Return the box of one unit."""
    return Box(index, tuple(i + 1 for i in index))


def units(target: Target, place: Place, block: Box) -> Box:
    """Return the write units that a block of the target's frame covers."""
    assert target.frame is not None
    ranges = place.grid.covering(target.frame.full(block))
    return Box(tuple(r.start for r in ranges), tuple(r.stop for r in ranges))
