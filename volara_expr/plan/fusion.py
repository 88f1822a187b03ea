"""How the pointwise parts of a region are computed: by a look-up table, by a fused loop, or op by op with NumPy.

A part that depends on a single uint8 or uint16 array becomes a table, which NumPy itself fills. Any other maximal part of
elementwise ops and reductions over a first axis becomes one loop, if there is enough to compute to be worth compiling. What is
inside of a part exists for no longer than a voxel, so it takes no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from volara_expr.expr import ArrayNode
from volara_expr.geometry import Box
from volara_expr.kernels.scalars import TILE, Scalars, Value
from volara_expr.ops.reduce import MOST_PLANES

__all__ = ["Loop", "Operand", "Step", "Table", "find_steps"]

WORTH = 1 << 27
"""Operations times voxels from which on a loop pays for being compiled, once per machine: NumPy takes 0.1 to 0.3 s for them."""
WIDE_TABLE_VOXELS = 1 << 18
"""Voxels from which on a table of 65,536 entries pays."""
MOST_OPS = 256
"""Of a loop: compiling takes longer than in proportion."""


@dataclass(frozen=True)
class Operand:
    """An array that a fused part takes.

    Attributes
    ----------
    node : ArrayNode
    box : Box
        Of it, for the whole of the part's result.
    planes : int
        Along a first axis that the result has not, which is reduced; 0 without such an axis.
    """

    node: ArrayNode
    box: Box
    planes: int

    def need(self, whole: Box, box: Box) -> Box:
        """Return what a box of the result takes, where `whole` is all of the result: the same voxels, stretched axes whole."""
        lo, hi = list(self.box.lo), list(self.box.hi)
        for back in range(1, min(box.ndim, self.box.ndim) + 1):
            a, b = whole.lo[-back], whole.hi[-back]
            if hi[-back] - lo[-back] == b - a:
                shift = lo[-back] - a
                lo[-back], hi[-back] = box.lo[-back] + shift, box.hi[-back] + shift
        return Box(tuple(lo), tuple(hi))


@dataclass(frozen=True, eq=False)
class Step:
    """A fused part of a region.

    Attributes
    ----------
    root : ArrayNode
        Its result.
    members : list of ArrayNode
        All that it computes, inputs before users.
    operands : tuple of Operand
    """

    root: ArrayNode
    members: list[ArrayNode]
    operands: tuple[Operand, ...]

    @property
    def path(self) -> str:
        """How it is computed, for plans."""
        return "numpy"

    @cached_property
    def arrays(self) -> tuple[ArrayNode, ...]:
        """What it takes; one entry per operand."""
        return tuple(o.node for o in self.operands)

    def need(self, box: Box) -> tuple[Box, ...]:
        """Return the box of each operand that a box of the result takes."""
        return tuple(o.need(self.root.spec.box, box) for o in self.operands)

    def temp_bytes(self, out: Box) -> int:
        """Upper bound of the memory beyond inputs and output."""
        return out.size * self.root.spec.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Table(Step):
    """A part that is a function of 256 or 65,536 values."""

    @property
    def path(self) -> str:
        """How it is computed, for plans."""
        return f"table of {1 << 8 * self.arrays[0].spec.dtype.itemsize:,}"


@dataclass(frozen=True, eq=False)
class Loop(Step):
    """A part that is one loop over the voxels.

    Attributes
    ----------
    value : Value
        What it does to a voxel.
    """

    value: Value

    @property
    def path(self) -> str:
        """How it is computed, for plans."""
        return f"compiled loop of {weight(self.members, self.root)} ops"

    def temp_bytes(self, out: Box) -> int:
        """Upper bound of the memory beyond inputs and output: a tile of 8-byte numbers for each of what it takes and makes."""
        return 8 * TILE * (len(self.members) + sum(max(1, o.planes) for o in self.operands))


def find_steps(
    order: Sequence[ArrayNode], leaves: Iterable[int], roots: Iterable[ArrayNode], totals: Mapping[ArrayNode, Box] | None
) -> dict[int, Step]:
    """Find the fused parts of a region, by the id of their result.

    Parameters
    ----------
    order : sequence of ArrayNode
        The region, inputs before users.
    leaves : iterable of int
        Ids of those that are read.
    roots : iterable of ArrayNode
        Those asked for.
    totals : mapping or None
        What all blocks together take of each node; None makes tables alone.
    """
    parts = _Parts(order, set(leaves), roots)
    steps: dict[int, Step] = {}
    for root in reversed(parts.computed if totals is not None else []):
        box = (totals or {}).get(root)
        loop = None if box is None or id(root) in parts.taken else parts.loop(root, box.size)
        if loop is not None:
            steps[id(root)] = loop
            parts.taken |= {id(n) for n in loop.members}
    for root in parts.computed:
        table = parts.table(root)
        if table is not None:
            steps[id(root)] = table
    return steps


class _Parts:
    """A region while its parts are looked for.

    Attributes
    ----------
    computed : list of ArrayNode
        Inputs before users.
    taken : set of int
        Ids of what loops compute.
    """

    def __init__(self, order: Sequence[ArrayNode], leaves: set[int], roots: Iterable[ArrayNode]) -> None:
        self.computed = [n for n in order if id(n) not in leaves]
        self.taken: set[int] = set()
        self._at = {id(n): k for k, n in enumerate(self.computed)}
        self._kept = {id(n) for n in roots}
        self._sources = find_sources(self.computed)
        self._users: dict[int, list[int]] = {}
        self._costly: set[int] = set()
        """What costs less as a table, once for each of its entries, than in a loop: exp, log and what is made of them."""
        for n in self.computed:
            if n.exactness == "cpu-exact" or any(id(x) in self._costly for x in n.arrays if id(x) in self._sources):
                self._costly.add(id(n))
            for x in n.arrays:
                self._users.setdefault(id(x), []).append(id(n))

    def loop(self, root: ArrayNode, voxels: int) -> Loop | None:
        """Return the loop that computes a node, if it can be one and is worth it."""
        at = self._at[id(root)]
        if id(root) in self._sources or (at + 1) * MOST_PLANES * voxels < WORTH or not joins(root):
            return None

        def absorbs(n: ArrayNode, inside: set[int]) -> bool:
            return (
                id(n) in self._at
                and id(n) not in self._kept
                and inside.issuperset(self._users[id(n)])
                and not (id(n) in self._sources and id(n) in self._costly)
                and all(x.spec.ndim <= root.spec.ndim + 1 for x in n.arrays)
                and joins(n)
            )

        members, boxes = walk(root, self.computed[: at + 1], absorbs)
        n_ops = weight(members, root)
        return make_loop(root, members, boxes) if n_ops > 1 and n_ops * voxels >= WORTH else None

    def table(self, root: ArrayNode) -> Table | None:
        """Return the table that gives a node, if there is one and the node is needed in itself."""
        source = self._sources.get(id(root))
        beyond = (u in self.taken or self._sources.get(u) is not source for u in self._users.get(id(root), []))
        if source is None or id(root) in self.taken or not (id(root) in self._kept or any(beyond)):
            return None
        before = self.computed[: self._at[id(root)] + 1]
        members, boxes = walk(root, before, lambda n, _: self._sources.get(id(n)) is source)
        found = boxes[id(source)]
        return Table(root, members, (Operand(source, found[0], 0),)) if len(found) == 1 else None


def find_sources(computed: Sequence[ArrayNode]) -> dict[int, ArrayNode]:
    """Return the 8- or 16-bit array that each node is a function of, voxel by voxel, by id; only for nodes that have one."""
    source: dict[int, ArrayNode] = {}
    for n in computed:
        if not n.pointwise or n.tables:
            continue
        behind = {id(s): s for s in (source.get(id(x), x) for x in n.arrays)}
        if len(behind) == 1 and (s := next(iter(behind.values()))).spec.shape == n.spec.shape and codes(s):
            source[id(n)] = s
    return source


def codes(node: ArrayNode) -> bool:
    """Whether the values of an array may number the entries of a table."""
    dtype = node.spec.dtype
    return dtype == np.uint8 or (dtype == np.uint16 and dtype.isnative and node.spec.box.size >= WIDE_TABLE_VOXELS)


def walk(
    root: ArrayNode, order: Sequence[ArrayNode], absorbs: Callable[[ArrayNode, set[int]], bool]
) -> tuple[list[ArrayNode], dict[int, list[Box]]]:
    """Go from a result backwards through what it absorbs.

    Parameters
    ----------
    root : ArrayNode
    order : sequence of ArrayNode
        All that it may absorb, inputs before users, itself last.
    absorbs : callable
        Whether a node joins, given the ids of those that have joined.

    Returns
    -------
    members : list of ArrayNode
        Inputs before users.
    boxes : dict
        What the whole result takes of each member and operand, by id: several boxes where it is used at several places.
    """
    boxes = {id(root): [root.spec.box]}
    inside: set[int] = set()
    members: list[ArrayNode] = []
    for n in reversed(order):
        if id(n) not in boxes or not (n is root or (len(members) < MOST_OPS and absorbs(n, inside))):
            continue
        inside.add(id(n))
        members.append(n)
        for box in boxes[id(n)]:
            for x, need in zip(n.arrays, n.need(box), strict=True):
                if need is not None and need not in boxes.setdefault(id(x), []):
                    boxes[id(x)].append(need)
    return members[::-1], boxes


def weight(members: Sequence[ArrayNode], root: ArrayNode) -> int:
    """Count the operations on a voxel of the result."""
    planes = [max((x.spec.shape[0] for x in n.arrays if x.spec.ndim > root.spec.ndim), default=1) for n in members]
    return sum(planes)


def make_loop(root: ArrayNode, members: Sequence[ArrayNode], boxes: Mapping[int, Sequence[Box]]) -> Loop:
    """Put the members of a loop together."""
    code = Scalars()
    operands: list[Operand] = []
    inside = {id(n) for n in members}
    values: dict[tuple[int, Box], list[Value]] = {}
    for n in members:
        for x in n.arrays:
            for box in () if id(x) in inside else boxes[id(x)]:
                if (id(x), box) not in values:
                    planes = box.shape[0] if box.ndim > root.spec.ndim else 0
                    operands.append(Operand(x, box, planes))
                    values[id(x), box] = [code.operand(x.spec.dtype) for _ in range(planes or 1)]
        for box in boxes[id(n)]:
            inputs = [values[id(x), need] for x, need in zip(n.arrays, n.need(box), strict=True) if need is not None]
            made = n.scalars(code, inputs)
            assert made is not None
            values[id(n), box] = made
    return Loop(root, list(members), tuple(operands), values[id(root), root.spec.box][0])


def joins(node: ArrayNode) -> bool:
    """Whether a node may join a loop: it says what it does to a voxel, in types that loops know."""
    known = node.__dict__.get("_joins")
    if known is None:
        known = node.__dict__["_joins"] = _joins(node)
    return bool(known)


def _joins(node: ArrayNode) -> bool:
    if node.tables or not node.arrays or node.exactness == "inexact" or node.spec.box.empty:
        return False
    code = _Checked()
    try:
        made = node.scalars(code, [[code.operand(x.spec.dtype)] for x in node.arrays])
        return made is not None and made[0].dtype == _known(node.spec.dtype)
    except (TypeError, OverflowError, AttributeError):  # NumPy has other ways for this one
        return False


class _Checked(Scalars):
    """Refuses types that loops do not know."""

    def operand(self, dtype: np.dtype[np.generic]) -> Value:
        return super().operand(_known(dtype))

    def call(self, op: str, dtype: np.dtype[np.generic], *args: Value) -> Value:
        return super().call(op, dtype, *(a for a in args if _known(a.dtype)))


def _known(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    if dtype.kind not in "biuf" or dtype == np.float16 or dtype.itemsize > 8 or not dtype.isnative:
        raise TypeError(f"no loop over {dtype}")
    return dtype
