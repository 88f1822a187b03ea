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
import numpy.typing as npt

from volara_expr.expr import ArrayNode, Node, Patch
from volara_expr.expr.origin import explained
from volara_expr.geometry import Box
from volara_expr.plan.fusion import Loop, Step, Table
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
    """A region together with the means to compute it.

    Parameters
    ----------
    roots : iterable of ArrayNode
        What is asked for.
    leaves : iterable of Node
        Nodes that are read.
    totals : mapping, optional
        What all blocks together take of each node; large pointwise parts then become compiled loops.
    """

    def __init__(
        self, roots: Iterable[ArrayNode], leaves: Iterable[Node], totals: Mapping[ArrayNode, Box] | None = None
    ) -> None:
        super().__init__(roots, leaves)
        self.fuse(totals)
        self.totals = totals or {}
        self.users: dict[int, int] = {}
        for n in self.computed:
            for x in self.arrays_of(n):
                self.users[id(x)] = self.users.get(id(x), 0) + 1
        self._made: dict[int, Any] = {}

    def compile(self) -> None:
        """Compile the loops, or load them; otherwise done when they are first needed."""
        from volara_expr.kernels.fused import compiled, look_up

        for step in self.steps.values():
            dtype = step.root.spec.dtype
            if isinstance(step, Loop):
                self._kernel(step).compile()
            elif compiled(self.totals.get(step.root, step.root.spec.box).size, dtype):
                look_up(step.arrays[0].spec.dtype, dtype)

    def _kernel(self, loop: Loop) -> Any:
        if id(loop) not in self._made:
            from volara_expr.kernels.loops import LoopKernel

            self._made[id(loop)] = LoopKernel(loop.value)
        return self._made[id(loop)]

    def _coded(self, table: Table, codes: npt.NDArray[Any]) -> Any:
        from volara_expr.kernels.fused import Coded, step_at

        if id(table) not in self._made:
            values = fill(table)
            self._made[id(table)] = values, step_at(values)
        return Coded(codes, *self._made[id(table)])

    def _run(self, step: Step, box: Box, patches: Mapping[int, Patch]) -> Patch:
        """Compute a fused part for one box."""
        from volara_expr.kernels.fused import plain

        inputs = [
            plain(patches[id(x)].cut(need.clip(x.spec.box)).data) for x, need in zip(step.arrays, step.need(box), strict=True)
        ]
        if isinstance(step, Table):
            return Patch(box, self._coded(step, inputs[0]))
        assert isinstance(step, Loop)
        planes = [p for o, data in zip(step.operands, inputs, strict=True) for p in (data if o.planes else (data,))]
        return Patch(box, self._kernel(step)(planes, box.shape))

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
            Gives the array of a leaf for a box; None for a source that makes its voxels itself.
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
                data = read(node, box)
                patch = Patch(box, data) if data is not None else compute(node, box, patches, tables)
            elif id(node) in self.steps:
                patch = self._run(self.steps[id(node)], box, patches)
            else:
                patch = compute(node, box, patches, tables)
            patches[id(node)] = patch
            if id(node) in kept:
                result[node] = patch
            if id(node) not in self.leaves:
                for x in self.arrays_of(node):  # free what no later node looks at
                    left[id(x)] -= 1
                    if not left[id(x)]:
                        patches.pop(id(x), None)
        return result


def compute(node: ArrayNode, box: Box, patches: Mapping[int, Patch], tables: Callable[[Node], Any]) -> Patch:
    """Compute one node for one box from the patches of its inputs."""
    from volara_expr.kernels.fused import plain

    inputs = []
    for x, need in zip(node.arrays, node.need(box), strict=True):
        if need is None or id(x) not in patches:
            need = Box(x.spec.box.lo, x.spec.box.lo)
            inputs.append(Patch(need, None))
        else:
            inputs.append(patches[id(x)].cut(need.clip(x.spec.box)))
    kernel = resolve(node.kernel)
    opened = [tables(t) for t in node.tables]
    if not node.takes_coded:
        inputs = [Patch(p.box, None if p.data is None else plain(p.data)) for p in inputs]
    with explained(node.label, node.origin):
        return Patch(box, node.apply(kernel, box, inputs, opened))


def fill(table: Table) -> npt.NDArray[Any]:
    """Let NumPy compute a part for every code: its result, by construction."""
    dtype = table.arrays[0].spec.dtype
    values = np.arange(1 << 8 * dtype.itemsize, dtype=dtype)
    box = Box.of_shape(values.shape)
    made = {id(table.arrays[0]): Patch(box, values)}
    for n in table.members:
        made[id(n)] = Patch(box, n.apply(resolve(n.kernel), box, [made[id(x)] for x in n.arrays], ()))
    return np.asarray(made[id(table.root)].data)
