"""The three kinds of node: arrays, tables made block by block, and tables made at once.

A node is a frozen dataclass whose fields are other nodes and plain parameters. Equal nodes are one object (interned by
digest), so common subexpressions are shared and equality is identity. Its spec is computed when it is built: a mistake is an
error on the line that made it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from volara_expr.expr.digest import digest_of
from volara_expr.expr.origin import Origin, from_line, here, line_of
from volara_expr.geometry import Box, Halo, Space
from volara_expr.geometry.grid import BlockGrid
from volara_expr.kernels.scalars import Scalars, Value

__all__ = [
    "ArrayNode",
    "ArraySpec",
    "BlockTable",
    "Columns",
    "Exactness",
    "GlobalTable",
    "Node",
    "Patch",
    "TableNode",
    "pack",
    "topological",
    "unpack",
]

Exactness = Literal["exact", "cpu-exact", "inexact"]
Neighborhood = tuple[tuple[int, ...], ...]
Columns = Mapping[str, npt.NDArray[Any]]
"""Rows of a table: one 1-D array per column, all of one length."""

_INTERNED: WeakValueDictionary[str, Node] = WeakValueDictionary()


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """What is known of an array before anything is computed.

    Attributes
    ----------
    box : Box
        Absolute voxel coordinates: a crop keeps those of its source. Axes that are not of space start at 0.
    dtype : numpy.dtype
    space : Space
        Axes, voxel size and position of voxel 0.
    neighborhood : tuple of offsets, or None
        One offset (over the space axes, in voxels) per entry of the axis of type "offsets".
    frame : Box or None
        Extent of the source that this array was cropped from; numbers the blocks of semantic grids, so that the same block has
        the same number in any crop. None stands for `box`.
    """

    box: Box
    dtype: np.dtype[Any]
    space: Space
    neighborhood: Neighborhood | None = None
    frame: Box | None = None

    def __post_init__(self) -> None:
        if self.frame is None:
            object.__setattr__(self, "frame", self.box)
        if self.box.ndim != self.space.ndim:
            raise ValueError(
                f"the box has {self.box.ndim} axes but {self.space.ndim} axes are named ({', '.join(self.space.names)})"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return self.box.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.box.ndim

    @property
    def nbytes(self) -> int:
        """Size of the whole array in bytes."""
        return self.box.size * self.dtype.itemsize

    def replace(self, **changes: Any) -> ArraySpec:
        """Return the spec with some fields changed."""
        return dataclasses.replace(self, **changes)


class Patch(NamedTuple):
    """A piece of an array while a block is computed: the voxels of `box`.

    `data` is an ndarray of shape `box.shape`, or a `kernels.fused.Coded` for ops that declare `takes_coded`.
    """

    box: Box
    data: Any

    def cut(self, box: Box) -> Patch:
        """Return the part that lies in `box`, which must lie in this patch."""
        if box == self.box:
            return self
        return Patch(box, self.data[box.slices(self.box.lo)])


class _Interning(type):
    """Makes `Node(...)` return the existing object where an equal one lives."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        node = super().__call__(*args, **kwargs)
        found = _INTERNED.setdefault(node.digest, node)
        found.__dict__.setdefault("origin", here())
        return found


class Node(metaclass=_Interning):
    """Base of all nodes. Subclasses are `@dataclass(frozen=True, eq=False)`.

    Attributes
    ----------
    version : int
        Raised whenever the op's result changes for the same parameters; part of the digest.
    kernel : str
        "module:function" that does the work on plain arrays; imported only where blocks run.
    thread_safe : bool
        Several threads of a process may compute it at once, each its own block.
    origin : Origin
        The user's line that first made the node; not part of it.
    """

    version: ClassVar[int] = 1
    kernel: ClassVar[str] = ""
    thread_safe: ClassVar[bool] = True
    origin: ClassVar[Origin] = None

    @cached_property
    def inputs(self) -> tuple[Node, ...]:
        """Every input node, in the order of the fields."""
        found: list[Node] = []
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if isinstance(value, Node):
                found.append(value)
            elif isinstance(value, tuple):
                found += [v for v in value if isinstance(v, Node)]
        return tuple(found)

    @cached_property
    def arrays(self) -> tuple[ArrayNode, ...]:
        """Inputs that are arrays: read block by block."""
        return tuple(n for n in self.inputs if isinstance(n, ArrayNode))

    @cached_property
    def tables(self) -> tuple[TableNode, ...]:
        """Inputs that are tables: complete before the first block of this node is computed."""
        return tuple(n for n in self.inputs if isinstance(n, TableNode))

    @cached_property
    def digest(self) -> str:
        """Identity: op, version, parameters and inputs."""
        values = [getattr(self, f.name) for f in dataclasses.fields(self)]  # type: ignore[arg-type]
        return digest_of(type(self).__name__, self.version, values)

    @property
    def label(self) -> str:
        """A short name for plans and messages."""
        return type(self).__name__.lower()

    def describe(self) -> str:
        """Return the parameters as text, for `repr` and plans; without the inputs."""
        shown = []
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if isinstance(value, Node) or (isinstance(value, tuple) and any(isinstance(v, Node) for v in value)):
                continue
            default = f.default if f.default is not dataclasses.MISSING else None
            if value is not default and value != default and f.repr:
                text = repr(value)
                shown.append(f"{f.name}={text if len(text) <= 40 else text[:37] + '...'}")
        return ", ".join(shown)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_unpack_one, (pack([self]),))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.digest[:8]}>"


