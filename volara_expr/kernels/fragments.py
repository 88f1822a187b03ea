"""From edges in order to numbered fragments: union-find with mutexes, filters, and the components that a crop leaves."""

from __future__ import annotations

from collections.abc import Sequence

import numba as nb
import numpy as np
from scipy import ndimage

from volara_expr.kernels import BadVoxel

__all__ = ["cluster", "crop_components", "number", "surviving"]

U, P = np.uint32, np.uint64
jit = nb.njit(cache=True, nogil=True)

# A root holds FREE - (number of its mutexes), any other voxel its parent: one load tells both.
ROOT, FREE, NIL = U(0x80000000), U(0xFFFFFFFF), U(0xFFFFFFFF)
MULTIPLIER = P(0x9E3779B97F4A7C15)  # Fibonacci hashing


@jit
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


@jit
def _slot(table, shift, a, b):
    """Place of the pair in the open-addressing table, and whether it is there. No pair is 0, as a != b."""
    pair = (P(a) << P(32)) | P(b) if a < b else (P(b) << P(32)) | P(a)
    mask = P(table.shape[0] - 1)
    i = (pair * MULTIPLIER) >> shift
    while True:
        q = table[i]
        if q == pair:
            return i, pair, True
        if q == P(0):
            return i, pair, False
        i = (i + P(1)) & mask


@jit
def _put(table, shift, a, b):
    i, pair, found = _slot(table, shift, a, b)
    if not found:
        table[i] = pair
    return not found


@jit
def cluster(codes, begin, end, shift, step, parent, head, tail, seen, bits):
    """Kruskal with mutexes: edges in order, a positive one joins unless a mutex forbids, any other one forbids.

    `codes` are voxel << shift | channel << 1 | positive, in the order begin[q]:end[q]; `step` leads from a voxel to the other
    end of each channel's edge. The rest is overwritten: `parent` with the forest, `seen` with 1 at roots that have a refused
    positive edge. Each root has a linked list (`head`, `tail`) of voxels that its cluster must not join; each such pair of
    roots is in a hash table of at first 2**bits places, which keeps the pairs of former roots until it grows. A join adds fewer
    pairs than the table holds, which is at most half full, so it never runs full.
    """
    parent[:] = FREE
    seen[:] = 0
    channels = codes.dtype.type((U(1) << U(shift - 1)) - 1)
    table = np.zeros(1 << bits, np.uint64)
    free = P(64 - bits)
    live = 0
    other = np.empty(1 << 16, np.uint32)
    after = np.empty(1 << 16, np.uint32)
    used = 0
    for q in range(begin.shape[0]):
        for k in range(begin[q], end[q]):
            e = codes[k]
            i = U(e >> shift)
            j = U(i + step[(e >> U(1)) & channels])
            ra = _find(parent, i)
            rb = _find(parent, j)
            if ra == rb:
                continue
            pa = parent[ra]
            pb = parent[rb]
            if e & U(1):
                if pa != FREE and pb != FREE and _slot(table, free, ra, rb)[2]:
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
                    m = head[rb]
                    while m != NIL:
                        live += _put(table, free, ra, _find(parent, other[m]))
                        m = after[m]
                    after[tail[ra]] = head[rb]
                    tail[ra] = tail[rb]
                    parent[ra] = pa - (FREE - pb)
            elif _put(table, free, ra, rb):
                live += 1
                if used + 2 > other.shape[0]:
                    if used >= 1 << 31:
                        raise MemoryError("a block has more than 2**30 mutexes; use a smaller block_size or larger strides")
                    other = np.concatenate((other, np.empty_like(other)))
                    after = np.concatenate((after, np.empty_like(after)))
                for s in range(2):
                    r = ra if s == 0 else rb
                    other[used] = rb if s == 0 else ra
                    after[used] = NIL
                    if parent[r] == FREE:
                        head[r] = used
                    else:
                        after[tail[r]] = used
                    tail[r] = used
                    parent[r] -= U(1)
                    used += 1
            if live * 2 > table.shape[0]:
                old = table
                table = np.zeros(2 * old.shape[0], np.uint64)
                free -= P(1)
                live = 0
                for t in range(old.shape[0]):
                    x, y = U(old[t] >> P(32)), U(old[t] & P(0xFFFFFFFF))
                    if x != y and parent[x] >= ROOT and parent[y] >= ROOT:
                        live += _put(table, free, x, y)


