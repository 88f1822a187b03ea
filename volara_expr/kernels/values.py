"""Statistics of many voxels as small tables that merge exactly: sums without rounding, sorted keys, bins."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volara_expr.kernels.jit import kernel
from volara_expr.kernels.relabel import frozen

__all__ = ["COUNT", "NAN", "bin_counts", "exact_limbs", "extremes", "from_key", "key_counts", "limbs_value"]

UNIT = 1088
"""Limb k counts units of 2**(32 * k - UNIT): the smallest float64 is 2**-1074, and integers start at a limb of their own."""
N_LIMBS = (UNIT + 1024) // 32 + 2
NAN, COUNT = N_LIMBS, N_LIMBS + 3
"""Entries behind the limbs: NaNs, infinities, negative infinities, and voxels in all."""


def exact_limbs(values: NDArray[Any]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Sum numbers without rounding, in fixed point over the whole range of float64.

    Such sums are integers, so they merge in any order (the superaccumulator of Kulisch; here with 32 bits to a limb).

    Parameters
    ----------
    values : ndarray of bool, integers or floats; fewer than 2**31

    Returns
    -------
    limb, sum : ndarray, shape (m,)
        The entries that are not 0; add up those of several tables by limb. `NAN` to `COUNT` are numbers of voxels.

    Examples
    --------
    >>> limbs_value(*exact_limbs(np.array([1e100, 1.0, -1e100])))
    1.0
    """
    sums = np.zeros(COUNT + 1, np.int64)
    flat = frozen(np.ascontiguousarray(values).reshape(-1))
    if values.dtype.kind == "f":
        _add_floats(flat.astype(np.float64, copy=False), sums)
    else:
        zero = UNIT // 32
        if flat.itemsize <= 4:
            sums[zero] = flat.sum(dtype=np.int64)
        else:
            sums[zero] = (flat & flat.dtype.type(0xFFFFFFFF)).sum(dtype=np.int64)
            sums[zero + 1] = (flat >> flat.dtype.type(32)).sum(dtype=np.int64)
    sums[COUNT] = flat.size
    limb = np.flatnonzero(sums)
    return limb.astype(np.uint32), sums[limb]


def limbs_value(limb: NDArray[Any], sums: NDArray[Any], over: int = 1) -> float:
    """Return the sum that limbs stand for, divided by `over` and rounded once to float64.

    Parameters
    ----------
    limb, sums : ndarray
        What `exact_limbs` returned, of any number of tables.
    over : int
    """
    special = [int(sums[limb == NAN + k].sum()) for k in range(3)]
    if special[0] or (special[1] and special[2]):
        return float("nan")
    if special[1] or special[2]:
        return float("inf") if special[1] else float("-inf")
    total = exact_integer(limb, sums)
    try:
        return float(Fraction(total, over << UNIT))
    except OverflowError:
        return float("inf") if total > 0 else float("-inf")


def exact_integer(limb: NDArray[Any], sums: NDArray[Any]) -> int:
    """Return the finite part of the sum in units of 2**-UNIT."""
    return sum(int(s) << (32 * int(k)) for k, s in zip(limb, sums, strict=True) if k < N_LIMBS)


