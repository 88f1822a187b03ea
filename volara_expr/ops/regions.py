"""Affinities to fragments: the mutex watershed of each block of a semantic grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from volara_expr.expr.node import ArrayNode, ArraySpec, Neighborhood, Patch
from volara_expr.geometry import Box, Halo, Space
from volara_expr.geometry.space import Length
from volara_expr.ops.cells import (
    BlockIds,
    IdRange,
    absolute_voxel,
    cell_shape,
    grid_of,
    plain,
    space_index,
    spatial_part,
    whole_voxels,
)
from volara_expr.ops.mask import Mask, carried_mask
from volara_expr.ops.matching import on_voxels_of, part_of
from volara_expr.ops.stencil import GaussianFilter, over_all_axes

__all__ = ["Watershed", "neighborhood_of", "reach", "watershed"]


def neighborhood_of(affs: ArraySpec) -> tuple[int, Neighborhood]:
    """Return the position of the offsets axis of affinities and their neighborhood.

    Raises
    ------
    ValueError
        If the neighborhood is not known.
    """
    axis = affs.space.find("offsets")
    if axis is None or not affs.neighborhood:
        axes = ", ".join(f"{a.name} ({a.type})" for a in affs.space.axes)
        raise ValueError(
            f"the neighborhood of these affinities is not known (axes: {axes}); say which voxels each channel links, with "
            "ve.open(..., neighborhood=[(1, 0, 0), ...]) or affs.with_neighborhood([(1, 0, 0), ...])"
        )
    return axis, affs.neighborhood


def reach(neighborhood: Neighborhood) -> tuple[int, ...]:
    """Return the largest absolute offset along each space axis."""
    return tuple(max(abs(o[k]) for o in neighborhood) for k in range(len(neighborhood[0])))


@dataclass(frozen=True, eq=False, repr=False)
class Watershed(ArrayNode):
    """Fragments of affinities: the mutex watershed of each block with its context, cropped to the block.

    Attributes
    ----------
    affs : ArrayNode
        Has an axis of type "offsets" and a neighborhood; integers or floats.
    mask : ArrayNode or None
        Over the space axes of `affs`, or over all its axes but that of the offsets; where 0, no edge touches the voxel.
    mean_affs : ArrayNode or None
        What `min_mean_affinity` averages, in place of `affs`; like `affs`.
    block_size : tuple of int
        Along the space axes.
    context : tuple of int
        Voxels read beyond the block, along the space axes.
    bias : tuple of float
        One per offset.
    strides : tuple of tuples of int, or None
        One per offset.
    ids : {"float53", "uint64"}
        Range of the fragments' ids, see `ops.cells.BlockIds`.
    """

    kernel = "volara_expr.kernels.mutex_watershed:fragments"
    takes_coded = True
    cost = 120.0

    affs: ArrayNode
    mask: ArrayNode | None
    mean_affs: ArrayNode | None
    block_size: tuple[int, ...]
    context: tuple[int, ...]
    bias: tuple[float, ...]
    strides: Neighborhood | None = None
    random_strides: bool = False
    noise: float = 0.0
    seed: int = 0
    min_size: int = 0
    min_mean_affinity: float = 0.0
    min_extent: tuple[int, ...] | None = None
    ids: IdRange = field(default="float53")

    def make_spec(self) -> ArraySpec:
        a = self.affs.spec
        axis, neighborhood = neighborhood_of(a)
        spatial = [a.space.axes[i].name for i in a.space.spatial]
        n, nd = len(neighborhood), len(spatial)
        if a.dtype.kind not in "iuf":
            raise TypeError(
                f"affinities of dtype {a.dtype} cannot be compared by strength; astype('float32') makes numbers of them"
            )
        if nd not in (2, 3):
            raise ValueError(f"watershed works on 2 or 3 space axes, the affinities have {nd} ({', '.join(spatial)})")
        if a.shape[axis] != n or any(len(o) != nd for o in neighborhood):
            raise ValueError(
                f"{a.shape[axis]} channels, {n} offsets of {sorted({len(o) for o in neighborhood})} entries, {nd} space axes; "
                "give one offset per channel, with one entry per space axis"
            )
        if not all(any(o) for o in neighborhood):
            raise ValueError(f"offset {neighborhood.index((0,) * nd)} is zero, so it links no two voxels; drop that channel")
        for what, given in (("bias", self.bias), ("strides", self.strides)):
            if given is not None and len(given) != n:
                raise ValueError(f"{what} has {len(given)} entries but there are {n} offsets; give one each, or one for all")
        if not np.isfinite(self.bias).all() or not np.isfinite([self.noise, self.min_mean_affinity]).all():
            raise ValueError(
                f"bias {self.bias}, noise {self.noise} and min_mean_affinity {self.min_mean_affinity} must be finite"
            )
        if any(len(s) != nd or min(s) < 1 for s in self.strides or ()):
            raise ValueError(f"strides are {self.strides}; give {nd} numbers of at least 1 for each offset")
        keep = [i for i in range(a.ndim) if i != axis]
        spec = ArraySpec(_without(a.box, axis), np.dtype(np.uint64), a.space.keep(keep), frame=_without(a.frame or a.box, axis))
        BlockIds.of(spec, cell_shape(spec.space, self.block_size)).check(self.ids)
        if self.mask is not None:
            given_box, wanted = self.mask.spec.box, (spec.box, spatial_part(spec.box, spec.space))
            if not any(given_box.ndim == box.ndim and given_box.contains(box) for box in wanted):
                raise ValueError(f"the mask covers {given_box}, the affinities {wanted[0]}; give a mask of the same voxels")
        if self.mean_affs is not None and self.mean_affs.spec.box != a.box:
            raise ValueError(f"mean_affs cover {self.mean_affs.spec.box}, affs {a.box}; give affinities of the same voxels")
        return spec

    @property
    def unit(self) -> tuple[int, ...]:
        return cell_shape(self.spec.space, self.block_size)

    def halo(self) -> Halo:
        return Halo.symmetric(self._margin)

    @property
    def _margin(self) -> tuple[int, ...]:
        margin = [0] * self.spec.ndim
        for i, n in zip(self.spec.space.spatial, self.context, strict=True):
            margin[i] = n
        return tuple(margin)

    def _read(self, block: Box) -> Box:
        return block.grow(self._margin, self._margin).clip(self.spec.box)

    def need(self, box: Box) -> tuple[Box | None, ...]:
        blocks = box.snap(self.unit, (0,) * box.ndim).clip(self.spec.box)
        return self._inputs(blocks.grow(self._margin, self._margin))

    def _inputs(self, box: Box) -> tuple[Box, ...]:
        """Boxes of the array inputs for a box of the output, in the order of `arrays`."""
        axis, neighborhood = neighborhood_of(self.affs.spec)
        boxes = [_with(box, axis, len(neighborhood))]
        if self.mask is not None:
            boxes.append(box if self.mask.spec.ndim == box.ndim else spatial_part(box, self.spec.space))
        if self.mean_affs is not None:
            boxes.append(_with(box, axis, len(neighborhood[0])))
        return tuple(boxes)

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        from volara_expr.kernels.clusters import Workspace  # here, so that planning imports no compiler

        axis, neighborhood = neighborhood_of(self.affs.spec)
        space = self.spec.space
        numbers = BlockIds.of(self.spec, self.unit)
        workspace = Workspace()
        result = np.empty(out.shape, np.uint64)
        rest = [Patch(p.box, plain(p)) for p in patches[1:]]
        for _, block in grid_of(self.spec.box, self.unit).blocks(out):
            read = self._read(block)
            boxes = self._inputs(read)
            affs = patches[0].cut(boxes[0]).data
            codes, table = (affs, None) if isinstance(affs, np.ndarray) else (affs.codes, affs.table)
            sides = [p.cut(b).data for p, b in zip(rest, boxes[1:], strict=True)]
            mask = None if self.mask is None else sides.pop(0)[space_index(self.mask.spec.space)]
            mean_affs = None if self.mean_affs is None else _channels_first(sides.pop(), axis, space)
            origin, crop = spatial_part(read, space), spatial_part(block, space)
            with absolute_voxel(f"the affinities, channel first; block {block}", (0, *origin.lo)):
                labels, _ = kernel(
                    _channels_first(codes, axis, space),
                    neighborhood,
                    bias=self.bias,
                    strides=self.strides,
                    random_strides=self.random_strides,
                    noise=self.noise,
                    seed=self.seed,
                    table=table,
                    origin=origin.lo,
                    crop=crop.slices(origin.lo),
                    mask=mask,
                    mean_affs=mean_affs,
                    min_size=self.min_size,
                    min_mean_affinity=self.min_mean_affinity,
                    min_extent=self.min_extent,
                    workspace=workspace,
                )
            part = block.clip(out)
            ids = numbers.globalise(labels, block.lo).reshape(block.shape)
            result[part.slices(out.lo)] = ids[part.slices(block.lo)]
        return result

    def temp_bytes(self, out: Box) -> int:
        # Per voxel of one block: weights, keys, edge codes and their copies for each channel, then parents and mutexes.
        block = Box.of_shape(self.unit).grow(self._margin, self._margin)
        return block.size * (32 + 20 * len(self.bias))


def watershed(
    affs: ArrayNode,
    *,
    bias: float | Sequence[float],
    strides: Sequence[int] | Sequence[Sequence[int]] | None,
    block_size: Length | Sequence[Length],
    context: Length | Sequence[Length] | None,
    noise: float,
    sigma: Length | Sequence[Length] | None,
    seed: int,
    random_strides: bool,
    mask: ArrayNode | None,
    min_size: int,
    min_mean_affinity: float,
    min_extent: Length | Sequence[Length] | None,
    ids: IdRange,
) -> Watershed:
    """Compose the nodes of a watershed; see `Array.watershed`."""
    spec = affs.spec
    axis, neighborhood = neighborhood_of(spec)
    space = spec.space
    if mask is None:
        mask = carried_mask(affs)
    else:
        whole = part_of(spec, [i for i in range(spec.ndim) if i != axis])
        mask = on_voxels_of(whole if mask.spec.ndim == whole.ndim else part_of(spec, space.spatial), "the mask", mask)
    if sigma is not None:
        smooth: ArrayNode = GaussianFilter(
            affs, over_all_axes(space, tuple(map(float, space.spatial_voxels(sigma, "sigma"))), 0.0)
        )
    else:  # the fill of a mask is never looked at, and a coded array under it stays coded
        smooth = affs.array if isinstance(affs, Mask) and affs.mask is mask else affs
    n = len(neighborhood)
    biases = (bias,) * n if isinstance(bias, (int, float)) else tuple(bias)
    every = strides if strides is None or np.ndim(strides[0]) else (strides,) * n
    fragments = Watershed(
        smooth,
        mask,
        affs if min_mean_affinity > 0 and sigma is not None else None,
        whole_voxels(space, block_size, "block_size", 1),
        reach(neighborhood) if context is None else whole_voxels(space, context, "context", 0),
        tuple(map(float, biases)),
        None if every is None else tuple(tuple(map(int, s)) for s in every),  # type: ignore[arg-type]
        bool(random_strides),
        float(noise),
        int(seed),
        int(min_size),
        float(min_mean_affinity),
        None if min_extent is None else whole_voxels(space, min_extent, "min_extent", 1),
        ids,
    )
    if spec.dtype.kind in "iu" and biases and all(0 < abs(b) < 1 for b in biases):
        raise ValueError(
            f"affinities of {spec.dtype} are whole numbers and the biases lie between -1 and 1 ({min(biases):g} to {max(biases):g}), so that "
            f"every affinity of 1 or more would join; bring them to 0 to 1 with normalize(0, {np.iinfo(spec.dtype).max}), or give the biases "
            "in units of the values"
        )
    return fragments


def _without(box: Box, axis: int) -> Box:
    return Box(box.lo[:axis] + box.lo[axis + 1 :], box.hi[:axis] + box.hi[axis + 1 :])


def _with(box: Box, axis: int, channels: int) -> Box:
    return Box((*box.lo[:axis], 0, *box.lo[axis:]), (*box.hi[:axis], channels, *box.hi[axis:]))


def _channels_first(data: Any, axis: int, space: Space) -> Any:
    """Return affinities of one block as (channel, space); `space` is that of the other axes."""
    return np.moveaxis(data, axis, 0)[(slice(None), *space_index(space))]
