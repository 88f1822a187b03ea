"""A region: the nodes between what is read and what is asked for, and the boxes that a block takes of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from volara_expr.expr import ArrayNode, Node, topological
from volara_expr.geometry import Box

__all__ = ["Region"]


class Region:
    """The order in which nodes are computed; made once, used for every block.

    Parameters
    ----------
    roots : sequence of ArrayNode
        What is asked for.
    leaves : iterable of Node
        Nodes that are read, not computed; nothing behind them is looked at. Nodes without inputs are leaves anyway.
    """

    def __init__(self, roots: Iterable[ArrayNode], leaves: Iterable[Node]) -> None:
        stop = {id(n) for n in leaves}
        order = topological(roots, stop=lambda n: id(n) in stop)
        self.order = [n for n in order if isinstance(n, ArrayNode)]
        self.leaves = {id(n): n for n in self.order if id(n) in stop or not n.inputs}

    @property
    def computed(self) -> list[ArrayNode]:
        """The nodes that are computed, inputs before users."""
        return [n for n in self.order if id(n) not in self.leaves]

    def demand(self, asked: Mapping[ArrayNode, Box]) -> dict[ArrayNode, Box]:
        """Return the box needed of every node, leaves included, for the given boxes of the roots.

        Each box is clipped to its node's domain; where several users ask, it is their hull.
        """
        boxes = {n: b.clip(n.spec.box) for n, b in asked.items()}
        for node in reversed(self.order):
            box = boxes.get(node)
            if box is None or box.empty or id(node) in self.leaves:
                continue
            for x, need in zip(node.arrays, node.need(box), strict=True):
                if need is not None:
                    need = need.clip(x.spec.box)
                    boxes[x] = boxes[x].hull(need) if x in boxes else need
        return boxes
