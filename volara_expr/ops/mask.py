"""Masks: what lies outside is filled, and is known to be outside by the operations that follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from volara_expr.expr.node import ArrayNode, ArraySpec, Patch
from volara_expr.geometry import Box
from volara_expr.kernels.scalars import Scalars, Value
from volara_expr.ops.cells import spatial_part
from volara_expr.ops.matching import on_voxels_of, part_of
from volara_expr.ops.pointwise import Elementwise
from volara_expr.ops.shape import Described, Slice, Take

__all__ = ["Mask", "carried_mask", "masked"]


@dataclass(frozen=True, eq=False, repr=False)
class Mask(ArrayNode):
    """`array` where `mask` is not 0, elsewhere `fill`.

    Attributes
    ----------
    array, mask : ArrayNode
        The mask covers the voxels of the array, over all its axes or over its space axes alone.
    fill : int, float, complex or bool
    """

    cost = 1.0

    array: ArrayNode
    mask: ArrayNode
    fill: complex = 0

    def make_spec(self) -> ArraySpec:
        spec, given = self.array.spec, self.mask.spec
        if given.dtype.kind not in "biu":
            raise TypeError(f"a mask of dtype {given.dtype} does not say what is inside; use threshold, or a comparison")
        whole = spec.box if given.ndim == spec.ndim else spatial_part(spec.box, spec.space)
        if given.ndim != whole.ndim or not given.box.contains(whole):
            raise ValueError(
                f"the mask covers {given.box}, the array {spec.box} with space axes {spec.space.spatial}; give a mask of the "
                "same voxels, over all axes or over the space axes"
            )
        if not _is_value(self.fill, spec.dtype):
            raise ValueError(f"fill={self.fill!r} is no value of dtype {spec.dtype}; use another, or astype first")
        return spec

    def need(self, box: Box) -> tuple[Box | None, ...]:
        return box, box if self.mask.spec.ndim == box.ndim else spatial_part(box, self.spec.space)

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        inside = patches[1].data
        if inside.ndim < out.ndim:
            at = self.spec.space.spatial
            inside = inside[tuple(slice(None) if i in at else None for i in range(out.ndim))]
        return np.where(inside != 0, patches[0].data, self.spec.dtype.type(self.fill))

    def scalars(self, code: Scalars, inputs: Sequence[Sequence[Value]]) -> list[Value] | None:
        ndim, n = self.spec.ndim, self.mask.spec.ndim
        if n < ndim and self.spec.space.spatial != tuple(range(ndim - n, ndim)):
            return None
        dtype, (planes, mask) = self.spec.dtype, inputs
        fill = code.constant(self.fill, dtype)
        inside = [code.cast(m, np.dtype(bool)) for m in mask]
        return [code.call("where", dtype, inside[k % len(inside)], x, fill) for k, x in enumerate(planes)]


def _is_value(fill: object, dtype: np.dtype[Any]) -> bool:
    """Whether a number can be held: exactly by integers and booleans, rounded by floats."""
    if not isinstance(fill, (int, float, complex, np.generic)) or (isinstance(fill, complex) and dtype.kind != "c"):
        return False
    if dtype.kind == "b":
        return fill in (0, 1)
    return dtype.kind not in "iu" or (fill.real % 1 == 0 and np.iinfo(dtype).min <= fill.real <= np.iinfo(dtype).max)


def masked(array: ArrayNode, mask: ArrayNode, fill: complex) -> Mask:
    """Return the node of `Array.mask`: the mask in the coordinates of the array, which it must cover exactly."""
    spec = array.spec
    over = spec if mask.spec.ndim == spec.ndim else part_of(spec, spec.space.spatial)
    return Mask(array, on_voxels_of(over, "the mask", mask), fill)


def carried_mask(node: ArrayNode) -> ArrayNode | None:
    """Return the mask over the space axes that holds for every voxel of an array.

    `Mask` sets it; elementwise operations, crops and choices of channels keep it, operations that move voxels drop it. Where
    several hold, the result is their intersection. It covers the array's voxels, or more, in the same coordinates: a crop needs
    none of its own mask.
    """
    found: dict[str, ArrayNode] = {}
    seen: set[int] = set()
    stack = [node]
    while stack:
        at = stack.pop()
        if id(at) in seen:
            continue
        seen.add(id(at))
        if isinstance(at, Mask):
            if at.mask.spec.ndim == len(at.spec.space.spatial):
                found[at.mask.digest] = at.mask
            stack.append(at.array)
        elif _keeps_voxels(at):
            stack += [x for x in at.arrays if _same_coordinates(x.spec, at.spec)]
    both: ArrayNode | None = None
    for m in sorted(found.values(), key=lambda m: (m.spec.box.size, m.digest)):  # that of a crop is the smallest
        both = m if both is None else Mask(both, m)
    return both


def _keeps_voxels(node: ArrayNode) -> bool:
    """Whether a voxel of the result shows the same place of each input that has the same coordinates."""
    if isinstance(node, Slice):
        along_space = [node.items[i] for i in node.array.spec.space.spatial]
        return all(not isinstance(item, int) and item[2] == 1 for item in along_space)
    if isinstance(node, Described):
        return node.spec.box == node.array.spec.box
    return node.pointwise or isinstance(node, (Elementwise, Take))  # also where another operand is stretched


def _same_coordinates(a: ArraySpec, b: ArraySpec) -> bool:
    """Whether equal voxel numbers mean equal places, along the space axes, and `a` holds all of `b`."""
    p, q = a.space.keep(a.space.spatial), b.space.keep(b.space.spatial)
    same = (p.names, p.voxel_size, p.origin) == (q.names, q.voxel_size, q.origin)
    return same and spatial_part(a.box, a.space).contains(spatial_part(b.box, b.space))
