"""Partitions of a graph given as arrays of edges: mutex watershed and connected components."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from volara_expr.kernels.jit import helper, kernel
from volara_expr.kernels.relabel import frozen

__all__ = ["components", "mutex_watershed"]

_MUL = np.uint64(0x9E3779B97F4A7C15)
_MOST = 1 << 31
_FREE = np.uint32(0xFFFFFFFF)
_ROOT = np.uint32(0x80000000)
_DIGIT = 11


def mutex_watershed(u: ArrayLike, v: ArrayLike, weights: ArrayLike, n: int) -> NDArray[np.uint32]:
    """Mutex watershed (Wolf et al., ECCV 2018) of a graph.

    Edges are taken by falling |weight|, those of equal |weight| in the order given. A positive one merges the segments of its
    ends unless they are kept apart; any other keeps them apart. Beyond its input it needs 25 to 30 bytes
    an edge, up to 75 where nearly all edges keep apart.

    Parameters
    ----------
    u, v : array of int, shape (m,)
        Ends of the edges, nodes 0 to n - 1.
    weights : array of float or int, shape (m,)
        Compared as float64 or int64. Infinite weights are allowed.
    n : int
        Number of nodes, less than 2**31.

    Returns
    -------
    ndarray of uint32, shape (n,)
        The smallest node of the segment that each node belongs to.

    Raises
    ------
    ValueError
        If a weight is NaN, an end is not a node, shapes differ, or the graph is too large.

    Examples
    --------
    >>> mutex_watershed([0, 1, 0], [1, 2, 2], [0.9, 0.3, -0.5], 3)
    array([0, 0, 2], dtype=uint32)
    """
    signed = np.asarray(weights)
    u, v = _ends(u, v, n)
    if signed.shape != u.shape:
        raise ValueError(f"weights have shape {signed.shape}, edges {u.shape}; give one weight for each edge")
    positive, order = signed > 0, _strongest_first(signed)
    parent = np.full(n, _FREE, np.uint32)
    room = 2 * np.count_nonzero(~positive)  # of which the system provides what is used
    lists = (np.empty(size, np.uint32) for size in (n, n, room, room))
    _mutex_watershed(order, u, v, positive, parent, *lists, np.zeros(1 << 13, np.uint64))
    return _smallest_of(parent)


def components(u: ArrayLike, v: ArrayLike, n: int) -> NDArray[np.uint32]:
    """Find the connected components of a graph.

    Parameters
    ----------
    u, v : array of int, shape (m,)
        Ends of the edges, nodes 0 to n - 1.
    n : int
        Number of nodes, less than 2**31.

    Returns
    -------
    ndarray of uint32, shape (n,)
        The smallest node of the component that each node belongs to.

    Raises
    ------
    ValueError
        If an end is not a node, shapes differ, or the graph is too large.

    Examples
    --------
    >>> components([0, 3], [2, 1], 5)
    array([0, 1, 0, 1, 4], dtype=uint32)
    """
    u, v = _ends(u, v, n)
    parent = np.full(n, _FREE, np.uint32)
    _components(u, v, parent)
    return _smallest_of(parent)


def _ends(u: ArrayLike, v: ArrayLike, n: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    ends = np.asarray(u), np.asarray(v)
    if ends[0].ndim != 1 or ends[0].shape != ends[1].shape:
        raise ValueError(f"u has shape {ends[0].shape}, v {ends[1].shape}; give two ends for each edge")
    if n >= _MOST or ends[0].size >= _MOST:
        raise ValueError(f"{n} nodes and {ends[0].size} edges; fewer than 2**31 of each fit, cluster in parts")
    for name, nodes in zip("uv", ends, strict=True):
        if nodes.size and nodes.dtype.kind not in "iu":
            raise TypeError(f"{name} has dtype {nodes.dtype}; nodes are integers")
        if nodes.size and not 0 <= nodes.min() <= nodes.max() < n:
            raise ValueError(f"{name} runs from {nodes.min()} to {nodes.max()}, nodes from 0 to {n - 1}; number them densely")
    return frozen(ends[0].astype(np.uint32, copy=False)), frozen(ends[1].astype(np.uint32, copy=False))


def _smallest_of(parent: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Smallest node of each node's tree."""
    out = np.empty_like(parent)
    _smallest(parent, np.full_like(parent, _FREE), out)
    return out


