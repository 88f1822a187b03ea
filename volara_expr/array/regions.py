"""What is told from the form of labels and masks: maxima, holes, small pieces, boundaries, basins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from volara_expr.array.base import Handle, node_of
from volara_expr.geometry.space import Length
from volara_expr.ops.distance import Sampling, expand_labels
from volara_expr.ops.flood import flood
from volara_expr.ops.morphology import boundaries
from volara_expr.ops.select import fill_holes, local_maxima, remove_small

if TYPE_CHECKING:
    from volara_expr.array.core import Array

__all__ = ["Regions"]

Lengths = Length | Sequence[Length]


class Regions(Handle):
    """Plateaus, holes, pieces and basins, along the space axes and seamless across blocks; other axes are mapped over."""

    __slots__ = ()

    def local_maxima(self, connectivity: int | None = None) -> Array:
        """Find the plateaus all of whose neighbours are lower, as `skimage.morphology.local_maxima`; of any size, seamlessly.

        Halo: 1 voxel along each space axis; then a table of the whole volume. Exact.

        Parameters
        ----------
        connectivity : int, optional
            Neighbours differ by 1 along at most this many space axes; by default along any.

        Returns
        -------
        Array
            Of booleans.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([1, 3, 3, 2, 2, 5])).local_maxima().compute().astype(int)
        array([0, 1, 1, 0, 0, 1])
        """
        return self._new(local_maxima(self.node, connectivity))

    def fill_holes(self, max_size: int | None = None, connectivity: int = 1) -> Array:
        """Fill the holes of a mask: background that no face of the array is reached from, as `scipy.ndimage.binary_fill_holes`.

        Holes of any size are found, seamlessly, as components of the background.

        Halo: 1 voxel, for the cells' faces; then a table of the whole volume. Exact.

        Parameters
        ----------
        max_size : int, optional
            Holes of more voxels stay.
        connectivity : int
            Of the background.

        Returns
        -------
        Array
            Of booleans.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([0, 1, 0, 0, 1, 0])).fill_holes().compute().astype(int)
        array([0, 1, 1, 1, 1, 0])
        """
        return self._new(fill_holes(self.node, connectivity, max_size))

    def remove_small(self, min_size: int, connectivity: int = 1) -> Array:
        """Drop labels of fewer voxels, or components of a mask of booleans, as `skimage.morphology.remove_small_objects`.

        Halo: none for labels, 1 voxel for masks; then a table of the whole volume. Exact.

        Parameters
        ----------
        min_size : int
            In voxels.
        connectivity : int
            Of the components of a mask.

        Returns
        -------
        Array
            As this one.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([4, 4, 0, 7, 0])).remove_small(2).compute()
        array([4, 4, 0, 0, 0])
        """
        return self._new(remove_small(self.node, min_size, connectivity))

    def expand_labels(self, distance: float = 1, spacing: Sampling = None) -> Array:
        """Grow labels over background by a distance, as `skimage.segmentation.expand_labels`.

        Each voxel takes the nearest label; of equally near ones the smallest (scikit-image takes one that depends on how its
        distance transform runs).

        Halo: distance / spacing voxels along each space axis. Exact.

        Parameters
        ----------
        distance : float
            In voxels, or in the unit of `spacing`.
        spacing : float, sequence of float, or "world", optional
            Size of a voxel, as `sampling` in `distance_transform`.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([0, 0, 7, 0, 3])).expand_labels().compute()
        array([0, 7, 7, 3, 3])
        """
        return self._new(expand_labels(self.node, distance, spacing))

    def find_boundaries(
        self, connectivity: int = 1, mode: Literal["thick", "inner", "outer"] = "thick", background: int = 0
    ) -> Array:
        """Find the voxels where labels meet, as `skimage.segmentation.find_boundaries`.

        Halo: 1 voxel along each space axis. Exact.

        Parameters
        ----------
        connectivity : int
            Neighbours differ by 1 along at most this many space axes.
        mode : {"thick", "inner", "outer"}
            All voxels beside another label; those of them inside of labels; or those of the background around labels, and where
            labels touch.
        background : int
            The label that is none.

        Returns
        -------
        Array
            Of booleans.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([0, 0, 5, 5, 5])).find_boundaries(mode="inner").compute().astype(int)
        array([0, 0, 1, 0, 0])
        """
        return self._new(boundaries(self.node, connectivity, mode, background))

    def flood(
        self,
        seeds: Any,
        mask: Any = None,
        connectivity: int = 1,
        block_size: Lengths = 128,
        context: Lengths = 32,
    ) -> Array:
        """Grow seeds over this image, lowest values first: the classical watershed, as `skimage.segmentation.watershed`.

        The order of flooding is global, so it cannot be had block by block. Each block is flooded together with its context and
        cropped; the blocks are a parameter, and the result depends on them and on nothing else, no execution grid. Labels are
        those of the seeds, so a basin that spans blocks has one label throughout. Against the whole array, a voxel can differ where
        its flood came from a seed, or by a way, further than `context` from its block (it then belongs to another seed, or stays 0),
        and on plateaus where floods of one level meet, since who comes first is global too: choose a context of the size of a
        basin. In a single block it is scikit-image's result; seeds enter the flood at their own value.

        Halo: whole blocks, and `context` beyond them. Exact.

        Parameters
        ----------
        seeds : Array or numpy.ndarray
            Integers over the same voxels; 0 is no seed.
        mask : Array or numpy.ndarray, optional
            Over the space axes; where 0, nothing is flooded. By default the one that the image carries.
        connectivity : int
            Neighbours differ by 1 along at most this many space axes.
        block_size : length, or one per space axis
        context : length, or one per space axis
            Read beyond each block.

        Returns
        -------
        Array
            Of the type of `seeds`; 0 where no flood arrives.

        Raises
        ------
        TypeError
            If the seeds are no integers.
        ValueError
            If seeds or mask do not cover the same voxels.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> image = ve.from_numpy(np.array([0, 1, 5, 1, 0]))
        >>> image.flood(np.array([3, 0, 0, 0, 8])).compute()
        array([3, 3, 3, 8, 8])
        """
        given = None if mask is None else node_of(mask)
        return self._new(flood(self.node, node_of(seeds), given, connectivity, block_size, context))
