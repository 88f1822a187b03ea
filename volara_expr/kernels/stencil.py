"""Filters over windows of fixed size, with `scipy.ndimage`'s boundary modes.

Each output voxel depends on the values in its window alone, never on how far the array reaches, so that a block with enough
context equals the whole. That rules out running sums (`scipy.ndimage.uniform_filter`) and the detour over float64 that scipy's
minimum and maximum take, which loses the low bits of 64-bit labels.

Weighted sums along an axis (`correlate1d`) are NumPy's on small arrays and compiled beyond: the same operations in the same
order, so that the bits do not depend on which of the two it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = ["correlate1d", "gaussian", "maximum", "median", "minimum", "uniform"]

NUMPY_MODES = {"reflect": "symmetric", "mirror": "reflect", "nearest": "edge", "constant": "constant"}
COLD_VOXELS = 1 << 25
"""So many sums a process makes with NumPy, 5 ns each, before it loads the compiled loop: that takes as long, and 1 ns each."""
PIECE = 1 << 15
"""Voxels that NumPy works on at once, for the second cache."""

_summed = [0]  # by this process; a sum that two threads count as one does no harm


def correlate1d(
    data: npt.NDArray[Any],
    weights: npt.NDArray[np.float64],
    axis: int,
    mode: str,
    value: float,
    dtype: npt.DTypeLike,
    keep: slice,
) -> npt.NDArray[Any]:
    """Return `scipy.ndimage.correlate1d` of the data, bit for bit as SciPy's wheels for x86, for a part of the axis.

    Parameters
    ----------
    data : ndarray of real numbers
    weights : ndarray of float64
        The middle one, of an even number the upper of the two, belongs to the voxel itself.
    axis : int
    mode : {"reflect", "mirror", "nearest", "constant"}
    value : float
        Beyond the array, in mode "constant".
    dtype : dtype
        float32 or float64; sums are float64 until they are stored.
    keep : slice
        Indices of the axis to return, with start and stop.

    Returns
    -------
    ndarray
        Of the data's shape, but for the length of `keep` along the axis.
    """
    n, count = data.shape[axis], len(weights)
    position = np.arange(keep.start - count // 2, keep.stop + (count - 1) // 2)
    outer, inner = data.shape[:axis], data.shape[axis + 1 :]
    out = np.empty((*outer, keep.stop - keep.start, *inner), dtype)
    if not out.size:
        return out
    if data.dtype not in (np.float32, np.float64):
        data = data.astype(np.result_type(data, np.float32))  # of 64-bit integers the nearest float64, as SciPy takes them
    shape = int(np.prod(outer)), -1, int(np.prod(inner))
    source, target = np.ascontiguousarray(data).reshape(shape), out.reshape(shape)
    source.flags.writeable = False  # of the view alone: one type for the compiler, whatever the data are
    arguments = source, rows_at(position, n, mode), weights, parity(weights), float(value), target
    _summed[0] += out.size
    if _summed[0] < COLD_VOXELS:
        with np.errstate(all="ignore"):  # as the compiled loop
            _correlate_pieces(*arguments)
    else:
        from volara_expr.kernels.correlate import correlate_rows

        correlate_rows(*arguments)
    return out


def rows_at(position: npt.NDArray[np.intp], n: int, mode: str) -> npt.NDArray[np.intp]:
    """Return which of n rows stands at positions that may lie beyond them; -1 where the value does, in mode "constant"."""
    if mode == "nearest" or (n == 1 and mode == "mirror"):
        return position.clip(0, n - 1)
    if mode == "constant":
        return np.where((position < 0) | (position >= n), -1, position)
    period = 2 * n - 2 * (mode == "mirror")
    turned = position % period
    return np.minimum(turned, period - (mode == "reflect") - turned)


def parity(weights: npt.NDArray[np.float64]) -> int:
    """Return 1 for symmetric, -1 for antisymmetric, 0 for other weights: with the tolerance at which SciPy sums in pairs."""
    middle = len(weights) // 2
    low, high = weights[:middle][::-1], weights[middle + 1 :]
    if len(weights) % 2:
        for sign in (1, -1):
            if (abs(high - sign * low) <= np.finfo(np.float64).eps).all():
                return sign
    return 0


def _correlate_pieces(
    source: npt.NDArray[Any],
    index: npt.NDArray[np.intp],
    weights: npt.NDArray[np.float64],
    sign: int,
    value: float,
    out: npt.NDArray[Any],
) -> None:
    """Do what `kernels.correlate.correlate_rows` does, with NumPy."""
    kept, below, last = len(index) - len(weights) + 1, len(weights) // 2, len(weights) - 1
    outer, _, inner = out.shape
    width = max(1, min(inner, PIECE // len(index)))
    group = max(1, PIECE // (len(index) * width))
    for o in range(0, outer, group):
        for t in range(0, inner, width):
            part = np.s_[o : o + group, :, t : t + width]
            padded = source[part][:, index].astype(np.float64)
            padded[:, index < 0] = value
            at = [padded[:, k : k + kept] for k in range(len(weights))]
            if sign:
                total = at[below] * weights[below]
                for k in range(below):
                    total += (at[k] + at[last - k] if sign > 0 else at[k] - at[last - k]) * weights[k]
            else:
                total = at[last] * weights[last]
                for k in range(last):
                    total += at[k] * weights[k]
            out[part] = total


@cache
def gaussian_weights(sigma: float, order: int, truncate: float) -> npt.NDArray[np.float64]:
    """Return the weights of `scipy.ndimage.gaussian_filter1d`, as it answers to a single 1."""
    radius = int(truncate * sigma + 0.5)
    impulse = np.zeros(2 * radius + 1)
    impulse[radius] = 1
    weights: npt.NDArray[np.float64] = ndimage.gaussian_filter1d(
        impulse, sigma, order=order, mode="constant", truncate=truncate
    )
    return weights[::-1].copy()


def gaussian(
    data: npt.NDArray[Any],
    sigma: Sequence[float],
    order: Sequence[int],
    truncate: float,
    mode: str,
    value: float,
    dtype: npt.DTypeLike,
    keep: Sequence[slice],
) -> npt.NDArray[Any]:
    """Return a part of `scipy.ndimage.gaussian_filter` of the data, with an order of derivative for each axis.

    Sums are float64 along each axis, stored as `dtype` between axes. Of an axis that is done only what is kept goes on.
    """
    for axis, (s, n, part) in enumerate(zip(sigma, order, keep, strict=True)):
        if s > 1e-15:  # as scipy skips axes
            data = correlate1d(data, gaussian_weights(s, n, truncate), axis, mode, value, dtype, part)
        else:
            data = data[(slice(None),) * axis + (part,)]
    return data.astype(dtype, copy=False)


def uniform(
    data: npt.NDArray[Any], size: Sequence[int], mode: str, value: float, dtype: npt.DTypeLike, keep: Sequence[slice]
) -> npt.NDArray[Any]:
    """Return a part of the mean over windows: sums in float64 by direct summation, divided once, stored as `dtype`."""
    count = 1
    for axis, (n, part) in enumerate(zip(size, keep, strict=True)):
        if n > 1:
            # The values beyond the rim have been summed along the earlier axes too.
            data = correlate1d(data, np.ones(n), axis, mode, value * count, np.float64, part)
            count *= n
        else:
            data = data[(slice(None),) * axis + (part,)]
    if count > 1:
        data /= count
    return data.astype(dtype, copy=False)


def median(data: npt.NDArray[Any], size: Sequence[int], mode: str, value: float, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return `scipy.ndimage.median_filter` of the data; float16 by way of float32. NaNs give undefined results."""
    source = data.astype(np.float32) if data.dtype == np.float16 else data
    # scipy's own way with one axis carries state along it: which of 0.0 and -0.0 comes out depends on where the line starts.
    result: npt.NDArray[Any] = ndimage.median_filter(source[None], size=(1, *size), mode=mode, cval=value)[0]
    return result.astype(dtype, copy=False)