class ArrayNode(Node):
    """An array whose every block can be computed from boxes of its inputs.

    Subclasses compute `spec` in `make_spec`, say in `need` what a box of output takes, and do the work in `apply`.

    Attributes
    ----------
    exactness : {"exact", "cpu-exact", "inexact"}
        Whether any block partition gives the whole-array result bit for bit (on any device, on CPUs, within `rtol`).
    takes_coded : bool
        `apply` understands inputs given as codes and a table (`kernels.fused.Coded`).
    pointwise : bool
        Each output voxel depends on the same voxel of each input and on nothing else, and `apply` works on arrays of any
        shape; a chain of such ops over one 8- or 16-bit array becomes a look-up table.
    cost : float
        Rough nanoseconds per output voxel on one core; weighs recomputing against storing.
    """

    exactness: ClassVar[Exactness] = "exact"
    takes_coded: ClassVar[bool] = False
    pointwise: ClassVar[bool] = False
    cost: ClassVar[float] = 1.0

    @cached_property
    def spec(self) -> ArraySpec:
        """Box, dtype, axes, voxel size and neighborhood of the result."""
        return self.make_spec()

    def __post_init__(self) -> None:
        _ = self.spec  # a mistake is an error here and now

    def make_spec(self) -> ArraySpec:
        """Validate the inputs and parameters and compute the spec."""
        raise TypeError(f"{type(self).__name__} does not say its spec")

    def need(self, box: Box) -> tuple[Box | None, ...]:
        """Return the box of each array input that `box` of the output takes, absolute and not clipped to the input; None for none."""
        return (box,) * len(self.arrays)

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        """Compute the voxels of `out`.

        Parameters
        ----------
        kernel : callable
            What `kernel` names; None for an op without one.
        out : Box
            Lies within the spec's box.
        patches : sequence of Patch
            One per array input: the needed box, clipped to that input's domain. The patch holds at least that.
        tables : sequence
            One opened table per table input.

        Returns
        -------
        numpy.ndarray
            Of shape `out.shape` and the spec's dtype.
        """
        raise TypeError(f"{type(self).__name__} cannot be computed")

    def scalars(self, code: Scalars, inputs: Sequence[Sequence[Value]]) -> list[Value] | None:
        """Say what the op does to one voxel, so that it may join a fused loop; None (the default) for ops that may not.

        Voxels of inputs and output correspond from the last axis backwards, as NumPy broadcasts.

        Parameters
        ----------
        code : Scalars
            Makes the values.
        inputs : sequence of sequence of Value
            For each array input the voxel of each plane: one plane, or those along its first axis where a reduction over that
            axis is part of the loop.

        Returns
        -------
        list of Value or None
            The voxel of each plane of the result, of the spec's dtype.
        """
        return None

    def temp_bytes(self, out: Box) -> int:
        """Upper bound of the memory that `apply` takes beyond its inputs and its output, in bytes."""
        return out.size * self.spec.dtype.itemsize

    @property
    def unit(self) -> tuple[int, ...] | None:
        """Shape of the blocks of a semantic grid, anchored at voxel 0, per axis; None for ops without one."""
        return None

    def halo(self) -> Halo:
        """Return how far beyond its output the op reaches into its first array input, in voxels, for plans and docstrings."""
        box = Box.of_shape(self.unit or (1,) * self.spec.ndim)
        needed = self.need(box)[0] if self.arrays else None
        if needed is None or needed.ndim != box.ndim or not needed.contains(box):  # voxels move: nothing is seen beyond them
            return Halo.symmetric((0,) * self.spec.ndim)
        return Halo(
            tuple(a - b for a, b in zip(box.lo, needed.lo, strict=True)),
            tuple(b - a for a, b in zip(box.hi, needed.hi, strict=True)),
        )


