"""Arrays over the voxels of another one: checked, and brought to its voxel coordinates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from volara_expr.expr.node import ArrayNode, ArraySpec
from volara_expr.ops.align import assemble, broadcast, lines, where_is
from volara_expr.ops.shape import Described

__all__ = ["moved", "on_voxels_of", "part_of"]


def part_of(spec: ArraySpec, axes: Sequence[int]) -> ArraySpec:
    """Return the spec of an array over some of its axes, without a neighborhood."""
    every = lines(spec)
    return assemble([every[i] for i in axes], spec.dtype, spec.space.placed)


def on_voxels_of(target: ArraySpec, what: str, node: ArrayNode, extra: int | None = None) -> ArrayNode:
    """Return an array in the voxel coordinates of `target`, which it must cover exactly.

    Parameters
    ----------
    target : ArraySpec
    what : str
        Names the array in messages.
    node : ArrayNode
    extra : int, optional
        An axis of the array that the target does not have: that of the offsets.

    Raises
    ------
    ValueError
        If shapes, voxel sizes or positions differ. An array without a position takes that of the target.
    """
    spec = node.spec
    axes = [i for i in range(spec.ndim) if i != extra]
    part = part_of(spec, axes)
    if part.shape != target.shape:
        raise ValueError(
            f"{what}: {where_is(part)}, but it should cover {where_is(target)}; crop both to the same voxels with ve.align(a, b)"
        )
    broadcast([target, part])
    by = [0] * spec.ndim
    for i, a, b in zip(axes, target.box.lo, part.box.lo, strict=True):
        by[i] = a - b
    return moved(node, by)


def moved(node: ArrayNode, by: Sequence[int]) -> ArrayNode:
    """Return the same array at the same place, with `by` added to its voxel coordinates."""
    if not any(by):
        return node
    spec, space = node.spec, node.spec.space
    origin = tuple(o - n * v for o, n, v in zip(space.origin, by, space.voxel_size, strict=True))
    frame = None if spec.frame is None else spec.frame.shift(by)
    space = dataclasses.replace(space, origin=origin)
    return Described(node, spec.replace(box=spec.box.shift(by), frame=frame, space=space))
