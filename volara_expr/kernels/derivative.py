"""Eigenvalues of small matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["symmetric_eigenvalues"]


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
