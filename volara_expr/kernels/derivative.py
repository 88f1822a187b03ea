"""Derivatives by direct sums, and eigenvalues of small matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

__all__ = ["correlate_line", "gaussian_derivative", "symmetric_eigenvalues"]


def correlate_line(
    data: npt.NDArray[Any], weights: Sequence[float], axis: int, mode: str, value: float, dtype: npt.DTypeLike
) -> npt.NDArray[Any]:
    """Return `scipy.ndimage.correlate1d` of the data: sums in float64, stored as `dtype`."""
    source = data.astype(np.float32) if data.dtype == np.float16 else data
    result: npt.NDArray[Any] = ndimage.correlate1d(source, weights, axis, output=np.dtype(dtype), mode=mode, cval=value)
    return result


def gaussian_derivative(
    data: npt.NDArray[Any],
    sigma: Sequence[float],
    order: Sequence[int],
    truncate: float,
    mode: str,
    value: float,
    dtype: npt.DTypeLike,
) -> npt.NDArray[Any]:
    """Return `scipy.ndimage.gaussian_filter` of the data with an order of derivative for each axis."""
    source = data.astype(np.float32) if data.dtype == np.float16 else data
    result: npt.NDArray[Any] = ndimage.gaussian_filter(
        source, sigma, order, output=np.dtype(dtype), mode=mode, cval=value, truncate=truncate
    )
    return result


def symmetric_eigenvalues(entries: npt.NDArray[Any], n: int) -> npt.NDArray[Any]:
    """Return the eigenvalues of symmetric matrices, the largest first.

    Parameters
    ----------
    entries : ndarray of floats, first axis the upper triangle in rows: n * (n + 1) / 2
    n : int
        Rows of a matrix.

    Returns
    -------
    ndarray
        First axis the n eigenvalues; by LAPACK, one matrix at a time, so that neighbours do not matter.

    Examples
    --------
    >>> symmetric_eigenvalues(np.array([2.0, 0.0, 5.0]), 2)
    array([5., 2.])
    """
    matrices = np.empty((*entries.shape[1:], n, n), entries.dtype)
    rows, columns = np.triu_indices(n)
    for k, (i, j) in enumerate(zip(rows, columns, strict=True)):
        matrices[..., i, j] = matrices[..., j, i] = entries[k]
    finite = np.isfinite(matrices).all((-1, -2))
    matrices[~finite] = 0  # LAPACK refuses them
    values = np.linalg.eigvalsh(matrices)[..., ::-1]
    values[~finite] = np.nan
    return np.ascontiguousarray(np.moveaxis(values, -1, 0))
