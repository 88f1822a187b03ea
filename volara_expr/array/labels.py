"""Methods that make labels, and those that work on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from volara_expr.array.base import Handle, node_of
from volara_expr.array.graph import Graph
from volara_expr.array.lut import Lut, lut_of
from volara_expr.geometry.space import Length
from volara_expr.ops.agglomerate import Channels, region_graph
from volara_expr.ops.cells import IdRange
from volara_expr.ops.components import components
from volara_expr.ops.labels import Missing, Relabel
from volara_expr.ops.mask import masked
from volara_expr.ops.regions import watershed

if TYPE_CHECKING:
    from volara_expr.array.core import Array

__all__ = ["Labels"]


class Labels(Handle):
    """From affinities to fragments, a region graph and segments; components; masks."""

    __slots__ = ()

    def watershed(
        self,
        bias: float | Sequence[float],
        strides: Sequence[int] | Sequence[Sequence[int]] | None = None,
        block_size: Length | Sequence[Length] = 64,
        context: Length | Sequence[Length] | None = None,
        *,
        noise: float = 0.0,
        sigma: Length | Sequence[Length] | None = None,
        seed: int = 0,
        random_strides: bool = False,
        mask: Any = None,
        min_size: int = 0,
        min_mean_affinity: float = 0.0,
        min_extent: Length | Sequence[Length] | None = None,
        ids: IdRange = "float53",
    ) -> Array:
        """Segment each block by the mutex watershed (Wolf et al., "The Mutex Watershed", ECCV 2018).

        The results are fragments: each block is segmented together with its context and cropped; a fragment that falls apart there becomes several. The
        blocks are a parameter, not an execution detail: the result depends on them and on nothing else. They start at absolute
        voxel 0, so a crop of the result, or the watershed of other outputs, has the same fragments with the same ids.

        Parameters
        ----------
        bias : float or sequence of float
            Added to the affinities, one number for all offsets or one each. The sum is an edge's weight: positive joins,
            negative keeps apart, the strongest first.
        strides : sequence of int, or one for each offset, optional
            Only edges that start at multiples of the stride (counted from absolute voxel 0) are used; by default all.
        block_size : int or sequence of int
            Along the space axes, in voxels or as lengths with a unit.
        context : int or sequence of int, optional
            Read beyond each block, along the space axes; by default the largest offset along each axis.
        noise : float
            Standard deviation of noise added to the affinities; a function of `seed`, channel and absolute voxel.
        sigma : float or sequence of float, optional
            Smooth the affinities first, with a Gaussian along the space axes. `min_mean_affinity` then averages the
            affinities as they were.
        seed : int
            For `noise` and `random_strides`.
        random_strides : bool
            Keep each edge with probability ``1 / prod(stride)``, in place of a lattice.
        mask : Array or numpy.ndarray, optional
            Over the space axes; where it is 0, no edge touches the voxel, and it is background. By default the one that
            `mask` set on the affinities.
        min_size : int
            Fragments of fewer voxels become background. This and the next two look at the block with its context.
        min_mean_affinity : float
            Fragments whose mean affinity, over the first channels (one for each space axis), is lower become background.
        min_extent : int or sequence of int, optional
            Fragments whose bounding box is shorter along any axis become background.
        ids : {"float53", "uint64"}
            Range of the ids, ``(block number + 1) << bits | number within the block``: below 2**53, which viewers show
            exactly, or 64 bits.

        Returns
        -------
        Array
            uint64; the axes of the affinities without that of the offsets. 0 is background: voxels without a positive edge.

        Raises
        ------
        ValueError
            If the neighborhood is not known, a parameter has another number of entries than there are offsets or space axes,
            or the ids do not fit.
        TypeError
            If the affinities are neither integers nor floats.

        Notes
        -----
        Halo: whole blocks, and `context` beyond them. Exact.

        Examples
        --------
        >>> import numpy as np
        >>> import volara_expr as ve
        >>> data = np.array([[[0.9, 0.2, 0.8, 0.0]]])
        >>> affs = ve.from_numpy(data, axes=("c", "y", "x"), neighborhood=[(0, 1)])
        >>> affs.watershed(bias=-0.5, block_size=8).compute()
        array([[129, 129, 130, 130]], dtype=uint64)
        """
        return self._new(
            watershed(
                self.node,
                bias=bias,
                strides=strides,
                block_size=block_size,
                context=context,
                noise=noise,
                sigma=sigma,
                seed=seed,
                random_strides=random_strides,
                mask=None if mask is None else node_of(mask),
                min_size=min_size,
                min_mean_affinity=min_mean_affinity,
                min_extent=min_extent,
                ids=ids,
            )
        )

    def agglomerate(
        self,
        affs: Array,
        scores: Mapping[str, Channels],
        mean_of: Mapping[str, Array] | None = None,
        block_size: Length | Sequence[Length] | None = None,
    ) -> Graph:
        """Make the region graph of these labels: for each pair that touches, the mean affinity between them.

        A score is the mean of the affinity of all voxel pairs (v, v + offset) that lie in two different labels, pooled over the
        score's offsets. It is a quotient of integer sums (floats count as ``rint(x * 2**24)``), so it does not depend on blocks.

        Parameters
        ----------
        affs : Array
            Affinities over the same voxels, with their neighborhood.
        scores : dict of str to slice, list of int, or list of offsets
            For each score, which channels of the neighborhood it pools.
        mean_of : dict of str to Array, optional
            Arrays over the same voxels, to be averaged over each label.
        block_size : int or sequence of int, optional
            Cells in which the sums are made; changes nothing but the time it takes. By default the labels' own blocks, or 64.

        Returns
        -------
        Graph
            Nodes are the labels but 0, with size and position; edges are the pairs.

        Raises
        ------
        TypeError
            If the labels are no integers.
        ValueError
            If the arrays do not cover the same voxels, or a name cannot be a column.
        KeyError, IndexError
            If the neighborhood has no such offset or channel.

        Notes
        -----
        Halo: the offsets of the scores. Exact.

        Examples
        --------
        >>> import numpy as np
        >>> import volara_expr as ve
        >>> data = np.array([[[0.9, 0.2, 0.8, 0.0]]])
        >>> affs = ve.from_numpy(data, axes=("c", "y", "x"), neighborhood=[(0, 1)])
        >>> frags = affs.watershed(bias=-0.5, block_size=8)
        >>> frags.agglomerate(affs, scores={"direct": [(0, 1)]}).mutex_watershed({"direct": (1.0, -0.1)}).compute()
        {129: 129, 130: 129}
        """
        values = {name: node_of(value) for name, value in (mean_of or {}).items()}
        return Graph(region_graph(self.node, node_of(affs), scores, values, block_size))

    def relabel(self, lut: Lut | Mapping[int, int], missing: Missing = "keep") -> Array:
        """Replace labels by their values in a look-up table; 0 stays 0.

        Parameters
        ----------
        lut : Lut or dict
        missing : {"keep", "zero", "error"}
            What becomes of a label that the table does not hold.

        Returns
        -------
        Array
            uint64.

        Raises
        ------
        TypeError
            If the labels are no integers.
        BadVoxel
            When blocks run, with `missing="error"`: names the label and the voxel.

        Notes
        -----
        Halo: none. Exact.

        Examples
        --------
        >>> import numpy as np
        >>> import volara_expr as ve
        >>> ve.from_numpy(np.array([0, 1, 2])).relabel({1: 7}).compute()
        array([0, 7, 2], dtype=uint64)
        """
        return self._new(Relabel(self.node, lut_of(lut), missing))

    def components(
        self, connectivity: int = 1, equal: bool = False, block_size: Length | Sequence[Length] | None = None
    ) -> Array:
        """Label connected components from 1 by their first voxel, as `scipy.ndimage.label` does.

        Parameters
        ----------
        connectivity : int
            Voxels touch that differ by 1 along at most this many space axes. Components never cross axes that are not of space;
            numbers run through the whole array.
        equal : bool
            Only voxels of equal value touch: the pieces of labels. By default all voxels that are not 0.
        block_size : int or sequence of int, optional
            Cells that are labelled at once; changes nothing but the time it takes. By default 64.

        Returns
        -------
        Array
            uint64.

        Raises
        ------
        TypeError
            If the array holds neither booleans nor integers.

        Notes
        -----
        Halo: one voxel, for the cells' faces; then a table of the whole volume. Exact.

        Examples
        --------
        >>> import numpy as np
        >>> import volara_expr as ve
        >>> ve.from_numpy(np.array([3, 3, 0, 3])).components().compute()
        array([1, 1, 0, 2], dtype=uint64)
        """
        return self._new(components(self.node, connectivity, equal, block_size))

    def mask(self, m: Any, fill: complex = 0) -> Array:
        """Set voxels outside a mask to a value; statistics and segmentations that follow leave them out.

        A mask over the space axes is carried through elementwise operations and crops to `watershed`, `agglomerate` and
        `components`, which make no edge to what is outside.

        Parameters
        ----------
        m : Array or numpy.ndarray
            Booleans or integers, 0 is outside; over all axes of the array or over its space axes.
        fill : number
            A value of the array's type.

        Returns
        -------
        Array
            As this one.

        Raises
        ------
        ValueError
            If the mask does not cover the array's voxels, or the array's type has no such value.

        Notes
        -----
        Halo: none. Exact.

        Examples
        --------
        >>> import numpy as np
        >>> import volara_expr as ve
        >>> ve.from_numpy(np.arange(4)).mask(np.array([True, True, False, False]), fill=9).compute()
        array([0, 1, 9, 9])
        """
        return self._new(masked(self.node, node_of(m), fill))
