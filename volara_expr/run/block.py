"""One block: what it needs, then what it is. The whole halo algebra is in these two functions.

Backwards, from the outputs to the leaves, every node gets the box that is needed of it (the hull where several users ask).
Forwards, every node is computed once for that box, by its kernel's own boundary mode on inputs clipped to their domain, and
its users cut what they asked for. Clipping node by node is what makes chains exact at the rim of the volume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any

from volara_expr.expr import ArrayNode, Node, Patch, topological
from volara_expr.geometry import Box

__all__ = ["Program", "resolve"]


@cache
def resolve(kernel: str) -> Any:
    """Import the function that a node names as "module:function"; None for a node without a kernel."""
    if not kernel:
        return None
    module, _, name = kernel.partition(":")
    return getattr(import_module(module), name)


class Program:
    """The order in which the nodes between stored inputs and outputs are computed; made once, used for every block.

    Parameters
    ----------
    roots : sequence of ArrayNode
        What is asked for.
    leaves : container of Node
        Nodes that are read, not computed; nothing behind them is looked at.
    """

    def __init__(self, roots: Sequence[ArrayNode], leaves: Iterable[Node]) -> None:
        self.leaves = {id(n): n for n in leaves}
        order = topological(roots, stop=lambda n: id(n) in self.leaves)
        self.order = [n for n in order if isinstance(n, ArrayNode)]
        self.users: dict[int, int] = {}
        for n in self.order:
            if id(n) not in self.leaves:
                for x in n.arrays:
                    self.users[id(x)] = self.users.get(id(x), 0) + 1

    def demand(self, asked: Mapping[ArrayNode, Box]) -> dict[ArrayNode, Box]:
        """Return the box needed of every node, leaves included, for the given boxes of the roots."""
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

    def evaluate(
        self,
        boxes: Mapping[ArrayNode, Box],
        read: Callable[[ArrayNode, Box], Any],
        tables: Callable[[Node], Any],
        keep: Iterable[ArrayNode],
    ) -> dict[ArrayNode, Patch]:
        """Compute every node for its box and return the patches of `keep`.

        Parameters
        ----------
        boxes : mapping
            What `demand` returned.
        read : callable
            Gives the array of a leaf for a box.
        tables : callable
            Gives the opened table of a table node.
        """
        kept = set(map(id, keep))
        left = dict(self.users)
        patches: dict[int, Patch] = {}
        result: dict[ArrayNode, Patch] = {}
        for node in self.order:
            box = boxes.get(node)
            if box is None:
                continue
            if id(node) in self.leaves:
                patch = Patch(box, read(node, box))
            else:
                patch = compute(node, box, patches, tables)
            patches[id(node)] = patch
            if id(node) in kept:
                result[node] = patch
            if id(node) not in self.leaves:
                for x in node.arrays:  # free what no later node looks at
                    left[id(x)] -= 1
                    if not left[id(x)]:
                        patches.pop(id(x), None)
        return result


def compute(node: ArrayNode, box: Box, patches: Mapping[int, Patch], tables: Callable[[Node], Any]) -> Patch:
    """Compute one node for one box from the patches of its inputs."""
    from volara_expr.kernels.fused import Coded, coded, plain

    inputs = []
    for x, need in zip(node.arrays, node.need(box), strict=True):
        if need is None or id(x) not in patches:
            need = Box(x.spec.box.lo, x.spec.box.lo)
            inputs.append(Patch(need, None))
        else:
            inputs.append(patches[id(x)].cut(need.clip(x.spec.box)))
    kernel = resolve(node.kernel)
    opened = [tables(t) for t in node.tables]
    if node.pointwise and len({id(x) for x in node.arrays}) == 1 and not opened:
        codes = coded(inputs[0].data)
        if codes is not None and codes.codes.shape == box.shape:
            flat = Box.of_shape(codes.table.shape)
            table = node.apply(kernel, flat, [Patch(flat, codes.table)] * len(inputs), opened)
            return Patch(box, Coded(codes.codes, table))
    if not node.takes_coded:
        inputs = [Patch(p.box, None if p.data is None else plain(p.data)) for p in inputs]
    return Patch(box, node.apply(kernel, box, inputs, opened))
