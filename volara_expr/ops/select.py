"""Labels chosen by a table of them: small ones dropped, holes filled, plateaus that are no maxima left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from volara_expr.expr.node import ArrayNode, GlobalTable
from volara_expr.ops.cells import CELL, cell_shape
from volara_expr.ops.components import components
from volara_expr.ops.graph_tables import MergedTable, NodeTable
from volara_expr.ops.indexing import crop
from volara_expr.ops.join import Pad
from volara_expr.ops.labels import Relabel
from volara_expr.ops.lut import LUT_COLUMNS, write_lut
from volara_expr.ops.morphology import cross, dilation, erosion
from volara_expr.ops.pointwise import Cast, Elementwise

__all__ = ["ChosenLabels", "choose", "fill_holes", "local_maxima", "remove_small"]

Limits = tuple[tuple[str, int | None, int | None], ...]


@dataclass(frozen=True, eq=False, repr=False)
class ChosenLabels(GlobalTable):
    """The labels whose entries lie within limits, each looked up to itself.

    Attributes
    ----------
    table : MergedTable
        With the column "id".
    limits : tuple of (str, int or None, int or None)
        A column, the least and the largest entry; None for no limit.
    """

    table: MergedTable
    limits: Limits

    @property
    def label(self) -> str:
        return "chosen labels"

    @property
    def columns(self) -> tuple[str, ...]:
        return LUT_COLUMNS

    def run(self, kernel: Callable[..., Any], tables: Sequence[Any], out: str, memory_bytes: int) -> None:
        rows = tables[0].read(["id", *(column for column, _, _ in self.limits)])
        chosen = np.ones(len(rows["id"]), bool)
        for column, least, most in self.limits:
            if least is not None:
                chosen &= rows[column] >= least
            if most is not None:
                chosen &= rows[column] <= most
        ids = np.sort(rows["id"][chosen])
        write_lut(out, ids, ids)


def choose(labels: ArrayNode, limits: Limits, marks: Mapping[str, ArrayNode] | None = None) -> ArrayNode:
    """Return labels without those whose size, or number of marked voxels, is beyond limits.

    Parameters
    ----------
    labels : ArrayNode
    limits : tuple of (str, int or None, int or None)
        "size", or "<name>_sum" of a mark.
    marks : mapping of str to ArrayNode, optional
        Booleans over the same voxels.
    """
    space = labels.spec.space
    cell = labels.unit or cell_shape(space, (CELL,) * len(space.spatial))
    given = marks or {}
    rows = NodeTable(labels, tuple(given.values()), tuple(given), cell)
    return Relabel(labels, ChosenLabels(MergedTable((rows,), ("id",)), limits), "zero")


def remove_small(array: ArrayNode, min_size: int, connectivity: int) -> ArrayNode:
    """Return labels, or the components of a mask, of at least `min_size` voxels; see `Array.remove_small`."""
    if min_size < 0:
        raise ValueError(f"min_size={min_size} voxels; give 0 or more")
    dtype = array.spec.dtype
    if dtype.kind not in "biu":
        raise TypeError(f"an array of dtype {dtype} holds neither labels nor a mask; use threshold, or astype('uint64')")
    labels = components(array, connectivity, False, None) if dtype.kind == "b" else array
    large = choose(labels, (("size", min_size, None),))
    return Elementwise("not_equal", (large, 0)) if dtype.kind == "b" else Cast(large, dtype)


def fill_holes(mask: ArrayNode, connectivity: int, max_size: int | None) -> ArrayNode:
    """Return a mask with the holes filled that do not reach its faces; see `Array.fill_holes`."""
    spec, space = mask.spec, mask.spec.space
    if spec.dtype.kind not in "biu":
        raise TypeError(f"a mask of dtype {spec.dtype} does not say what is inside; use threshold, or a comparison")
    inside = Elementwise("not_equal", (mask, 0))
    # A rim of background joins all that reaches a face; what the rim does not reach are the holes.
    width = tuple((1, 1) if i in space.spatial else (0, 0) for i in range(spec.ndim))
    outside = Pad(Elementwise("logical_not", (inside,)), width, "constant", True)
    nowhere = Elementwise("logical_and", (inside, False))
    rim = Pad(nowhere, width, "constant", True)
    limits = (("rim_sum", None, 0), ("size", None, max_size))
    holes = crop(choose(components(outside, connectivity, False, None), limits, {"rim": rim}), spec.box)
    return Elementwise("logical_or", (inside, Elementwise("not_equal", (holes, 0))))


def local_maxima(array: ArrayNode, connectivity: int | None) -> ArrayNode:
    """Return the plateaus all of whose neighbours are lower; see `Array.local_maxima`."""
    spec = array.spec
    if spec.dtype.kind not in "biuf":
        raise TypeError(f"{spec.dtype} has no order, so no maxima; take numpy.absolute first")
    if spec.dtype.kind == "b":
        array = Cast(array, np.dtype(np.uint8))
    n = len(spec.space.spatial) if connectivity is None else connectivity
    near = cross(spec, n)
    lowest: Any = -np.inf if spec.dtype.kind == "f" else int(np.iinfo(array.spec.dtype).min)
    top = Elementwise("equal", (array, dilation(array, near, "nearest", 0)))
    # Of a plateau that is no maximum, some voxel has a higher neighbour, so it is no `top` and touches those that are.
    others = Elementwise("where", (top, lowest, array))
    touching = Elementwise("equal", (array, dilation(others, near, "constant", lowest)))
    above = Elementwise("less", (erosion(array, near, "nearest", 0), array))  # of a flat image, no voxel is
    marks = {"touching": touching, "above": above}
    limits = (("touching_sum", None, 0), ("above_sum", 1, None))
    return Elementwise("not_equal", (choose(components(top, n, False, None), limits, marks), 0))
