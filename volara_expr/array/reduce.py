"""Reductions along axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from volara_expr.array.base import Handle
from volara_expr.ops.align import axis_number
from volara_expr.ops.pointwise import Elementwise
from volara_expr.ops.reduce import Reduction
from volara_expr.ops.saturate import argmax_of_sums
from volara_expr.ops.values import extreme, total

if TYPE_CHECKING:
    from volara_expr.array.core import Array

__all__ = ["Reduce"]

Axes = int | str | Sequence[int | str] | None


class Reduce(Handle):
    """NumPy's reductions, with its types, over axes given by number or name; None for all.

    Over given axes, every block takes the reduced axes whole, which is meant for channels: sums of floats over axes that are not
    of space run in index order and are exact; over space axes they are not.

    Over all axes (no `axis`), the result is a lazy value that enters arithmetic, made from a table of exact partial results of
    voxels inside the carried mask: the sum is rounded once, at the end.
    """

    __slots__ = ()

    def _reduce(self, function: str, axis: Axes, keepdims: bool) -> Array:
        spec = self.node.spec
        given = (axis,) if isinstance(axis, (int, str)) else axis
        axes = None if given is None else tuple(axis_number(a, spec.ndim, spec.space.names) for a in given)
        if axes is not None and len(set(axes)) < len(axes):
            raise ValueError(f"axis={axis!r} names an axis twice")
        everything = spec.ndim > 0 and spec.ndim == (spec.ndim if axes is None else len(axes))
        if everything and not keepdims and not spec.box.empty and spec.dtype.kind != "c":
            if function in ("sum", "mean"):
                return self._new(total(self.node, function))
            if function in ("min", "max"):
                return self._new(extreme(self.node, function))
            if function in ("any", "all"):
                truth = Elementwise("not_equal", (self.node, False))
                return self._new(extreme(truth, "max" if function == "any" else "min"))
        return self._new(Reduction(function, self.node, axes, keepdims))

    def sum(self, axis: Axes = None, keepdims: bool = False) -> Array:
        """Sum over axes, as `numpy.sum`; floats over channels in index order.

        Halo: the reduced axes, whole.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.ones((3, 2), np.uint8)).sum(axis=0).compute()
        array([3, 3], dtype=uint64)
        """
        return self._reduce("sum", axis, keepdims)

    def mean(self, axis: Axes = None, keepdims: bool = False) -> Array:
        """Mean over axes, as `numpy.mean`; floats over channels are summed in index order.

        Halo: the reduced axes, whole.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.arange(6).reshape(3, 2)).mean(axis=0).compute()
        array([2., 3.])
        """
        return self._reduce("mean", axis, keepdims)

    def max(self, axis: Axes = None, keepdims: bool = False) -> Array:
        """Largest value over axes, as `numpy.max`.

        Halo: the reduced axes, whole.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([[1, 5], [4, 2]])).max(axis=0).compute()
        array([4, 5])
        """
        return self._reduce("max", axis, keepdims)

    def min(self, axis: Axes = None, keepdims: bool = False) -> Array:
        """Smallest value over axes, as `numpy.min`.

        Halo: the reduced axes, whole.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([[1, 5], [4, 2]])).min(axis=0).compute()
        array([1, 2])
        """
        return self._reduce("min", axis, keepdims)

    def any(self, axis: Axes = None, keepdims: bool = False) -> Array:
        """Whether any value over axes is not 0, as `numpy.any`.

        Halo: the reduced axes, whole.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([[0, 5], [0, 2]])).any(axis=0).compute()
        array([False,  True])
        """
        return self._reduce("any", axis, keepdims)

    def all(self, axis: Axes = None, keepdims: bool = False) -> Array:
        """Whether no value over axes is 0, as `numpy.all`.

        Halo: the reduced axes, whole.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([[0, 5], [1, 2]])).all(axis=0).compute()
        array([False,  True])
        """
        return self._reduce("all", axis, keepdims)

    def argmax(
        self,
        axis: int | str | None = None,
        keepdims: bool = False,
        *,
        combine: Sequence[Sequence[int]] | None = None,
    ) -> Array:
        """Index of the first largest value along one axis, or of the flattened array, as `numpy.argmax`.

        Halo: the reduced axis, whole.

        Parameters
        ----------
        axis : int or str, optional
        keepdims : bool
        combine : sequence of sequences of int, optional
            Groups of entries along the axis whose sums are compared, in a type that cannot wrap: the index is that of the group.

        Raises
        ------
        IndexError, ValueError, TypeError
            For a group that is empty or names an entry beyond the axis, and for sums of 64-bit integers.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> a = ve.from_numpy(np.array([[100, 5], [150, 20], [200, 0]], np.uint8))
        >>> a.argmax(axis=0).compute(), a.argmax(axis=0, combine=[[0, 2], [1]]).compute()
        (array([2, 1]), array([0, 1]))
        """
        if combine is None:
            return self._reduce("argmax", axis, keepdims)
        if axis is None:
            raise TypeError("combine groups the entries of one axis; name it: argmax(axis, combine=...)")
        spec = self.node.spec
        return self._new(argmax_of_sums(self.node, axis_number(axis, spec.ndim, spec.space.names), combine, keepdims))

    def argmin(self, axis: int | str | None = None, keepdims: bool = False) -> Array:
        """Index of the first smallest value along one axis, or of the flattened array, as `numpy.argmin`.

        Halo: the reduced axis, whole.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([[1, 5], [4, 2]])).argmin(axis=0).compute()
        array([0, 1])
        """
        return self._reduce("argmin", axis, keepdims)
