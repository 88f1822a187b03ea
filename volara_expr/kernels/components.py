"""Connected components of images, and the labels that touch across the planes between cells."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volara_expr.kernels.edges import base_boxes
from volara_expr.kernels.jit import helper, kernel
from volara_expr.kernels.relabel import frozen

__all__ = ["first_voxels", "label", "touching_pairs"]


def label(image: NDArray[Any], connectivity: int = 1, *, equal: bool = False) -> tuple[NDArray[np.uint32], int]:
    """Label connected components as `scipy.ndimage.label` does, from runs along the last axis instead of voxels.

    Parameters
    ----------
    image : ndarray of bool or integers, one to three axes
        Foreground where not 0.
    connectivity : int
        1 to `image.ndim`: the number of axes on which neighbours may differ, by one voxel each, as in
        `scipy.ndimage.generate_binary_structure`.
    equal : bool
        Connect neighbours of equal value only.

    Returns
    -------
    labels : ndarray of uint32, shaped as `image`
        1 to n in raster order of each component's first voxel; 0 is background.
    n : int

    Raises
    ------
    ValueError
        If connectivity or the number of axes is out of range.
    TypeError
        If `image` is neither bool nor integer.

    Examples
    --------
    >>> label(np.array([[1, 0, 1], [0, 1, 0]]), connectivity=1)
    (array([[1, 0, 2],
           [0, 3, 0]], dtype=uint32), 3)
    """
    if image.dtype.kind not in "biu":
        raise TypeError(f"image has dtype {image.dtype}; threshold it first, components are of bool or integer images")
    if not 1 <= image.ndim <= 3:
        raise ValueError(f"image has {image.ndim} axes; one to three are supported, map over the others")
    _check_connectivity(connectivity, image.ndim)
    if not equal or image.dtype.itemsize == 1:
        values = (image if equal else image != 0).view(np.uint8)
    else:
        values = image.astype(np.uint64, copy=False)
    labels = np.zeros(image.shape, np.uint32)
    lead = (1,) * (3 - image.ndim)
    n = _label(frozen(values).reshape(lead + image.shape), connectivity, labels.reshape(lead + image.shape))
    return labels, int(n)


def first_voxels(labels: NDArray[np.uint32], n: int) -> NDArray[np.int64]:
    """Where each label first occurs.

    Parameters
    ----------
    labels : ndarray of uint32
        Labels 0 to n.
    n : int

    Returns
    -------
    ndarray of int64, shape (n,)
        Index into `labels.ravel()` of the first voxel of labels 1 to n; -1 for one that does not occur.
    """
    first: NDArray[np.int64] = _first_voxels(frozen(labels).reshape(-1), n)
    return first


def touching_pairs(
    labels: NDArray[Any],
    labels_lo: Sequence[int],
    cell_lo: Sequence[int],
    cell_hi: Sequence[int],
    connectivity: int,
    values: NDArray[Any] | None = None,
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Labels of a cell that touch labels outside it.

    A neighbour is met in one direction only, the one whose first non-zero component is positive; so over all cells of a grid
    every voxel pair that straddles two cells is met once. It takes labels one voxel beyond the cell: on both sides of every
    axis, but on the first axis on the high side only. A part of that box gives the pairs within the part.

    Parameters
    ----------
    labels : ndarray of unsigned integers
        Labels that are unique over all cells; 0 is background.
    labels_lo : sequence of int
        Absolute coordinate of the first voxel of `labels`.
    cell_lo, cell_hi : sequence of int
        The cell, [cell_lo, cell_hi), absolute.
    connectivity : int
        1 to `labels.ndim`, as in `label`.
    values : ndarray, shaped as `labels`, optional
        If given, only neighbours of equal value touch.

    Returns
    -------
    u, v : ndarray of uint64, shape (m,)
        Unique pairs, u < v, sorted by (u, v).

    Raises
    ------
    ValueError
        If connectivity is out of range or shapes differ.
    """
    nd = labels.ndim
    _check_connectivity(connectivity, nd)
    lo = np.asarray(labels_lo, np.int64)
    if lo.shape != (nd,) or (values is not None and values.shape != labels.shape):
        raise ValueError(
            f"labels {labels.shape}, labels_lo of length {lo.size}, values {None if values is None else values.shape} do not match"
        )
    steps = np.array([d for d in itertools.product((-1, 0, 1), repeat=nd) if d > (0,) * nd and np.abs(d).sum() <= connectivity])
    pairs = [np.empty((2, 0), np.uint64)]
    for axis, side in itertools.product(range(nd), (1, -1)):
        begin, end = base_boxes(cell_lo, cell_hi, steps, "face", axis, side)
        begin = np.maximum(begin, np.maximum(lo, lo - steps)) - lo
        end = np.minimum(end, np.minimum(lo, lo - steps) + labels.shape) - lo
        for b, e, step in zip(begin, end, steps, strict=True):
            if (b < e).all():
                here, there = (tuple(map(slice, b + s, e + s)) for s in (0 * step, step))
                touch = (labels[here] != labels[there]) & (labels[here] != 0) & (labels[there] != 0)
                if values is not None:
                    touch &= values[here] == values[there]
                pairs.append(_unique(np.sort([labels[here][touch], labels[there][touch]], axis=0).astype(np.uint64)))
    u, v = _unique(np.concatenate(pairs, axis=1))
    return u, v


