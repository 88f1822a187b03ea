"""Connected components of a volume: those of each cell, joined where they touch, numbered by their first voxel.

The result is that of `scipy.ndimage.label` on the whole array, whatever the cells are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from volara_expr.expr.node import ArrayNode, ArraySpec, BlockTable, Columns, GlobalTable, Patch
from volara_expr.geometry import BlockGrid, Box
from volara_expr.geometry.space import Length
from volara_expr.ops.cells import CELL, BlockIds, cell_shape, grid_of, plain, space_index, spatial_part, whole_voxels
from volara_expr.ops.labels import Relabel
from volara_expr.ops.lut import LUT_COLUMNS, write_lut
from volara_expr.ops.mask import Mask, carried_mask
from volara_expr.ops.shape import with_faces

__all__ = ["ComponentLut", "ComponentPairs", "ComponentTable", "LocalComponents", "components"]


@dataclass(frozen=True, eq=False, repr=False)
class LocalComponents(ArrayNode):
    """Connected components within each cell of a semantic grid, with global ids.

    Attributes
    ----------
    image : ArrayNode
        Booleans or integers; 0 is background.
    block : tuple of int
        Shape of a cell, over all axes; 1 along those that are not of space.
    connectivity : int
        Voxels touch that differ by 1 along at most this many space axes.
    equal : bool
        Only voxels of equal value touch.
    """

    kernel = "volara_expr.kernels.components:label"
    cost = 10.0

    image: ArrayNode
    block: tuple[int, ...]
    connectivity: int = 1
    equal: bool = False

    def make_spec(self) -> ArraySpec:
        spec = self.image.spec
        nd = len(spec.space.spatial)
        if spec.dtype.kind not in "biu":
            raise TypeError(f"components of dtype {spec.dtype} have no background; use threshold, or a comparison, first")
        if not 1 <= nd <= 3:
            raise ValueError(f"components are found along 1 to 3 space axes, the array has {nd}")
        if not 1 <= self.connectivity <= nd:
            raise ValueError(f"connectivity is {self.connectivity}; with {nd} space axes it lies in 1 to {nd}")
        result = spec.replace(dtype=np.dtype(np.uint64), neighborhood=None)
        BlockIds.of(result, self.block).check("uint64")
        return result

    @property
    def label(self) -> str:
        return "components of cells"

    @property
    def unit(self) -> tuple[int, ...]:
        return self.block

    @property
    def ids(self) -> BlockIds:
        """Which ids the components of a cell have."""
        return BlockIds.of(self.spec, self.block)

    def need(self, box: Box) -> tuple[Box | None, ...]:
        return (box.snap(self.block, (0,) * box.ndim).clip(self.spec.box),)

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        result = np.empty(out.shape, np.uint64)
        for _, cell in grid_of(self.spec.box, self.block).blocks(out):
            image = patches[0].cut(cell).data[space_index(self.spec.space)]
            labels, _ = kernel(image, self.connectivity, equal=self.equal)
            part = cell.clip(out)
            ids = self.ids.globalise(labels, cell.lo).reshape(cell.shape)
            result[part.slices(out.lo)] = ids[part.slices(cell.lo)]
        return result

    def temp_bytes(self, out: Box) -> int:
        return 16 * Box.of_shape(self.block).size


@dataclass(frozen=True, eq=False, repr=False)
class ComponentTable(BlockTable):
    """Rows of local components: id, and the place of the first voxel in raster order of the whole array."""

    kernel = "volara_expr.kernels.components:first_voxels"

    labels: LocalComponents

    @property
    def label(self) -> str:
        return "first voxels"

    @property
    def columns(self) -> tuple[str, ...]:
        return ("id", "first")

    @property
    def cells(self) -> BlockGrid:
        return grid_of(self.labels.spec.box, self.labels.block)

    def rows(self, kernel: Callable[..., Any], cell: Box, reads: Sequence[Sequence[Patch]], tables: Sequence[Any]) -> Columns:
        numbers, domain = self.labels.ids, self.labels.spec.box
        local = numbers.local(reads[0][0].data)
        n = int(local.max(initial=0))
        inside = np.unravel_index(kernel(local, n), cell.shape)
        first = np.zeros(n, np.int64)
        for place, lo, start, size in zip(inside, cell.lo, domain.lo, domain.shape, strict=True):
            first = first * size + (place + (lo - start))
        return {"id": numbers.globalise(np.arange(1, n + 1, dtype=np.uint32), cell.lo), "first": first}


@dataclass(frozen=True, eq=False, repr=False)
class ComponentPairs(BlockTable):
    """Rows of local components that touch across the upper faces of a cell, along the space axes.

    Attributes
    ----------
    labels : LocalComponents
    image : tuple of ArrayNode
        Its image where only equal values touch, else empty.
    """

    kernel = "volara_expr.kernels.components:touching_pairs"

    labels: LocalComponents
    image: tuple[ArrayNode, ...] = ()

    @property
    def label(self) -> str:
        return "touching pairs"

    @property
    def columns(self) -> tuple[str, ...]:
        return ("u", "v")

    @property
    def cells(self) -> BlockGrid:
        return grid_of(self.labels.spec.box, self.labels.block)

    def _slabs(self, cell: Box) -> Iterator[tuple[int, Box]]:
        """Yield (axis, slab) for each upper face within the volume: the layers on both sides and one voxel around them."""
        space, domain = self.labels.spec.space, self.labels.spec.box
        around = tuple(int(i in space.spatial) for i in range(space.ndim))
        for i in space.spatial:
            if cell.hi[i] < domain.hi[i]:
                yield i, with_faces(cell, i, cell.hi[i], cell.hi[i]).grow(around, around).clip(domain)

    def demands(self, cell: Box) -> Sequence[tuple[Box | None, ...]]:
        return [(slab,) * len(self.arrays) for _, slab in self._slabs(cell)]

    def rows(self, kernel: Callable[..., Any], cell: Box, reads: Sequence[Sequence[Patch]], tables: Sequence[Any]) -> Columns:
        space = self.labels.spec.space
        found = [np.empty((2, 0), np.uint64)]
        for (axis, slab), patches in zip(self._slabs(cell), reads, strict=True):
            labels, *image = (plain(p)[space_index(space)] for p in patches)
            lo = spatial_part(slab, space).lo
            for step in (0, 1):  # the kernel looks in one direction only, so from both layers
                start = slab.lo[axis] + step
                base = spatial_part(with_faces(slab, axis, start, start + 1), space)
                pairs = kernel(labels, lo, base.lo, base.hi, self.labels.connectivity, values=image[0] if image else None)
                found.append(np.stack(pairs))
        u, v = np.unique(np.concatenate(found, axis=1), axis=1)
        return {"u": u, "v": v}


@dataclass(frozen=True, eq=False, repr=False)
class ComponentLut(GlobalTable):
    """The number of each local component: those that touch are one, numbered from 1 by their first voxel."""

    kernel = "volara_expr.kernels.graph:components"

    local: ComponentTable
    pairs: ComponentPairs

    @property
    def label(self) -> str:
        return "component numbers"

    @property
    def columns(self) -> tuple[str, ...]:
        return LUT_COLUMNS

    def run(self, kernel: Callable[..., Any], tables: Sequence[Any], out: str, memory_bytes: int) -> None:
        local, pairs = tables[0].read(), tables[1].read()
        order = np.argsort(local["id"])
        ids, first = local["id"][order], local["first"][order]
        root = kernel(np.searchsorted(ids, pairs["u"]), np.searchsorted(ids, pairs["v"]), len(ids))
        start = np.full(len(ids), np.iinfo(np.int64).max)
        np.minimum.at(start, root, first)
        is_root = np.flatnonzero(root == np.arange(len(ids)))
        number = np.zeros(len(ids), np.uint64)
        number[is_root[np.argsort(start[is_root])]] = np.arange(1, len(is_root) + 1, dtype=np.uint64)
        write_lut(out, ids, number[root])


def components(image: ArrayNode, connectivity: int, equal: bool, block_size: Length | Sequence[Length] | None) -> Relabel:
    """Compose the nodes that number the components of a volume; see `Array.components`."""
    space = image.spec.space
    inside = carried_mask(image)
    if inside is not None:
        image = Mask(image, inside)
    size = (CELL,) * len(space.spatial) if block_size is None else whole_voxels(space, block_size, "block_size", 1)
    labels = LocalComponents(image, cell_shape(space, size), int(connectivity), bool(equal))
    lut = ComponentLut(ComponentTable(labels), ComponentPairs(labels, (image,) if equal else ()))
    return Relabel(labels, lut, "error")
