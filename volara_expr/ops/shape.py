"""Operations that move voxels and compute nothing: indexing, transposing, and new descriptions of old voxels.

A plain crop keeps the absolute coordinates of its source along space axes; other axes always start at 0. A step, a flip or a
picked list of indices starts a new voxel grid at 0. World positions stay exact throughout.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from volara_expr.expr.node import ArrayNode, ArraySpec, Patch
from volara_expr.geometry import Axis, Box
from volara_expr.ops.align import Line, assemble, lines, spatial_lines, where_is

__all__ = [
    "Described",
    "ExpandDims",
    "Item",
    "Slice",
    "Take",
    "Transpose",
    "at",
    "with_faces",
    "with_neighborhood",
    "with_voxel_size",
]

Item = int | tuple[int, int, int]
"""Along one axis, counted from the array's first voxel: an index, or (start, number, step)."""


def with_faces(box: Box, axis: int, lo: int, hi: int) -> Box:
    """Return the box with other faces along one axis."""
    return Box((*box.lo[:axis], lo, *box.lo[axis + 1 :]), (*box.hi[:axis], hi, *box.hi[axis + 1 :]))


def _sliced(line: Line, start: int, n: int, step: int) -> Line:
    """Return the line of `n` voxels, every `step`-th from `start`; each new voxel is centred on the one that it shows."""
    if line.axis.type == "space" and step == 1:
        return line._replace(lo=line.lo + start, hi=line.lo + start + n)
    lowest = start if step > 0 else start + (n - 1) * step
    size = line.voxel_size * abs(step)
    centre = line.start + (lowest + Fraction(1, 2)) * line.voxel_size
    return line.fresh(n, size, centre - size / 2)


@dataclass(frozen=True, eq=False, repr=False)
class Slice(ArrayNode):
    """Basic indexing: every axis cropped, strided, flipped or dropped.

    A flipped axis keeps the world box of what it shows and mirrors the content, as voxel sizes are positive.

    Attributes
    ----------
    items : tuple
        One per axis: an index, which drops the axis, or (start, number, step).
    """

    array: ArrayNode
    items: tuple[Item, ...]
    takes_coded: ClassVar[bool] = True

    def make_spec(self) -> ArraySpec:
        spec = self.array.spec
        hood = spec.neighborhood
        parts = []
        for line, item in zip(lines(spec), self.items, strict=True):
            if isinstance(item, int):
                hood = None if line.axis.type in ("space", "offsets") else hood
                continue
            start, n, step = item
            if line.axis.type == "offsets" and hood is not None:
                hood = tuple(hood[start + i * step] for i in range(n))
            elif line.axis.type == "space" and step != 1:
                hood = None
            parts.append(_sliced(line, start, n, step))
        return assemble(parts, spec.dtype, spec.space.placed, hood)

    @property
    def crops(self) -> bool:
        """Whether this only crops: no step, no flip, no dropped axis."""
        return all(isinstance(item, tuple) and item[2] == 1 for item in self.items)

    @property
    def label(self) -> str:
        return "crop" if self.crops else "slice"

    def describe(self) -> str:
        shown = []
        for item, n in zip(self.items, self.array.spec.shape, strict=True):
            if isinstance(item, int):
                shown.append(str(item))
            elif item == (0, n, 1):
                shown.append(":")
            else:
                start, count, step = item
                shown.append(f"{start}:{start + count * step}" + (f":{step}" if step != 1 else ""))
        return ", ".join(shown)

    def need(self, box: Box) -> tuple[Box | None, ...]:
        lo, hi, k = [], [], 0
        for first, item in zip(self.array.spec.box.lo, self.items, strict=True):
            if isinstance(item, int):
                lo.append(first + item)
                hi.append(first + item + 1)
                continue
            start, _, step = item
            a, b = (first + start + (edge - self.spec.box.lo[k]) * step for edge in (box.lo[k], box.hi[k] - 1))
            lo.append(min(a, b))
            hi.append(max(a, b) + 1)
            k += 1
        return (Box(tuple(lo), tuple(hi)),)

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        return patches[0].data[tuple(0 if isinstance(i, int) else slice(None, None, i[2]) for i in self.items)]


@dataclass(frozen=True, eq=False, repr=False)
class Take(ArrayNode):
    """The entries of one axis at the given indices, counted from its first. A space axis becomes a channel axis."""

    array: ArrayNode
    axis: int
    indices: tuple[int, ...]
    takes_coded: ClassVar[bool] = True

    def make_spec(self) -> ArraySpec:
        spec = self.array.spec
        parts, hood, n = lines(spec), spec.neighborhood, len(self.indices)
        line = parts[self.axis]
        if line.axis.type == "offsets" and hood is not None:
            hood = tuple(hood[i] for i in self.indices)
        elif line.axis.type == "space":
            hood = None
        parts[self.axis] = line.as_channel(n) if line.located else line.fresh(n)
        return assemble(parts, spec.dtype, spec.space.placed, hood)

    def need(self, box: Box) -> tuple[Box | None, ...]:
        taken = self.indices[box.lo[self.axis] : box.hi[self.axis]]
        first = self.array.spec.box.lo[self.axis]
        return (with_faces(box, self.axis, first + min(taken), first + max(taken) + 1),)

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        shift = self.array.spec.box.lo[self.axis] - patches[0].box.lo[self.axis]
        at_ = [i + shift for i in self.indices[out.lo[self.axis] : out.hi[self.axis]]]
        return patches[0].data[(slice(None),) * self.axis + (at_,)]


