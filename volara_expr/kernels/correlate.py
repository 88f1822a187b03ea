"""Weighted sums of neighbours along one axis, compiled; the bits are those of `scipy.ndimage.correlate1d`.

A tile of the lines, some hundred voxels across, is converted to float64 once, rows beyond the faces included. In that tile the
neighbours along the axis lie a fixed step apart, whichever axis it is, so that each weight is one pass over a run of numbers
that stays in the first cache and that the compiler turns into vector instructions. No multiplication is fused with an addition.
"""

from __future__ import annotations

import numpy as np

from volara_expr.kernels.jit import helper, kernel

__all__ = ["correlate_rows"]

LANES = 8
"""Numbers in a vector register, and in a line of the cache: rows of a tile start at whole ones."""
TILE, SPAN = 256, 1024
"""Numbers side by side, and rows that are summed, in a tile."""
RUN = 2048
"""Sums made at once: few enough for the first cache, many enough that starting a pass does not count."""


@kernel
def correlate_rows(source, index, weights, parity, value, out):
    """Correlate along the middle axis.

    Parameters
    ----------
    source : ndarray, shape (outer, n, inner), C-contiguous
    index : ndarray of int64, shape (m + len(weights) - 1,)
        Row of the source for every row that the sums take; negative for one of `value`.
    weights : ndarray of float64
        The middle one, of an even number the upper of the two, belongs to the row itself.
    parity : {1, -1, 0}
        Whether the weights are symmetric, antisymmetric, or neither, which decides the order of the sums.
    value : float
    out : ndarray, shape (outer, m, inner), C-contiguous
        Filled with the sums.
    """
    outer, kept, inner = out.shape
    below = weights.size // 2
    if inner == 1:
        tile = group = LANES  # known to the compiler
    else:
        tile, group = -(-inner // (-(-inner // TILE) * LANES)) * LANES, 1
    padded, sums = _aligned((min(kept, SPAN) + weights.size - 1) * tile), _aligned(RUN)
    step = RUN // tile
    for first in range(0, outer, group):
        lines = min(group, outer - first)
        for t in range(0, inner, tile):
            width = min(tile, inner - t)
            for begin in range(0, kept, SPAN):
                end = min(kept, begin + SPAN)
                rows = index[begin : end + weights.size - 1]
                if inner == 1:
                    _gather(source[first : first + lines, :, 0], rows, value, padded)
                else:
                    _fill(source[first], rows, t, width, value, padded, tile)
                for k in range(begin, end, step):
                    n = min(step, end - k)
                    _sum(padded, (k - begin + below) * tile, tile, weights, parity, sums[: n * tile])
                    if inner == 1:
                        _scatter(sums, out[first : first + lines, k : k + n, 0])
                    else:
                        _store(sums, tile, out[first], k, n, t, width)


@helper
def _aligned(n):
    """Return n zeros, the first at the start of a cache line."""
    room = np.zeros(n + LANES)
    skip = -(room.ctypes.data // 8) % LANES
    return room[skip : skip + n]


@helper
def _fill(rows, index, t, width, value, padded, tile):
    """Convert a tile of rows to float64."""
    for k in range(index.size):
        to = padded[k * tile : k * tile + width]
        if index[k] < 0:
            for i in range(width):
                to[i] = value
        else:
            row = rows[index[k], t : t + width]
            for i in range(width):
                to[i] = row[i]


@helper
def _store(sums, tile, rows, first, n, t, width):
    for k in range(n):
        row = rows[first + k, t : t + width]
        found = sums[k * tile : k * tile + width]
        for i in range(width):
            row[i] = found[i]


@helper
def _gather(lines, index, value, padded):
    """Convert lines along the last axis to rows of float64, line by line, as memory gives them."""
    for i in range(lines.shape[0]):
        for k in range(index.size):
            at = index[k]
            padded[k * LANES + i] = value if at < 0 else lines[i, at]


@helper
def _scatter(sums, lines):
    """Store rows as lines."""
    for i in range(lines.shape[0]):
        for k in range(lines.shape[1]):
            lines[i, k] = sums[k * LANES + i]


@helper
def _sum(padded, start, step, weights, parity, sums):
    """Sum the neighbours of `padded[start:]`, in SciPy's order: of symmetric weights in pairs, from the outermost to the nearest."""
    count, last, below = sums.size, weights.size - 1, weights.size // 2
    near = start if parity else start + (last - below) * step
    weight = weights[below if parity else last]
    a = padded[near : near + count]
    for i in range(count):
        sums[i] = a[i] * weight
    k = 0
    while k < (below if parity else last):
        low, high = start + (k - below) * step, start + (below - k) * step
        a, b, weight = padded[low : low + count], padded[high : high + count], weights[k]
        if parity == 0:
            for i in range(count):
                sums[i] += a[i] * weight
        elif parity < 0:
            for i in range(count):
                sums[i] += (a[i] - b[i]) * weight
        elif k + 1 == below:
            for i in range(count):
                sums[i] += (a[i] + b[i]) * weight
        else:  # two pairs at once: half the reads and writes of the sums
            k += 1
            c, d, other = padded[low + step : low + step + count], padded[high - step : high - step + count], weights[k]
            for i in range(count):
                sums[i] = sums[i] + (a[i] + b[i]) * weight + (c[i] + d[i]) * other
        k += 1
