"""A region: the nodes between what is read and what is asked for, and the boxes that a block takes of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from volara_expr.expr import ArrayNode, Node, topological
from volara_expr.geometry import Box
from volara_expr.plan.fusion import Step, find_steps

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
        self.roots = list(roots)
        order = topological(self.roots, stop=lambda n: id(n) in stop)
        self.order = [n for n in order if isinstance(n, ArrayNode)]
        self.leaves = {id(n): n for n in self.order if id(n) in stop or not n.inputs}
        self.steps: dict[int, Step] = {}

    def fuse(self, totals: Mapping[ArrayNode, Box] | None) -> None:
        """Replace pointwise parts by tables and, for given totals (see `find_steps`), loops; what is inside leaves `order`."""
        self.steps = find_steps(self.order, self.leaves, self.roots, totals)
        needed = {id(n) for n in self.roots}
        for n in reversed(self.order):
            if id(n) in needed and id(n) not in self.leaves:
                needed |= {id(x) for x in self.arrays_of(n)}
        self.order = [n for n in self.order if id(n) in needed]
        self.leaves = {key: n for key, n in self.leaves.items() if key in needed}

    @property
    def computed(self) -> list[ArrayNode]:
        """The nodes that are computed, inputs before users."""
        return [n for n in self.order if id(n) not in self.leaves]

    def arrays_of(self, node: ArrayNode) -> tuple[ArrayNode, ...]:
        """Return the arrays that a node, or the fused part that it is the result of, takes."""
        step = self.steps.get(id(node))
        return node.arrays if step is None else step.arrays

    def need_of(self, node: ArrayNode, box: Box) -> tuple[Box | None, ...]:
        """Return the box of each of those arrays that a box of the node takes."""
        step = self.steps.get(id(node))
        return node.need(box) if step is None else step.need(box)

    def demand(self, asked: Mapping[ArrayNode, Box]) -> dict[ArrayNode, Box]:
        """Return the box needed of every node, leaves included, for the given boxes of the roots.

        Each box is clipped to its node's domain; where several users ask, it is their hull.
        """
        boxes = {n: b.clip(n.spec.box) for n, b in asked.items()}
        for node in reversed(self.order):
            box = boxes.get(node)
            if box is None or box.empty or id(node) in self.leaves:
                continue
            for x, need in zip(self.arrays_of(node), self.need_of(node, box), strict=True):
                if need is not None:
                    need = need.clip(x.spec.box)
                    boxes[x] = boxes[x].hull(need) if x in boxes else need
        return boxes