@dataclass(frozen=True, eq=False, repr=False)
class Transpose(ArrayNode):
    """The axes in another order; offsets of a neighborhood are reordered with the space axes."""

    array: ArrayNode
    axes: tuple[int, ...]
    takes_coded: ClassVar[bool] = True

    def make_spec(self) -> ArraySpec:
        spec = self.array.spec
        if sorted(self.axes) != list(range(spec.ndim)):
            raise ValueError(f"axes={self.axes} is no order of the {spec.ndim} axes; name each of 0 to {spec.ndim - 1} once")
        old = spec.space.spatial
        order = [old.index(i) for i in self.axes if i in old]
        hood = spec.neighborhood and tuple(tuple(offset[i] for i in order) for offset in spec.neighborhood)
        every = lines(spec)
        return assemble([every[i] for i in self.axes], spec.dtype, spec.space.placed, hood)

    def need(self, box: Box) -> tuple[Box | None, ...]:
        back = [self.axes.index(i) for i in range(box.ndim)]
        return (Box(tuple(box.lo[i] for i in back), tuple(box.hi[i] for i in back)),)

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        return patches[0].data.transpose(self.axes)


@dataclass(frozen=True, eq=False, repr=False)
class ExpandDims(ArrayNode):
    """A new channel axis of one entry."""

    array: ArrayNode
    axis: int
    takes_coded: ClassVar[bool] = True

    def make_spec(self) -> ArraySpec:
        spec = self.array.spec
        name = next(n for n in ("c", *(f"c{i}" for i in range(2, spec.ndim + 3))) if n not in spec.space.names)
        parts = lines(spec)
        parts.insert(self.axis, Line(Axis(name, "channel"), Fraction(1), Fraction(0), 0, 1, (0, 1)))
        return assemble(parts, spec.dtype, spec.space.placed, spec.neighborhood)

    def need(self, box: Box) -> tuple[Box | None, ...]:
        k = self.axis
        return (Box(box.lo[:k] + box.lo[k + 1 :], box.hi[:k] + box.hi[k + 1 :]),)

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        return patches[0].data[(slice(None),) * self.axis + (None,)]


@dataclass(frozen=True, eq=False, repr=False)
class Described(ArrayNode):
    """The same voxels under another description: position, names of axes, neighborhood."""

    array: ArrayNode
    known: ArraySpec
    takes_coded: ClassVar[bool] = True

    def make_spec(self) -> ArraySpec:
        if self.known.shape != self.array.spec.shape:
            raise ValueError(f"a description of shape {self.known.shape} does not fit an array of {self.array.spec.shape}")
        return self.known

    def describe(self) -> str:
        return where_is(self.known)

    def need(self, box: Box) -> tuple[Box | None, ...]:
        return (box.shift([a - b for a, b in zip(self.array.spec.box.lo, self.known.box.lo, strict=True)]),)

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        return patches[0].data


def with_neighborhood(node: ArrayNode, offsets: Sequence[Sequence[int]], axis: int | None = None) -> ArrayNode:
    """Return the array with a channel axis that holds the affinities of a neighborhood."""
    spec = node.spec
    if axis is None:
        axis = next((i for k in ("offsets", "channel") if (i := spec.space.find(k)) is not None), None)
    hood = tuple(tuple(operator.index(v) for v in offset) for offset in offsets)
    if axis is None:
        raise ValueError(
            f"axes ({', '.join(spec.space.names)}) have no channel axis for {len(hood)} offsets; add one with stack"
        )
    rest = sum(i != axis for i in spec.space.spatial)
    if len(hood) != spec.shape[axis] or any(len(offset) != rest for offset in hood):
        raise ValueError(
            f"{len(hood)} offsets of lengths {sorted({len(o) for o in hood})} for {spec.shape[axis]} channels over {rest} space "
            "axes; give one offset per channel with one entry per space axis"
        )
    parts = lines(spec)
    parts[axis] = parts[axis].as_channel(len(hood))._replace(axis=Axis(parts[axis].axis.name, "offsets"))
    return Described(node, assemble(parts, spec.dtype, spec.space.placed, hood))


def at(node: ArrayNode, other: ArrayNode) -> ArrayNode:
    """Return the array with the position and the voxel size of another one, over the space axes."""
    spec, new = node.spec, iter(spatial_lines(other.spec))
    own, theirs = spatial_lines(spec), spatial_lines(other.spec)
    if [p.n for p in own] != [p.n for p in theirs]:
        raise ValueError(
            f"at() takes equal shapes over the space axes: {tuple(p.n for p in own)} and {tuple(p.n for p in theirs)}; crop one first"
        )
    parts = [next(new) if p.axis.type == "space" else p for p in lines(spec)]
    return Described(node, assemble(parts, spec.dtype, other.spec.space.placed, spec.neighborhood))


def with_voxel_size(
    node: ArrayNode, sizes: Sequence[Fraction], starts: Sequence[Fraction] | None, unit: str | None
) -> ArrayNode:
    """Return the array with another voxel size, position of its first voxel, and unit, over the space axes."""
    spec = node.spec
    if len(sizes) != len(spec.space.spatial) or (starts is not None and len(starts) != len(sizes)):
        raise ValueError(f"{len(sizes)} voxel sizes for {len(spec.space.spatial)} space axes; give one per space axis")
    if min(sizes, default=Fraction(1)) <= 0:
        raise ValueError(f"voxel sizes are positive, got {', '.join(map(str, sizes))}")
    parts = lines(spec)
    for k, i in enumerate(spec.space.spatial):
        p = parts[i]
        origin = p.origin if starts is None else starts[k] - p.lo * sizes[k]
        parts[i] = p._replace(axis=Axis(p.axis.name, "space", unit or p.axis.unit), voxel_size=sizes[k], origin=origin)
    return Described(node, assemble(parts, spec.dtype, True, spec.neighborhood))
