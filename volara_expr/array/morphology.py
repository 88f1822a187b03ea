"""Grey and binary morphology."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy.typing as npt

from volara_expr.array.base import Handle
from volara_expr.expr.node import ArrayNode
from volara_expr.geometry.space import Length
from volara_expr.ops.morphology import Element, closing, cross, dilation, element, erosion, opening
from volara_expr.ops.pointwise import Elementwise
from volara_expr.ops.stencil import Boundary, window_voxels

if TYPE_CHECKING:
    from volara_expr.array.core import Array

__all__ = ["Morphology"]

Lengths = Length | Sequence[Length]
Form = npt.ArrayLike | None


class Morphology(Handle):
    """Morphology along the space axes, by SciPy's names; other axes are mapped over.

    A window is given by `size` (voxels along each space axis), by `footprint` (booleans: the entries that count) or by
    `structure` (heights, which are subtracted in an erosion and added in a dilation). Its centre is entry n // 2 of a side of n.
    """

    __slots__ = ()

    def _element(self, size: Lengths | None, footprint: Form, structure: Form) -> tuple[Element, Element]:
        sides = None if size is None else window_voxels(self.node.spec.space, size)
        return element(self.node.spec, sides, footprint, structure)

    def grey_erosion(
        self,
        size: Lengths | None = None,
        footprint: Form = None,
        structure: Form = None,
        mode: Boundary = "reflect",
        value: float = 0.0,
    ) -> Array:
        """Take the smallest value of a window, as `scipy.ndimage.grey_erosion`.

        Halo: half the window along each space axis. Exact.

        Parameters
        ----------
        size : length, or one per space axis
        footprint : array_like of bool, over the space axes
        structure : array_like of float, over the space axes
            Sums of integers are kept in the range of their type.
        mode : {"reflect", "mirror", "nearest", "constant"}
            As in `gaussian`.
        value : float
            Beyond the faces, in mode "constant".

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([5, 1, 7, 8])).grey_erosion(footprint=[1, 1, 0]).compute()
        array([5, 1, 1, 7])
        """
        return self._new(erosion(self.node, self._element(size, footprint, structure), mode, value))

    def grey_dilation(
        self,
        size: Lengths | None = None,
        footprint: Form = None,
        structure: Form = None,
        mode: Boundary = "reflect",
        value: float = 0.0,
    ) -> Array:
        """Take the largest value of the window turned about its centre, as `scipy.ndimage.grey_dilation`.

        Halo: half the window along each space axis. Exact.

        Parameters
        ----------
        size, footprint, structure, mode, value
            As in `grey_erosion`.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([5, 1, 7, 8])).grey_dilation(footprint=[1, 1, 0]).compute()
        array([5, 7, 8, 8])
        """
        return self._new(dilation(self.node, self._element(size, footprint, structure), mode, value))

    def grey_opening(
        self,
        size: Lengths | None = None,
        footprint: Form = None,
        structure: Form = None,
        mode: Boundary = "reflect",
        value: float = 0.0,
    ) -> Array:
        """Dilate the erosion, as `scipy.ndimage.grey_opening`: what is bright and narrower than the window goes.

        Halo: the window along each space axis. Exact.

        Parameters
        ----------
        size, footprint, structure, mode, value
            As in `grey_erosion`.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([1, 9, 1, 5, 5, 5])).grey_opening(3).compute()
        array([1, 1, 1, 5, 5, 5])
        """
        return self._new(opening(self.node, self._element(size, footprint, structure), mode, value))

    def grey_closing(
        self,
        size: Lengths | None = None,
        footprint: Form = None,
        structure: Form = None,
        mode: Boundary = "reflect",
        value: float = 0.0,
    ) -> Array:
        """Erode the dilation, as `scipy.ndimage.grey_closing`: what is dark and narrower than the window goes.

        Halo: the window along each space axis. Exact.

        Parameters
        ----------
        size, footprint, structure, mode, value
            As in `grey_erosion`.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([5, 1, 5, 1, 1, 1])).grey_closing(3).compute()
        array([5, 5, 5, 1, 1, 1])
        """
        return self._new(closing(self.node, self._element(size, footprint, structure), mode, value))

    def white_tophat(
        self,
        size: Lengths | None = None,
        footprint: Form = None,
        structure: Form = None,
        mode: Boundary = "reflect",
        value: float = 0.0,
    ) -> Array:
        """Subtract the opening, as `scipy.ndimage.white_tophat`: what is bright and narrower than the window stays.

        Halo: the window along each space axis. Exact.

        Parameters
        ----------
        size, footprint, structure, mode, value
            As in `grey_erosion`.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([1, 9, 1, 5, 5, 5])).white_tophat(3).compute()
        array([0, 8, 0, 0, 0, 0])
        """
        opened = opening(self.node, self._element(size, footprint, structure), mode, value)
        return self._new(_difference(self.node, opened))

    def black_tophat(
        self,
        size: Lengths | None = None,
        footprint: Form = None,
        structure: Form = None,
        mode: Boundary = "reflect",
        value: float = 0.0,
    ) -> Array:
        """Subtract from the closing, as `scipy.ndimage.black_tophat`: what is dark and narrower than the window stays.

        Halo: the window along each space axis. Exact.

        Parameters
        ----------
        size, footprint, structure, mode, value
            As in `grey_erosion`.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([5, 1, 5, 1, 1, 1])).black_tophat(3).compute()
        array([0, 4, 0, 0, 0, 0])
        """
        closed = closing(self.node, self._element(size, footprint, structure), mode, value)
        return self._new(_difference(closed, self.node))

    def morphological_gradient(
        self,
        size: Lengths | None = None,
        footprint: Form = None,
        structure: Form = None,
        mode: Boundary = "reflect",
        value: float = 0.0,
    ) -> Array:
        """Subtract the erosion from the dilation, as `scipy.ndimage.morphological_gradient`.

        Halo: half the window along each space axis. Exact.

        Parameters
        ----------
        size, footprint, structure, mode, value
            As in `grey_erosion`.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([1, 1, 5, 5, 5])).morphological_gradient(3).compute()
        array([0, 4, 4, 0, 0])
        """
        window = self._element(size, footprint, structure)
        return self._new(_difference(dilation(self.node, window, mode, value), erosion(self.node, window, mode, value)))

    def _binary(self, steps: str, structure: Form, iterations: int, border: bool) -> Array:
        if iterations < 1:
            raise ValueError(f"iterations={iterations}; without end, no block could know how far it reaches: give 1 or more")
        node: ArrayNode = Elementwise("not_equal", (self.node, 0))
        window = cross(node.spec, 1) if structure is None else element(node.spec, footprint=structure)
        for step in steps:
            for _ in range(iterations):
                node = (erosion if step == "e" else dilation)(node, window, "constant", float(border))
        return self._new(node)

    def binary_erosion(self, structure: Form = None, iterations: int = 1, border_value: bool = False) -> Array:
        """Keep the voxels whose whole window is not 0, as `scipy.ndimage.binary_erosion`.

        Halo: half the window, once for each iteration. Exact.

        Parameters
        ----------
        structure : array_like of bool, over the space axes, optional
            The window; by default a voxel and its neighbours across faces.
        iterations : int
        border_value : bool
            What lies beyond the faces.

        Returns
        -------
        Array
            Of booleans.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([0, 1, 1, 1, 1])).binary_erosion().compute()
        array([False, False,  True,  True, False])
        """
        return self._binary("e", structure, iterations, border_value)

    def binary_dilation(self, structure: Form = None, iterations: int = 1, border_value: bool = False) -> Array:
        """Add the window around every voxel that is not 0, as `scipy.ndimage.binary_dilation`.

        Halo: half the window, once for each iteration. Exact.

        Parameters
        ----------
        structure, iterations, border_value
            As in `binary_erosion`.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([0, 0, 0, 1, 0])).binary_dilation().compute()
        array([False, False,  True,  True,  True])
        """
        return self._binary("d", structure, iterations, border_value)

    def binary_opening(self, structure: Form = None, iterations: int = 1) -> Array:
        """Dilate the erosion, as `scipy.ndimage.binary_opening`.

        Halo: the window, once for each iteration. Exact.

        Parameters
        ----------
        structure, iterations
            As in `binary_erosion`.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([0, 1, 0, 1, 1, 1, 0])).binary_opening().compute().astype(int)
        array([0, 0, 0, 1, 1, 1, 0])
        """
        return self._binary("ed", structure, iterations, False)

    def binary_closing(self, structure: Form = None, iterations: int = 1) -> Array:
        """Erode the dilation, as `scipy.ndimage.binary_closing`.

        Halo: the window, once for each iteration. Exact.

        Parameters
        ----------
        structure, iterations
            As in `binary_erosion`.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([0, 1, 0, 1, 0, 0, 0])).binary_closing().compute().astype(int)
        array([0, 1, 1, 1, 0, 0, 0])
        """
        return self._binary("de", structure, iterations, False)


def _difference(a: ArrayNode, b: ArrayNode) -> ArrayNode:
    """Return a - b; of booleans, where they differ, as SciPy."""
    return Elementwise("logical_xor" if a.spec.dtype.kind == "b" else "subtract", (a, b))
