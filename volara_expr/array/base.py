"""What the families of methods share: the node behind a handle, and the way from values to nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from volara_expr.expr.node import ArrayNode, ArraySpec
from volara_expr.geometry import Box, Space
from volara_expr.ops.sources import in_memory

if TYPE_CHECKING:
    from volara_expr.array.core import Array

__all__ = ["Handle", "node_of", "operand_of"]


class Handle:
    """Base of the method families of `Array`."""

    __slots__ = ("node",)
    node: ArrayNode

    def _new(self, node: ArrayNode) -> Array:
        from volara_expr.array.core import Array

        return Array(node)


def node_of(value: Any) -> ArrayNode:
    """Return the node of an Array, or of a NumPy array (which has no position of its own)."""
    if isinstance(value, Handle):
        return value.node
    if isinstance(value, np.ndarray):
        return in_memory(value, ArraySpec(Box.of_shape(value.shape), value.dtype, Space.plain(value.ndim)))
    raise TypeError(f"expected an Array or a NumPy array, got {type(value).__name__}")


def operand_of(value: Any) -> ArrayNode | bool | int | float | complex | np.generic:
    """Return a node, or a scalar as it is: Python scalars stay weak in promotion, NumPy scalars keep their type."""
    if isinstance(value, (bool, int, float, complex, np.generic)):
        return value
    if isinstance(value, np.ndarray) and value.ndim == 0:
        scalar: np.generic = value.dtype.type(value)
        return scalar
    return node_of(value)