def minimum(data: npt.NDArray[Any], size: Sequence[int], mode: str, value: float, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return the smallest value in windows, as `scipy.ndimage.minimum_filter`, exact for every type; NaNs spread, of 0.0 and -0.0 either counts."""
    return _extreme(np.minimum, data, size, mode, value)


def maximum(data: npt.NDArray[Any], size: Sequence[int], mode: str, value: float, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return the largest value in windows, as `scipy.ndimage.maximum_filter`, exact for every type; NaNs spread, of 0.0 and -0.0 either counts."""
    return _extreme(np.maximum, data, size, mode, value)


def _extreme(pick: np.ufunc, data: npt.NDArray[Any], size: Sequence[int], mode: str, value: float) -> npt.NDArray[Any]:
    """Return the extreme in windows, axis by axis, doubling the window: log2(size) passes instead of size."""
    fill: dict[str, Any] = {"constant_values": value} if mode == "constant" else {}
    for axis, n in enumerate(size):
        if n == 1:
            continue
        width = [(0, 0)] * data.ndim
        width[axis] = (n // 2, (n - 1) // 2)
        data = np.pad(data, width, NUMPY_MODES[mode], **fill)  # type: ignore[call-overload]
        head: tuple[slice, ...] = (slice(None),) * axis
        done = 1
        while done < n:
            step = min(done, n - done)
            data = pick(data[(*head, slice(None, -step))], data[(*head, slice(step, None))])
            done += step
    return data
