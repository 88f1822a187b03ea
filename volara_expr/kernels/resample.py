"""Binning: means, modes and extremes of blocks of voxels."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from volara_expr.kernels.jit import helper, kernel
from volara_expr.kernels.relabel import frozen

__all__ = ["Method", "downsample"]

Method = Literal["mean", "mode", "min", "max", "stride"]


def downsample(
    data: npt.NDArray[Any], factors: Sequence[int], phase: Sequence[int], shape: Sequence[int], method: Method
) -> npt.NDArray[Any]:
    """Bin an array.

    Parameters
    ----------
    data : ndarray
    factors : sequence of int
        Voxels per bin, per axis; at most three above 1.
    phase : sequence of int
        Where the first voxel lies in its bin, per axis. Bins at both ends may be partial and use the voxels that are there.
    shape : sequence of int
        Of the result.
    method : {"mean", "mode", "min", "max", "stride"}
        Means of integers are rounded half up, exactly; of floats, summed in raster order in float64. The smallest of several
        modes wins. "stride" takes the first voxel of each bin.

    Returns
    -------
    ndarray
        Of the type of `data`.

    Examples
    --------
    >>> downsample(np.array([1, 2, 4, 4, 7]), (2,), (0,), (3,), "mean")
    array([2, 4, 7])
    """
    if method == "stride":
        return data[tuple(slice(None, None, f) for f in factors)]
    if method in ("min", "max"):
        pick = np.minimum if method == "min" else np.maximum
        for axis, (f, p, n) in enumerate(zip(factors, phase, shape, strict=True)):
            if f > 1:
                data = pick.reduceat(data, np.maximum(np.arange(n) * f - p, 0), axis)
        return data
    binned = [i for i, f in enumerate(factors) if f > 1]
    mapped = [i for i, f in enumerate(factors) if f == 1]
    missing = 3 - len(binned)
    order = mapped + binned
    outer = [data.shape[i] for i in mapped]
    # One axis that is mapped over and three that are binned: the kernels' only shape.
    source = data.transpose(order).reshape(prod(outer), *[1] * missing, *(data.shape[i] for i in binned))
    source = source.view(np.uint8) if data.dtype == np.bool_ else source
    source = frozen(source.astype(np.float32) if data.dtype == np.float16 else source)
    result = np.empty((prod(outer), *[1] * missing, *(shape[i] for i in binned)), source.dtype)
    steps = tuple([1] * missing + [int(factors[i]) for i in binned])
    starts = tuple([0] * missing + [int(phase[i]) for i in binned])
    reduce: Any = _mode
    if method == "mean":
        wide = data.dtype.kind in "iu" and data.dtype.itemsize == 8
        reduce = _mean_float if data.dtype.kind == "f" else _mean_wide if wide else _mean_integer
    reduce(source, steps, starts, result)
    back = result.reshape(*outer, *(shape[i] for i in binned)).astype(data.dtype, copy=False)
    return back.transpose(np.argsort(order))


@helper
def _bin(k, step, start, n):
    """First voxel of bin `k` and the one behind its last, within `n` voxels."""
    return max(k * step - start, 0), min((k + 1) * step - start, n)


@helper
def _add_row(row, step, start, total):
    """Add the voxels of a row to the totals of its bins, one by one from the left, so that floats round alike anywhere."""
    n = row.shape[0]
    head = min(step - start, n)
    full = (n - head) // step
    for v in range(head):
        total[0] += row[v]
    if step == 2:  # the common case, in a form that compilers vectorise
        for i in range(full):
            total[i + 1] = total[i + 1] + row[head + 2 * i] + row[head + 2 * i + 1]
    else:
        for i in range(full):
            for v in range(head + i * step, head + (i + 1) * step):
                total[i + 1] += row[v]
    for v in range(head + full * step, n):
        total[full + 1] += row[v]


@kernel
def _mean_integer(x, steps, starts, out):
    total = np.empty(out.shape[3], np.int64)
    for c in range(out.shape[0]):
        for k in range(out.shape[1]):
            z0, z1 = _bin(k, steps[0], starts[0], x.shape[1])
            for j in range(out.shape[2]):
                y0, y1 = _bin(j, steps[1], starts[1], x.shape[2])
                total[:] = 0
                for z in range(z0, z1):
                    for y in range(y0, y1):
                        _add_row(x[c, z, y], steps[2], starts[2], total)
                for i in range(out.shape[3]):
                    x0, x1 = _bin(i, steps[2], starts[2], x.shape[3])
                    n = (z1 - z0) * (y1 - y0) * (x1 - x0)
                    out[c, k, j, i] = (2 * total[i] + n) // (2 * n)


@kernel
def _mean_float(x, steps, starts, out):
    total = np.empty(out.shape[3], np.float64)
    for c in range(out.shape[0]):
        for k in range(out.shape[1]):
            z0, z1 = _bin(k, steps[0], starts[0], x.shape[1])
            for j in range(out.shape[2]):
                y0, y1 = _bin(j, steps[1], starts[1], x.shape[2])
                total[:] = 0
                for z in range(z0, z1):
                    for y in range(y0, y1):
                        _add_row(x[c, z, y], steps[2], starts[2], total)
                for i in range(out.shape[3]):
                    x0, x1 = _bin(i, steps[2], starts[2], x.shape[3])
                    out[c, k, j, i] = total[i] / ((z1 - z0) * (y1 - y0) * (x1 - x0))


@kernel
def _mean_wide(x, steps, starts, out):
    """Means of 64-bit integers: quotients and remainders are added apart, so that no sum overflows."""
    for c in range(out.shape[0]):
        for k in range(out.shape[1]):
            z0, z1 = _bin(k, steps[0], starts[0], x.shape[1])
            for j in range(out.shape[2]):
                y0, y1 = _bin(j, steps[1], starts[1], x.shape[2])
                for i in range(out.shape[3]):
                    x0, x1 = _bin(i, steps[2], starts[2], x.shape[3])
                    n = x.dtype.type((z1 - z0) * (y1 - y0) * (x1 - x0))
                    quotients = x.dtype.type(0)
                    remainders = x.dtype.type(0)
                    for z in range(z0, z1):
                        for y in range(y0, y1):
                            for v in range(x0, x1):
                                quotients += x[c, z, y, v] // n
                                remainders += x[c, z, y, v] % n
                    two = x.dtype.type(2)
                    out[c, k, j, i] = quotients + (two * remainders + n) // (two * n)


@kernel
def _mode(x, steps, starts, out):
    held = np.empty(steps[0] * steps[1] * steps[2], x.dtype)
    for c in range(out.shape[0]):
        for k in range(out.shape[1]):
            z0, z1 = _bin(k, steps[0], starts[0], x.shape[1])
            for j in range(out.shape[2]):
                y0, y1 = _bin(j, steps[1], starts[1], x.shape[2])
                for i in range(out.shape[3]):
                    x0, x1 = _bin(i, steps[2], starts[2], x.shape[3])
                    n = 0
                    same = True
                    for z in range(z0, z1):
                        for y in range(y0, y1):
                            for v in range(x0, x1):
                                held[n] = x[c, z, y, v]
                                same &= held[n] == held[0]
                                n += 1
                    best = held[0]
                    if not same:
                        _sort(held, n)
                        most = 0
                        run = 0
                        for a in range(n):
                            run = run + 1 if a > 0 and held[a] == held[a - 1] else 1
                            if run > most:  # strictly: the smallest of equally frequent values stays
                                most = run
                                best = held[a]
                    out[c, k, j, i] = best


@helper
def _sort(values, n):
    """Sort the first `n` values; bins are small, and insertion is then several times faster than np.sort."""
    if n > 64:
        values[:n] = np.sort(values[:n])
        return
    for a in range(1, n):
        v = values[a]
        b = a
        while b > 0 and values[b - 1] > v:
            values[b] = values[b - 1]
            b -= 1
        values[b] = v
