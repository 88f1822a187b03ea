"""Extremes over windows of any form, and exact Euclidean distances up to a limit.

Each voxel depends on its window alone, and on values, not on positions, so a block with enough context equals the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from volara_expr.kernels.jit import kernel
from volara_expr.kernels.stencil import NUMPY_MODES

__all__ = ["nearest_labels", "squared_distance", "window_extreme"]


def window_extreme(
    data: npt.NDArray[Any],
    offsets: Sequence[Sequence[int]],
    heights: Sequence[float],
    largest: bool,
    mode: str,
    value: float,
) -> npt.NDArray[Any]:
    """Return the smallest or largest of the values at offsets, each with a height added.

    Parameters
    ----------
    data : ndarray
    offsets : sequence of tuples of int
        Per axis, from the voxel to the entries of its window.
    heights : sequence of float
        One for each offset, or none for a flat window. Sums of integers are limited to the range of their type.
    largest : bool
        The largest value, of sums; else the smallest, of differences.
    mode : {"reflect", "mirror", "nearest", "constant"}
        What lies beyond the array, as in `scipy.ndimage`.
    value : float
        Beyond the array, in mode "constant".

    Returns
    -------
    ndarray
        Of the shape and type of `data`.

    Examples
    --------
    >>> window_extreme(np.array([1, 5, 2, 2]), [(-1,), (0,)], [], True, "nearest", 0)
    array([1, 5, 5, 2])
    """
    reach = [(max(0, -min(steps)), max(0, *steps)) for steps in zip(*offsets, strict=True)]
    fill: dict[str, Any] = {"constant_values": value} if mode == "constant" else {}
    padded = np.pad(data, reach, NUMPY_MODES[mode], **fill)  # type: ignore[call-overload]
    pick, limits = np.maximum if largest else np.minimum, None
    if len(heights):
        limits = np.iinfo(data.dtype) if data.dtype.kind in "iu" else None
        padded = padded.astype(np.int64 if limits and all(h == int(h) for h in heights) else np.float64)
    result: npt.NDArray[Any] | None = None
    for k, offset in enumerate(offsets):
        view = padded[tuple(slice(r[0] + o, r[0] + o + n) for r, o, n in zip(reach, offset, data.shape, strict=True))]
        if len(heights):
            height = padded.dtype.type(heights[k])
            view = view + height if largest else view - height
        result = view.copy() if result is None else pick(result, view, out=result)
    assert result is not None
    if limits is not None:
        result = result.clip(limits.min, limits.max)
    return result.astype(data.dtype, copy=False)


def squared_distance(data: npt.NDArray[Any], units: Sequence[int], limit: int) -> npt.NDArray[np.int64]:
    """Return the squared distance of every voxel to the nearest 0, where it is at most `limit`, else `limit` + 1.

    One pass per axis, each a lower envelope of parabolas (Felzenszwalb and Huttenlocher, "Distance Transforms of Sampled
    Functions", 2012) sought within reach of the limit, in integers.

    Parameters
    ----------
    data : ndarray
    units : sequence of int
        Squared distance of neighbours along each axis; 0 for an axis that is mapped over.
    limit : int

    Examples
    --------
    >>> squared_distance(np.array([1, 1, 1, 0, 1]), (1,), 4)
    array([5, 4, 1, 0, 1])
    """
    found = np.where(data != 0, np.int64(limit + 1), np.int64(0))
    labels = np.zeros((1, 1), np.uint8)  # none are carried
    for axis, unit in enumerate(units):
        if unit:
            lines = np.ascontiguousarray(np.moveaxis(found, axis, -1))
            flat = lines.reshape(-1, lines.shape[-1])
            _nearest(flat, labels, unit, limit, flat.copy(), labels, False)
            found = np.moveaxis(lines, -1, axis)
    return np.ascontiguousarray(found)


def nearest_labels(labels: npt.NDArray[Any], units: Sequence[int], limit: int) -> npt.NDArray[Any]:
    """Return the nearest label of every voxel within a squared distance of `limit`, else 0; of equally near ones the smallest.

    Parameters
    ----------
    labels : ndarray of integers
        0 is background.
    units, limit
        As in `squared_distance`.

    Examples
    --------
    >>> nearest_labels(np.array([0, 7, 0, 3, 0, 0, 0]), (1,), 4)
    array([7, 7, 3, 3, 3, 3, 0])
    """
    found = np.where(labels == 0, np.int64(limit + 1), np.int64(0))
    carried = labels.copy()
    for axis, unit in enumerate(units):
        if unit:
            lines = np.ascontiguousarray(np.moveaxis(found, axis, -1))
            named = np.ascontiguousarray(np.moveaxis(carried, axis, -1))
            flat, names = (a.reshape(-1, a.shape[-1]) for a in (lines, named))
            _nearest(flat, names, unit, limit, flat.copy(), names.copy(), True)
            found, carried = np.moveaxis(lines, -1, axis), np.moveaxis(named, -1, axis)
    return np.ascontiguousarray(carried)


@kernel
def _nearest(found, labels, unit, limit, before, labels_before, carry):
    """One axis: the least of `before[j] + unit * (i - j)**2`; with `carry`, the label of the least, and the smallest of those."""
    n = found.shape[1]
    for row in range(found.shape[0]):
        line = before[row]
        for i in range(n):
            best = line[i]
            name = labels_before[row, i] if carry else labels_before[0, 0]
            for k in range(1, n):
                add = unit * k * k
                if add > best or add > limit:
                    break
                for j in (i - k, i + k):
                    if 0 <= j < n and line[j] + add <= limit:
                        other = line[j] + add
                        if other < best or (carry and other == best and labels_before[row, j] < name):
                            best = other
                            if carry:
                                name = labels_before[row, j]
            found[row, i] = best
            if carry:
                labels[row, i] = name
