"""Indexing, world coordinates, and everything else that moves voxels without computing any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from volara_expr.array.base import Handle, node_of
from volara_expr.expr.node import ArrayNode
from volara_expr.geometry import Box, Roi
from volara_expr.geometry.space import Length, Number, canonical_unit, exact
from volara_expr.ops.align import axis_number
from volara_expr.ops.indexing import crop, flip, index, squeeze
from volara_expr.ops.join import Concat, Pad, PadMode, pad_width, stack
from volara_expr.ops.shape import ExpandDims, Transpose, at, with_neighborhood, with_voxel_size

if TYPE_CHECKING:
    from volara_expr.array.core import Array

__all__ = ["Shape", "World"]


class World(Handle):
    """What `array.world` gives: the array, to be indexed in world coordinates."""

    __slots__ = ()

    def __init__(self, node: ArrayNode) -> None:
        self.node = node

    def __getitem__(self, key: Any) -> Array:
        spec = self.node.spec
        spatial = spec.space.spatial
        if hasattr(key, "get_begin"):  # funlib.geometry.Roi
            key = Roi.from_funlib(key)
        if isinstance(key, Roi):
            spans = dict(key.in_voxels(spec.space))
        else:
            keys = key if isinstance(key, tuple) else (key,)
            if len(keys) > len(spatial) or not all(isinstance(k, slice) and k.step is None for k in keys):
                raise IndexError(
                    f"world[...] takes a Roi, or slices without steps for the {len(spatial)} space axes, as in "
                    f"world['400nm':'800nm']; got {key!r}"
                )
            spans = {i: self._span(i, k) for i, k in zip(spatial, keys, strict=False)}
        faces = [spans.get(i, (spec.box.lo[i], spec.box.hi[i])) for i in range(spec.ndim)]
        return self._new(crop(self.node, Box(tuple(a for a, _ in faces), tuple(b for _, b in faces))))

    def _span(self, axis: int, key: slice) -> tuple[int, int]:
        """Return the range of all voxels that a world interval touches; numbers are in the unit of the axis."""
        spec = self.node.spec
        size, origin = spec.space.voxel_size[axis], spec.space.origin[axis]

        def voxel(position: Number) -> Any:
            if isinstance(position, str):
                return spec.space.voxels(position, axis) - origin / size
            return (exact(position) - origin) / size

        lo = spec.box.lo[axis] if key.start is None else voxel(key.start).__floor__()
        hi = spec.box.hi[axis] if key.stop is None else voxel(key.stop).__ceil__()
        return lo, hi


class Shape(Handle):
    """How an array is cut, turned and joined. Along space axes a crop keeps its place, so crops of one array stay aligned."""

    __slots__ = ()

    def __getitem__(self, key: Any) -> Array:
        return self._new(index(self.node, key))

    @property
    def world(self) -> World:
        """The array, to be indexed in world coordinates: a `Roi`, or slices along the space axes.

        All voxels that the box touches are taken, as far as the array reaches. Slices hold lengths with units, or numbers in
        the unit of the axis.

        Halo: none.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> a = ve.from_numpy(np.arange(10), voxel_size=(4,), units="nm")
        >>> a.world["8nm":"0.02um"].compute()
        array([2, 3, 4])
        >>> a.world[ve.Roi((7,), (2,), "nm")].compute()
        array([1, 2])
        """
        return World(self.node)

    def at(self, other: Array) -> Array:
        """Give this array's voxels the position and voxel size of `other`, over the space axes.

        Halo: none.

        Raises
        ------
        ValueError
            If the shapes over the space axes differ.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> a = ve.from_numpy(np.array([1, 4, 9]), voxel_size=(4,), units="nm")
        >>> (a[1:] - a[:-1].at(a[1:])).compute()
        array([3, 5])
        """
        return self._new(at(self.node, node_of(other)))

    def transpose(self, *axes: int | str | tuple[int | str, ...] | list[int | str]) -> Array:
        """Put the axes, given by number or name (one by one or as one sequence), in another order; without arguments, reverse them.

        Halo: none.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.zeros((2, 3, 4))).transpose("x", "y", "z").compute().shape
        (4, 3, 2)
        """
        spec = self.node.spec
        given = [a for entry in axes for a in (entry if isinstance(entry, (tuple, list)) else (entry,))]
        order = given or reversed(range(spec.ndim))
        return self._new(Transpose(self.node, tuple(axis_number(a, spec.ndim, spec.space.names) for a in order)))

    @property
    def T(self) -> Array:
        """The array with its axes reversed."""
        return self.transpose()

    def flip(self, axis: int | str | Sequence[int | str] | None = None) -> Array:
        """Mirror the content along the given axes (all by default), as `numpy.flip`; the world box stays.

        Halo: none.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.arange(4)).flip().compute()
        array([3, 2, 1, 0])
        """
        return self._new(flip(self.node, self._axes(axis)))

    def squeeze(self, axis: int | str | Sequence[int | str]) -> Array:
        """Drop axes of one entry.

        Halo: none.

        Raises
        ------
        ValueError
            If an axis has another number of entries.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.zeros((1, 3, 4))).squeeze("z").shape
        (3, 4)
        """
        return self._new(squeeze(self.node, self._axes(axis)))

    def expand_dims(self, axis: int) -> Array:
        """Add a channel axis of one entry at a position, as `numpy.expand_dims` does.

        Halo: none.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.zeros((3, 4))).expand_dims(0).axes
        ('c', 'y', 'x')
        """
        return self._new(ExpandDims(self.node, axis_number(axis, self.node.spec.ndim + 1)))

    def pad(
        self,
        width: Length | Sequence[Length | tuple[Length, Length]],
        mode: PadMode = "constant",
        value: bool | int | float | complex = 0,
    ) -> Array:
        """Add voxels around the array along its space axes, as `numpy.pad`; the old voxels keep their coordinates.

        Halo: none; with "reflect", the mirrored voxels near a face.

        Parameters
        ----------
        width : length, or one per space axis, each a length or (before, after)
            Whole voxels, or strings with units.
        mode : {"constant", "edge", "reflect"}
        value : scalar
            Of the new voxels in mode "constant".

        Raises
        ------
        ValueError
            If a width is negative or no whole number of voxels, or `value` does not fit the type of the array.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([1, 2, 3])).pad(((1, 2),), mode="reflect").compute()
        array([2, 1, 2, 3, 2, 1])
        """
        return self._new(Pad(self.node, pad_width(self.node.spec.space, width), mode, value))

    def concat(self, *others: Array, axis: int | str = 0) -> Array:
        """Join arrays along an axis, this one first; see `volara_expr.concat`.

        Halo: none.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> a = ve.from_numpy(np.arange(3))
        >>> a.concat(a[:1]).compute()
        array([0, 1, 2, 0])
        """
        spec = self.node.spec
        at_ = axis_number(axis, spec.ndim, spec.space.names)
        return self._new(Concat((self.node, *map(node_of, others)), at_))

    def stack(self, *others: Array, axis: int = 0, neighborhood: Sequence[Sequence[int]] | None = None) -> Array:
        """Join arrays along a new channel axis, this one first; see `volara_expr.stack`.

        Halo: none.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> a = ve.from_numpy(np.arange(3))
        >>> a.stack(a * 2).compute()
        array([[0, 1, 2],
               [0, 2, 4]])
        """
        return self._new(stack((self.node, *map(node_of, others)), axis, neighborhood))

    def with_neighborhood(self, neighborhood: Sequence[Sequence[int]], axis: int | None = None) -> Array:
        """Declare what the entries of a channel axis are: the affinities of each voxel to the voxel at an offset.

        Halo: none.

        Parameters
        ----------
        neighborhood : sequence of offsets
            One per entry, each with one number of voxels per space axis.
        axis : int, optional
            By default the first channel axis.

        Raises
        ------
        ValueError
            If numbers of offsets and channels, or of offset entries and space axes, differ.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> affs = ve.from_numpy(np.zeros((2, 1, 8, 8))).with_neighborhood([(0, 1, 0), (0, 0, 1)])
        >>> affs[1:].node.spec.neighborhood
        ((0, 0, 1),)
        """
        return self._new(with_neighborhood(self.node, neighborhood, axis))

    def with_voxel_size(
        self, voxel_size: Sequence[Number], offset: Sequence[Number] | None = None, unit: str | None = None
    ) -> Array:
        """Declare the size of a voxel, the world position of the first one, and their unit, over the space axes.

        Halo: none.

        Parameters
        ----------
        voxel_size, offset : one number per space axis
            Floats stand for their shortest decimal. By default the offset stays.
        unit : str, optional
            "nm", "um", ...; by default it stays.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.zeros((5, 6))).with_voxel_size((0.5, 0.25), offset=(2, 0), unit="um").roi
        Roi[2:4.5, 0:1.5] um
        """
        start = None if offset is None else tuple(map(exact, offset))
        return self._new(with_voxel_size(self.node, tuple(map(exact, voxel_size)), start, canonical_unit(unit)))

    def _axes(self, axis: int | str | Sequence[int | str] | None) -> tuple[int, ...]:
        spec = self.node.spec
        if axis is None:
            return tuple(range(spec.ndim))
        given = (axis,) if isinstance(axis, (int, str)) else tuple(axis)
        return tuple(axis_number(a, spec.ndim, spec.space.names) for a in given)