@jit
def number(parent, seen, label_of, labels):
    """Count the clusters and number them from 1 by their first voxel; voxels without a positive edge become 0.

    A voxel of a cluster of two or more has a positive edge; a lone one has if one was refused (`seen`). `label_of` is scratch.
    """
    for i in range(parent.shape[0]):
        r = U(i)
        q = parent[r]
        while q < ROOT:
            r = q
            q = parent[r]
        label_of[i] = 0
        if r != U(i):
            parent[i] = r
            seen[r] = 1
    n = 0
    for i in range(parent.shape[0]):
        r = parent[i] if parent[i] < ROOT else U(i)
        if label_of[r] == 0 and seen[r]:
            n += 1
            label_of[r] = n
        labels[i] = label_of[r]
    return n


def surviving(
    labels: np.ndarray,
    n: int,
    affinities: np.ndarray,
    *,
    min_size: int = 0,
    min_mean_affinity: float = 0.0,
    min_extent: Sequence[int] | None = None,
    table: np.ndarray | None = None,
) -> np.ndarray:
    """Tell which fragments pass the filters.

    Parameters
    ----------
    labels : ndarray of uint32, shape (*space)
        Fragments 1 to `n`; 0 is background.
    n : int
        Number of fragments.
    affinities : ndarray, shape (C, *space)
        Its first channels, as many as there are space axes, are averaged over the voxels of each fragment.
    min_size : int
        Least number of voxels.
    min_mean_affinity : float
        Least mean affinity; 0.0 asks for no mean.
    min_extent : sequence of int, optional
        Least length in voxels of the bounding box, for each space axis.
    table : ndarray of float64, optional
        Values of the codes in `affinities`.

    Returns
    -------
    ndarray of bool, shape (n + 1,)
        True where a label stays; False for 0.

    Raises
    ------
    BadVoxel
        If an affinity that enters a mean is NaN or infinite.
    """
    flat = labels.reshape(-1)
    size = np.bincount(flat, minlength=n + 1)
    keep = size >= min_size
    keep[0] = False
    if min_mean_affinity:
        total, channels = np.zeros(n + 1), affinities[: labels.ndim]
        for c, channel in enumerate(channels):
            value = (channel.astype(np.float64) if table is None else table[channel]).reshape(-1)
            bad = ~np.isfinite(value) & (flat > 0)
            if bad.any():
                voxel = tuple(int(i) for i in np.unravel_index(bad.argmax(), labels.shape))
                raise BadVoxel(
                    f"the affinity of channel {c} is {value[bad.argmax()]} inside a fragment, so its mean cannot be compared with "
                    f"min_mean_affinity={min_mean_affinity}; fill such voxels or mask them",
                    (c, *voxel),
                )
            total += np.bincount(flat, weights=value, minlength=n + 1)
        keep &= total >= min_mean_affinity * len(channels) * size
    if min_extent is not None:
        boxes = ndimage.find_objects(labels, max_label=n)
        extent = np.array([[s.stop - s.start for s in box] for box in boxes], np.int64).reshape(n, labels.ndim)
        keep[1:] &= (extent >= np.asarray(min_extent)).all(axis=1)
    return keep


@jit
def _root(parent, i):
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@jit
def _join(parent, a, b):
    a = _root(parent, a)
    b = _root(parent, b)
    if b < a:
        a, b = b, a
    parent[b] = a
    return a


