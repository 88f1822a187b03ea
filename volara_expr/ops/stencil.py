"""Filters whose voxels depend on a window around them, along the space axes; other axes are mapped over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Literal

import numpy as np

from volara_expr.expr.node import ArrayNode, ArraySpec, Patch
from volara_expr.geometry import Box, Space
from volara_expr.geometry.space import Length

__all__ = [
    "Boundary",
    "GaussianFilter",
    "MaximumFilter",
    "MedianFilter",
    "MinimumFilter",
    "UniformFilter",
    "over_all_axes",
    "window_voxels",
]

Boundary = Literal["reflect", "mirror", "nearest", "constant"]


def check_boundary(mode: str) -> None:
    """Raise ValueError for a mode that is not computed."""
    if mode == "wrap":
        raise ValueError("mode='wrap' would take the far side of the volume for every block at a face; use 'reflect'")
    if mode not in ("reflect", "mirror", "nearest", "constant"):
        raise ValueError(f"mode={mode!r} is none of 'reflect', 'mirror', 'nearest', 'constant'")


def check_value(value: float, dtype: np.dtype[Any]) -> None:
    """Raise ValueError or OverflowError for a value beyond the faces that the type does not have."""
    if dtype.kind in "biu" and value != int(value):
        raise ValueError(f"value={value} is no value of dtype {dtype}; use another, or astype first")
    np.full((), int(value) if dtype.kind in "biu" else value, dtype)


def over_all_axes(space: Space, values: Sequence[Any], other: Any) -> tuple[Any, ...]:
    """Return one value per axis from one per space axis, with `other` for the rest."""
    given = dict(zip(space.spatial, values, strict=True))
    return tuple(given.get(i, other) for i in range(space.ndim))


def window_voxels(space: Space, size: Length | Sequence[Length]) -> tuple[int, ...]:
    """Return a window's size per axis, in voxels: lengths with units are rounded to whole voxels, at least one.

    Raises
    ------
    ValueError
        If a number of voxels is not whole, or below 1.
    """
    lengths = space.spatial_voxels(size, "size")
    given = [size] * len(lengths) if isinstance(size, str) or not isinstance(size, Sequence) else size
    sides = []
    for length, raw in zip(lengths, given, strict=True):
        side = max(1, (length + Fraction(1, 2)).__floor__()) if isinstance(raw, str) else length
        if side < 1 or side.denominator != 1:
            raise ValueError(f"size={size!r} has {raw!r}; a window has a whole number of voxels, 1 or more, along each axis")
        sides.append(int(side))
    return over_all_axes(space, sides, 1)


@dataclass(frozen=True, eq=False, repr=False)
class _Stencil(ArrayNode):
    """An operation on windows that reach equally far from every voxel."""

    array: ArrayNode
    smooths: ClassVar[bool] = True
    """The result is an average: float64 for float64, else float32. Otherwise it has the type of the input."""

    def reach(self) -> tuple[Sequence[int], Sequence[int]]:
        """Voxels that a window takes below and above its centre, per axis."""
        raise TypeError(f"{type(self).__name__} does not say its reach")

    def make_spec(self) -> ArraySpec:
        spec = self.array.spec
        if spec.dtype.kind not in "biuf":
            raise TypeError(f"{self.label} takes real numbers, the array holds {spec.dtype}")
        if not self.smooths:
            return spec
        return spec.replace(dtype=np.dtype(np.float64 if spec.dtype == np.float64 else np.float32))

    def need(self, box: Box) -> tuple[Box | None, ...]:
        return (box.grow(*self.reach()),)

    def temp_bytes(self, out: Box) -> int:
        return 2 * out.grow(*self.reach()).size * 8


@dataclass(frozen=True, eq=False, repr=False)
class _DirectSum(_Stencil):
    """Weighted sums along one axis after the other, each stored in the type of the result."""

    def temp_bytes(self, out: Box) -> int:
        # The input converted and the sums along the first axis, or these and the sums along the next.
        wide = np.result_type(self.array.spec.dtype, np.float32).itemsize
        return 2 * out.grow(*self.reach()).size * wide


@dataclass(frozen=True, eq=False, repr=False)
class GaussianFilter(_DirectSum):
    """`scipy.ndimage.gaussian_filter`: one direct sum per axis, in float64, stored in the type of the result between axes.

    Attributes
    ----------
    sigma : tuple of float
        Standard deviation per axis, in voxels; 0 leaves an axis alone.
    """

    sigma: tuple[float, ...]
    mode: Boundary = "reflect"
    truncate: float = 4.0
    value: float = 0.0
    kernel: ClassVar[str] = "volara_expr.kernels.stencil:gaussian"
    cost: ClassVar[float] = 4.0

    def make_spec(self) -> ArraySpec:
        check_boundary(self.mode)
        if not all(0 <= s < np.inf for s in self.sigma) or not 0 < self.truncate < np.inf:
            raise ValueError(f"sigma={self.sigma} and truncate={self.truncate}; sigma is 0 or more, truncate more than 0")
        return super().make_spec()

    def reach(self) -> tuple[Sequence[int], Sequence[int]]:
        radius = tuple(int(self.truncate * s + 0.5) if s > 1e-15 else 0 for s in self.sigma)  # as scipy rounds, and skips axes
        return radius, radius

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        patch = patches[0]
        keep, order = out.slices(patch.box.lo), (0,) * self.spec.ndim
        return kernel(patch.data, self.sigma, order, self.truncate, self.mode, self.value, self.spec.dtype, keep)


@dataclass(frozen=True, eq=False, repr=False)
class _Window(_Stencil):
    """A statistic over a box-shaped window. A window of even size reaches one voxel further below than above, as in scipy.

    Attributes
    ----------
    size : tuple of int
        Voxels per axis; 1 leaves an axis alone.
    """

    size: tuple[int, ...]
    mode: Boundary = "reflect"
    value: float = 0.0
    smooths: ClassVar[bool] = False

    def make_spec(self) -> ArraySpec:
        check_boundary(self.mode)
        spec = super().make_spec()
        if not self.smooths:
            check_value(self.value, spec.dtype)
        return spec

    def reach(self) -> tuple[Sequence[int], Sequence[int]]:
        below, above = tuple(n // 2 for n in self.size), tuple((n - 1) // 2 for n in self.size)
        # Mirrored about its centre, voxel 0 sees as far up as down.
        return below, below if self.mode == "mirror" else above

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        patch = patches[0]
        return kernel(patch.data, self.size, self.mode, self.value, self.spec.dtype)[out.slices(patch.box.lo)]


@dataclass(frozen=True, eq=False, repr=False)
class MedianFilter(_Window):
    """`scipy.ndimage.median_filter`: the middle value, of an even number the upper of the two. NaNs give undefined results."""

    kernel: ClassVar[str] = "volara_expr.kernels.stencil:median"
    cost: ClassVar[float] = 200.0


@dataclass(frozen=True, eq=False, repr=False)
class UniformFilter(_Window):
    """The mean, by direct sums in float64; `scipy.ndimage.uniform_filter` up to the rounding of its running sums."""

    smooths: ClassVar[bool] = True
    kernel: ClassVar[str] = "volara_expr.kernels.stencil:uniform"
    cost: ClassVar[float] = 4.0

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        patch = patches[0]
        return kernel(patch.data, self.size, self.mode, self.value, self.spec.dtype, out.slices(patch.box.lo))


@dataclass(frozen=True, eq=False, repr=False)
class MinimumFilter(_Window):
    """The smallest value: `scipy.ndimage.minimum_filter`, but exact for 64-bit integers. NaNs spread."""

    kernel: ClassVar[str] = "volara_expr.kernels.stencil:minimum"
    cost: ClassVar[float] = 10.0


@dataclass(frozen=True, eq=False, repr=False)
class MaximumFilter(_Window):
    """The largest value: `scipy.ndimage.maximum_filter`, but exact for 64-bit integers. NaNs spread."""

    kernel: ClassVar[str] = "volara_expr.kernels.stencil:maximum"
    cost: ClassVar[float] = 10.0