def _strongest_first(weights: NDArray[Any]) -> NDArray[np.uint32]:
    """Order weights by falling magnitude, equal ones as they come."""
    if weights.dtype.kind == "f":
        weights = weights.astype(np.float64, copy=False)
        if np.isnan(weights).any():
            raise ValueError(f"weight {np.isnan(weights).argmax()} of {weights.size} is NaN; leave out edges without a score")
    elif weights.dtype.kind in "bi" or weights.dtype.itemsize < 8:
        weights = weights.astype(np.int64, copy=False)
    else:
        raise TypeError(f"weights have dtype {weights.dtype}; make them float64 or int64")
    key = np.abs(weights).view(np.uint64)  # the bit patterns of non-negative floats ascend with their values
    order = np.arange(key.size, dtype=np.uint32)
    counts = np.zeros((64 // _DIGIT + 1, 1 << _DIGIT), np.int64)
    found: NDArray[np.uint32] = _radix_order(np.invert(key, out=key), order, np.empty_like(key), np.empty_like(order), counts)
    return found


@kernel
def _radix_order(key, order, key_to, order_to, counts):
    """Stable ascending order of the keys, all arrays being moved about; digits that are equal in all keys are skipped.

    `order` counts from 0 and `counts` (digits, values of a digit) is 0.
    """
    n = key.shape[0]
    digits, values = counts.shape
    low = np.uint64(values - 1)
    for i in range(n):
        k = key[i]
        for p in range(digits):
            counts[p, (k >> np.uint64(_DIGIT * p)) & low] += 1
    for p in range(digits):
        count = counts[p]
        shift = np.uint64(_DIGIT * p)
        if n == 0 or count[(key[0] >> shift) & low] == n:
            continue
        start = 0
        for d in range(values):
            size = count[d]
            count[d] = start
            start += size
        for i in range(n):
            at = (key[i] >> shift) & low
            key_to[count[at]] = key[i]
            order_to[count[at]] = order[i]
            count[at] += 1
        key, key_to = key_to, key
        order, order_to = order_to, order
    return order


@helper
def _find(parent, x):
    """Root of x. A root holds _FREE less the number of its mutexes, any other node its parent. Splits the path."""
    q = parent[x]
    if q >= _ROOT:
        return x
    while True:
        r = parent[q]
        if r >= _ROOT:
            return q
        parent[x] = r
        x = q
        q = r


@helper
def _place(keys, a, b):
    """Key of a pair of roots, and its place in a table of 2**m keys (where 0 is empty)."""
    key = (np.uint64(a) << np.uint64(32)) | np.uint64(b)
    if b < a:
        key = (np.uint64(b) << np.uint64(32)) | np.uint64(a)
    mask = np.uint64(keys.shape[0] - 1)
    i = ((key * _MUL) >> np.uint64(32)) & mask
    while keys[i] != key and keys[i] != np.uint64(0):
        i = (i + np.uint64(1)) & mask
    return key, i


@helper
def _put(keys, a, b):
    """Keep a and b apart; False where they are already."""
    key, i = _place(keys, a, b)
    if keys[i] == key:
        return False
    keys[i] = key
    return True


@helper
def _rebuilt(keys, parent):
    """Move the pairs whose ends are still roots to a table that they fill by a quarter at most; returns it and their number."""
    live = 0
    for i in range(keys.shape[0]):
        a = np.uint32(keys[i] >> np.uint64(32))
        b = np.uint32(keys[i] & np.uint64(0xFFFFFFFF))
        if a == b or parent[a] < _ROOT or parent[b] < _ROOT:
            keys[i] = np.uint64(0)
        else:
            live += 1
    size = keys.shape[0]
    while size < 4 * live:
        size *= 2
    moved = np.empty(size, np.uint64)
    for i in range(size):
        moved[i] = 0
    for i in range(keys.shape[0]):
        if keys[i] != np.uint64(0):
            _put(moved, np.uint32(keys[i] >> np.uint64(32)), np.uint32(keys[i] & np.uint64(0xFFFFFFFF)))
    return moved, live


@kernel
def _mutex_watershed(order, u, v, positive, parent, head, tail, after, other, keys):
    """Fill `parent`, which is _FREE, by Kruskal with mutexes.

    Each root has a list (head, tail, after) of nodes in `other` that its segment must not join.
    """
    live = 0
    used = np.uint32(0)
    stop = order.shape[0]
    while stop > 0 and not positive[order[stop - 1]]:  # what the weakest edges keep apart, nothing can join
        stop -= 1
    for t in range(stop):
        e = order[t]
        a = _find(parent, u[e])
        b = _find(parent, v[e])
        if a == b:
            continue
        if positive[e]:
            key, i = _place(keys, a, b)
            if keys[i] == key:
                continue
            if parent[b] < parent[a] or (parent[b] == parent[a] and b < a):  # the root with more mutexes stays
                a, b = b, a
            mutexes = _FREE - parent[b]
            parent[b] = a
            if mutexes:
                m = head[b]
                for _ in range(mutexes):
                    live += _put(keys, a, _find(parent, other[m]))
                    m = after[m]
                if parent[a] == _FREE:
                    head[a] = head[b]
                else:
                    after[tail[a]] = head[b]
                tail[a] = tail[b]
                parent[a] -= mutexes
        elif _put(keys, a, b):
            live += 1
            for side in range(2):
                r = a if side == 0 else b
                other[used] = b if side == 0 else a
                if parent[r] == _FREE:
                    head[r] = used
                else:
                    after[tail[r]] = used
                tail[r] = used
                parent[r] -= np.uint32(1)
                used += np.uint32(1)
        if 2 * live > keys.shape[0]:  # a join adds at most `live` pairs, so the table never runs full
            keys, live = _rebuilt(keys, parent)


@kernel
def _components(u, v, parent):
    """Link the smaller root to the larger one's tree, so that it stays."""
    for e in range(u.shape[0]):
        a = _find(parent, u[e])
        b = _find(parent, v[e])
        if a < b:
            parent[b] = a
        elif b < a:
            parent[a] = b


@kernel
def _smallest(parent, low, out):
    """Smallest node of each node's tree; `low` is _FREE."""
    for i in range(parent.shape[0]):
        r = _find(parent, np.uint32(i))
        if low[r] == _FREE:
            low[r] = i
        out[i] = low[r]
