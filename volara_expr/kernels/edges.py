"""Sums over the voxel pairs that link labels, and over the voxels of each label: the rows of a region graph.

Everything is an integer, so sums over any partition of a volume into cells add up to the sums over the whole, exactly. Float
values are summed in fixed point, as `rint(x * 2**24)`. Arrays have one to three axes; coordinates are absolute voxels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from volara_expr.kernels import BadVoxel
from volara_expr.kernels.jit import helper, kernel
from volara_expr.kernels.relabel import frozen

__all__ = ["FIXED_POINT", "Kind", "base_boxes", "edge_sums", "node_sums", "slab"]

Kind = Literal["inner", "owned", "face"]
FIXED_POINT = 2.0**24
"""A float value x is summed as rint(x * FIXED_POINT); at magnitude 1, int64 holds the sum of 2**39 voxels."""

_LARGEST = 2.0**15
_MUL = np.uint64(0x9E3779B97F4A7C15)
_LOW = np.uint64(0xFFFFFFFF)

_Ints = Sequence[int] | NDArray[np.integer[Any]]
_Box = tuple[tuple[int, ...], tuple[int, ...]]


def base_boxes(
    cell_lo: _Ints, cell_hi: _Ints, offsets: ArrayLike, kind: Kind = "owned", axis: int = 0, side: int = 1
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Boxes of the voxels v whose pairs (v, v + offset) belong to a cell.

    Parameters
    ----------
    cell_lo, cell_hi : sequence of int, length nd
        The cell, [cell_lo, cell_hi), which holds every v.
    offsets : array of int, shape (n, nd)
        Any sign.
    kind : {"inner", "owned", "face"}
        "inner": v + offset lies in the cell too. "owned": wherever v + offset lies. "face": v + offset lies outside, and the
        first axis on which it leaves the cell is `axis`, on its high (`side=1`) or low (`side=-1`) side. So each owned pair is
        either inner or belongs to exactly one face.
    axis, side : int
        Used by "face" only.

    Returns
    -------
    begin, end : ndarray of int64, shape (n, nd)
        One box [begin, end) for each offset; no voxel where end <= begin.

    Raises
    ------
    ValueError
        If kind, axis or side is none of the above, or the shapes differ.
    """
    lo, hi, step = (np.asarray(a, np.int64) for a in (cell_lo, cell_hi, offsets))
    if lo.ndim != 1 or lo.shape != hi.shape or step.shape[1:] != lo.shape:
        raise ValueError(f"cell of shape {lo.shape} and {hi.shape}, offsets of shape {step.shape}; give offsets (n, {lo.size})")
    if kind not in ("inner", "owned", "face"):
        raise ValueError(f"kind is {kind!r}; it must be 'inner', 'owned' or 'face'")
    if kind == "face" and (side not in (-1, 1) or not 0 <= axis < lo.size):
        raise ValueError(f"no face at axis {axis}, side {side}: the cell has axes 0 to {lo.size - 1} and sides -1 and 1")
    begin, end = np.broadcast_to(lo, step.shape).copy(), np.broadcast_to(hi, step.shape).copy()
    inside = {"inner": lo.size, "owned": 0, "face": axis}[kind]
    begin[:, :inside] = np.maximum(lo, lo - step)[:, :inside]
    end[:, :inside] = np.minimum(hi, hi - step)[:, :inside]
    if kind == "face" and side == 1:
        begin[:, axis] = np.maximum(lo, hi - step)[:, axis]
    elif kind == "face":
        end[:, axis] = np.minimum(hi, lo - step)[:, axis]
    return begin, end


def slab(cell_lo: _Ints, cell_hi: _Ints, offsets: ArrayLike, axis: int, side: int) -> tuple[_Box, _Box] | None:
    """Boxes that hold everything `edge_sums(..., kind="face")` reads, not clipped to any volume.

    Parameters
    ----------
    cell_lo, cell_hi, offsets, axis, side
        As in `base_boxes`.

    Returns
    -------
    labels, values : pairs (lo, hi) of tuples of int
        The box of v and v + offset, and the box of v; None where no offset crosses that face.
    """
    begin, end = base_boxes(cell_lo, cell_hi, offsets, "face", axis, side)
    used = (begin < end).all(axis=1)
    if not used.any():
        return None
    begin, end, step = begin[used], end[used], np.asarray(offsets, np.int64)[used]
    box = begin.min(axis=0), end.max(axis=0)
    both = np.minimum(box[0], (begin + step).min(axis=0)), np.maximum(box[1], (end + step).max(axis=0))
    labels, values = (tuple(tuple(corner.tolist()) for corner in b) for b in (both, box))
    return labels, values  # type: ignore[return-value]


