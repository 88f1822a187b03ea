"""Functions of several arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from volara_expr.array.base import node_of, operand_of
from volara_expr.ops.align import axis_number, common_boxes
from volara_expr.ops.indexing import crop
from volara_expr.ops.join import Concat
from volara_expr.ops.join import stack as stack_nodes
from volara_expr.ops.pointwise import Elementwise

if TYPE_CHECKING:
    from volara_expr.array.core import Array

__all__ = ["align", "concat", "concatenate", "stack", "where"]


def _array(node: Any) -> Array:
    from volara_expr.array.core import Array

    return Array(node)


def where(condition: Any, x: Any, y: Any) -> Array:
    """Take `x` where the condition holds and `y` elsewhere, voxel by voxel, as `numpy.where`.

    Halo: none.

    Parameters
    ----------
    condition, x, y : Array, ndarray or scalar
        Of shapes that broadcast, at the same place.

    Raises
    ------
    ValueError
        If shapes, voxel sizes or positions do not agree.
    OverflowError
        If a Python integer does not fit the type of the other.

    Examples
    --------
    >>> import numpy as np, volara_expr as ve
    >>> a = ve.from_numpy(np.array([3, -1, 2]))
    >>> ve.where(a > 0, a, 0).compute()
    array([3, 0, 2])
    """
    return _array(Elementwise("where", (operand_of(condition), operand_of(x), operand_of(y))))


def align(*arrays: Array) -> tuple[Array, ...]:
    """Crop arrays to their common world box over the space axes.

    Halo: none.

    Raises
    ------
    ValueError
        If voxel sizes or grids differ, if only some arrays have a position, or if nothing is common.

    Examples
    --------
    >>> import numpy as np, volara_expr as ve
    >>> a = ve.from_numpy(np.array([1, 4, 9]), voxel_size=(4,), units="nm")
    >>> b, c = ve.align(a[1:], a[:-1])
    >>> (b - c).compute()
    array([0])
    """
    nodes = [node_of(a) for a in arrays]
    boxes = common_boxes([n.spec for n in nodes]) if nodes else []
    return tuple(_array(crop(n, box)) for n, box in zip(nodes, boxes, strict=True))


def concat(arrays: Sequence[Array], axis: int | str = 0) -> Array:
    """Join arrays along an axis; the others must agree in extent and position. The first array's position holds for the whole.

    Along an axis of offsets the neighborhoods are joined too.

    Halo: none.

    Parameters
    ----------
    arrays : sequence of Array or ndarray
        Types are promoted as in NumPy.
    axis : int or str

    Raises
    ------
    ValueError
        If the other axes differ.

    Examples
    --------
    >>> import numpy as np, volara_expr as ve
    >>> a = ve.from_numpy(np.arange(3))
    >>> ve.concat([a, a[:1]]).compute()
    array([0, 1, 2, 0])
    """
    nodes = tuple(node_of(a) for a in arrays)
    if not nodes:
        raise ValueError("nothing to join; give at least one array")
    spec = nodes[0].spec
    return _array(Concat(nodes, axis_number(axis, spec.ndim, spec.space.names)))


concatenate = concat


def stack(arrays: Sequence[Array], axis: int = 0, neighborhood: Sequence[Sequence[int]] | None = None) -> Array:
    """Join arrays of one shape and place along a new channel axis.

    Halo: none.

    Parameters
    ----------
    arrays : sequence of Array or ndarray
    axis : int
        Where the new axis goes.
    neighborhood : sequence of offsets, optional
        Makes the new axis one of offsets, one entry per array: affinities.

    Raises
    ------
    ValueError
        If shapes or positions differ, or the neighborhood does not fit.

    Examples
    --------
    >>> import numpy as np, volara_expr as ve
    >>> a = ve.from_numpy(np.arange(3))
    >>> ve.stack([a, a * 2]).compute()
    array([[0, 1, 2],
           [0, 2, 4]])
    """
    return _array(stack_nodes([node_of(a) for a in arrays], axis, neighborhood))
