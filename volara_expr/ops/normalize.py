"""Intensity windows that are not given as numbers: percentiles of the volume, or the window stored with an image."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from volara_expr.expr.node import ArrayNode, ArraySpec
from volara_expr.geometry import Axis, Box, Space
from volara_expr.ops.indexing import index
from volara_expr.ops.mask import Mask
from volara_expr.ops.pointwise import Cast, Elementwise
from volara_expr.ops.ranks import quantile
from volara_expr.ops.shape import Described, Slice, Take
from volara_expr.ops.sources import Checkpoint, StoredArray, in_memory

__all__ = ["stored_windows", "stretch", "stretch_percentiles", "stretch_stored"]

Window = tuple[float, float]


def stretch(array: ArrayNode, lo: ArrayNode, hi: ArrayNode) -> ArrayNode:
    """Return (x - lo) / (hi - lo), computed in float64, as float32, of an array and values that broadcast to it."""
    wide, low, high = (Cast(x, np.dtype(np.float64)) for x in (array, lo, hi))
    ratio = Elementwise("divide", (Elementwise("subtract", (wide, low)), Elementwise("subtract", (high, low))))
    return Cast(ratio, np.dtype(np.float32))


def stretch_percentiles(array: ArrayNode, percentiles: Sequence[float]) -> ArrayNode:
    """Return the array with two percentiles of its voxels mapped to 0 and 1; see `Array.normalize`."""
    if len(percentiles) != 2 or not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ValueError(f"percentiles={tuple(percentiles)}; give two of 0 to 100, the lower first, for example (1, 99)")
    both = quantile(array, [p / 100 for p in percentiles])
    return stretch(array, index(both, 0), index(both, 1))


def stretch_stored(array: ArrayNode) -> ArrayNode:
    """Return the array with the window stored for each channel mapped to 0 and 1; see `Array.normalize`."""
    axis, windows = stored_windows(array)
    shape = () if axis is None else (-1, *(1,) * (array.spec.ndim - 1 - axis))
    return stretch(array, *(_constant(np.array(ends).reshape(shape)) for ends in zip(*windows, strict=True)))


def _constant(values: Any) -> ArrayNode:
    n = values.ndim
    axes = tuple(Axis(f"d{i}", "channel" if i == 0 else "space") for i in range(n))
    space = Space(axes, (Fraction(1),) * n, (Fraction(0),) * n, placed=False)
    return in_memory(values, ArraySpec(Box.of_shape(values.shape), values.dtype, space))


def stored_windows(node: ArrayNode) -> tuple[int | None, tuple[Window, ...]]:
    """Return the windows stored with the source of an array, and the axis that they belong to; None for a single channel.

    Raises
    ------
    ValueError
        If the source stores none, or values were computed since.
    """
    picks: list[Slice | Take] = []
    at = node
    while not isinstance(at, StoredArray):
        if isinstance(at, (Slice, Take)):
            picks.append(at)
        elif not isinstance(at, (Described, Mask, Checkpoint)):
            raise ValueError(
                f"the window stored in a file is that of the file's own values, not of {at.label!r}; use "
                "ve.open(url).normalize('omero') first, or give normalize(lo, hi)"
            )
        at = at.arrays[0]
    windows, axis = at.windows, at.spec.space.find("channel")
    if not windows or len(windows) != (1 if axis is None else at.spec.shape[axis]):
        raise ValueError(
            f"{at.url} stores {len(windows)} intensity windows (omero) for {1 if axis is None else at.spec.shape[axis]} channels; "
            "give normalize(lo, hi), or normalize(percentiles=(1, 99))"
        )
    for pick in reversed(picks):
        if axis is None:
            break
        if isinstance(pick, Take):
            if pick.axis == axis:
                windows = tuple(windows[i] for i in pick.indices)
            continue
        item = pick.items[axis]
        kept = sum(not isinstance(i, int) for i in pick.items[:axis])
        if isinstance(item, int):
            axis, windows = None, (windows[item],)
        else:
            axis, windows = kept, tuple(windows[item[0] + k * item[2]] for k in range(item[1]))
    return axis, windows
