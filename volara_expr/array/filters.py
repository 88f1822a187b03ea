"""Derivatives, distances and finer voxels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from volara_expr.array.base import Handle
from volara_expr.geometry.space import Length
from volara_expr.ops import derivative
from volara_expr.ops.align import axis_number
from volara_expr.ops.distance import Sampling, distance_transform
from volara_expr.ops.stencil import Boundary, over_all_axes
from volara_expr.ops.upsample import Upsample

if TYPE_CHECKING:
    from volara_expr.array.core import Array

__all__ = ["Filters"]

Lengths = Length | Sequence[Length]


class Filters(Handle):
    """Derivatives and distances along the space axes; other axes are mapped over.

    Lengths and `mode` are as those of `gaussian`. Results are float64 for float64, else float32, where nothing else is said;
    SciPy's filters give the same with that type as `output`.
    """

    __slots__ = ()

    def _sigma(self, sigma: Lengths) -> list[float]:
        return [float(s) for s in self.node.spec.space.spatial_voxels(sigma, "sigma")]

    def _space_axis(self, axis: int | str) -> int:
        spec = self.node.spec
        found = axis_number(axis, spec.ndim, spec.space.names)
        if found not in spec.space.spatial:
            raise ValueError(f"axis {spec.space.names[found]!r} is none of space; filters work along space axes")
        return found

    def correlate1d(
        self, weights: Sequence[float], axis: int | str = -1, mode: Boundary = "reflect", value: float = 0.0
    ) -> Array:
        """Add up neighbours along one axis, weighted, as `scipy.ndimage.correlate1d`.

        Halo: len(weights) // 2 voxels below and (len(weights) - 1) // 2 above, along the axis. Exact.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([1, 2, 4, 8], np.uint8)).correlate1d([-1, 0, 1]).compute()
        array([1., 3., 6., 4.], dtype=float32)
        """
        return self._new(derivative.correlate1d(self.node, weights, self._space_axis(axis), mode, value))

    def laplace(self, mode: Boundary = "reflect", value: float = 0.0) -> Array:
        """Sum the second differences along the space axes, as `scipy.ndimage.laplace`.

        Halo: 1 voxel along each space axis. Exact.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([0, 0, 3, 0], np.uint8)).laplace().compute()
        array([ 0.,  3., -6.,  3.], dtype=float32)
        """
        return self._new(derivative.laplace(self.node, mode, value))

    def sobel(self, axis: int | str = -1, mode: Boundary = "reflect", value: float = 0.0) -> Array:
        """Take the difference of neighbours along an axis, smoothed by (1, 2, 1) across the others, as `scipy.ndimage.sobel`.

        Halo: 1 voxel along each space axis. Exact.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([[0, 0, 3], [0, 0, 3]], np.uint8)).sobel("x").compute()
        array([[ 0., 12., 12.],
               [ 0., 12., 12.]], dtype=float32)
        """
        return self._new(derivative.smoothed_difference(self.node, self._space_axis(axis), (1, 2, 1), mode, value))

    def prewitt(self, axis: int | str = -1, mode: Boundary = "reflect", value: float = 0.0) -> Array:
        """Take the difference of neighbours along an axis, summed across the others, as `scipy.ndimage.prewitt`.

        Halo: 1 voxel along each space axis. Exact.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([[0, 0, 3], [0, 0, 3]], np.uint8)).prewitt("x").compute()
        array([[0., 9., 9.],
               [0., 9., 9.]], dtype=float32)
        """
        return self._new(derivative.smoothed_difference(self.node, self._space_axis(axis), (1, 1, 1), mode, value))

    def gaussian_gradient_magnitude(self, sigma: Lengths, mode: Boundary = "reflect", truncate: float = 4.0) -> Array:
        """Return the length of the gradient of the smoothed array, as `scipy.ndimage.gaussian_gradient_magnitude`.

        Halo: int(truncate * sigma + 0.5) voxels along each space axis. Exact.

        Parameters
        ----------
        sigma : length, or one per space axis
            Above 0.
        mode, truncate
            As in `gaussian`.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.arange(0.0, 50, 5)).gaussian_gradient_magnitude(1).compute()[4:6].round(3)
        array([5., 5.])
        """
        return self._new(derivative.gradient_magnitude(self.node, self._sigma(sigma), mode, truncate))

    def gaussian_laplace(self, sigma: Lengths, mode: Boundary = "reflect", truncate: float = 4.0) -> Array:
        """Sum the second derivatives of the smoothed array, as `scipy.ndimage.gaussian_laplace`: bright blobs are negative.

        Halo: int(truncate * sigma + 0.5) voxels along each space axis. Exact.

        Parameters
        ----------
        sigma, mode, truncate
            As in `gaussian_gradient_magnitude`.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([0, 0, 9, 0, 0], np.uint8)).gaussian_laplace(1).compute()[2] < 0
        np.True_
        """
        return self._new(derivative.gaussian_laplace(self.node, self._sigma(sigma), mode, truncate))

    def hessian(self, sigma: Lengths, mode: Boundary = "reflect", truncate: float = 4.0) -> Array:
        """Return the second derivatives of the smoothed array: the upper triangle of the matrix, along a new first axis.

        Each is `scipy.ndimage.gaussian_filter` with orders that sum to 2. (`skimage.feature.hessian_matrix` with
        `use_gaussian_derivatives` smooths in two steps and so differs slightly.)

        Halo: int(truncate * sigma + 0.5) voxels along each space axis. Exact.

        Returns
        -------
        Array
            New first axis of 3 entries (yy, yx, xx) in two dimensions, 6 (zz, zy, zx, yy, yx, xx) in three.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.zeros((8, 9))).hessian(1).shape
        (3, 8, 9)
        """
        return self._new(derivative.hessian(self.node, self._sigma(sigma), mode, truncate))

    def hessian_eigenvalues(self, sigma: Lengths, mode: Boundary = "reflect", truncate: float = 4.0) -> Array:
        """Return the eigenvalues of `hessian`, the largest first, along a new first axis.

        Halo: int(truncate * sigma + 0.5) voxels along each space axis. CPU-exact (LAPACK).

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.zeros((8, 9))).hessian_eigenvalues(1).shape
        (2, 8, 9)
        """
        return self._new(derivative.SymmetricEigenvalues(self.hessian(sigma, mode, truncate).node))

    def symmetric_eigenvalues(self) -> Array:
        """Return the eigenvalues, the largest first, of matrices whose upper triangle lies along the first axis.

        Halo: the first axis, whole. CPU-exact (LAPACK).

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> tensor = ve.from_numpy(np.array([[2.0], [0.0], [5.0]]), axes=("c", "x"))
        >>> tensor.symmetric_eigenvalues().compute()
        array([[5.],
               [2.]])
        """
        return self._new(derivative.SymmetricEigenvalues(self.node))

    def structure_tensor(self, sigma: Lengths = 1, mode: Boundary = "constant", value: float = 0.0) -> Array:
        """Smooth the products of Sobel derivatives, as `skimage.feature.structure_tensor`; the upper triangle, along a new first axis.

        Halo: 1 + int(4 * sigma + 0.5) voxels along each space axis. Exact.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.zeros((8, 9))).structure_tensor(1).shape
        (3, 8, 9)
        """
        return self._new(derivative.structure_tensor(self.node, self._sigma(sigma), mode, value))

    def distance_transform(self, max_distance: float, sampling: Sampling = None) -> Array:
        """Return the Euclidean distance to the nearest voxel that is 0, at most `max_distance`.

        As `scipy.ndimage.distance_transform_edt`, limited: no block can know how far away the next 0 is, so the limit says how far
        is looked. It is computed in integers, so it is exact for any sampling that is.

        Halo: max_distance / sampling voxels along each space axis. Exact.

        Parameters
        ----------
        max_distance : float
            In voxels, or in the unit of `sampling`.
        sampling : float, sequence of float, or "world", optional
            Size of a voxel along the space axes; "world" for the array's voxel size. By default 1.

        Returns
        -------
        Array
            float64.

        Raises
        ------
        ValueError
            For a distance or sampling that is not finite or not positive.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([1, 1, 1, 1, 0])).distance_transform(2).compute()
        array([2., 2., 2., 1., 0.])
        """
        return self._new(distance_transform(self.node, max_distance, sampling))

    def upsample(self, factors: int | Sequence[int]) -> Array:
        """Repeat voxels along the space axes, as `numpy.repeat`; the array keeps its place in the world.

        Halo: none. Exact.

        Parameters
        ----------
        factors : int, or one per space axis

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([3, 4])).upsample(2).compute()
        array([3, 3, 4, 4])
        """
        space = self.node.spec.space
        each = space.spatial_voxels(factors, "factors")
        if any(f.denominator != 1 for f in each):
            raise ValueError(f"factors={factors!r}; a voxel becomes a whole number of voxels along each axis")
        return self._new(Upsample(self.node, over_all_axes(space, [int(f) for f in each], 1)))
