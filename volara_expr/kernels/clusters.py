"""Union-find with mutexes: clusters from edges in order, attractive and repulsive."""

from __future__ import annotations

from typing import Any

import numpy as np

from volara_expr.kernels.jit import helper, kernel

__all__ = ["ROOT", "Workspace", "clusters"]

U, P = np.uint32, np.uint64


class Workspace:
    """Arrays kept from block to block, so that equal blocks allocate once. Not to be shared between threads."""

    def __init__(self) -> None:
        self._buffers: dict[str, np.ndarray] = {}

    def held(self, name: str) -> int:
        """Return the size of the buffer of that name, 0 if there is none: blocks resemble those before them."""
        return self._buffers[name].size if name in self._buffers else 0

    def take(self, name: str, shape: int | tuple[int, ...], dtype: Any = np.uint32) -> np.ndarray:
        """Return an uninitialised array that holds until `name` is taken again."""
        size = int(np.prod(shape))
        buffer = self._buffers.get(name)
        if buffer is None or buffer.dtype != dtype or buffer.size < size:
            buffer = self._buffers[name] = np.empty(size, dtype)
        return buffer[:size].reshape(shape)


# A root holds FREE - (length of its list of mutexes), any other voxel its parent: one load tells both.
ROOT, FREE, NIL = U(0x80000000), U(0xFFFFFFFF), U(0xFFFFFFFF)
MULTIPLIER = P(0x9E3779B97F4A7C15)  # Fibonacci hashing
BATCH = 64  # edges


@helper
def _find(parent, x):
    """Root of x; splits the path."""
    q = parent[x]
    if q >= ROOT:
        return x
    while True:
        r = parent[q]
        if r >= ROOT:
            return q
        parent[x] = r
        x = q
        q = r


@helper
def _slot(table, a, b):
    """Place of the pair in the open-addressing table, and whether it is there. No pair is 0, as a != b."""
    pair = (P(a) << P(32)) | P(b) if a < b else (P(b) << P(32)) | P(a)
    mask = P(table.shape[0] - 1)
    i = (pair * MULTIPLIER >> P(32)) & mask
    while True:
        q = table[i]
        if q == pair:
            return i, pair, True
        if q == P(0):
            return i, pair, False
        i = (i + P(1)) & mask


@helper
def _put(table, a, b):
    i, pair, found = _slot(table, a, b)
    if not found:
        table[i] = pair
    return not found


@helper
def _inherit(parent, ends, mutexes, table, ra, rb):
    """Append the mutexes of rb, of which ra has none, to those of ra; tell how many."""
    added = 0
    last = ends[ra, 1]
    m = ends[rb, 0]
    while m != NIL:
        if _put(table, ra, _find(parent, mutexes[m, 0])):
            mutexes[last, 1] = m
            last = m
            added += 1
        m = mutexes[m, 1]
    mutexes[last, 1] = NIL
    ends[ra, 1] = last
    return added


