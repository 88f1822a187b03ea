"""Replace the labels of an array through a table of ids and values."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from volara_expr.kernels import BadVoxel
from volara_expr.kernels.jit import kernel

__all__ = ["frozen", "relabel"]

_MISSING = {"keep": 0, "zero": 1, "error": 2}
_MEMO = 1 << 12
_MUL = np.uint64(0x9E3779B97F4A7C15)


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Read-only, C-contiguous view of an array (a copy where it is not contiguous).

    numba compiles a function anew for every layout and for read-only arrays; kernels whose inputs all pass through here are
    compiled once per dtype.

    Parameters
    ----------
    array : ndarray

    Returns
    -------
    ndarray
    """
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def relabel(
    labels: NDArray[Any],
    ids: ArrayLike,
    values: ArrayLike,
    *,
    missing: Literal["keep", "zero", "error"] = "keep",
    out_dtype: DTypeLike = np.uint64,
) -> NDArray[Any]:
    """Give every voxel the value that belongs to its label; 0 stays 0.

    Each run of equal labels in memory order is looked up once: in a small memory of the labels met lately, then by binary search.

    Parameters
    ----------
    labels : ndarray of bool or integers, any shape
    ids : array of uint64, shape (n,)
        Strictly ascending.
    values : array of uint64, shape (n,)
        `values[i]` replaces the label `ids[i]`.
    missing : {"keep", "zero", "error"}
        What becomes of a non-zero label that is not among the ids.
    out_dtype : dtype
        Any integer dtype.

    Returns
    -------
    ndarray of `out_dtype`, shaped as `labels`

    Raises
    ------
    BadVoxel
        With `missing="error"`, the first voxel whose label is not among the ids; with `missing="keep"`, the first whose label
        does not fit `out_dtype`; the first whose label is negative.
    ValueError
        If the ids do not ascend, ids and values differ in number, or a value does not fit `out_dtype`.

    Examples
    --------
    >>> relabel(np.array([0, 3, 3, 5], np.uint32), [3], [8])
    array([0, 8, 8, 5], dtype=uint64)
    """
    out_dtype = np.dtype(out_dtype)
    if labels.dtype.kind not in "biu" or out_dtype.kind not in "iu":
        raise TypeError(f"cannot relabel {labels.dtype} to {out_dtype}; labels and results are integers")
    if missing not in _MISSING:
        raise ValueError(f"missing is {missing!r}; it must be one of {', '.join(map(repr, _MISSING))}")
    ids, values = _unsigned("ids", ids), _unsigned("values", values)
    if ids.ndim != 1 or ids.shape != values.shape:
        raise ValueError(f"ids have shape {ids.shape}, values {values.shape}; give one value for each id")
    if (ids[1:] <= ids[:-1]).any():
        raise ValueError("ids do not ascend strictly; sort them, and the values with them")
    limit = np.iinfo(out_dtype).max
    if values.size and values.max() > limit:
        raise ValueError(f"value {values.max()} does not fit {out_dtype}, which ends at {limit}; use a wider out_dtype")
    if labels.dtype.kind == "i" and labels.size and labels.min() < 0:
        raise _bad(f"label {labels.min()} is negative; labels start at 0", labels.argmin(), labels.shape)

    flat = frozen(labels if labels.dtype == np.uint32 else labels.astype(np.uint64, copy=False)).reshape(-1)
    out = np.empty(flat.size, np.uint32 if out_dtype == np.uint32 else np.uint64)
    memo, known = np.zeros(_MEMO, np.uint64), np.zeros(_MEMO, np.uint64)
    at = _relabel(flat, frozen(ids), frozen(values), _MISSING[missing], np.uint64(limit), memo, known, out)
    if at >= 0 and missing == "error":
        raise _bad(
            f"label {flat[at]} is not among the {ids.size} ids; add it, or use missing='keep' or 'zero'", at, labels.shape
        )
    if at >= 0:
        raise _bad(f"label {flat[at]} does not fit {out_dtype}, which ends at {limit}; use a wider out_dtype", at, labels.shape)
    return out.reshape(labels.shape).astype(out_dtype, copy=False)


def _unsigned(name: str, numbers: ArrayLike) -> NDArray[np.uint64]:
    array = np.asarray(numbers)
    if array.size and array.dtype.kind not in "biu":
        raise TypeError(f"{name} have dtype {array.dtype}; they must be integers")
    if array.size and array.min() < 0:
        raise ValueError(f"{name} hold {array.min()}; they must not be negative")
    return array.astype(np.uint64, copy=False)


def _bad(message: str, at: int | np.intp, shape: tuple[int, ...]) -> BadVoxel:
    return BadVoxel(message, tuple(int(i) for i in np.unravel_index(at, shape)))


@kernel
def _relabel(labels, ids, values, missing, limit, memo, known, out):
    """Fill `out`; returns -1, or where the first label stands that is missing or does not fit.

    `memo` and `known` are 0: the labels met lately and their values, made by the caller, since numba would compile that too.
    """
    last = np.uint64(0)
    value = np.uint64(0)
    for i in range(labels.shape[0]):
        label = np.uint64(labels[i])
        if label != last:
            last = label
            m = (label * _MUL) >> np.uint64(52)
            if memo[m] != label:
                j = 0
                stop = ids.shape[0]
                while j < stop:
                    middle = (j + stop) // 2
                    if ids[middle] < label:
                        j = middle + 1
                    else:
                        stop = middle
                if label == 0:
                    known[m] = 0
                elif j < ids.shape[0] and ids[j] == label:
                    known[m] = values[j]
                elif missing == 0 and label <= limit:
                    known[m] = label
                elif missing == 1:
                    known[m] = 0
                else:
                    return i
                memo[m] = label
            value = known[m]
        out[i] = value
    return -1
