"""Extents and extremes of labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volara_expr.kernels.edges import node_sums
from volara_expr.kernels.jit import kernel
from volara_expr.kernels.relabel import frozen

__all__ = ["label_rows"]


def label_rows(
    labels: NDArray[Any], labels_lo: Sequence[int], values: Sequence[NDArray[Any]] = ()
) -> tuple[NDArray[np.uint64], NDArray[np.int64], NDArray[np.int64], list[tuple[NDArray[Any], NDArray[Any]]]]:
    """Find sums, bounding boxes and extremes of each label.

    Parameters
    ----------
    labels, labels_lo, values
        As `kernels.edges.node_sums` takes them.

    Returns
    -------
    ids, sums
        As `node_sums` gives them.
    boxes : ndarray of int64, shape (n, nd, 2)
        First absolute voxel along each axis, and the one behind the last.
    extremes : list of (smallest, largest)
        For each array of values, of its type.

    Examples
    --------
    >>> ids, sums, boxes, [(low, high)] = label_rows(np.array([3, 3, 0], np.uint32), (5,), [np.array([1, 4, 9])])
    >>> ids, sums, boxes, low, high
    (array([3], dtype=uint64), array([[ 2, 11,  5]]), array([[[5, 7]]]), array([1]), array([4]))
    """
    ids, sums = node_sums(labels, labels_lo, values)
    nd = labels.ndim
    flat = frozen(labels).reshape(-1)
    rows = np.empty(flat.shape, np.int32)
    boxes = np.empty((ids.size, 3, 2), np.int64)
    boxes[..., 0], boxes[..., 1] = np.iinfo(np.int64).max, np.iinfo(np.int64).min
    _rows(flat.reshape((1,) * (3 - nd) + labels.shape), ids.astype(flat.dtype), rows, boxes)
    extremes = []
    for array in values:
        plain = array.view(np.uint8) if array.dtype == np.bool_ else array
        plain = plain.astype(np.float32) if plain.dtype == np.float16 else plain
        numbers = frozen(plain).reshape(-1)
        low, high = np.empty(ids.size, plain.dtype), np.empty(ids.size, plain.dtype)
        _extremes(rows, numbers, low, high, np.zeros(ids.size, np.bool_))
        extremes.append((low, high))
    return ids, sums, boxes[:, 3 - nd :] + np.asarray(labels_lo, np.int64)[:, None], extremes


@kernel
def _rows(labels, ids, rows, boxes):
    """Find the row of each voxel, and stretch the box of its label over it."""
    last = labels.dtype.type(0)
    row = -1
    i = 0
    for z in range(labels.shape[0]):
        for y in range(labels.shape[1]):
            for x in range(labels.shape[2]):
                v = labels[z, y, x]
                if v != last:
                    last = v
                    row = np.searchsorted(ids, v) if v != 0 else -1
                rows[i] = row
                i += 1
                if row >= 0:
                    for axis, at in enumerate((z, y, x)):
                        boxes[row, axis, 0] = min(boxes[row, axis, 0], at)
                        boxes[row, axis, 1] = max(boxes[row, axis, 1], at + 1)


@kernel
def _extremes(rows, values, low, high, seen):
    for i in range(rows.shape[0]):
        k = rows[i]
        if k < 0:
            continue
        v = values[i]
        if not seen[k]:
            seen[k] = True
            low[k] = v
            high[k] = v
        elif v < low[k]:
            low[k] = v
        elif v > high[k]:
            high[k] = v
