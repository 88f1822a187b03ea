"""What the families of methods share: the node behind a handle, and the way from values to nodes."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from volara_expr.array.teach import no_attribute, teaching
from volara_expr.expr import topological, unpack
from volara_expr.expr.node import ArrayNode, ArraySpec, Packed, pack
from volara_expr.expr.show import outline
from volara_expr.geometry import Box, Space
from volara_expr.ops.sources import InMemory, hold, in_memory

if TYPE_CHECKING:
    from volara_expr.array.core import Array

__all__ = ["Expression", "Handle", "node_of", "operand_of"]


TAUGHT = {"__array_function__", "__array_ufunc__", "__bool__", "__contains__", "__getitem__", "__init__", "__iter__"}
BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "divmod", "pow", "lshift", "rshift", "and", "or", "xor")
TAUGHT |= {f"__{side}{name}__" for side in ("", "r") for name in BINARY}
TAUGHT |= {f"__{name}__" for name in ("eq", "ne", "lt", "le", "gt", "ge", "neg", "invert", "float", "int", "index", "len")}
"""Special methods in which users make mistakes."""


class Expression:
    """What `Array`, `Graph` and `Lut` share: they never change, and pickle together with the NumPy arrays that they stand on."""

    __slots__ = ()
    node: Any

    def __init_subclass__(cls) -> None:
        """Let the errors of every method name the user's line."""
        super().__init_subclass__()
        for name, member in list(vars(cls).items()):
            if isinstance(member, types.FunctionType) and (not name.startswith("_") or name in TAUGHT):
                setattr(cls, name, teaching(member))

    if not TYPE_CHECKING:  # or type checkers would take it that every name exists

        def __getattr__(self, name: str) -> Any:
            no_attribute(type(self), name)

    def tree(self) -> str:
        """Return the expression as a tree of text, the result first, with the names of the variables that hold its parts.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> raw = ve.from_numpy(np.zeros((4, 6), np.uint8))
        >>> smooth = raw.gaussian(1)
        >>> print((smooth > raw).tree())
        greater -> (y: 4, x: 6) bool
        ├─ smooth = gaussianfilter(sigma=(1.0, 1.0)) -> (y: 4, x: 6) float32  [halo (4, 4)]
        │  raw = numpy -> (y: 4, x: 6) uint8
        └─ raw (see above)
        """
        from volara_expr.array.names import variable_names

        return outline(self.node, variable_names())

    def to_json(self) -> str:
        """Return the expression as JSON, which `volara_expr.from_json` reads: the same expression, by its key.

        Stored data is named by place and content, NumPy arrays up to 1 MiB are written out.

        Raises
        ------
        ValueError
            If it holds what no text can: a function that cannot be imported, or a larger NumPy array.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> smooth = ve.from_numpy(np.array([1, 9, 2])).gaussian(1)
        >>> ve.from_json(smooth.to_json()).key == smooth.key
        True
        """
        from volara_expr.array.steps import json_of

        return json_of(self)

    def to_yaml(self) -> str:
        """Return the expression as YAML, to be read and changed; `volara_expr.from_json` reads it too.

        Steps are called as the variables that hold them, and stored arrays are opened by their url.

        Raises
        ------
        ValueError
            As `to_json`.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> raw = ve.from_numpy(np.array([True, False]))
        >>> print(raw.gaussian(1).to_yaml().splitlines()[-1])
        result: ${gaussianfilter}
        """
        from volara_expr.array.names import variable_names
        from volara_expr.array.steps import yaml_of

        return yaml_of(self, variable_names())

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        held = {n.content: n.data for n in topological([self.node]) if isinstance(n, InMemory) and n.data is not None}
        return (_restore, (type(self), pack([self.node]), held))


def _restore(cls: type[Expression], packed: Packed, held: dict[str, npt.NDArray[Any]]) -> Any:
    """Rebuild a pickled handle."""
    kept = [hold(content, data) for content, data in held.items()]
    handle = cls.__new__(cls)
    handle.node = unpack(packed)[-1]
    del kept  # from here on the nodes hold the arrays
    return handle


class Handle(Expression):
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
