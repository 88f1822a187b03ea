"""Operations that put voxels next to others: padding, concatenation and stacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from volara_expr.expr.node import ArrayNode, ArraySpec, Neighborhood, Patch
from volara_expr.geometry import Box, Space
from volara_expr.geometry.space import Length
from volara_expr.ops.align import Alignment, assemble, axis_number, broadcast, lines
from volara_expr.ops.shape import ExpandDims, with_faces, with_neighborhood

__all__ = ["Concat", "Pad", "PadMode", "pad_width", "stack"]

PadMode = Literal["constant", "edge", "reflect"]


@dataclass(frozen=True, eq=False, repr=False)
class Pad(ArrayNode):
    """Voxels added around an array, as `numpy.pad`.

    Attributes
    ----------
    width : tuple of (before, after)
        Per axis, in voxels.
    value : scalar
        Of the added voxels, in mode "constant".
    """

    array: ArrayNode
    width: tuple[tuple[int, int], ...]
    mode: PadMode = "constant"
    value: bool | int | float | complex = 0

    def make_spec(self) -> ArraySpec:
        spec = self.array.spec
        if self.mode not in ("constant", "edge", "reflect"):
            raise ValueError(f"mode={self.mode!r} is none of 'constant', 'edge', 'reflect'")
        if any(w < 0 for pair in self.width for w in pair):
            raise ValueError(f"width={self.width} has a negative entry; crop with an index instead")
        if self.mode != "constant" and spec.box.empty:
            raise ValueError(f"mode={self.mode!r} has nothing to repeat in an array of shape {spec.shape}")
        if spec.dtype.kind in "biu" and self.value != int(self.value.real):
            raise ValueError(f"value={self.value!r} is no value of dtype {spec.dtype}; use another, or astype first")
        np.full((), self.value, spec.dtype)  # an OverflowError or TypeError if it does not fit
        parts = [
            p._replace(lo=p.lo - a, hi=p.hi + b, frame=(min(p.frame[0], p.lo - a), max(p.frame[1], p.hi + b)))
            for p, (a, b) in zip(lines(spec), self.width, strict=True)
        ]
        return assemble(parts, spec.dtype, spec.space.placed, spec.neighborhood)

    def _sources(self, box: Box) -> list[npt.NDArray[np.int64]]:
        """Return, per axis, which voxel of the input each voxel of `box` shows."""
        shown = []
        for lo, hi, first, n in zip(box.lo, box.hi, self.array.spec.box.lo, self.array.spec.shape, strict=True):
            i = np.arange(lo - first, hi - first)
            if self.mode == "edge":
                i = np.clip(i, 0, n - 1)
            else:
                period = max(2 * (n - 1), 1)
                i = np.minimum(i % period, period - i % period)
            shown.append(i + first)
        return shown

    def need(self, box: Box) -> tuple[Box | None, ...]:
        if self.mode == "constant":
            inside = box.clip(self.array.spec.box)
            return (None if inside.empty else inside,)
        shown = self._sources(box)
        return (Box(tuple(int(i.min()) for i in shown), tuple(int(i.max()) + 1 for i in shown)),)

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        source = patches[0]
        if self.mode != "constant":
            local = [i - first for i, first in zip(self._sources(out), source.box.lo, strict=True)]
            return source.data[np.ix_(*local)]
        padded = np.full(out.shape, self.value, self.spec.dtype)
        if source.data is not None:
            padded[source.box.slices(out.lo)] = source.data
        return padded


@dataclass(frozen=True, eq=False, repr=False)
class Concat(ArrayNode):
    """Arrays one after the other along an axis; the first one's position holds for the whole."""

    parts: tuple[ArrayNode, ...]
    axis: int

    @cached_property
    def alignment(self) -> Alignment:
        """How the arrays meet along the other axes."""
        return broadcast([a.spec for a in self.parts], skip=self.axis)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each array starts along the axis, and where the last one ends, in the result's voxels."""
        k = self.axis
        return tuple(int(i) for i in np.cumsum([self.alignment.spec.box.lo[k], *(a.spec.shape[k] for a in self.parts)]))

    def make_spec(self) -> ArraySpec:
        if not self.parts:
            raise ValueError("nothing to join; give at least one array")
        specs, k = [a.spec for a in self.parts], self.axis
        if len({s.shape[:k] + s.shape[k + 1 :] for s in specs}) > 1:
            raise ValueError(
                f"arrays of shapes {' and '.join(str(s.shape) for s in specs)} cannot be joined along axis {k}: "
                "the other axes must be equal; crop them with ve.align"
            )
        hood = self.alignment.spec.neighborhood
        if specs[0].space.axes[k].type == "offsets":
            hoods: list[Neighborhood] = [s.neighborhood for s in specs if s.neighborhood is not None]
            hood = sum(hoods, ()) if len(hoods) == len(specs) else None
        every = lines(self.alignment.spec)
        lo, hi = self.starts[0], self.starts[-1]
        every[k] = every[k]._replace(hi=hi, frame=(min(every[k].frame[0], lo), max(every[k].frame[1], hi)))
        dtype = np.result_type(*(s.dtype for s in specs))
        return assemble(every, dtype, self.alignment.spec.space.placed, hood)

    def _spans(self, box: Box) -> list[tuple[int, int]]:
        """Return the part of `box`, along the axis, that each array gives; empty spans have hi <= lo."""
        lo, hi = box.lo[self.axis], box.hi[self.axis]
        return [(max(lo, a), min(hi, b)) for a, b in zip(self.starts, self.starts[1:], strict=False)]

    def need(self, box: Box) -> tuple[Box | None, ...]:
        k = self.axis
        needed: list[Box | None] = []
        for own, first, (lo, hi) in zip(self.alignment.boxes, self.starts, self._spans(box), strict=False):
            start = self.alignment.spec.box.lo
            moved = box.shift([a - b for a, b in zip(own.lo, start, strict=True)])
            needed.append(with_faces(moved, k, lo - first + own.lo[k], hi - first + own.lo[k]) if lo < hi else None)
        return tuple(needed)

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        joined = np.empty(out.shape, self.spec.dtype)
        for patch, (lo, hi) in zip(patches, self._spans(out), strict=True):
            if lo < hi:
                joined[with_faces(out, self.axis, lo, hi).slices(out.lo)] = patch.data
        return joined


