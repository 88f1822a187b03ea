"""What a plan stores: user's outputs and intermediate nodes, with their place on the voxel grid and their write unit."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, lcm, prod
from typing import Any

from volara_expr.expr import ArrayNode, ArraySpec, BlockTable, Node
from volara_expr.geometry import Box

__all__ = ["Frame", "Output", "Target", "common_grid"]

CHUNK_VOXELS = {1: 1 << 18, 2: 512, 3: 64}
"""Default chunk edge by the number of space axes: what viewers like."""
CHUNK_BYTES = 32 << 20


@dataclass(frozen=True)
class Output:
    """What a user asked for.

    Attributes
    ----------
    node : Node
    url : str or None
        Where it goes; None for a result handed over in memory.
    chunks, shards : tuple of int or None
        Per axis of the array, or per space axis; None lets the planner choose.
    options : dict
        What the store needs to create it (format, levels, ...).
    """

    node: Node
    url: str | None = None
    chunks: tuple[int, ...] | None = None
    shards: tuple[int, ...] | None = None
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Frame:
    """The axes that blocks run along (space and time), and their extent; all other axes are taken whole.

    Attributes
    ----------
    names : tuple of str
    box : Box
        Over those axes.
    at : tuple of int
        Their positions among the axes of the array.
    spec : ArraySpec
    """

    names: tuple[str, ...]
    box: Box
    at: tuple[int, ...]
    spec: ArraySpec

    @classmethod
    def of(cls, spec: ArraySpec) -> Frame:
        """Return the frame of an array."""
        at = tuple(i for i, a in enumerate(spec.space.axes) if a.type in ("space", "time"))
        box = Box(tuple(spec.box.lo[i] for i in at), tuple(spec.box.hi[i] for i in at))
        return cls(tuple(spec.space.axes[i].name for i in at), box, at, spec)

    @property
    def key(self) -> tuple[tuple[str, ...], Box]:
        """Frames of equal key can share blocks."""
        return (self.names, self.box)

    def full(self, block: Box) -> Box:
        """Return the array's box for a block of the frame."""
        lo, hi = list(self.spec.box.lo), list(self.spec.box.hi)
        for k, i in enumerate(self.at):
            lo[i], hi[i] = block.lo[k], block.hi[k]
        return Box(tuple(lo), tuple(hi))

    def pick(self, values: tuple[int, ...]) -> tuple[int, ...]:
        """Return the entries that belong to the frame's axes."""
        return tuple(values[i] for i in self.at)


class Target:
    """A node that a stage stores.

    Parameters
    ----------
    node : Node
    reason : str
        Why it is stored.
    output : Output or None
        What the user asked of it; None for an intermediate.

    Attributes
    ----------
    frame : Frame or None
        None for a table made at once.
    stored : Box or None
        Voxels that the stored array has room for: the node's box, grown down to its semantic grid.
    chunks : tuple of int
    shards : tuple of int or None
    """

    def __init__(self, node: Node, reason: str, output: Output | None = None) -> None:
        self.node = node
        self.reason = reason
        self.output = output
        self.frame: Frame | None = None
        self.stored: Box | None = None
        self.chunks: tuple[int, ...] = ()
        self.shards: tuple[int, ...] | None = None
        if isinstance(node, ArrayNode):
            self.frame = Frame.of(node.spec)
            self._lay_out(node)
        elif isinstance(node, BlockTable):
            self.frame = Frame.of(node.frame.spec)

    @property
    def url(self) -> str | None:
        """Where the user wants it; None for an intermediate."""
        return self.output.url if self.output else None

    @property
    def in_memory(self) -> bool:
        """Whether the result is handed over as a NumPy array."""
        return self.output is not None and self.output.url is None and isinstance(self.node, ArrayNode)

    @property
    def unit(self) -> tuple[int, ...]:
        """Shape of the write unit along the frame's axes."""
        if isinstance(self.node, BlockTable):
            assert self.frame is not None
            return self.frame.pick(self.node.cells.block)
        assert self.frame is not None
        return self.frame.pick(self.shards or self.chunks)

    @property
    def origin(self) -> tuple[int, ...]:
        """A corner of the grid of write units, along the frame's axes."""
        assert self.frame is not None
        if isinstance(self.node, BlockTable):
            return self.frame.pick(self.node.cells.origin)
        assert self.stored is not None
        return self.frame.pick(self.stored.lo)

    @property
    def nbytes(self) -> int:
        """Uncompressed size; 0 for tables, whose size is not known beforehand."""
        return self.node.spec.nbytes if isinstance(self.node, ArrayNode) else 0

    @property
    def name(self) -> str:
        """What a reader calls it."""
        if self.url:
            return "/".join(self.url.rstrip("/").split("/")[-2:])
        return self.node.label

    def _lay_out(self, node: ArrayNode) -> None:
        spec = node.spec
        semantic = node.unit
        box = spec.box
        asked = self.output.chunks if self.output else None
        shape = spec.shape
        if asked is None:
            self.chunks = default_chunks(spec, semantic if self.url is None else None)
            if semantic and self.url is not None:
                self.chunks = tuple(fit(c, s) for c, s in zip(self.chunks, semantic, strict=True))
        else:
            self.chunks = per_axis(asked, spec, "chunks")
        if self.url is None and semantic is not None:
            box = Box(box.snap(semantic, (0,) * box.ndim).lo, box.hi)
        self.stored = box
        self.chunks = tuple(max(1, min(c, n)) for c, n in zip(self.chunks, box.shape, strict=True))
        if semantic and asked is not None:
            for i, (c, s, n) in enumerate(zip(self.chunks, semantic, shape, strict=True)):
                if c % s and s % c and c < n:
                    raise ValueError(
                        f"chunks of {c} and watershed blocks of {s} along {spec.space.axes[i].name!r} divide neither way, so no block "
                        f"is whole in both; choose chunks that divide {s} or are a multiple of it, or write a relabelled copy"
                    )
        asked_shards = self.output.shards if self.output else None
        if asked_shards is not None:
            self.shards = per_axis(asked_shards, spec, "shards")
            for i, (s, c) in enumerate(zip(self.shards, self.chunks, strict=True)):
                if s % c:
                    raise ValueError(
                        f"shards of {s} along {spec.space.axes[i].name!r} do not hold whole chunks of {c}; choose shards that are a "
                        f"multiple of the chunks, for example {-(-s // c) * c}"
                    )


