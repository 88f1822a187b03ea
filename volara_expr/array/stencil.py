"""Filters, other voxel sizes, and users' own functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from volara_expr.array.base import Handle, node_of
from volara_expr.expr.digest import Function
from volara_expr.geometry.space import Length
from volara_expr.ops.functions import MapBlocks
from volara_expr.ops.resample import NearestLike, downsample
from volara_expr.ops.stencil import (
    Boundary,
    GaussianFilter,
    MaximumFilter,
    MedianFilter,
    MinimumFilter,
    UniformFilter,
    over_all_axes,
    window_voxels,
)

if TYPE_CHECKING:
    from volara_expr.array.core import Array

__all__ = ["Stencil"]

Lengths = Length | Sequence[Length]


class Stencil(Handle):
    """Operations on neighbouring voxels, along the space axes; other axes are mapped over.

    Lengths are voxels, or strings with a unit ("20nm"): one for all space axes, or one for each. `mode` says what lies beyond
    the faces of the array, as in `scipy.ndimage`: "reflect" (d c b a | a b c d), "mirror" (d c b | a b c d), "nearest" or
    "constant" (`value`). An operation sees the array's box and no further: slice last to keep context.
    """

    __slots__ = ()

    def gaussian(self, sigma: Lengths, mode: Boundary = "reflect", truncate: float = 4.0, value: float = 0.0) -> Array:
        """Smooth with a Gaussian; the same as `scipy.ndimage.gaussian_filter(x, sigma, output=dtype)`.

        Halo: int(truncate * sigma + 0.5) voxels along each space axis. Exact.

        Parameters
        ----------
        sigma : length, or one per space axis
            Standard deviation; 0 leaves an axis alone.
        mode : {"reflect", "mirror", "nearest", "constant"}
        truncate : float
            Where the kernel ends, in standard deviations.
        value : float
            Beyond the faces, in mode "constant".

        Returns
        -------
        Array
            float64 for float64, else float32.

        Raises
        ------
        ValueError
            For a negative sigma, and for mode "wrap", which no block can compute from its surroundings.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([0, 0, 8, 0, 0], np.uint8)).gaussian(0.5).compute().round(2)
        array([0.  , 0.85, 6.29, 0.85, 0.  ], dtype=float32)
        """
        space = self.node.spec.space
        each = over_all_axes(space, [float(s) for s in space.spatial_voxels(sigma, "sigma")], 0.0)
        return self._new(GaussianFilter(self.node, each, mode, float(truncate), float(value)))

    def median(self, size: Lengths, mode: Boundary = "reflect", value: float = 0.0) -> Array:
        """Take the middle value of a window, as `scipy.ndimage.median_filter`; undefined where there are NaNs.

        Halo: size // 2 voxels below and (size - 1) // 2 above, along each space axis. Exact.

        Parameters
        ----------
        size : length, or one per space axis
            Whole voxels; lengths with units are rounded to whole voxels, at least one.
        mode : {"reflect", "mirror", "nearest", "constant"}
        value : float
            Beyond the faces, in mode "constant".

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([1, 9, 2, 3])).median(3).compute()
        array([1, 2, 3, 3])
        """
        return self._new(MedianFilter(self.node, window_voxels(self.node.spec.space, size), mode, float(value)))

    def uniform(self, size: Lengths, mode: Boundary = "reflect", value: float = 0.0) -> Array:
        """Take the mean of a window, as float64 for float64, else float32.

        The sums are direct, in float64, and divided once; those of `scipy.ndimage.uniform_filter` run along a line, so that
        their rounding depends on where the line starts, and agree with these to within it.

        Halo: size // 2 voxels below and (size - 1) // 2 above, along each space axis. Exact.

        Parameters
        ----------
        size, mode, value
            As in `median`.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([0, 3, 6, 9], np.uint8)).uniform(3).compute()
        array([1., 3., 6., 8.], dtype=float32)
        """
        return self._new(UniformFilter(self.node, window_voxels(self.node.spec.space, size), mode, float(value)))

    def minimum_filter(self, size: Lengths, mode: Boundary = "reflect", value: float = 0.0) -> Array:
        """Take the smallest value of a window, as `scipy.ndimage.minimum_filter`; exact for 64-bit integers, NaNs spread.

        Halo: size // 2 voxels below and (size - 1) // 2 above, along each space axis. Exact.

        Parameters
        ----------
        size, mode, value
            As in `median`.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([5, 1, 7, 8])).minimum_filter(3).compute()
        array([1, 1, 1, 7])
        """
        return self._new(MinimumFilter(self.node, window_voxels(self.node.spec.space, size), mode, float(value)))

    def maximum_filter(self, size: Lengths, mode: Boundary = "reflect", value: float = 0.0) -> Array:
        """Take the largest value of a window, as `scipy.ndimage.maximum_filter`; exact for 64-bit integers, NaNs spread.

        Halo: size // 2 voxels below and (size - 1) // 2 above, along each space axis. Exact.

        Parameters
        ----------
        size, mode, value
            As in `median`.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([5, 1, 7, 8])).maximum_filter(3).compute()
        array([5, 7, 8, 8])
        """
        return self._new(MaximumFilter(self.node, window_voxels(self.node.spec.space, size), mode, float(value)))

    def downsample(self, factors: int | Sequence[int], method: str = "mean") -> Array:
        """Bin voxels along the space axes.

        Bins count from absolute voxel 0, so that crops of one array have the same bins; those at its faces may be partial and
        use the voxels that are there. The array keeps its corner in the world; with "stride", new voxels are centred on those
        that they show.

        Halo: none beyond whole bins. Exact.

        Parameters
        ----------
        factors : int, or one per space axis
            Voxels per bin.
        method : {"mean", "mode", "min", "max", "stride"}
            Means of integers are rounded half up; of several modes the smallest label wins; "stride" takes the first voxel of
            every bin.

        Returns
        -------
        Array
            Of the same type.

        Raises
        ------
        TypeError
            For the mode of floats.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> a = ve.from_numpy(np.array([1, 2, 5, 5, 5], np.uint8))
        >>> a.downsample(2).compute(), a.downsample(2, "mode").compute()
        (array([2, 5, 5], dtype=uint8), array([1, 5, 5], dtype=uint8))
        """
        space = self.node.spec.space
        each = space.spatial_voxels(factors, "factors")
        if any(f.denominator != 1 for f in each):
            raise ValueError(f"factors={factors!r}; bins have a whole number of voxels along each axis")
        return self._new(downsample(self.node, [int(f) for f in each], method))

    def resample_like(self, other: Array, order: int = 0) -> Array:
        """Put the array on the voxels of another one, along the space axes.

        Each voxel takes the value of the voxel that its centre lies in (the upper one, for a centre on a face).

        Halo: none beyond the voxel that is taken. Exact.

        Parameters
        ----------
        other : Array
            Of any voxel size; must not reach further than this array by more than one of its voxels.
        order : {0}
            Nearest voxel; no other order is offered, as it would not be exact.

        Raises
        ------
        ValueError
            If this array does not cover the other, or one of them has no voxel size.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> coarse = ve.from_numpy(np.array([1, 2]), voxel_size=(8,), units="nm")
        >>> fine = ve.from_numpy(np.zeros(4), voxel_size=(4,), units="nm")
        >>> coarse.resample_like(fine).compute()
        array([1, 1, 2, 2])
        """
        if order != 0:
            raise ValueError(f"order={order!r}; only order=0, the nearest voxel, is offered")
        return self._new(NearestLike(self.node, node_of(other).spec))

    def map_blocks(
        self,
        fn: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
        halo: Lengths = 0,
        dtype: npt.DTypeLike | None = None,
        name: str | None = None,
    ) -> Array:
        """Apply a function to every block.

        Halo: as given, rounded up to whole voxels. The result is that of the whole array if, and only if, no voxel of it
        depends on voxels further away; at the faces of the array the function gets no halo and decides itself what lies beyond.

        Parameters
        ----------
        fn : callable
            From an ndarray, a copy of the block with its halo, to an ndarray of the same shape. The same input must give the
            same output.
        halo : length, or one per space axis
        dtype : numpy type, optional
            Of the result; by default that of the array.
        name : str, optional
            Identity of the function, in place of its code; needed to resume a run whose function has none because it captures
            what cannot be told apart (`fn` is then opaque). Change the name when the function changes.

        Raises
        ------
        ValueError, TypeError
            If, when a block is computed, the shape or the type is not as promised.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([3, 1, 2])).map_blocks(lambda x: x + 1).compute()
        array([4, 2, 3])
        """
        space = self.node.spec.space
        reach = over_all_axes(space, [r.__ceil__() for r in space.spatial_voxels(halo, "halo")], 0)
        out = self.node.spec.dtype if dtype is None else np.dtype(dtype)
        return self._new(MapBlocks(self.node, Function(fn, name), reach, out))