def pad_width(space: Space, width: Length | Sequence[Length | tuple[Length, Length]]) -> tuple[tuple[int, int], ...]:
    """Return voxels (before, after) per axis, from one length, or one or two per space axis.

    Raises
    ------
    ValueError
        If a length is no whole number of voxels, or entries do not match the space axes.
    """
    spatial = space.spatial
    each = [width] * len(spatial) if isinstance(width, str) or not isinstance(width, Sequence) else width
    if len(each) != len(spatial):
        raise ValueError(f"width has {len(each)} entries for {len(spatial)} space axes; give one length, or one per space axis")
    pairs = [(0, 0)] * space.ndim
    for i, entry in zip(spatial, each, strict=True):
        before, after = entry if isinstance(entry, tuple) else (entry, entry)
        voxels = space.voxels(before, i), space.voxels(after, i)
        if any(v.denominator != 1 for v in voxels):
            amounts = " and ".join(str(float(v)) for v in voxels)
            raise ValueError(f"width {entry!r} along {space.names[i]!r} is {amounts} voxels; give whole voxels")
        pairs[i] = int(voxels[0]), int(voxels[1])
    return tuple(pairs)


def stack(nodes: Sequence[ArrayNode], axis: int, offsets: Sequence[Sequence[int]] | None) -> ArrayNode:
    """Return the arrays joined along a new channel axis; with `offsets`, that of a neighborhood."""
    if not nodes:
        raise ValueError("nothing to stack; give at least one array")
    axis = axis_number(axis, nodes[0].spec.ndim + 1)
    joined = Concat(tuple(ExpandDims(n, axis) for n in nodes), axis)
    return joined if offsets is None else with_neighborhood(joined, offsets, axis)
