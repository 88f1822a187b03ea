"""Filters over windows of fixed size, with `scipy.ndimage`'s boundary modes.

Each output voxel depends on the values in its window alone, never on how far the array reaches, so that a block with enough
context equals the whole. That rules out running sums (`scipy.ndimage.uniform_filter`) and the detour over float64 that scipy's
minimum and maximum take, which loses the low bits of 64-bit labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = ["gaussian", "maximum", "median", "minimum", "uniform"]

NUMPY_MODES = {"reflect": "symmetric", "mirror": "reflect", "nearest": "edge", "constant": "constant"}


def gaussian(
    data: npt.NDArray[Any], sigma: Sequence[float], truncate: float, mode: str, value: float, dtype: npt.DTypeLike
) -> npt.NDArray[Any]:
    """Return `scipy.ndimage.gaussian_filter` of the data, summed in float64 along each axis and stored as `dtype` between axes."""
    source = data.astype(np.float32) if data.dtype == np.float16 else data
    result: npt.NDArray[Any] = ndimage.gaussian_filter(
        source, sigma, output=np.dtype(dtype), mode=mode, cval=value, truncate=truncate
    )
    return result


def uniform(data: npt.NDArray[Any], size: Sequence[int], mode: str, value: float, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return the mean over windows: sums in float64 by direct summation, divided once, stored as `dtype`."""
    total: npt.NDArray[Any] = data.astype(np.float64)
    count = 1
    for axis, n in enumerate(size):
        if n > 1:
            # The values beyond the rim have been summed along the earlier axes too.
            total = ndimage.correlate1d(total, np.ones(n), axis, mode=mode, cval=value * count)
            count *= n
    total /= count
    return total.astype(dtype, copy=False)


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
