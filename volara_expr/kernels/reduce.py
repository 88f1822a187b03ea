"""Reductions along whole axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["reduce"]


def reduce(
    data: npt.NDArray[Any], function: str, axes: Sequence[int] | None, keepdims: bool, ordered: bool
) -> npt.NDArray[Any]:
    """Reduce axes with NumPy's function of that name.

    Parameters
    ----------
    data : ndarray
    function : str
        "sum", "mean", "max", "min", "any", "all", "argmax" or "argmin"; the last two take one axis, or None for all.
    axes : sequence of int, or None
    keepdims : bool
    ordered : bool
        Add up in index order, in the type that NumPy adds in, so that the result depends neither on shape nor on memory layout;
        NumPy's own order depends on both.
    """
    if function in ("argmax", "argmin"):
        axis = None if axes is None else axes[0]
        return np.asarray(getattr(np, function)(data, axis=axis, keepdims=keepdims))
    axes = tuple(range(data.ndim)) if axes is None else tuple(axes)
    if not ordered or function not in ("sum", "mean"):
        return np.asarray(getattr(np, function)(data, axis=axes, keepdims=keepdims))
    first = np.moveaxis(data, axes, range(len(axes)))
    rows = first.reshape(-1, *first.shape[len(axes) :])
    result = getattr(np, function)(np.empty((1, 0), data.dtype), axis=0).dtype
    wide = np.dtype(np.float32) if function == "mean" and result == np.float16 else result
    total = np.zeros(rows.shape[1:], wide)
    for i, row in enumerate(rows):
        total = row.astype(wide) if i == 0 else np.add(total, row, out=total)
    if function == "mean":
        total = (total / wide.type(len(rows))).astype(result)
    return np.expand_dims(total, axes) if keepdims else np.asarray(total)
