"""`Array`: the handle a user holds."""

from __future__ import annotations

from volara_expr.array.pointwise import Pointwise
from volara_expr.expr.node import ArrayNode

__all__ = ["Array"]


class Array(Pointwise):
    """A lazy array."""

    __slots__ = ("__weakref__",)

    def __init__(self, node: ArrayNode) -> None:
        self.node = node