def edge_sums(
    labels: NDArray[Any],
    labels_lo: _Ints,
    values: NDArray[Any],
    values_lo: _Ints,
    offsets: ArrayLike,
    scores: ArrayLike,
    n_scores: int,
    cell_lo: _Ints,
    cell_hi: _Ints,
    *,
    kind: Kind = "owned",
    axis: int = 0,
    side: int = 1,
    table: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int64]]:
    """Sum and count of `values[c, v]` over the pairs (v, v + offsets[c]) with different non-zero labels.

    v lies in the cell, v and v + offsets[c] lie in `labels`. Rows are read run by run along the last axis: a pair of labels is
    looked up once for each overlap of two runs.

    Parameters
    ----------
    labels : ndarray of uint32 or uint64, spatial axes only
        0 is background.
    labels_lo : sequence of int
        Absolute coordinate of the first voxel of `labels`.
    values : ndarray of integers or floats, channel axis first
        Values of each pair, at v. Integers (including bool) are summed as they are, floats as `rint(x * 2**24)`.
    values_lo : sequence of int
        Absolute coordinate of the first voxel of `values`, without the channel axis.
    offsets : array of int, shape (channels, nd)
        The neighborhood: what each channel links v to, in voxels, any sign.
    scores : array of int, shape (channels,)
        The score, below `n_scores`, that each channel is pooled into; -1 for none.
    n_scores : int
        Number of scores.
    cell_lo, cell_hi : sequence of int
        The cell, [cell_lo, cell_hi).
    kind, axis, side
        Which pairs, see `base_boxes`. Inner pairs and those of all faces are the owned ones, each once.
    table : ndarray of int64, shape (256,) or (65536,), optional
        Sum `table[code]` for the codes of uint8 or uint16 values.

    Returns
    -------
    u, v : ndarray of uint64, shape (m,)
        Pairs of labels, u < v, rows sorted by (u, v).
    sums : ndarray of int64, shape (m, 2 * n_scores)
        sum_0, count_0, sum_1, count_1, ...

    Raises
    ------
    BadVoxel
        A float value of such a pair is not finite or beyond 2**15; `voxel` is its index in `values`, channel included.
    ValueError
        If shapes differ, a score is out of range, or `values` does not cover every v that has a partner in `labels`.
    TypeError
        If labels, values or table have another dtype.

    Examples
    --------
    >>> labels = np.array([[7, 7, 9], [7, 9, 9]], np.uint32)
    >>> values = np.array([[[1, 2, 0], [3, 0, 0]]], np.uint8)
    >>> edge_sums(labels, (0, 0), values, (0, 0), [(0, 1)], [0], 1, (0, 0), (2, 3))
    (array([7], dtype=uint64), array([9], dtype=uint64), array([[5, 2]]))
    """
    labels_lo, values_lo, step, score = (np.asarray(a, np.int64) for a in (labels_lo, values_lo, offsets, scores))
    begin, end = base_boxes(cell_lo, cell_hi, step, kind, axis, side)
    nd = labels.ndim
    if not labels_lo.shape == values_lo.shape == begin.shape[1:] == (nd,) or values.ndim != nd + 1:
        raise ValueError(f"labels {labels.shape}, values {values.shape} and a cell of {begin.shape[1]} axes do not match")
    if not len(values) == len(step) == score.size:
        raise ValueError(f"{len(values)} channels of values, {len(step)} offsets, {score.size} scores; give as many of each")
    if score.size and not -1 <= score.min() <= score.max() < n_scores:
        raise ValueError(f"scores {score.tolist()} with n_scores={n_scores}; they run from -1 (none) to n_scores - 1")
    begin = np.maximum(begin, np.maximum(labels_lo, labels_lo - step))
    end = np.minimum(end, np.minimum(labels_lo, labels_lo - step) + labels.shape)
    used = np.flatnonzero((begin < end).all(axis=1) & (score >= 0))
    if not used.size:
        return np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty((0, 2 * n_scores), np.int64)
    lo, hi = begin[used].min(axis=0), end[used].max(axis=0)
    values_hi = values_lo + values.shape[1:]
    if (lo < values_lo).any() or (hi > values_hi).any():
        raise ValueError(
            f"values cover {values_lo} to {values_hi}, pairs start in {lo} to {hi}; read what `slab` or the cell asks"
        )

    codes, scale = _summable(values)
    if table is not None:
        size = {np.dtype(np.uint8): 1 << 8, np.dtype(np.uint16): 1 << 16}.get(values.dtype)
        if table.dtype != np.int64 or table.shape != (size,):
            raise TypeError(
                f"a {table.dtype} table {table.shape} for {values.dtype}; give int64 (256,) for uint8, (65536,) for uint16"
            )
        table = frozen(table)
    dense, stop, ids = _runs(_spatial(labels))
    bad = np.full(4, -1)
    args = (
        dense,
        stop,
        codes.reshape((len(codes),) + (1,) * (3 - nd) + codes.shape[1:]),
        _three(begin[used] - labels_lo, 0),
        _three(end[used] - labels_lo, 1),
        np.stack([_three(lo - labels_lo, 0), _three(hi - labels_lo, 1)]),
        _three(step[used], 0),
        _three(labels_lo - values_lo, 0),
        used,
        score[used],
        table,
        scale,
        bad,
    )
    keys, slots = np.zeros(1 << 13, np.uint64), np.empty(1 << 13, np.uint32)
    found, sums = np.empty(1 << 12, np.uint64), np.zeros((1 << 12, 2 * n_scores), np.int64)
    n, row = _edge_sums(*args, keys, slots, found, sums, 0, 0)
    while row >= 0:
        keys, slots = _grown(keys, slots)
        found, sums = np.append(found, np.empty_like(found)), np.append(sums, np.zeros_like(sums), axis=0)
        n, row = _edge_sums(*args, keys, slots, found, sums, n, row)
    if bad[0] >= 0:
        raise _bad(values, (int(bad[0]), *bad[4 - nd :].tolist()))
    a, b = ids[found[:n] >> np.uint64(32)], ids[found[:n] & _LOW]
    u, v = np.minimum(a, b), np.maximum(a, b)
    order = np.lexsort((v, u))
    return u[order], v[order], sums[order]


