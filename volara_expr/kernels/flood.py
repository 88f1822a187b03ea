"""Watershed from seeds by flooding in the order of values."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volara_expr.kernels.jit import helper, kernel
from volara_expr.kernels.relabel import frozen

__all__ = ["flood"]


def flood(image: NDArray[Any], seeds: NDArray[Any], mask: NDArray[Any] | None = None, connectivity: int = 1) -> NDArray[Any]:
    """Grow seeds over an image, lowest values first (Beucher and Meyer 1993), as `skimage.segmentation.watershed`.

    Voxels are taken by the level of the flood that reaches them, at least their own value; equal ones in the order in which they
    were reached. A voxel gets the label of the first that reaches it. Seeds enter at their own value.

    Parameters
    ----------
    image : ndarray of bool, integers or floats, one to three axes
        Compared as float64; NaNs are never flooded.
    seeds : ndarray of integers, shaped as `image`
        0 is no seed.
    mask : ndarray, shaped as `image`, optional
        Where 0, nothing is flooded.
    connectivity : int
        Neighbours differ by one along at most this many axes.

    Returns
    -------
    ndarray
        Of the type of `seeds`; 0 where no flood arrives.

    Examples
    --------
    >>> flood(np.array([0, 1, 5, 1, 0]), np.array([3, 0, 0, 0, 8]))
    array([3, 3, 3, 8, 8])
    """
    nd = image.ndim
    values = image.astype(np.float64)
    free = ~np.isnan(values) if mask is None else (mask != 0) & ~np.isnan(values)
    steps = [s for s in itertools.product((-1, 0, 1), repeat=nd) if 0 < sum(map(abs, s)) <= connectivity]
    steps.sort(key=lambda s: sum(map(abs, s)))
    # A rim that is never flooded spares the bounds checks.
    padded = np.pad(free, 1)
    strides = np.array(padded.strides) // padded.itemsize
    offsets = np.array([int(np.dot(s, strides)) for s in steps], np.int64)
    labels = np.pad(np.where(free, seeds, 0), 1)
    _flood(frozen(np.pad(values, 1)).reshape(-1), frozen(padded).reshape(-1), offsets, labels.reshape(-1))
    return labels[(slice(1, -1),) * nd]


@helper
def _push(value, age, index, n, values, ages, indices):
    """Put an entry into the heap of `n` entries."""
    i = n
    while i > 0:
        up = (i - 1) // 2
        if values[up] < value or (values[up] == value and ages[up] <= age):
            break
        values[i] = values[up]
        ages[i] = ages[up]
        indices[i] = indices[up]
        i = up
    values[i] = value
    ages[i] = age
    indices[i] = index


@helper
def _drop(n, values, ages, indices):
    """Take the first entry out of a heap of `n` entries."""
    value = values[n - 1]
    age = ages[n - 1]
    index = indices[n - 1]
    i = 0
    while True:
        down = 2 * i + 1
        if down >= n - 1:
            break
        right = down + 1
        if right < n - 1 and (values[right] < values[down] or (values[right] == values[down] and ages[right] < ages[down])):
            down = right
        if value < values[down] or (value == values[down] and age <= ages[down]):
            break
        values[i] = values[down]
        ages[i] = ages[down]
        indices[i] = indices[down]
        i = down
    values[i] = value
    ages[i] = age
    indices[i] = index


@kernel
def _flood(image, free, offsets, labels):
    most = 0
    for i in range(free.shape[0]):
        most += free[i]
    values = np.empty(most, np.float64)
    ages = np.empty(most, np.int64)
    indices = np.empty(most, np.int64)
    n = 0
    for i in range(labels.shape[0]):
        if labels[i] != 0:  # seeds of one value come in the order of the heap, as in scikit-image
            _push(image[i], 0, i, n, values, ages, indices)
            n += 1
    age = 0
    while n > 0:
        at = indices[0]
        level = values[0]
        _drop(n, values, ages, indices)
        n -= 1
        for k in range(offsets.shape[0]):
            to = at + offsets[k]
            if free[to] and labels[to] == 0:
                labels[to] = labels[at]
                age += 1
                _push(max(image[to], level), age, to, n, values, ages, indices)  # a flood does not sink
                n += 1