@jit
def crop_components(labels, n, corner, parent, out):
    """Split every label into connected components inside a crop and number them from 1 by their first voxel.

    Two voxels are neighbours if no coordinate differs by more than 1 (26 neighbours, 8 in a single plane). Components over
    shared faces come first; only labels that these leave in several pieces look at diagonal neighbours, and of those all
    voxels but the ones in the largest piece (three times faster than 26 neighbours at once).

    Parameters
    ----------
    labels : ndarray of uint32, shape (D, H, W)
        Labels 0 to `n`; 0 is background and stays 0.
    n : int
    corner : ndarray of int64, shape (3,)
        First voxel of the crop.
    parent : ndarray of uint32, shape (d * h * w,)
        Scratch.
    out : ndarray of uint32, shape (d, h, w)
        Receives the numbers; its shape is the crop's.

    Returns
    -------
    int
        Number of components.
    """
    d, h, w = out.shape
    z0, y0, x0 = corner
    plane = U(h * w)
    for z in range(d):
        for y in range(h):
            row = labels[z0 + z, y0 + y, x0 : x0 + w]
            above = labels[z0 + z, y0 + max(y, 1) - 1, x0 : x0 + w]
            behind = labels[z0 + max(z, 1) - 1, y0 + y, x0 : x0 + w]
            base = U((z * h + y) * w)
            for x in range(w):
                label = row[P(x)]
                i = U(base + U(x))
                m = i
                if label != 0:
                    if x > 0 and row[P(x - 1)] == label:
                        m = parent[i - U(1)]
                    if y > 0 and above[P(x)] == label:
                        q = parent[i - U(w)]
                        if m == i:
                            m = q
                        elif q != m:
                            m = _join(parent, m, q)
                    if z > 0 and behind[P(x)] == label:
                        q = parent[i - plane]
                        if m == i:
                            m = q
                        elif q != m:
                            m = _join(parent, m, q)
                parent[i] = m
    flat = out.reshape(-1)
    pieces = np.zeros(n + 1, np.uint32)
    largest = np.zeros(n + 1, np.uint32)
    split = False
    for z in range(d):
        for y in range(h):
            row = labels[z0 + z, y0 + y, x0 : x0 + w]
            base = U((z * h + y) * w)
            for x in range(w):
                i = U(base + U(x))
                q = parent[parent[i]]
                parent[i] = q
                if q == i and row[P(x)] != 0:
                    pieces[row[P(x)]] += U(1)
                    largest[row[P(x)]] = i
                    split |= pieces[row[P(x)]] > 1
    if split:
        flat[:] = 0
        for k in range(flat.shape[0]):
            flat[parent[k]] += U(1)
        for z in range(d):
            for y in range(h):
                for x in range(w):
                    label = labels[z0 + z, y0 + y, x0 + x]
                    i = U((z * h + y) * w + x)
                    if parent[i] == i and flat[i] > flat[largest[label]]:
                        largest[label] = i
        for z in range(d):
            for y in range(h):
                row = labels[z0 + z, y0 + y, x0 : x0 + w]
                base = U((z * h + y) * w)
                for x in range(w):
                    label = row[P(x)]
                    i = U(base + U(x))
                    if pieces[label] < 2 or parent[i] == largest[label]:
                        continue
                    for Z in range(max(z - 1, 0), min(z + 2, d)):
                        for Y in range(max(y - 1, 0), min(y + 2, h)):
                            for X in range(max(x - 1, 0), min(x + 2, w)):
                                if labels[z0 + Z, y0 + Y, x0 + X] == label:
                                    _join(parent, i, U((Z * h + Y) * w + X))
        for k in range(flat.shape[0]):
            parent[k] = parent[parent[k]]
    count = 0
    for z in range(d):
        for y in range(h):
            row = labels[z0 + z, y0 + y, x0 : x0 + w]
            base = U((z * h + y) * w)
            for x in range(w):
                i = U(base + U(x))
                if row[P(x)] == 0:
                    flat[i] = 0
                elif parent[i] == i:
                    count += 1
                    flat[i] = count
                else:
                    flat[i] = flat[parent[i]]
    return count
