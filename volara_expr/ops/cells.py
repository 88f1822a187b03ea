"""Semantic grids: the blocks that belong to an operation's meaning, and the global ids of what is found in them.

The grid is anchored at absolute voxel 0 and its blocks are numbered within the frame of the source, so a block and its ids are
the same in any crop and for any execution grid. Axes that are not of space are grid axes of block 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from volara_expr.expr.node import ArraySpec, Patch
from volara_expr.geometry import BlockGrid, Box, Space
from volara_expr.geometry.space import Length
from volara_expr.kernels import BadVoxel

__all__ = [
    "CELL",
    "BlockIds",
    "IdRange",
    "absolute_voxel",
    "cell_shape",
    "grid_of",
    "label_ids",
    "plain",
    "space_index",
    "spatial_part",
    "whole_voxels",
]

CELL = 64
"""Edge of the cells of arrays that have no blocks of their own, in voxels."""
IdRange = Literal["float53", "uint64"]
ID_BITS: dict[IdRange, int] = {"float53": 53, "uint64": 64}


def whole_voxels(space: Space, lengths: Length | Sequence[Length], what: str, least: int) -> tuple[int, ...]:
    """Return one length in voxels per space axis.

    Raises
    ------
    ValueError
        If a length is no whole number of voxels, or below `least`.
    """
    given = space.spatial_voxels(lengths, what)
    for n, i in zip(given, space.spatial, strict=True):
        if n.denominator != 1 or n < least:
            raise ValueError(
                f"{what} is {float(n):g} voxels along {space.axes[i].name!r}; give a whole number of voxels, at least {least}"
            )
    return tuple(map(int, given))


def cell_shape(space: Space, block_size: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a block over all axes: `block_size` along the space axes, 1 along the others."""
    shape = [1] * space.ndim
    for i, n in zip(space.spatial, block_size, strict=True):
        shape[i] = n
    return tuple(shape)


def grid_of(domain: Box, block: Sequence[int]) -> BlockGrid:
    """Return the grid of blocks over a domain, anchored at absolute voxel 0."""
    return BlockGrid(domain, tuple(block), (0,) * domain.ndim)


@dataclass(frozen=True)
class BlockIds:
    """Global ids: `(block index + 1) << bits | local id`, the index counted in raster order over the blocks of the frame.

    Attributes
    ----------
    frame : Box
        Extent of the source.
    block : tuple of int
        Shape of a block, over the axes of the frame.
    """

    frame: Box
    block: tuple[int, ...]

    @classmethod
    def of(cls, spec: ArraySpec, block: tuple[int, ...]) -> BlockIds:
        """Make the ids of the blocks of an array; crops of one source share them."""
        return cls((spec.frame or spec.box).hull(spec.box), block)

    @cached_property
    def grid(self) -> BlockGrid:
        """The blocks of the frame."""
        return grid_of(self.frame, self.block)

    @property
    def bits(self) -> int:
        """Bits of a local id: enough for one per voxel of a block."""
        return prod(self.block).bit_length()

    def first(self, lo: Sequence[int]) -> int:
        """Return what is added to the local ids of the block that holds voxel `lo`."""
        linear = 0
        for a, b, first, n in zip(lo, self.block, self.grid.first, self.grid.shape, strict=True):
            linear = linear * n + a // b - first
        return (linear + 1) << self.bits

    def local(self, ids: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint32]:
        """Return the local ids of one block's global ids."""
        return (ids & np.uint64((1 << self.bits) - 1)).astype(np.uint32)

    def globalise(self, labels: npt.NDArray[np.uint32], lo: Sequence[int]) -> npt.NDArray[np.uint64]:
        """Return the global ids of the local ids of the block that holds voxel `lo`; 0 stays 0."""
        return np.where(labels, labels + np.uint64(self.first(lo)), np.uint64(0))

    def check(self, ids: IdRange) -> None:
        """Raise ValueError if the ids of all blocks do not fit the range."""
        if ids not in ID_BITS:
            raise ValueError(f"ids is {ids!r}; it must be 'float53' (exact in viewers) or 'uint64'")
        fitting, n = (1 << max(0, ID_BITS[ids] - self.bits)) - 1, self.grid.n_blocks
        if n > fitting:
            remedy = "; with ids='uint64', 2,048 times as many" if ids == "float53" else ""
            raise ValueError(
                f"{n:,} blocks of {' x '.join(map(str, self.block))} voxels need more ids than {ID_BITS[ids]} bits hold, "
                f"which take at most {fitting:,} blocks of this size{remedy}; or change block_size"
            )


def space_index(space: Space) -> tuple[Any, ...]:
    """Return the index that drops the axes that are not of space, which have one voxel in any block."""
    return tuple(slice(None) if i in space.spatial else 0 for i in range(space.ndim))


def spatial_part(box: Box, space: Space) -> Box:
    """Return the box over the space axes alone."""
    at = space.spatial
    return Box(tuple(box.lo[i] for i in at), tuple(box.hi[i] for i in at))


def plain(patch: Patch) -> npt.NDArray[Any]:
    """Return the array of a patch, looked up where it is coded."""
    if isinstance(patch.data, np.ndarray):
        return patch.data
    from volara_expr.kernels.fused import plain as look_up

    return look_up(patch.data)


def label_ids(labels: npt.NDArray[Any], lo: Sequence[int]) -> npt.NDArray[Any]:
    """Return labels, whose first voxel is `lo`, as the unsigned integers that kernels take.

    Raises
    ------
    BadVoxel
        If a label is negative; names it in absolute coordinates.
    """
    if labels.dtype.kind == "i" and labels.size and labels.min() < 0:
        at = np.unravel_index(int(labels.argmin()), labels.shape)
        with absolute_voxel("the labels", lo):
            raise BadVoxel(f"label {labels.min()} is negative; labels start at 0, which is background", tuple(map(int, at)))
    return labels if labels.dtype in (np.uint32, np.uint64) else labels.astype(np.uint64)


@contextmanager
def absolute_voxel(of: str, lo: Sequence[int], channels: Sequence[int] = ()) -> Iterator[None]:
    """Let a kernel's complaint about a voxel name it in absolute coordinates of the array `of`, whose piece starts at `lo`.

    With `channels`, the kernel counts them on its first axis.
    """
    try:
        yield
    except BadVoxel as error:
        channel = [channels[error.voxel[0]]] if channels else []
        voxel = (*channel, *(a + b for a, b in zip(error.voxel[len(channel) :], lo, strict=True)))
        raise BadVoxel(f"{error} (voxel {voxel} of {of})", voxel) from None
