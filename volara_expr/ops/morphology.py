"""Grey and binary morphology over structuring elements of any form, and what is composed of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from volara_expr.expr.node import ArrayNode, ArraySpec, Patch
from volara_expr.geometry import Box
from volara_expr.ops.pointwise import Cast, Elementwise
from volara_expr.ops.stencil import Boundary, MaximumFilter, MinimumFilter, _Stencil, check_boundary, check_value

__all__ = ["Element", "WindowExtreme", "boundaries", "closing", "cross", "dilation", "element", "erosion", "opening"]


@dataclass(frozen=True)
class Element:
    """A structuring element over all axes of an array.

    Attributes
    ----------
    offsets : tuple of tuples of int
        From the centre to its entries.
    heights : tuple of float
        One for each offset; none for a flat element.
    """

    offsets: tuple[tuple[int, ...], ...]
    heights: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class WindowExtreme(_Stencil):
    """The smallest value over a window less its heights, or the largest plus them: `scipy.ndimage.grey_erosion`, `grey_dilation`.

    Attributes
    ----------
    element : Element
    largest : bool
    """

    element: Element
    largest: bool
    mode: Boundary = "reflect"
    value: float = 0.0
    smooths: ClassVar[bool] = False
    kernel: ClassVar[str] = "volara_expr.kernels.morphology:window_extreme"
    cost: ClassVar[float] = 20.0

    def make_spec(self) -> ArraySpec:
        check_boundary(self.mode)
        spec = super().make_spec()
        if not self.element.offsets or {len(o) for o in self.element.offsets} != {spec.ndim}:
            raise ValueError(
                f"a structuring element of {len(self.element.offsets)} entries over {spec.ndim} axes; give one entry at least"
            )
        check_value(self.value, spec.dtype)
        if self.element.heights and spec.dtype.kind == "b":
            raise TypeError("a structure with heights takes numbers, the array holds booleans; use footprint, or astype first")
        if self.element.heights and spec.dtype.kind in "iu" and spec.dtype.itemsize == 8:
            raise TypeError(f"{spec.dtype} and heights have sums of more than 64 bits; astype('int32') or 'float64' first")
        return spec

    @property
    def label(self) -> str:
        return "dilation" if self.largest else "erosion"

    def describe(self) -> str:
        return f"{len(self.element.offsets)} voxels, mode={self.mode!r}"

    def reach(self) -> tuple[Sequence[int], Sequence[int]]:
        steps = list(zip(*self.element.offsets, strict=True))
        below, above = [max(0, -min(s)) for s in steps], [max(0, *s) for s in steps]
        if self.mode in ("reflect", "mirror"):  # what is seen beyond a face lies on this side of it
            below = above = [max(a, b) for a, b in zip(below, above, strict=True)]
        return below, above

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        patch = patches[0]
        result = kernel(patch.data, self.element.offsets, self.element.heights, self.largest, self.mode, self.value)
        return result[out.slices(patch.box.lo)]


def element(
    spec: ArraySpec,
    size: Sequence[int] | None = None,
    footprint: npt.ArrayLike | None = None,
    structure: npt.ArrayLike | None = None,
) -> tuple[Element, Element]:
    """Return the structuring elements of an erosion and of a dilation, over all axes of an array.

    Parameters
    ----------
    spec : ArraySpec
    size : sequence of int, optional
        Of a box, per axis.
    footprint : array_like of bool, optional
        Over the space axes.
    structure : array_like of float, optional
        Heights, over the space axes.

    Raises
    ------
    ValueError
        If none is given, or an array has another number of axes than there are space axes.
    """
    shape = size
    heights: npt.NDArray[np.float64] | None = None
    if structure is not None:
        heights = _over_all_axes(spec, np.asarray(structure, np.float64), "structure")
        shape = heights.shape
    inside = np.ones(() if shape is None else tuple(shape), bool)
    if footprint is not None:
        inside = _over_all_axes(spec, np.asarray(footprint) != 0, "footprint")
        if heights is not None and heights.shape != inside.shape:
            raise ValueError(f"footprint has shape {inside.shape}, structure {heights.shape}; give both one shape")
    elif shape is None:
        raise ValueError("give size, footprint or structure: the form of the window")
    at = np.argwhere(inside) - [n // 2 for n in inside.shape]
    high = () if heights is None else tuple(heights[inside].tolist())
    erode = Element(tuple(map(tuple, at.tolist())), high)
    return erode, Element(tuple(map(tuple, (-at).tolist())), high)


def _over_all_axes(spec: ArraySpec, values: npt.NDArray[Any], what: str) -> npt.NDArray[Any]:
    spatial = spec.space.spatial
    if values.ndim != len(spatial):
        raise ValueError(f"{what} has {values.ndim} axes and the array {len(spatial)} space axes; give one along each")
    found: npt.NDArray[Any] = values[tuple(slice(None) if i in spatial else None for i in range(spec.ndim))]
    return found


def erosion(array: ArrayNode, by: tuple[Element, Element], mode: Boundary, value: float) -> ArrayNode:
    """Return the erosion by an element; a flat box of odd sides goes through the faster filter."""
    return _extreme(array, by[0], False, mode, value)


def dilation(array: ArrayNode, by: tuple[Element, Element], mode: Boundary, value: float) -> ArrayNode:
    """Return the dilation by an element."""
    return _extreme(array, by[1], True, mode, value)


def _extreme(array: ArrayNode, by: Element, largest: bool, mode: Boundary, value: float) -> ArrayNode:
    reach = [max(map(abs, steps)) for steps in zip(*by.offsets, strict=True)]
    sides = tuple(2 * r + 1 for r in reach)
    if not by.heights and len(by.offsets) == np.prod(sides):
        return (MaximumFilter if largest else MinimumFilter)(array, sides, mode, value)
    return WindowExtreme(array, by, largest, mode, value)


def opening(array: ArrayNode, by: tuple[Element, Element], mode: Boundary, value: float) -> ArrayNode:
    """Return the dilation of the erosion."""
    return dilation(erosion(array, by, mode, value), by, mode, value)


def closing(array: ArrayNode, by: tuple[Element, Element], mode: Boundary, value: float) -> ArrayNode:
    """Return the erosion of the dilation."""
    return erosion(dilation(array, by, mode, value), by, mode, value)


def cross(spec: ArraySpec, connectivity: int) -> tuple[Element, Element]:
    """Return the element of a voxel and its neighbours, as `scipy.ndimage.generate_binary_structure` over the space axes."""
    nd = len(spec.space.spatial)
    if not 1 <= connectivity <= nd:
        raise ValueError(f"connectivity is {connectivity}; with {nd} space axes it lies in 1 to {nd}")
    return element(spec, footprint=np.abs(np.indices((3,) * nd) - 1).sum(axis=0) <= connectivity)


def boundaries(labels: ArrayNode, connectivity: int, mode: str, background: int) -> ArrayNode:
    """Return the voxels at boundaries between labels; see `Array.find_boundaries`."""
    if labels.spec.dtype.kind not in "biu":
        raise TypeError(f"labels of dtype {labels.spec.dtype} have no boundaries; make integers of them with astype('uint64')")
    if mode not in ("thick", "inner", "outer"):
        raise ValueError(f"mode={mode!r} is none of 'thick', 'inner', 'outer'")
    if labels.spec.dtype.kind == "b":
        labels = Cast(labels, np.dtype(np.uint8))
    near = cross(labels.spec, connectivity)
    edge = Elementwise("not_equal", (dilation(labels, near, "reflect", 0), erosion(labels, near, "reflect", 0)))
    if mode == "thick":
        return edge
    if mode == "inner":
        return Elementwise("logical_and", (edge, Elementwise("not_equal", (labels, background))))
    around = cross(labels.spec, len(labels.spec.space.spatial))
    outside = Elementwise("equal", (labels, background))
    raised = Elementwise("where", (outside, int(np.iinfo(labels.spec.dtype).max), labels))
    differ = Elementwise("not_equal", (dilation(labels, around, "reflect", 0), erosion(raised, around, "reflect", 0)))
    meet = Elementwise("logical_and", (differ, Elementwise("logical_not", (outside,))))
    return Elementwise("logical_and", (edge, Elementwise("logical_or", (outside, meet))))