@kernel
def _cluster(codes, begin, shift, step, parent, ends, seen, table, mutexes, count):
    """Kruskal with mutexes: edges in order, a positive one joins unless a mutex forbids, any other one forbids.

    `codes` are voxel << shift | channel << 1 | positive, in order; `step` leads from a voxel to the other end of each channel's
    edge. `parent` holds the forest, all FREE at first; `seen` gets 1 at roots that have a refused positive edge. Each root has
    a linked list, from `ends[root, 0]` to `ends[root, 1]`, of rows (voxel, next) of `mutexes`: clusters that it must not join.
    Each such pair of roots is in the hash table `table` of 2**k places, which keeps the pairs of former roots as well.
    `count` holds the numbers of pairs in the table and of rows of `mutexes` in use.

    Starts at edge `begin` and returns where it stopped: at the end, or where the table is half full or `mutexes` full. (A join
    adds fewer pairs than the table holds, so it never runs full.)

    Two of three edges lie within a cluster and mostly show it by a common parent. A first loop, which has no branches to
    predict, takes these out of each batch of edges; clusters only grow, so what it takes out is never missed. No array is
    replaced in here, as references that numba counts cost half the time, and joins are written out, as in a function of
    their own LLVM would select their arguments instead of predicting them, at three times the time.
    """
    channels = codes.dtype.type((U(1) << U(shift - 1)) - 1)
    pairs, used = count[0], U(count[1])
    half, room = table.shape[0] // 2, U(mutexes.shape[0] - 2)
    left = np.empty(BATCH, np.int64)
    for first in range(begin, codes.shape[0], BATCH):
        n = 0
        for k in range(first, min(first + BATCH, codes.shape[0])):
            e = codes[P(k)]
            i = U(e >> shift)
            pa = parent[i]
            left[P(n)] = k
            n += pa != parent[U(i + step[(e >> U(1)) & channels])] or pa >= ROOT
        for t in range(n):
            k = left[P(t)]
            e = codes[P(k)]
            i = U(e >> shift)
            j = U(i + step[(e >> U(1)) & channels])
            ra = _find(parent, i)
            rb = _find(parent, j)
            if ra == rb:
                continue
            if pairs > half or used > room:
                count[0] = pairs
                count[1] = used
                return k
            pa = parent[ra]
            pb = parent[rb]
            if e & U(1):
                if pa != FREE and pb != FREE and _slot(table, ra, rb)[2]:
                    if ra == i:
                        seen[i] = 1
                    if rb == j:
                        seen[j] = 1
                    continue
                if pb < pa or (pb == pa and rb < ra):  # the root with more mutexes stays
                    ra, rb = rb, ra
                    pa, pb = pb, pa
                parent[rb] = ra
                if pb != FREE:
                    added = _inherit(parent, ends, mutexes, table, ra, rb)
                    pairs += added
                    parent[ra] = pa - U(added)
            elif _put(table, ra, rb):
                pairs += 1
                for s in range(2):
                    r = ra if s == 0 else rb
                    mutexes[used, 0] = rb if s == 0 else ra
                    mutexes[used, 1] = NIL
                    if parent[r] == FREE:
                        ends[r, 0] = used
                    else:
                        mutexes[ends[r, 1], 1] = used
                    ends[r, 1] = used
                    parent[r] -= U(1)
                    used += U(1)
    count[0] = pairs
    count[1] = used
    return codes.shape[0]


@kernel
def _prune(table, parent):
    """Clear the places whose pair has a former root; return how many pairs are left. Breaks the probing: to be rehashed."""
    left = 0
    for t in range(table.shape[0]):
        a, b = U(table[t] >> P(32)), U(table[t] & P(0xFFFFFFFF))
        if a != b and parent[a] >= ROOT and parent[b] >= ROOT:
            left += 1
        else:
            table[t] = P(0)
    return left


@kernel
def _rehash(table, into):
    """Put all pairs of one hash table into another."""
    for t in range(table.shape[0]):
        pair = table[t]
        if pair != P(0):
            _put(into, U(pair >> P(32)), U(pair & P(0xFFFFFFFF)))


def clusters(
    codes: np.ndarray, shift: Any, step: np.ndarray, voxels: int, workspace: Workspace
) -> tuple[np.ndarray, np.ndarray]:
    """Join and separate voxels by edges in order.

    Parameters
    ----------
    codes : ndarray of uint32 or uint64
        Edges, voxel << shift | channel << 1 | positive.
    shift : scalar of the dtype of `codes`
    step : ndarray of uint32, shape (C,)
        From a voxel to the other end of its edge of each channel, modulo 2**32.
    voxels : int
    workspace : Workspace
        Holds the results.

    Returns
    -------
    parent : ndarray of uint32, shape (voxels,)
        The forest; roots hold numbers of at least ROOT.
    seen : ndarray of uint8, shape (voxels,)
        1 at voxels that are roots and have a refused positive edge.

    Raises
    ------
    MemoryError
        If there are more than 2**30 mutexes.
    """
    take, held = workspace.take, workspace.held
    parent, seen, ends = take("parent", voxels), take("seen", voxels, np.uint8), take("ends", (voxels, 2))
    parent[:], seen[:] = FREE, 0
    names = ["table", "spare table"]  # they take turns when the pairs move to a larger one
    size = max(1 << max(1, min(voxels.bit_length() - 2, 22)), *map(held, names))
    table = take(names[0], size, np.uint64)
    table[:] = 0
    mutexes = take("mutexes", (max(1 << 16, held("mutexes") // 2), 2))
    count = np.zeros(2, np.int64)
    done = 0
    while (done := _cluster(codes, done, shift, step, parent, ends, seen, table, mutexes, count)) < len(codes):
        if count[0] > len(table) // 2:
            count[0] = _prune(table, parent)
            names.reverse()
            larger = take(names[0], max(len(table), 4 << int(count[0]).bit_length()), np.uint64)
            larger[:] = 0
            _rehash(table, larger)
            table = larger
        else:
            if len(mutexes) >= 1 << 31:
                raise MemoryError("a block has more than 2**30 mutexes; use a smaller block_size or larger strides")
            longer = take("mutexes", (2 * len(mutexes), 2))
            longer[: len(mutexes)] = mutexes
            mutexes = longer
    return parent, seen
