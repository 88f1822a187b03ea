"""Exact Euclidean distances up to a limit, and labels that grow by a distance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite, isqrt, lcm
from typing import Any, ClassVar, Literal

import numpy as np

from volara_expr.expr.node import ArrayNode, ArraySpec, Patch
from volara_expr.geometry import Box, Space
from volara_expr.geometry.space import exact
from volara_expr.ops.stencil import over_all_axes

__all__ = ["DistanceTransform", "ExpandedLabels", "Sampling", "distance_transform", "expand_labels"]

Sampling = Literal["world"] | float | Sequence[float] | None


@dataclass(frozen=True, eq=False, repr=False)
class _Near(ArrayNode):
    """What depends on voxels within a distance, along the space axes.

    Attributes
    ----------
    units : tuple of int
        Squared distance of neighbours along each axis; 0 for those that are mapped over.
    limit : int
        Squared distance up to which voxels are looked at.
    """

    array: ArrayNode
    units: tuple[int, ...]
    limit: int
    cost: ClassVar[float] = 60.0

    def need(self, box: Box) -> tuple[Box | None, ...]:
        reach = [isqrt(self.limit // u) if u else 0 for u in self.units]
        return (box.grow(reach, reach),)

    def temp_bytes(self, out: Box) -> int:
        needed = self.need(out)[0]
        assert needed is not None
        return 4 * 8 * needed.clip(self.spec.box).size


@dataclass(frozen=True, eq=False, repr=False)
class DistanceTransform(_Near):
    """Distance of every voxel to the nearest 0, at most `cap`.

    Attributes
    ----------
    scale : float
        Distances are the square roots of integers, divided by this.
    cap : float
    """

    scale: float
    cap: float
    kernel: ClassVar[str] = "volara_expr.kernels.morphology:squared_distance"

    def make_spec(self) -> ArraySpec:
        return self.array.spec.replace(dtype=np.dtype(np.float64), neighborhood=None)

    @property
    def label(self) -> str:
        return "distance transform"

    def describe(self) -> str:
        return f"max_distance={self.cap:g}"

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        squared = kernel(patches[0].data, self.units, self.limit)[out.slices(patches[0].box.lo)]
        return np.where(squared > self.limit, self.cap, np.minimum(np.sqrt(squared) / self.scale, self.cap))


@dataclass(frozen=True, eq=False, repr=False)
class ExpandedLabels(_Near):
    """Labels grown over background: each voxel takes the nearest label within reach, of equally near ones the smallest."""

    kernel: ClassVar[str] = "volara_expr.kernels.morphology:nearest_labels"

    def make_spec(self) -> ArraySpec:
        if self.array.spec.dtype.kind not in "iu":
            raise TypeError(f"labels of dtype {self.array.spec.dtype} cannot grow; make integers of them with astype('uint64')")
        return self.array.spec

    @property
    def label(self) -> str:
        return "expanded labels"

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        return kernel(patches[0].data, self.units, self.limit)[out.slices(patches[0].box.lo)]


def _scaled(space: Space, sampling: Sampling, distance: float) -> tuple[tuple[int, ...], int, int]:
    """Return squared distances of neighbours per axis, the squared limit, all in integers, and the square of their scale."""
    if isinstance(sampling, str) and sampling != "world":
        raise ValueError(f"sampling={sampling!r}; give 'world' for the voxel size, or lengths of a voxel")
    if isinstance(sampling, str):
        steps = [space.voxel_size[i] for i in space.spatial]
    elif isinstance(sampling, Sequence):
        steps = [exact(s) for s in sampling]
    else:
        steps = [exact(1 if sampling is None else sampling)] * len(space.spatial)
    if len(steps) != len(space.spatial):
        raise ValueError(f"sampling has {len(steps)} entries but there are {len(space.spatial)} space axes; give one each")
    if not isfinite(distance) or distance < 0 or min(steps, default=Fraction(1)) <= 0:
        raise ValueError(
            f"a distance of {distance} in voxels of {tuple(map(float, steps))}; give finite numbers, the voxels above 0"
        )
    scale = lcm(*(s.denominator for s in steps))
    limit = int((exact(distance) * scale) ** 2)
    if limit >= 1 << 60:
        raise ValueError(
            f"a distance of {distance} in units of 1/{scale} is more than 64-bit integers square; give a shorter one"
        )
    units = [min(int(s * scale) ** 2, limit + 1) for s in steps]
    return over_all_axes(space, units, 0), limit, scale


def distance_transform(array: ArrayNode, max_distance: float, sampling: Sampling) -> DistanceTransform:
    """Return the node of distances to the nearest 0; see `Array.distance_transform`."""
    units, limit, scale = _scaled(array.spec.space, sampling, max_distance)
    # At the limit itself there is nothing more to be found, so it need not be looked at.
    below = max(0, limit - 1) if Fraction(limit) == (exact(max_distance) * scale) ** 2 else limit
    return DistanceTransform(array, units, below, float(scale), float(max_distance))


def expand_labels(array: ArrayNode, distance: float, spacing: Sampling) -> ExpandedLabels:
    """Return the node of grown labels; see `Array.expand_labels`."""
    units, limit, _ = _scaled(array.spec.space, spacing, distance)
    return ExpandedLabels(array, units, limit)
