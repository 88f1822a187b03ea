"""Watershed from seeds, on blocks of a semantic grid that are flooded together with their context."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from volara_expr.expr.node import ArrayNode, ArraySpec, Patch
from volara_expr.geometry import Box, Halo
from volara_expr.geometry.space import Length
from volara_expr.ops.cells import cell_shape, grid_of, space_index, spatial_part, whole_voxels
from volara_expr.ops.mask import carried_mask
from volara_expr.ops.matching import on_voxels_of, part_of

__all__ = ["Flood", "flood"]


@dataclass(frozen=True, eq=False, repr=False)
class Flood(ArrayNode):
    """Seeds grown over an image, lowest values first, in each block with its context, cropped to the block.

    A label is the seed's, so what one seed floods in neighbouring blocks is one basin without any merging.

    Attributes
    ----------
    image : ArrayNode
    seeds : ArrayNode
        Integers over the same voxels; 0 is no seed.
    mask : tuple of ArrayNode
        One over the space axes, where 0 nothing is flooded; or none.
    block_size, context : tuple of int
        Along all axes; 1 and 0 along those that are not of space.
    """

    image: ArrayNode
    seeds: ArrayNode
    mask: tuple[ArrayNode, ...]
    block_size: tuple[int, ...]
    context: tuple[int, ...]
    connectivity: int = 1
    kernel: ClassVar[str] = "volara_expr.kernels.flood:flood"
    cost: ClassVar[float] = 150.0

    def make_spec(self) -> ArraySpec:
        image, seeds = self.image.spec, self.seeds.spec
        nd = len(image.space.spatial)
        if image.dtype.kind not in "biuf":
            raise TypeError(f"an image of dtype {image.dtype} has no order to flood in; take numpy.absolute first")
        if seeds.dtype.kind not in "iu":
            raise TypeError(f"seeds of dtype {seeds.dtype} have no labels; label a mask of seeds with components()")
        if not 1 <= nd <= 3:
            raise ValueError(f"flood works on 1 to 3 space axes, the image has {nd}")
        if not 1 <= self.connectivity <= nd:
            raise ValueError(f"connectivity is {self.connectivity}; with {nd} space axes it lies in 1 to {nd}")
        return image.replace(dtype=seeds.dtype, neighborhood=None)

    @property
    def unit(self) -> tuple[int, ...]:
        return self.block_size

    def halo(self) -> Halo:
        return Halo.symmetric(self.context)

    def _read(self, blocks: Box) -> Box:
        return blocks.grow(self.context, self.context).clip(self.spec.box)

    def need(self, box: Box) -> tuple[Box | None, ...]:
        read = self._read(box.snap(self.block_size, (0,) * box.ndim).clip(self.spec.box))
        return (read, read, *(spatial_part(read, self.spec.space) for _ in self.mask))

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        result = np.empty(out.shape, self.spec.dtype)
        at = space_index(self.spec.space)
        for _, block in grid_of(self.spec.box, self.block_size).blocks(out):
            read = self._read(block)
            image, seeds = (p.cut(read).data[at] for p in patches[:2])
            mask = [p.cut(spatial_part(read, self.spec.space)).data for p in patches[2:]]
            labels = kernel(image, seeds, mask[0] if mask else None, self.connectivity).reshape(read.shape)
            part = block.clip(out)
            result[part.slices(out.lo)] = labels[part.slices(read.lo)]
        return result

    def temp_bytes(self, out: Box) -> int:
        return 60 * Box.of_shape(self.block_size).grow(self.context, self.context).size


def flood(
    image: ArrayNode,
    seeds: ArrayNode,
    mask: ArrayNode | None,
    connectivity: int,
    block_size: Length | Sequence[Length],
    context: Length | Sequence[Length],
) -> Flood:
    """Compose the node of a watershed from seeds; see `Array.flood`."""
    spec = image.spec
    space = spec.space
    inside = carried_mask(image) if mask is None else on_voxels_of(part_of(spec, space.spatial), "the mask", mask)
    beyond = [0] * spec.ndim
    for i, n in zip(space.spatial, whole_voxels(space, context, "context", 0), strict=True):
        beyond[i] = n
    return Flood(
        image,
        on_voxels_of(spec, "the seeds", seeds),
        () if inside is None else (inside,),
        cell_shape(space, whole_voxels(space, block_size, "block_size", 1)),
        tuple(beyond),
        int(connectivity),
    )
