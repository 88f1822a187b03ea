"""Block grids: arithmetic between a block's number, its index and its box. Nothing is ever enumerated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

import numpy as np
import numpy.typing as npt

from volara_expr.geometry.box import Box

__all__ = ["BlockGrid"]

TILE = 4
"""Blocks are numbered tile by tile, `TILE` along each axis, so that neighbours come close in time and share cached chunks."""


@dataclass(frozen=True)
class BlockGrid:
    """A regular grid of blocks that covers `domain`, with a block corner at `origin`.

    Blocks at the rim are clipped to the domain.

    Examples
    --------
    >>> grid = BlockGrid(Box((3,), (12,)), (4,), (0,))
    >>> [str(grid.box(i)) for i in range(grid.n_blocks)]
    ['[3:4]', '[4:8]', '[8:12]']
    """

    domain: Box
    block: tuple[int, ...]
    origin: tuple[int, ...]

    def __post_init__(self) -> None:
        if min(self.block, default=1) < 1:
            raise ValueError(f"a block needs at least one voxel along every axis, got {self.block}")

    @cached_property
    def first(self) -> tuple[int, ...]:
        """Index, counted from `origin`, of the first block along each axis."""
        return tuple((a - o) // b for a, o, b in zip(self.domain.lo, self.origin, self.block, strict=True))

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Blocks along each axis."""
        return tuple(
            max(0, -((o - h) // b) - f) for h, o, b, f in zip(self.domain.hi, self.origin, self.block, self.first, strict=True)
        )

    @cached_property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return 0 if self.domain.empty else prod(self.shape)

    def index(self, number: int) -> tuple[int, ...]:
        """Return the grid index (0-based within this grid) of block `number`, in tile order."""
        if not 0 <= number < self.n_blocks:
            raise IndexError(f"block {number} of a grid of {self.n_blocks}")
        corner: list[int] = []
        extent: list[int] = []
        rest, inner = number, prod(self.shape)
        for n in self.shape:
            inner //= n
            per_layer = inner * prod(extent)
            tile = min(rest // (per_layer * TILE), (n - 1) // TILE)
            rest -= tile * per_layer * TILE
            corner.append(tile * TILE)
            extent.append(min(TILE, n - tile * TILE))
        inside: list[int] = []
        for n in reversed(extent):
            rest, k = divmod(rest, n)
            inside.append(k)
        return tuple(c + k for c, k in zip(corner, reversed(inside), strict=True))

    def number(self, index: Sequence[int]) -> int:
        """Return the number, in tile order, of the block at grid index `index`; the inverse of `index`."""
        total, inner = 0, prod(self.shape)
        extent: list[int] = []
        for k, n in zip(index, self.shape, strict=True):
            inner //= n
            tile = k // TILE
            total += tile * TILE * inner * prod(extent)
            extent.append(min(TILE, n - tile * TILE))
        inside = 0
        for k, n in zip(index, extent, strict=True):
            inside = inside * n + k % TILE
        return total + inside

    def numbers(self, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
        """Return the numbers, ascending, of the blocks that are chosen in an array of the grid's shape."""
        total: npt.NDArray[np.intp] | int = 0
        inside: npt.NDArray[np.intp] | int = 0
        outer: npt.NDArray[np.intp] | int = 1
        inner = self.n_blocks
        for k, n in zip(np.nonzero(chosen), self.shape, strict=True):
            inner //= n
            tile = k // TILE
            extent = np.minimum(TILE, n - tile * TILE)
            total = total + tile * TILE * inner * outer
            inside = inside * extent + k % TILE
            outer = outer * extent
        return np.sort(np.asarray(total + inside))

    def box(self, number: int) -> Box:
        """Return the voxels of block `number`, clipped to the domain."""
        return self.box_at(self.index(number))

    def box_at(self, index: Sequence[int]) -> Box:
        """Return the voxels of the block at grid index `index`, clipped to the domain."""
        lo = tuple(o + (f + k) * b for o, f, k, b in zip(self.origin, self.first, index, self.block, strict=True))
        return Box.of_shape(self.block, lo).clip(self.domain)

    def covering(self, box: Box) -> tuple[range, ...]:
        """Return the ranges of grid indices, per axis, of the blocks that meet `box`."""
        b = box.clip(self.domain)
        if b.empty:
            return tuple(range(0) for _ in self.block)
        return tuple(
            range((lo - o) // s - f, -((o - hi) // s) - f)
            for lo, hi, o, s, f in zip(b.lo, b.hi, self.origin, self.block, self.first, strict=True)
        )

    def blocks(self, box: Box) -> Iterator[tuple[tuple[int, ...], Box]]:
        """Yield (grid index, box) of the blocks that meet `box`, in raster order."""
        for index in product(*self.covering(box)):
            yield index, self.box_at(index)

    def __str__(self) -> str:
        return " x ".join(map(str, self.shape)) + f" blocks of {' x '.join(map(str, self.block))}"