def node_sums(
    labels: NDArray[Any], labels_lo: _Ints, values: Sequence[NDArray[Any]] = ()
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Size, coordinate sums and value sums of each label.

    Parameters
    ----------
    labels : ndarray of uint32 or uint64, one to three axes
        0 is background.
    labels_lo : sequence of int
        Absolute coordinate of the first voxel of `labels`.
    values : sequence of ndarray
        Arrays of integers or floats, each shaped as `labels`; floats are summed as `rint(x * 2**24)`.

    Returns
    -------
    ids : ndarray of uint64, shape (n,)
        The labels, ascending.
    sums : ndarray of int64, shape (n, 1 + nd + len(values))
        Number of voxels, sum of the absolute coordinate along each axis, sum of each value.

    Raises
    ------
    BadVoxel
        A float value of a labelled voxel is not finite or beyond 2**15.
    ValueError
        If shapes differ.
    TypeError
        If labels or values have another dtype.
    """
    nd = labels.ndim
    lo = np.asarray(labels_lo, np.int64)
    if lo.shape != (nd,) or any(a.shape != labels.shape for a in values):
        raise ValueError(
            f"labels {labels.shape}, labels_lo of length {lo.size}, values {[a.shape for a in values]} do not match"
        )
    dense, stop, ids = _runs(_spatial(labels))
    sums = np.zeros((ids.size, 4 + len(values)), np.int64)
    _node_sums(dense, stop, _three(lo, 0), sums)
    for column, array in enumerate(values, 4):
        codes, scale = _summable(array)
        at = _value_sums(dense.reshape(-1), codes.reshape(-1), scale, sums[:, column])
        if at >= 0:
            raise _bad(array, tuple(int(i) for i in np.unravel_index(at, array.shape)))
    order = 1 + np.argsort(ids[1:])
    return ids[order], np.delete(sums[order], np.s_[1 : 4 - nd], axis=1)


def _spatial(labels: NDArray[Any]) -> NDArray[Any]:
    """Labels with three axes."""
    if labels.dtype not in (np.uint32, np.uint64):
        raise TypeError(f"labels have dtype {labels.dtype}; use astype to make them uint32 or uint64")
    if not 1 <= labels.ndim <= 3:
        raise ValueError(f"labels have {labels.ndim} axes; one to three are supported, map over the others")
    return frozen(labels).reshape((1,) * (3 - labels.ndim) + labels.shape)


def _runs(labels: NDArray[Any]) -> tuple[NDArray[np.uint32], NDArray[np.uint32], NDArray[np.uint64]]:
    """Labels numbered densely from 1 (so that a pair fits 64 bits), the end of the run along x that holds each voxel, the ids."""
    dense, stop = np.empty(labels.shape, np.uint32), np.empty(labels.shape, np.uint32)
    keys, slots, ids = np.zeros(1 << 12, np.uint64), np.empty(1 << 12, np.uint32), np.zeros(1 << 11, np.uint64)
    n, row = _number(labels, dense, stop, keys, slots, ids, 1, 0)
    while row >= 0:
        keys, slots = _grown(keys, slots)
        ids = np.append(ids, np.empty_like(ids))
        n, row = _number(labels, dense, stop, keys, slots, ids, n, row)
    return dense, stop, ids[:n]


def _grown(keys: NDArray[np.uint64], slots: NDArray[np.uint32]) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """Move a table to one of twice the places."""
    more, slot = np.zeros(2 * keys.size, np.uint64), np.empty(2 * keys.size, np.uint32)
    _move(keys, slots, more, slot)
    return more, slot


def _three(coordinates: NDArray[np.int64], fill: int) -> NDArray[np.int64]:
    """Coordinates along three axes."""
    missing = (*coordinates.shape[:-1], 3 - coordinates.shape[-1])
    return np.concatenate([np.full(missing, fill, np.int64), coordinates], axis=-1)


def _summable(values: NDArray[Any]) -> tuple[NDArray[Any], float | None]:
    """Values in one of the few dtypes that the loops are compiled for, and the scale of floats."""
    if values.dtype.kind == "f" and values.dtype.itemsize <= 8:
        return frozen(values if values.dtype == np.float32 else values.astype(np.float64, copy=False)), FIXED_POINT
    if values.dtype.kind not in "biu":
        raise TypeError(f"values have dtype {values.dtype}; only integers and floats of at most 64 bits are summed")
    if values.dtype == np.uint64 and values.size and values.max() > np.iinfo(np.int64).max:
        raise ValueError(f"value {values.max()} does not fit the int64 that sums are kept in; scale the values down")
    return frozen(values if values.dtype in (np.uint8, np.uint16) else values.astype(np.int64, copy=False)), None


def _bad(values: NDArray[Any], voxel: tuple[int, ...]) -> BadVoxel:
    return BadVoxel(
        f"value {values[voxel]} cannot be summed in fixed point, which takes finite values up to {_LARGEST:g} in magnitude; "
        "normalize, clip or mask it first",
        voxel,
    )


@helper
def _place(keys, key):
    """Where `key` (never 0) stands in an open-addressing table of 2**m keys, or the empty place (0) where it belongs."""
    mask = np.uint64(keys.shape[0] - 1)
    i = ((key * _MUL) >> np.uint64(32)) & mask
    while keys[i] != key and keys[i] != np.uint64(0):
        i = (i + np.uint64(1)) & mask
    return i


@kernel
def _move(keys, slots, more, slot):
    """Move a table to one of more places."""
    for i in range(keys.shape[0]):
        if keys[i] != np.uint64(0):
            j = _place(more, keys[i])
            more[j] = keys[i]
            slot[j] = slots[i]


@kernel
def _number(labels, dense, stop, keys, slots, ids, n, row):
    """Fill `dense`, `stop` and `ids` from a row on; returns the next number, and the row that needs more room, or -1 at the end.

    Arrays that this loop replaced by larger ones would make it 30 times slower, so the caller does that.
    """
    d, h, w = labels.shape
    for r in range(row, d * h):
        if n + w > ids.shape[0]:
            return n, r
        labels_row = labels[r // h, r % h]
        numbers = dense[r // h, r % h]
        ends = stop[r // h, r % h]
        last = np.uint64(0)
        number = np.uint32(0)
        end = w
        for x in range(w - 1, -1, -1):
            label = np.uint64(labels_row[np.uint64(x)])
            if label != last:
                last = label
                end = x + 1
                number = np.uint32(0)
                if label != np.uint64(0):
                    i = _place(keys, label)
                    if keys[i] == np.uint64(0):
                        keys[i] = label
                        slots[i] = n
                        ids[n] = label
                        n += 1
                    number = slots[i]
            numbers[np.uint64(x)] = number
            ends[np.uint64(x)] = end
    return n, -1


@kernel
def _edge_sums(
    dense, stop, values, begin, end, hull, offsets, shift, channels, scores, table, scale, bad, keys, slots, found, sums, n, row
):
    """Add the sums of rows from `row` on; returns the number of pairs so far, and the row that needs more room, or -1 at the end.

    begin, end and their hull are indices of `dense`, from where `shift` leads to `values`. Arrays that this loop replaced by
    larger ones would make it twice as slow, so the caller does that.
    """
    z0, y0, _ = hull[0]
    z1, y1, _ = hull[1]
    ny = y1 - y0
    room = 2 * dense.shape[2] * channels.shape[0]
    for r in range(row, (z1 - z0) * ny):
        if n + room > found.shape[0]:
            return n, r
        z = z0 + r // ny
        y = y0 + r % ny
        for c in range(channels.shape[0]):
            if not (begin[c, 0] <= z < end[c, 0] and begin[c, 1] <= y < end[c, 1]):
                continue
            dx = offsets[c, 2]
            l0 = dense[z, y]
            l1 = dense[z + offsets[c, 0], y + offsets[c, 1]]
            s0 = stop[z, y]
            s1 = stop[z + offsets[c, 0], y + offsets[c, 1]]
            line = values[channels[c], z + shift[0], y + shift[1]]
            column = np.uint64(2 * scores[c])
            x = begin[c, 2]
            while x < end[c, 2]:
                a = l0[np.uint64(x)]
                b = l1[np.uint64(x + dx)]
                e = end[c, 2]
                if s0[np.uint64(x)] < e:
                    e = np.int64(s0[np.uint64(x)])
                if s1[np.uint64(x + dx)] - dx < e:
                    e = np.int64(s1[np.uint64(x + dx)]) - dx
                if a != b and a != np.uint32(0) and b != np.uint32(0):
                    key = (np.uint64(a) << np.uint64(32)) | np.uint64(b)
                    if b < a:
                        key = (np.uint64(b) << np.uint64(32)) | np.uint64(a)
                    i = _place(keys, key)
                    if keys[i] == np.uint64(0):
                        keys[i] = key
                        slots[i] = n
                        found[n] = key
                        n += 1
                    total = np.int64(0)
                    for t in range(x + shift[2], e + shift[2]):
                        value = line[np.uint64(t)]
                        if table is not None:
                            total += table[value]
                        elif scale is not None:
                            if not abs(value) <= _LARGEST:
                                bad[0] = channels[c]
                                bad[1] = z + shift[0]
                                bad[2] = y + shift[1]
                                bad[3] = t
                                return n, -1
                            total += np.int64(np.rint(np.float64(value) * scale))
                        else:
                            total += np.int64(value)
                    j = np.uint64(slots[i])
                    sums[j, column] += total
                    sums[j, column + np.uint64(1)] += e - x
                x = e
    return n, -1


@kernel
def _node_sums(dense, stop, lo, sums):
    """Add the size and coordinate sums of each run."""
    d, h, w = dense.shape
    for z in range(d):
        for y in range(h):
            x = np.int64(0)
            while x < w:
                e = np.int64(stop[z, y, x])
                row = sums[dense[z, y, x]]
                row[0] += e - x
                row[1] += (e - x) * (lo[0] + z)
                row[2] += (e - x) * (lo[1] + y)
                row[3] += (e - x) * (2 * lo[2] + x + e - 1) // 2
                x = e


@kernel
def _value_sums(dense, values, scale, sums):
    """Add the value of each labelled voxel; returns -1, or where a value cannot be summed."""
    for i in range(dense.shape[0]):
        if dense[i] != np.uint32(0):
            value = values[i]
            if scale is not None:
                if not abs(value) <= _LARGEST:
                    return i
                sums[dense[i]] += np.int64(np.rint(np.float64(value) * scale))
            else:
                sums[dense[i]] += np.int64(value)
    return -1