def fit(chunk: int, semantic: int) -> int:
    """Return the divisor of `semantic` that is nearest below `chunk`, or `chunk` where that is a multiple."""
    if chunk % semantic == 0:
        return chunk
    return next(d for d in range(min(chunk, semantic), 0, -1) if semantic % d == 0)


def default_chunks(spec: ArraySpec, semantic: tuple[int, ...] | None) -> tuple[int, ...]:
    """Choose chunks: cubes along space, whole along affinities, one along other axes."""
    n_space = len(spec.space.spatial)
    edge = CHUNK_VOXELS.get(n_space, 16)
    chunks = [1] * spec.ndim
    for i, axis in enumerate(spec.space.axes):
        if axis.type == "space":
            chunks[i] = (
                min(edge, semantic[i])
                if semantic and semantic[i] < 2 * edge
                else (fit(edge, semantic[i]) if semantic else edge)
            )
        elif axis.type == "offsets":
            chunks[i] = spec.shape[i]
    for i in spec.space.spatial:
        while semantic is None and prod(chunks) * spec.dtype.itemsize > CHUNK_BYTES and chunks[i] > 16:
            chunks[i] //= 2
    return tuple(chunks)


def per_axis(values: tuple[int, ...], spec: ArraySpec, what: str) -> tuple[int, ...]:
    """Complete chunks or shards given for the space axes alone; refuse other lengths."""
    if len(values) == spec.ndim:
        full = list(values)
    elif len(values) == len(spec.space.spatial):
        full = [n if a.type == "offsets" else 1 for n, a in zip(spec.shape, spec.space.axes, strict=True)]
        for i, v in zip(spec.space.spatial, values, strict=True):
            full[i] = v
    else:
        raise ValueError(
            f"{what} {values} has {len(values)} entries; the array has {spec.ndim} axes ({', '.join(spec.space.names)})"
        )
    if min(full) < 1:
        raise ValueError(f"{what} must be positive, got {values}")
    return tuple(full)


def common_grid(targets: list[Target]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return (unit, origin) of the coarsest grid whose blocks hold whole write units of every target; None if there is none."""
    unit, origin = targets[0].unit, targets[0].origin
    for t in targets[1:]:
        merged = [merge_axis(a, b, c, d) for a, b, c, d in zip(unit, origin, t.unit, t.origin, strict=True)]
        if any(m is None for m in merged):
            return None
        unit = tuple(m[0] for m in merged if m)
        origin = tuple(m[1] for m in merged if m)
    return unit, origin


def merge_axis(u: int, o: int, v: int, p: int) -> tuple[int, int] | None:
    """Return (lcm, origin) of two 1-D grids, or None where their lines never coincide."""
    if (o - p) % gcd(u, v):
        return None
    step = lcm(u, v)
    return step, next(o + k * u for k in range(step // u) if (o + k * u - p) % v == 0)