class TableNode(Node):
    """A table: named columns of equal length."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        raise TypeError(f"{type(self).__name__} does not say its columns")


class BlockTable(TableNode):
    """A table whose rows are made cell by cell; cells are the blocks of a grid fixed by the node itself.

    The rows of a cell depend on the cell alone, so cells may be computed in any order, in any grouping and twice.
    """

    cost: ClassVar[float] = 2.0
    takes_coded: ClassVar[bool] = False

    @property
    def cells(self) -> BlockGrid:
        """The grid of cells, over the axes of `frame`."""
        raise TypeError(f"{type(self).__name__} does not say its cells")

    @property
    def frame(self) -> ArrayNode:
        """The array input whose axes the cells are given in."""
        return self.arrays[0]

    def demands(self, cell: Box) -> Sequence[tuple[Box | None, ...]]:
        """Return what a cell takes: one tuple (a box per array input) for each separate read; by default the cell itself."""
        return ((cell,) * len(self.arrays),)

    def rows(self, kernel: Callable[..., Any], cell: Box, reads: Sequence[Sequence[Patch]], tables: Sequence[Any]) -> Columns:
        """Compute the rows of a cell from one list of patches per entry of `demands`."""
        raise TypeError(f"{type(self).__name__} cannot be computed")

    def temp_bytes(self, cell: Box) -> int:
        """Upper bound of the memory that `rows` takes beyond its inputs, in bytes."""
        return 16 * cell.size


class GlobalTable(TableNode):
    """A table made at once from whole tables; it has no blocks.

    Attributes
    ----------
    suffix : str
        Of the file that holds the result.
    """

    suffix: ClassVar[str] = ".parquet"

    def run(self, kernel: Callable[..., Any], tables: Sequence[Any], out: str, memory_bytes: int) -> None:
        """Compute the table and leave it at the path `out`, whole or not at all.

        Parameters
        ----------
        tables : sequence
            One opened table per table input (`run.tables.TableFiles`).
        out : str
            Path of the result; written under a temporary name and renamed.
        memory_bytes : int
            What the step may use.
        """
        raise TypeError(f"{type(self).__name__} cannot be computed")


def topological(roots: Iterable[Node], stop: Callable[[Node], bool] = lambda _: False) -> list[Node]:
    """Return every node reachable from `roots`, inputs before users, without recursion; does not look behind `stop` nodes."""
    order: list[Node] = []
    seen: set[int] = set()
    stack: list[tuple[Node, bool]] = [(r, False) for r in reversed(list(roots))]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order.append(node)
            continue
        if id(node) in seen:
            continue
        seen.add(id(node))
        stack.append((node, True))
        if not stop(node):
            stack.extend((n, False) for n in reversed(node.inputs) if id(n) not in seen)
    return order


@dataclass(frozen=True)
class _Ref:
    """Stands for a node in packed fields."""

    at: int


Packed = list[tuple[type, list[Any], str]]


def pack(roots: Sequence[Node]) -> Packed:
    """Return a flat, picklable form of expressions of any depth; inputs come before their users, so a single root comes last."""
    order = topological(roots)
    at = {id(n): i for i, n in enumerate(order)}
    packed: Packed = []
    lines: dict[Origin, str] = {}
    for node in order:
        fields = []
        for f in dataclasses.fields(node):  # type: ignore[arg-type]
            value = getattr(node, f.name)
            if isinstance(value, Node):
                value = _Ref(at[id(value)])
            elif isinstance(value, tuple) and any(isinstance(v, Node) for v in value):
                value = tuple(_Ref(at[id(v)]) if isinstance(v, Node) else v for v in value)
            fields.append(value)
        if node.origin not in lines:
            lines[node.origin] = line_of(node.origin)
        packed.append((type(node), fields, lines[node.origin]))
    return packed


def unpack(packed: Packed) -> list[Node]:
    """Rebuild the nodes of `pack`, in its order."""
    nodes: list[Node] = []
    for cls, fields, line in packed:
        values = []
        for value in fields:
            if isinstance(value, _Ref):
                value = nodes[value.at]
            elif isinstance(value, tuple) and any(isinstance(v, _Ref) for v in value):
                value = tuple(nodes[v.at] if isinstance(v, _Ref) else v for v in value)
            values.append(value)
        with from_line(line):
            nodes.append(cls(*values))
    return nodes


def _unpack_one(packed: Packed) -> Node:
    return unpack(packed)[-1]
