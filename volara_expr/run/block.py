"""One block: what it needs, then what it is. The whole halo algebra is in these two functions.

Backwards, from the outputs to the leaves, every node gets the box that is needed of it (the hull where several users ask).
Forwards, every node is computed once for that box, by its kernel's own boundary mode on inputs clipped to their domain, and
its users cut what they asked for. Clipping node by node is what makes chains exact at the rim of the volume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np

from volara_expr.expr import ArrayNode, Node, Patch
from volara_expr.geometry import Box
from volara_expr.plan.region import Region

__all__ = ["Program", "resolve"]


@cache
def resolve(kernel: str) -> Any:
    """Import the function that a node names as "module:function"; None for a node without a kernel."""
    if not kernel:
        return None
    module, _, name = kernel.partition(":")
    return getattr(import_module(module), name)


class Program(Region):
    """A region together with the means to compute it."""

    def __init__(self, roots: Iterable[ArrayNode], leaves: Iterable[Node]) -> None:
        super().__init__(roots, leaves)
        self.users: dict[int, int] = {}
        for n in self.computed:
            for x in n.arrays:
                self.users[id(x)] = self.users.get(id(x), 0) + 1

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
            if box.empty:
                patch = Patch(box, np.empty(box.shape, node.spec.dtype))
            elif id(node) in self.leaves:
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
