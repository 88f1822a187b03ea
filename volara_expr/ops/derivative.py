"""Derivatives along the space axes, and what is composed of them: edges, blobs, curvature and orientation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations_with_replacement
from math import isqrt
from typing import Any, ClassVar

import numpy as np

from volara_expr.expr.node import ArrayNode, ArraySpec, Exactness, Patch
from volara_expr.geometry import Box
from volara_expr.ops.align import assemble, lines
from volara_expr.ops.join import stack
from volara_expr.ops.pointwise import Elementwise
from volara_expr.ops.shape import with_faces
from volara_expr.ops.stencil import Boundary, GaussianFilter, _DirectSum, check_boundary, over_all_axes

__all__ = ["Correlate1D", "GaussianDerivative", "SymmetricEigenvalues", "correlate1d", "gradient_magnitude", "hessian"]
__all__ += ["gaussian_laplace", "laplace", "smoothed_difference", "structure_tensor"]


@dataclass(frozen=True, eq=False, repr=False)
class Correlate1D(_DirectSum):
    """`scipy.ndimage.correlate1d`: sums of neighbours along one axis, weighted, in float64.

    Attributes
    ----------
    weights : tuple of float
        The middle one, of an even number the upper of the two, belongs to the voxel itself.
    axis : int
    """

    weights: tuple[float, ...]
    axis: int
    mode: Boundary = "reflect"
    value: float = 0.0
    kernel: ClassVar[str] = "volara_expr.kernels.stencil:correlate1d"
    cost: ClassVar[float] = 1.0

    def make_spec(self) -> ArraySpec:
        check_boundary(self.mode)
        if not self.weights or not np.isfinite(self.weights).all():
            raise ValueError(f"weights={self.weights}; give at least one, all finite")
        return super().make_spec()

    def reach(self) -> tuple[Sequence[int], Sequence[int]]:
        n, nd = len(self.weights), self.spec.ndim
        below, above = ([side if i == self.axis else 0 for i in range(nd)] for side in (n // 2, (n - 1) // 2))
        return below, below if self.mode == "mirror" else above

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        patch = patches[0]
        keep = out.slices(patch.box.lo)[self.axis]
        return kernel(patch.data, np.array(self.weights), self.axis, self.mode, self.value, self.spec.dtype, keep)


@dataclass(frozen=True, eq=False, repr=False)
class GaussianDerivative(_DirectSum):
    """`scipy.ndimage.gaussian_filter` with an order of derivative along each axis.

    Attributes
    ----------
    sigma : tuple of float
        Per axis, in voxels; 0 for axes that are mapped over.
    order : tuple of int
    """

    sigma: tuple[float, ...]
    order: tuple[int, ...]
    mode: Boundary = "reflect"
    truncate: float = 4.0
    value: float = 0.0
    kernel: ClassVar[str] = "volara_expr.kernels.stencil:gaussian"
    cost: ClassVar[float] = 4.0

    def make_spec(self) -> ArraySpec:
        check_boundary(self.mode)
        space = self.array.spec.space
        if not all(0 < self.sigma[i] < np.inf for i in space.spatial) or not 0 < self.truncate < np.inf:
            raise ValueError(
                f"sigma={self.sigma} and truncate={self.truncate}; a derivative takes both above 0 along every space axis"
            )
        return super().make_spec()

    def reach(self) -> tuple[Sequence[int], Sequence[int]]:
        radius = tuple(int(self.truncate * s + 0.5) if s > 1e-15 else 0 for s in self.sigma)
        return radius, radius

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        patch = patches[0]
        keep = out.slices(patch.box.lo)
        return kernel(patch.data, self.sigma, self.order, self.truncate, self.mode, self.value, self.spec.dtype, keep)


@dataclass(frozen=True, eq=False, repr=False)
class SymmetricEigenvalues(ArrayNode):
    """Eigenvalues, the largest first, of a symmetric matrix at each voxel, whose upper triangle lies along the first axis."""

    array: ArrayNode
    kernel: ClassVar[str] = "volara_expr.kernels.derivative:symmetric_eigenvalues"
    exactness: ClassVar[Exactness] = "cpu-exact"
    cost: ClassVar[float] = 1000.0

    def make_spec(self) -> ArraySpec:
        spec = self.array.spec
        if spec.ndim < 1 or spec.dtype.kind != "f" or self.rows * (self.rows + 1) // 2 != spec.shape[0]:
            raise ValueError(
                f"shape {spec.shape} of {spec.dtype}: the first axis of floats holds the upper triangle of a symmetric matrix, 3 entries "
                "in two dimensions, 6 in three"
            )
        wide = np.dtype(np.float64 if spec.dtype == np.float64 else np.float32)
        first, *rest = lines(spec)
        return assemble([first.as_channel(self.rows), *rest], wide, spec.space.placed)

    @property
    def rows(self) -> int:
        """Rows of a matrix."""
        return (isqrt(8 * self.array.spec.shape[0] + 1) - 1) // 2

    def need(self, box: Box) -> tuple[Box | None, ...]:
        return (with_faces(box, 0, 0, self.array.spec.shape[0]),)

    def temp_bytes(self, out: Box) -> int:
        return 3 * self.rows**2 * 8 * (out.size // max(1, out.shape[0]))

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        return kernel(patches[0].data.astype(self.spec.dtype, copy=False), self.rows)[out.lo[0] : out.hi[0]]


def correlate1d(array: ArrayNode, weights: Sequence[float], axis: int, mode: Boundary, value: float) -> Correlate1D:
    """Return the node of a weighted sum along an axis."""
    return Correlate1D(array, tuple(map(float, weights)), axis, mode, float(value))


def laplace(array: ArrayNode, mode: Boundary, value: float) -> ArrayNode:
    """Return the sum of second differences along the space axes, as `scipy.ndimage.laplace`."""
    return _sum([correlate1d(array, (1, -2, 1), i, mode, value) for i in array.spec.space.spatial])


def smoothed_difference(array: ArrayNode, axis: int, across: Sequence[float], mode: Boundary, value: float) -> ArrayNode:
    """Return a central difference along an axis, smoothed across the other space axes: Sobel's or Prewitt's."""
    result: ArrayNode = correlate1d(array, (-1, 0, 1), axis, mode, value)
    for i in array.spec.space.spatial:
        if i != axis:
            result = correlate1d(result, across, i, mode, value)
    return result


def gaussian_laplace(array: ArrayNode, sigma: Sequence[float], mode: Boundary, truncate: float) -> ArrayNode:
    """Return the sum of second derivatives of the smoothed array, as `scipy.ndimage.gaussian_laplace`."""
    return _sum([_derivative(array, sigma, (i, i), mode, truncate) for i in array.spec.space.spatial])


def gradient_magnitude(array: ArrayNode, sigma: Sequence[float], mode: Boundary, truncate: float) -> ArrayNode:
    """Return the length of the gradient of the smoothed array, as `scipy.ndimage.gaussian_gradient_magnitude`."""
    slopes = [_derivative(array, sigma, (i,), mode, truncate) for i in array.spec.space.spatial]
    return Elementwise("sqrt", (_sum([Elementwise("multiply", (d, d)) for d in slopes]),))


def hessian(array: ArrayNode, sigma: Sequence[float], mode: Boundary, truncate: float) -> ArrayNode:
    """Return the upper triangle of the matrix of second derivatives of the smoothed array, along a new first axis."""
    pairs = combinations_with_replacement(array.spec.space.spatial, 2)
    return stack([_derivative(array, sigma, p, mode, truncate) for p in pairs], 0, None)


def structure_tensor(array: ArrayNode, sigma: Sequence[float], mode: Boundary, value: float) -> ArrayNode:
    """Return the upper triangle of the smoothed products of Sobel derivatives, along a new first axis."""
    slopes = [smoothed_difference(array, i, (1, 2, 1), mode, value) for i in array.spec.space.spatial]
    products = [Elementwise("multiply", pair) for pair in combinations_with_replacement(slopes, 2)]
    each = over_all_axes(array.spec.space, sigma, 0.0)
    return stack([GaussianFilter(p, each, mode, 4.0, float(value)) for p in products], 0, None)


def _derivative(
    array: ArrayNode, sigma: Sequence[float], along: Sequence[int], mode: Boundary, truncate: float
) -> GaussianDerivative:
    order = tuple(list(along).count(i) for i in range(array.spec.ndim))
    return GaussianDerivative(array, over_all_axes(array.spec.space, sigma, 0.0), order, mode, float(truncate))


def _sum(nodes: Sequence[ArrayNode]) -> ArrayNode:
    return reduce(lambda a, b: Elementwise("add", (a, b)), nodes)
