"""From clusters to numbered fragments: filters, and the components that a crop leaves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from volara_expr.kernels import BadVoxel
from volara_expr.kernels.clusters import ROOT
from volara_expr.kernels.jit import helper, kernel

__all__ = ["crop_components", "number", "surviving"]

U, P = np.uint32, np.uint64


@kernel
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
        from scipy import ndimage  # 0.2 s that other watersheds are spared

        boxes = ndimage.find_objects(labels, max_label=n)
        extent = np.array([[s.stop - s.start for s in box] for box in boxes], np.int64).reshape(n, labels.ndim)
        keep[1:] &= (extent >= np.asarray(min_extent)).all(axis=1)
    return keep


@helper
def _top(parent, i):
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@kernel
def crop_components(labels, corner, rows, start, parent, out):
    """Split every label into connected components inside a crop and number them from 1 by their first voxel.

    Two voxels are neighbours if no coordinate differs by more than 1 (26 neighbours, 8 in a single plane). Works on runs of one
    label along x, which are many times fewer than voxels: every run looks at those that it touches in four rows before it.

    Parameters
    ----------
    labels : ndarray of uint32, shape (D, H, W)
        0 is background and stays 0.
    corner : ndarray of int64, shape (3,)
        First voxel of the crop.
    rows : ndarray of int64, shape (d * h + 1,)
        Scratch: the first run of each row.
    start : ndarray of uint32, shape (d * h * w + 1,)
        Scratch: the first x of each run.
    parent : ndarray of uint32, shape (d * h * w,)
        Scratch: the forest of runs.
    out : ndarray of uint32, shape (d, h, w)
        Receives the numbers; its shape is the crop's.

    Returns
    -------
    int
        Number of components.
    """
    d, h, w = out.shape
    z0, y0, x0 = corner
    rows[0] = n = 0
    for z in range(d):
        for y in range(h):
            row = labels[z0 + z, y0 + y, x0 : x0 + w]
            first = n
            for x in range(w):
                if x == 0 or row[P(x)] != row[P(x - 1)]:
                    start[n] = x
                    parent[n] = n
                    n += 1
            start[n] = w
            rows[z * h + y + 1] = n
            for back in range(4):
                dz, dy = (0, -1) if back == 0 else (-1, back - 2)
                if z + dz < 0 or not 0 <= y + dy < h:
                    continue
                other = labels[z0 + z + dz, y0 + y + dy, x0 : x0 + w]
                r = (z + dz) * h + y + dy
                t, end = rows[r], rows[r + 1]
                for k in range(first, n):
                    low, high = start[k], start[k + 1]
                    label = row[low]
                    while t + 1 < end and start[t + 1] < low:
                        t += 1
                    if label == 0:
                        continue
                    for s in range(t, end):
                        if start[s] > high:
                            break
                        if other[start[s]] == label:
                            a, b = _top(parent, U(k)), _top(parent, U(s))
                            parent[max(a, b)] = min(a, b)
    count = 0
    for z in range(d):
        for y in range(h):
            row = labels[z0 + z, y0 + y, x0 : x0 + w]
            begin, end = rows[z * h + y], rows[z * h + y + 1]
            for k in range(begin, end):
                low, high = start[k], start[k + 1] if k + 1 < end else U(w)
                if row[low] == 0:
                    new = U(0)
                elif parent[k] == k:
                    count += 1
                    new = U(count)
                else:
                    new = parent[parent[k]]  # a run before this one, which has its number already
                parent[k] = new
                out[z, y, low:high] = new
    return count
