"""The execution grid of a stage: whole write units, within the memory of a worker, few enough and many enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from volara_expr.expr import ArrayNode, BlockTable
from volara_expr.expr.origin import add_line
from volara_expr.geometry import Box
from volara_expr.geometry.grid import BlockGrid
from volara_expr.plan.region import Region
from volara_expr.plan.stages import Group
from volara_expr.plan.targets import Target, common_grid

__all__ = ["FLOOR_VOXELS", "Demand", "Footprint", "PlanTooBig", "choose_block", "demands", "footprint"]

TARGET_VOXELS, TARGET_BYTES = 128**3, 32 << 20
"""Blocks grow to both: what a block costs beside its work, some 0.2 ms, is then little of what decoding it takes."""
CELLS_PER_PART = 64
"""Cells of tables that a block should hold in a volume of `MANY_BLOCKS`: each block writes one file per table."""
MANY_BLOCKS = 1024
BLOCKS_PER_WORKER = 4
FLOOR_VOXELS = 32**3
"""Blocks are not made smaller than this for the sake of having several per worker, nor are smaller ones worth a thread each."""


class PlanTooBig(MemoryError):
    """A stage cannot run within the memory allowed, not even with its smallest block."""


@dataclass(frozen=True)
class Demand:
    """One separate read of a block: the boxes asked of the roots, and who asked (targets that are done by it)."""

    boxes: Mapping[ArrayNode, Box]
    targets: tuple[int, ...]
    cell: int | None = None
    part: int = 0


def demands(targets: Sequence[Target], block: Box) -> list[Demand]:
    """Return what a block reads: one joint demand of all arrays and tables that take just the block, and one per slab of the others."""
    joint: dict[ArrayNode, Box] = {}
    who: list[int] = []
    apart: list[Demand] = []
    for k, t in enumerate(targets):
        assert t.frame is not None
        if isinstance(t.node, ArrayNode):
            merge(joint, {t.node: t.frame.full(block)})
            who.append(k)
        elif isinstance(t.node, BlockTable):
            slabs: list[Demand] = []
            together = True
            for index, cell in t.node.cells.blocks(t.frame.full(block)):
                reads = t.node.demands(cell)
                together &= len(reads) == 1
                number = t.node.cells.number(index)
                slabs += [
                    Demand({x: b for x, b in zip(t.node.arrays, read, strict=True) if b is not None}, (k,), number, part)
                    for part, read in enumerate(reads)
                ]
            if together:
                for d in slabs:
                    merge(joint, d.boxes)
                who.append(k)
            else:
                apart += slabs
    return ([Demand(joint, tuple(who))] if who else []) + apart


def merge(into: dict[ArrayNode, Box], boxes: Mapping[ArrayNode, Box]) -> None:
    """Grow the boxes in `into` to hold those in `boxes`."""
    for x, box in boxes.items():
        into[x] = into[x].hull(box) if x in into else box


@dataclass(frozen=True)
class Footprint:
    """Memory of one block, in bytes, without what the worker needs anyway.

    Attributes
    ----------
    peak_bytes : int
        While the block is computed, the next one read and the previous one written.
    worst : ArrayNode or None
        The node at which the peak occurs.
    """

    peak_bytes: int
    worst: ArrayNode | None


def footprint(targets: Sequence[Target], region: Region, block: Box) -> Footprint:
    """Follow the memory through a block: every patch from its making to its last use, and the temporaries of its op."""
    peak, worst, read_bytes, written = 0, None, 0, 0
    kept = {id(t.node) for t in targets} | {id(x) for t in targets if isinstance(t.node, BlockTable) for x in t.node.arrays}
    for d in demands(targets, block):
        boxes = region.demand(dict(d.boxes))
        left: dict[int, int] = {}
        for n in region.computed:
            for x in region.arrays_of(n):
                left[id(x)] = left.get(id(x), 0) + 1
        sizes = {id(n): b.size * n.spec.dtype.itemsize for n, b in boxes.items()}
        leaves = sum(sizes.get(key, 0) for key in region.leaves)
        read_bytes += leaves
        live = leaves
        for n in region.computed:
            if n not in boxes:
                continue
            live += sizes[id(n)]
            now = live + region.steps.get(id(n), n).temp_bytes(boxes[n])
            if now > peak:
                peak, worst = now, n
            for x in region.arrays_of(n):
                left[id(x)] -= 1
                if not left[id(x)] and id(x) not in kept:
                    live -= sizes.get(id(x), 0)
        for k in d.targets:
            node = targets[k].node
            if isinstance(node, ArrayNode):
                written += sizes.get(id(node), 0)
            elif isinstance(node, BlockTable):
                peak = max(peak, live + node.temp_bytes(block if d.cell is None else node.cells.box(d.cell)))
        peak = max(peak, live)
    return Footprint(peak + read_bytes + 2 * written, worst)


def choose_block(
    group: Group, *, workers: int, threads: int, worker_bytes: int, reserved_bytes: int, requested: tuple[int, ...] | None
) -> tuple[BlockGrid, Footprint, int, str]:
    """Choose the execution block of a stage.

    Parameters
    ----------
    group : Group
    workers : int
        There should be several blocks for each thread of each.
    threads : int
        Most blocks that a worker computes at the same time.
    worker_bytes : int
        Memory that a worker may use in all.
    reserved_bytes : int
        What it uses without a block.
    requested : tuple of int or None
        Voxels along the space axes that the user asked for; rounded up to whole write units.

    Returns
    -------
    grid, footprint, threads, note
        The footprint is that of one block; `threads` so many fit, and there are no more of them than blocks. `note` says what
        was done to a request.

    Raises
    ------
    PlanTooBig
    """
    targets = group.targets
    frame = targets[0].frame
    grid = common_grid(targets)
    assert frame is not None
    assert grid is not None
    unit, origin = grid
    shape = frame.box.shape
    note = ""
    if not all(n.thread_safe for n in (*group.region.computed, *(t.node for t in targets))):
        threads = 1

    def measure(block: tuple[int, ...]) -> tuple[BlockGrid, Footprint]:
        g = BlockGrid(frame.box, block, origin)
        middle = tuple(n // 2 for n in g.shape)
        return g, footprint(targets, group.fused, g.box_at(middle))

    if requested is not None:
        n_space = len(frame.spec.space.spatial)
        if len(requested) not in (len(shape), n_space):
            raise ValueError(
                f"block {requested} has {len(requested)} entries; blocks run along {len(shape)} axes {frame.names}"
            )
        wanted = (1,) * (len(shape) - len(requested)) + tuple(requested)
        block = tuple(max(1, -(-w // u)) * u for w, u in zip(wanted, unit, strict=True))
        if block != wanted:
            note = f"block {wanted} was asked for and rounded up to whole write units of {unit}"
    else:
        block = unit
        _, f = measure(block)
        cells = prod(unit) * CELLS_PER_PART if any(isinstance(t.node, BlockTable) for t in targets) else 0
        while True:
            voxels = prod(min(b, n) for b, n in zip(block, shape, strict=True))
            large = voxels >= TARGET_VOXELS and f.peak_bytes >= TARGET_BYTES
            if large and (voxels >= cells or prod(shape) // (2 * voxels) < MANY_BLOCKS):
                break
            growable = [
                i for i in range(len(block)) if block[i] < shape[i] and frame.spec.space.axes[frame.at[i]].type == "space"
            ]
            if not growable:
                break
            i = min(growable, key=lambda k: (block[k], -k))
            bigger = tuple(2 * b if k == i else b for k, b in enumerate(block))
            g, grown = measure(bigger)
            if threads * grown.peak_bytes + reserved_bytes > worker_bytes:
                break
            if g.n_blocks < BLOCKS_PER_WORKER * workers * threads and prod(block) >= FLOOR_VOXELS:
                break
            block, f = bigger, grown
    g, f = measure(block)
    if f.peak_bytes + reserved_bytes > worker_bytes:
        worst = f"; the most is held at {f.worst.label}({f.worst.describe()})" if f.worst is not None else ""
        error = PlanTooBig(
            f"one block of {block} of stage {targets[0].name!r} is projected to need {gb(f.peak_bytes + reserved_bytes)} and a worker may use "
            f"{gb(worker_bytes)}{worst}. Remedies: smaller chunks or blocks (write(chunks=...), watershed(block_size=...)), fewer workers "
            "(each gets a larger share), a checkpoint() before the op named, or more memory (ve.config.memory_bytes, executor memory=)"
        )
        if f.worst is not None:
            add_line(error, f.worst.origin, f"{f.worst.label}, made in ")
        raise error
    if prod(min(b, n) for b, n in zip(g.block, shape, strict=True)) < FLOOR_VOXELS:
        threads = 1
    threads = min(threads, g.n_blocks, (worker_bytes - reserved_bytes) // max(1, f.peak_bytes))
    return g, f, threads, note


def gb(n_bytes: float) -> str:
    """Return a size for people."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n_bytes >= size:
            return f"{n_bytes / size:.3g} {unit}"
    return f"{int(n_bytes)} B"