def extremes(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the smallest and the largest value, in arrays of one entry, or of none where there are no values; NaNs spread.

    A zero is positive, since which of 0.0 and -0.0 NumPy takes depends on their order.
    """
    small = {"b": "u1", "f": "f4"} if values.dtype.itemsize <= 2 else {}
    held = np.dtype(small.get(values.dtype.kind, values.dtype))  # as Parquet holds it
    if not values.size:
        return np.empty(0, held), np.empty(0, held)
    with np.errstate(invalid="ignore"):
        ends = values.min(), values.max()
    low, high = (np.asarray(v).astype(held).reshape(1) for v in ends)
    return low + held.type(0), high + held.type(0)


def bin_counts(values: NDArray[Any], bins: int, lo: float, hi: float) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Return the bins of `numpy.histogram`, floats taken as float64, that are not empty, and how many values lie in each."""
    if values.dtype.kind in "bf":
        values = values.astype(np.uint8 if values.dtype.kind == "b" else np.float64, copy=False)
    count, _ = np.histogram(values, bins, (lo, hi))
    found = np.flatnonzero(count)
    return found.astype(np.uint32), count[found].astype(np.int64)


def key_counts(
    values: NDArray[Any], level: int, prefixes: NDArray[np.uint64] | None = None
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Count values by the leading bits of a key that sorts as they do: one level of a radix search for ranks.

    Parameters
    ----------
    values : ndarray of bool, integers or floats
        NaNs count as one value, above all others.
    level : int
        16 bits of the key for level 0, 32 for level 1, ...
    prefixes : ndarray of uint64, optional
        Only keys whose bits up to the level before are among these.

    Returns
    -------
    key, count : ndarray, shape (m,)
        Keys ascend.
    """
    key = sort_keys(values)
    bits = 8 * key.dtype.itemsize
    if prefixes is not None:
        key = key[np.isin(key >> key.dtype.type(bits - 16 * level), prefixes.astype(key.dtype))]
    found, count = np.unique(key >> key.dtype.type(bits - 16 * (level + 1)), return_counts=True)
    return found.astype(np.uint64), count.astype(np.int64)


def sort_keys(values: NDArray[Any]) -> NDArray[Any]:
    """Return unsigned integers that sort as the values do."""
    size = max(2, values.dtype.itemsize)
    unsigned = f"u{size}"
    if values.dtype.kind in "bu":
        return values.astype(unsigned)
    if values.dtype.kind == "i":
        flipped: NDArray[Any] = values.astype(f"i{size}").view(unsigned) ^ _sign(size)
        return flipped
    clean = np.where(np.isnan(values), values.dtype.type("nan"), values) + values.dtype.type(0)  # one NaN, one zero
    raw = clean.view(unsigned)
    keys: NDArray[Any] = np.where(raw & _sign(size), ~raw, raw | _sign(size))
    return keys


def from_key(keys: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the values of whole keys."""
    size = max(2, dtype.itemsize)
    raw = np.array(keys, f"u{size}")
    if dtype.kind in "bu":
        return raw.astype(dtype)
    sign = _sign(size)
    if dtype.kind == "i":
        signed: NDArray[Any] = (raw ^ sign).view(f"i{size}").astype(dtype)
        return signed
    values: NDArray[Any] = np.where(raw & sign, raw ^ sign, ~raw).view(dtype)
    return values


def _sign(size: int) -> Any:
    return np.dtype(f"u{size}").type(1 << (8 * size - 1))


@kernel
def _add_floats(values, sums):
    """Split each mantissa over the three limbs that it touches."""
    raw = values.view(np.uint64)
    low = np.uint64(0xFFFFFFFF)
    for i in range(values.shape[0]):
        exponent = np.int64((raw[i] >> np.uint64(52)) & np.uint64(0x7FF))
        mantissa = raw[i] & np.uint64(0xFFFFFFFFFFFFF)
        negative = raw[i] >> np.uint64(63) != 0
        if exponent == 0x7FF:
            sums[NAN if mantissa else (NAN + 2 if negative else NAN + 1)] += 1
            continue
        if exponent > 0:
            mantissa |= np.uint64(1 << 52)
        place = max(exponent, np.int64(1)) + (UNIT - 1075)
        k = place // 32
        shift = np.uint64(place % 32)
        first = (mantissa & low) << shift
        second = ((mantissa >> np.uint64(32)) << shift) + (first >> np.uint64(32))
        one = np.int64(first & low)
        two = np.int64(second & low)
        three = np.int64(second >> np.uint64(32))
        if negative:
            sums[k] -= one
            sums[k + 1] -= two
            sums[k + 2] -= three
        else:
            sums[k] += one
            sums[k + 1] += two
            sums[k + 2] += three