def _check_connectivity(connectivity: int, nd: int) -> None:
    if not 1 <= connectivity <= nd:
        raise ValueError(f"connectivity is {connectivity}; it runs from 1 to {nd}, the number of axes")


def _unique(pairs: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Sorted unique columns; neighbouring duplicates go first, as most are of that kind."""

    def distinct(pairs: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return pairs[:, np.append(True, (pairs[:, 1:] != pairs[:, :-1]).any(axis=0))[: pairs.shape[1]]]

    pairs = distinct(pairs)
    return distinct(pairs[:, np.lexsort(pairs[::-1])])


@helper
def _root(parent, i):
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@kernel
def _label(image, connectivity, out):
    """Join runs of equal values that touch, then number them; returns how many components there are."""
    d, h, w = image.shape
    first = np.zeros(d * h + 1, np.int64)  # of each row, its first run
    for row in range(d * h):
        line = image[row // h, row % h]
        n = first[row]
        for x in range(w):
            if line[x] != 0 and (x == 0 or line[x] != line[x - 1]):
                n += 1
        first[row + 1] = n
    parent = np.arange(first[-1]).astype(np.uint32)
    begin = np.empty(first[-1], np.uint32)
    end = np.empty(first[-1], np.uint32)
    for row in range(d * h):
        z = row // h
        y = row % h
        line = image[z, y]
        n = first[row] - 1
        for x in range(w):
            if line[x] != 0:
                if x == 0 or line[x] != line[x - 1]:
                    n += 1
                    begin[n] = x
                end[n] = x + 1
        for dz, dy in ((-1, -1), (-1, 0), (-1, 1), (0, -1)):
            differ = abs(dz) + abs(dy)
            if differ > connectivity or z + dz < 0 or not 0 <= y + dy < h:
                continue
            reach = 1 if differ < connectivity else 0
            other = image[z + dz, y + dy]
            j = first[row + dz * h + dy]
            last = first[row + dz * h + dy + 1]
            for i in range(first[row], first[row + 1]):
                while j < last and end[j] + reach <= begin[i]:
                    j += 1
                k = j
                while k < last and begin[k] < end[i] + reach:
                    if other[begin[k]] == line[begin[i]]:
                        a = _root(parent, np.uint32(i))
                        b = _root(parent, np.uint32(k))
                        parent[max(a, b)] = min(a, b)
                    k += 1
    n = 0
    for i in range(parent.shape[0]):  # a parent comes before its children, so it has its number
        if parent[i] == i:
            n += 1
            parent[i] = n
        else:
            parent[i] = parent[parent[i]]
    for row in range(d * h):
        line = out[row // h, row % h]
        for i in range(first[row], first[row + 1]):
            line[begin[i] : end[i]] = parent[i]
    return n


@kernel
def _first_voxels(labels, n):
    first = np.full(n, -1, np.int64)
    for i in range(labels.shape[0]):
        if labels[i] != 0 and first[labels[i] - 1] < 0:
            first[labels[i] - 1] = i
    return first
