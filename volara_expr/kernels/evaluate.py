"""How far a segmentation is from the truth: contingency table, variation of information, adapted Rand error.

Every label of the segmentation counts as an object, 0 included. So does every label of the truth, unless it is in `ignore`:
voxels with such a label are left out altogether. `ignore=(0,)` scores only what the annotators labelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["adapted_rand_error", "contingency", "variation_of_information"]


def contingency(
    seg: NDArray[Any], truth: NDArray[Any], ignore: Sequence[int] = (), *, count: NDArray[np.integer[Any]] | None = None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
    """Count how often each pair of labels meets.

    Parameters
    ----------
    seg, truth : ndarray of integers, any shape
        Labels, voxel by voxel.
    ignore : sequence of int
        Labels of the truth whose voxels are left out.
    count : ndarray of integers, shaped as `seg`, optional
        How many voxels each entry stands for, 1 by default. So tables of blocks, put one after the other, make the table of
        the volume.

    Returns
    -------
    seg_id, truth_id : ndarray, shape (n,)
        The pairs that occur, sorted by (seg_id, truth_id).
    count : ndarray of int64, shape (n,)
        Number of voxels of each.

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> contingency(np.array([1, 1, 2, 2]), np.array([5, 5, 5, 6]))
    (array([1, 2, 2]), array([5, 5, 6]), array([2, 1, 1]))
    """
    if seg.shape != truth.shape or (count is not None and count.shape != seg.shape):
        shapes = [None if a is None else a.shape for a in (seg, truth, count)]
        raise ValueError(f"seg, truth and count have shapes {shapes}; crop them to the same box")
    n = np.broadcast_to(np.int64(1), seg.size) if count is None else count.ravel().astype(np.int64, copy=False)
    s, t, n = _merged(seg.ravel(), truth.ravel(), n)
    keep = ~np.isin(t, ignore)
    s, t, n = s[keep], t[keep], n[keep]
    order = np.lexsort((t, s))
    return _merged(s[order], t[order], n[order])


def variation_of_information(
    seg: NDArray[Any], truth: NDArray[Any], ignore: Sequence[int] = (), *, count: NDArray[np.integer[Any]] | None = None
) -> tuple[float, float]:
    """Variation of information (Meilă 2003), split in two.

    Parameters
    ----------
    seg, truth, ignore, count
        As in `contingency`, whose results fit too.

    Returns
    -------
    split, merge : float
        Bits: H(seg | truth), 0 where no object is split, and H(truth | seg), 0 where no two are merged.

    Raises
    ------
    ValueError
        If the shapes differ, or no voxel counts.

    Examples
    --------
    >>> variation_of_information(np.array([1, 1, 2, 2]), np.array([5, 5, 5, 5]))
    (1.0, 0.0)
    """
    n, of_seg, of_truth = _sizes(seg, truth, ignore, count)
    split, merge = (float((n * np.log2(whole / n)).sum() / n.sum()) for whole in (of_truth, of_seg))
    return split, merge


def adapted_rand_error(
    seg: NDArray[Any], truth: NDArray[Any], ignore: Sequence[int] = (), *, count: NDArray[np.integer[Any]] | None = None
) -> float:
    """Adapted Rand error as in the SNEMI3D challenge (Arganda-Carreras et al. 2015).

    1 less the F score of precision and recall of pairs of voxels: of those that share a segment, of those that share an object.
    As in scikit-image, a voxel is no pair with itself.

    Parameters
    ----------
    seg, truth, ignore, count
        As in `contingency`, whose results fit too. The challenge ignored label 0 of the truth.

    Returns
    -------
    float
        0 (same partition) to 1.

    Raises
    ------
    ValueError
        If the shapes differ, or no voxel counts.

    Examples
    --------
    >>> adapted_rand_error(np.array([1, 1, 2, 2]), np.array([5, 5, 6, 6]))
    0.0
    """
    n, of_seg, of_truth = _sizes(seg, truth, ignore, count)
    both = (n * (n - 1)).sum()
    pairs = (n * (of_seg - 1)).sum() + (n * (of_truth - 1)).sum()
    return float(1 - 2 * both / pairs) if pairs else 0.0


def _merged(s: NDArray[Any], t: NDArray[Any], n: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
    """Each run of equal pairs as one."""
    first = np.flatnonzero(np.append(True, (s[1:] != s[:-1]) | (t[1:] != t[:-1]))[: s.size])
    return s[first], t[first], np.add.reduceat(n, first) if first.size else np.empty(0, np.int64)


def _sizes(
    seg: NDArray[Any], truth: NDArray[Any], ignore: Sequence[int], count: NDArray[np.integer[Any]] | None
) -> tuple[NDArray[Any], ...]:
    """Voxels of each pair, of its segment and of its object."""
    s, t, n = contingency(seg, truth, ignore, count=count)
    if not n.sum():
        raise ValueError(f"no voxel counts: {seg.size} voxels, of which all have a label in ignore={tuple(ignore)}")

    def whole(ids: NDArray[Any]) -> NDArray[Any]:
        _, inverse = np.unique(ids, return_inverse=True)
        return np.bincount(inverse, weights=n)[inverse]

    return n.astype(np.float64), whole(s), whole(t)
