"""`array[key]`: from NumPy's indices to nodes."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from volara_expr.expr.node import ArrayNode
from volara_expr.geometry import Box
from volara_expr.ops.shape import ExpandDims, Item, Slice, Take

__all__ = ["crop", "flip", "index", "squeeze"]


def index(node: ArrayNode, key: Any) -> ArrayNode:
    """Return the node of `array[key]`: integers, slices, `...`, `None`, and one list or 1-D array of integers.

    Raises
    ------
    IndexError
        For indices out of range, too many indices, boolean masks, and more than one list.
    """
    keys = list(key) if isinstance(key, tuple) else [key]
    shape = node.spec.shape
    used = sum(k is not None and k is not Ellipsis for k in keys)
    if used > len(shape):
        raise IndexError(f"{used} indices for an array of {len(shape)} axes ({', '.join(node.spec.space.names)})")
    dots = [i for i, k in enumerate(keys) if k is Ellipsis]
    if len(dots) > 1:
        raise IndexError("an index takes at most one '...'")
    place = dots[0] if dots else len(keys)
    keys[place : place + 1] = [slice(None)] * (len(shape) - used)

    items: list[Item] = []
    new_axes: list[int] = []
    take: tuple[int, tuple[int, ...]] | None = None
    pointed: list[int] = []  # positions in `keys` of integers and the list
    kept = 0
    for position, k in enumerate(keys):
        if k is None:
            new_axes.append(kept + len(new_axes))
            continue
        n = shape[len(items)]
        if isinstance(k, slice):
            start, stop, step = k.indices(n)
            count = len(range(start, stop, step))
            items.append((start, count, step if count > 1 else 1))
            kept += 1
        elif isinstance(k, (list, np.ndarray)) and np.ndim(k) > 0:
            if take is not None:
                raise IndexError("an index takes one list of integers; index in two steps to pick along two axes")
            take = kept, _indices(k, n, len(items))
            pointed.append(position)
            items.append((0, n, 1))
            kept += 1
        else:
            items.append(_indices([k], n, len(items))[0])
            pointed.append(position)
    if take is not None and pointed[-1] - pointed[0] >= len(pointed):
        raise IndexError("an integer and a list that are not side by side would move the axis to the front; index in two steps")
    if items != [(0, n, 1) for n in shape]:
        node = Slice(node, tuple(items))
    if take is not None:
        node = Take(node, *take)
    for axis in new_axes:
        node = ExpandDims(node, axis)
    return node


def _indices(values: Any, n: int, axis: int) -> tuple[int, ...]:
    """Check integers along an axis of `n` entries and count negative ones from its end."""
    array = np.asarray(values)
    if array.dtype.kind == "b":
        raise IndexError("boolean masks make arrays of unknown shape; use ve.where(mask, a, 0), or a.mask(m)")
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise IndexError(f"{values!r} is no index; use integers, slices, '...', None, or one flat list of integers")
    out = []
    for i in map(operator.index, array):
        if not -n <= i < n:
            raise IndexError(f"index {i} is out of range for axis {axis} of {n} entries")
        out.append(i % n)
    return tuple(out)


def crop(node: ArrayNode, box: Box) -> ArrayNode:
    """Return the part of an array in `box`, in absolute voxels, clipped to the array."""
    own = node.spec.box
    return index(node, box.clip(own).slices(own.lo))


def flip(node: ArrayNode, axes: Sequence[int]) -> ArrayNode:
    """Return the array mirrored along the given axes."""
    return index(node, tuple(slice(None, None, -1 if i in axes else None) for i in range(node.spec.ndim)))


def squeeze(node: ArrayNode, axes: Sequence[int]) -> ArrayNode:
    """Return the array without the given axes, which must have one entry."""
    for i in axes:
        if node.spec.shape[i] != 1:
            raise ValueError(f"axis {i} has {node.spec.shape[i]} entries; only an axis of 1 can be squeezed")
    return index(node, tuple(0 if i in axes else slice(None) for i in range(node.spec.ndim)))
