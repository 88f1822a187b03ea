"""The plan: stages with their grids, their costs and the reasons behind them, for running and for reading."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from math import prod

from volara_expr.config import config
from volara_expr.expr import ArrayNode, BlockTable, GlobalTable, Node
from volara_expr.expr.show import html_table
from volara_expr.geometry import Box
from volara_expr.geometry.grid import BlockGrid
from volara_expr.plan.blocks import FLOOR_VOXELS, Footprint, choose_block, demands, gb
from volara_expr.plan.fusion import joins
from volara_expr.plan.region import Region
from volara_expr.plan.stages import Group, group_targets
from volara_expr.plan.targets import Output, Target

__all__ = ["Plan", "Stage", "make_plan"]

RUN_BLOCKS = 32
"""From so many blocks for each of several workers on, each is given runs of neighbours; of fewer they take turns."""
DECISIONS = ("threshold", "argmax", "watershed", "localcomponents")


@dataclass(frozen=True)
class Read:
    """What a stage reads from one source over all its blocks."""

    node: ArrayNode
    voxels: int

    @property
    def nbytes(self) -> int:
        """Decoded bytes."""
        return self.voxels * self.node.spec.dtype.itemsize

    @property
    def ratio(self) -> float:
        """Voxels requested per voxel of the source."""
        return self.voxels / max(1, self.node.spec.box.size)


@dataclass
class Stage:
    """One pass: read, compute, write, block by block; or one step on whole tables.

    Attributes
    ----------
    targets : list of Target
        What the pass stores.
    grid : BlockGrid or None
        The execution grid, along the axes of `targets[0].frame`; None for a step on tables.
    needs : list of int
        Positions of the stages that must be complete before.
    projected_bytes : int
        Upper bound of a worker's memory, interpreter and cache included.
    threads : int
        Blocks that a worker computes at the same time.
    cache_bytes : int
        Decoded chunks that a worker keeps.
    """

    group: Group
    grid: BlockGrid | None
    needs: list[int]
    projected_bytes: int
    footprint: Footprint | None = None
    threads: int = 1
    cache_bytes: int = 0
    note: str = ""
    reads: list[Read] = field(default_factory=list)

    @property
    def targets(self) -> list[Target]:
        """What the stage stores."""
        return self.group.targets

    @property
    def name(self) -> str:
        """Name in progress bars, logs and messages."""
        return " + ".join(t.name for t in self.targets)

    @property
    def writes(self) -> int:
        """Blocks that a worker writes at the same time; of small ones two, since each waits for its files."""
        small = self.grid is not None and prod(self.grid.block) < FLOOR_VOXELS
        return 2 if small else self.threads

    @property
    def n_blocks(self) -> int:
        """Number of blocks; 1 for a step on tables."""
        return self.grid.n_blocks if self.grid else 1

    @property
    def written_bytes(self) -> int:
        """Uncompressed bytes of the arrays that the stage writes."""
        return sum(t.nbytes for t in self.targets)


class Plan:
    """What `write` would do, stage by stage. Making it reads no data.

    Attributes
    ----------
    stages : list of Stage
    workers : int
    worker_bytes : int
        Memory that one worker may use.
    """

    def __init__(
        self, outputs: Sequence[Output], stages: list[Stage], workers: int, worker_bytes: int, reused: list[Node]
    ) -> None:
        self.outputs = tuple(outputs)
        self.stages = stages
        self.workers = workers
        self.worker_bytes = worker_bytes
        self.reused = reused

    @property
    def peak_bytes(self) -> int:
        """Projected peak memory of one worker, over all stages."""
        return max((s.projected_bytes for s in self.stages), default=0)

    @property
    def warnings(self) -> list[str]:
        """What a careful reader should know before running."""
        found = []
        for s in self.stages:
            for n in s.group.region.computed:
                if n.label in DECISIONS and any(x.exactness == "inexact" for x in upstream_of(n)):
                    found.append(
                        f"{n.label} decides on an inexact value (floats whose last bits depend on the block): results at ties may differ between grids"
                    )
        return list(dict.fromkeys(found))

    def explain(self) -> str:
        """Return the plan as text: stages, blocks, halos, bytes, projected memory, and the reason for every cut."""
        lines = [
            f"Plan of {len(self.stages)} stage{'s' * (len(self.stages) != 1)} for {self.workers} worker{'s' * (self.workers != 1)}, "
            f"projected peak {gb(self.peak_bytes)} per worker (allowed {gb(self.worker_bytes)})"
        ]
        for n in self.reused:
            lines.append(f"  found complete, not computed again: {n.label} ({n.digest[:8]})")
        for i, s in enumerate(self.stages, 1):
            lines += ["", f"{i}. {s.name}"]
            if s.grid is None:
                lines.append("   one step on whole tables")
            else:
                lines.append(
                    f"   {s.n_blocks:,} block{'s' * (s.n_blocks != 1)} of {by(s.grid.block)} ({by(s.grid.shape)} grid)"
                    + (f", {s.threads} at a time" if s.threads > 1 else "")
                    + (f"; {s.note}" if s.note else "")
                )
            for r in s.reads:
                lines.append(f"   read   {r.node.label}: {gb(r.nbytes)}, {r.ratio:.2f}x its voxels")
            ops = [n for n in s.group.region.computed if n.label]
            if ops:
                lines.append("   fused  " + " -> ".join(op_text(n) for n in ops))
                lines += [f"   by     {text}" for text in paths(s.group.fused)]
            for t in s.targets:
                what = f"{gb(t.nbytes)} in chunks of {by(t.chunks)}" if t.chunks and isinstance(t.node, ArrayNode) else "table"
                lines.append(f"   store  {t.name}: {what} - {t.reason}")
            if s.grid is not None:
                lines.append(f"   memory {gb(s.projected_bytes)} per worker")
        lines += ["", *(f"warning: {w}" for w in self.warnings)] if self.warnings else []
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.explain()

    def _repr_html_(self) -> str:
        rows = []
        for i, s in enumerate(self.stages, 1):
            grid = "one step on whole tables" if s.grid is None else f"{s.n_blocks:,} &times; {by(s.grid.block)}"
            reads = "<br>".join(f"{escape(r.node.label)}: {gb(r.nbytes)} ({r.ratio:.2f}&times;)" for r in s.reads)
            fused = " &rarr; ".join(escape(op_text(n)) for n in s.group.region.computed)
            stores = "<br>".join(
                f"<b>{escape(t.name)}</b>{' ' + gb(t.nbytes) if t.nbytes else ''}<br><small>{escape(t.reason)}</small>"
                for t in s.targets
            )
            rows.append((str(i), grid, reads, fused, stores, gb(s.projected_bytes)))
        warned = "".join(f"<p>&#9888; {escape(w)}</p>" for w in self.warnings)
        return (
            f"<p>stages: {len(self.stages)}, workers: {self.workers}, projected peak <b>{gb(self.peak_bytes)}</b> per worker "
            f"(allowed {gb(self.worker_bytes)})</p>{html_table(rows, ('', 'blocks', 'read', 'fused', 'store', 'memory'))}{warned}"
        )

    def to_html(self) -> str:
        """Return the plan as a whole HTML page."""
        head = "<meta charset='utf-8'><title>Plan</title><style>:root{color-scheme:light dark;font-family:sans-serif}</style>"
        return f"<!doctype html><html><head>{head}</head><body>{self._repr_html_()}</body></html>"


def by(values: Sequence[int]) -> str:
    """Return "64 x 64 x 64"."""
    return " x ".join(map(str, values))


def op_text(node: ArrayNode) -> str:
    """Return an op with its inferred halo."""
    halo = node.halo()
    text = node.label
    return f"{text} [halo {halo}]" if any((*halo.lo, *halo.hi)) else text


def paths(region: Region) -> list[str]:
    """Say of every pointwise part of a region how it is computed."""
    found = []
    for n in region.computed:
        step = region.steps.get(id(n))
        if step is not None:
            found.append(f"{step.path}: {' -> '.join(m.label for m in step.members)}")
        elif (n.pointwise and not n.tables) or joins(n):
            found.append(f"numpy: {n.label}")
    return found


def upstream_of(node: ArrayNode) -> list[ArrayNode]:
    """Return all array nodes behind a node."""
    from volara_expr.expr import topological

    return [n for n in topological([node]) if isinstance(n, ArrayNode) and n is not node]


def make_plan(
    outputs: Sequence[Output],
    *,
    workers: int = 1,
    threads: int = 1,
    block: tuple[int, ...] | None = None,
    worker_bytes: int | None = None,
    found: Callable[[Node], bool] = lambda _: False,
) -> Plan:
    """Compile outputs into a plan.

    Parameters
    ----------
    outputs : sequence of Output
    workers : int
        Workers that share the machine's memory.
    threads : int
        Most blocks that a worker computes at the same time.
    block : tuple of int, optional
        Execution block along the space axes, in voxels; rounded up to whole write units.
    worker_bytes : int, optional
        Memory that a worker may use; by default its share of what the machine allows.
    found : callable
        Whether a node is already stored, complete.

    Raises
    ------
    PlanTooBig
        If a stage does not fit in the memory, naming the worst node and the remedies.
    """
    allowed = worker_bytes or config.allowed_bytes() // max(1, workers)
    reserved = config.reserved_bytes + config.cache_bytes
    groups = group_targets(outputs, found)
    at = {id(t): i for i, g in enumerate(groups) for t in g.targets}
    stages = []
    reused: dict[int, Node] = {}
    for g in groups:
        needs = sorted({at[id(t)] for t in g.needs})
        if isinstance(g.targets[0].node, GlobalTable) or g.targets[0].frame is None:
            stages.append(Stage(g, None, needs, reserved))
        else:
            grid, mem, n, note = choose_block(
                g, workers=workers, threads=threads, worker_bytes=allowed, reserved_bytes=reserved, requested=block
            )
            cache = config.cache_bytes if reads_again(g, grid, workers) else 0
            peak = config.reserved_bytes + cache + n * mem.peak_bytes
            stages.append(Stage(g, grid, needs, peak, mem, n, cache, note, reads_of(g, grid)))
        reused |= {id(n): n for n in g.region.leaves.values() if n.inputs and found(n)}
    return Plan(outputs, stages, workers, allowed, list(reused.values()))


def reads_again(group: Group, grid: BlockGrid, workers: int) -> bool:
    """Whether a worker reads chunks that it has read shortly before: for a block in several parts, or for a neighbour of its last."""
    middle = grid.box_at(tuple(n // 2 for n in grid.shape))
    return workers == 1 or grid.n_blocks >= RUN_BLOCKS * workers or len(demands(group.targets, middle)) > 1


def reads_of(group: Group, grid: BlockGrid) -> list[Read]:
    """Count the voxels that all blocks together request of each source.

    Needs are separable, so the count along each axis is the sum over the blocks of one row of the grid; rows longer than three
    blocks are extended from their middle.
    """
    middle = tuple(n // 2 for n in grid.shape)
    base = requested(group, grid.box_at(middle))
    totals = {n: float(v) for n, v in base.items()}
    for axis, n in enumerate(grid.shape):
        picks = list(range(n)) if n <= 5 else [0, 1, middle[axis], n - 2, n - 1]
        weights = [1] * n if n <= 5 else [1, 1, n - 4, 1, 1]
        along: dict[ArrayNode, float] = {}
        for k, w in zip(picks, weights, strict=True):
            index = tuple(k if i == axis else m for i, m in enumerate(middle))
            for node, v in requested(group, grid.box_at(index)).items():
                along[node] = along.get(node, 0.0) + w * v
        for node in totals:
            if base[node]:
                totals[node] *= along.get(node, 0.0) / base[node]
    return [Read(n, round(v)) for n, v in totals.items() if prod(n.spec.shape)]


def requested(group: Group, block: Box) -> dict[ArrayNode, int]:
    """Return the voxels that one block requests of each source."""
    total: dict[ArrayNode, int] = {}
    for d in demands(group.targets, block):
        boxes = group.region.demand(dict(d.boxes))
        for n in group.region.leaves.values():
            if n in boxes and not isinstance(n, BlockTable):
                total[n] = total.get(n, 0) + boxes[n].size
    return total
