"""Nodes as plain data, the kind that JSON and YAML hold, and back: by their fields and the types that these declare.

Numbers, texts and lists stand for themselves, a `Fraction` is a text ("1/3"), a dtype its name, a dataclass a mapping of its
fields. What plain data has no form for is a mapping of one key that names it: ``{"complex": [0.0, 1.0]}``,
``{"scalar": ["float32", 0.5]}``, ``{"float": "nan"}``, ``{"array": {...}}``, ``{"function": "module:name"}``.
"""

from __future__ import annotations

import base64
import dataclasses
import types
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from importlib import import_module
from math import isfinite
from pkgutil import iter_modules
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from volara_expr.expr import ArrayNode, Node, TableNode
from volara_expr.expr.digest import Function
from volara_expr.geometry.space import exact

__all__ = ["Mismatch", "decode", "encode", "field_types", "name_of_op", "op_named", "ops"]

MOST_BYTES = 1 << 20
"""Larger arrays do not belong in a text."""
FEW = 64
"""Integers that are listed one by one."""


class Mismatch(ValueError):
    """A value that is not what its place takes."""


# --- ops by name ---------------------------------------------------------------------------------------------------------


def ops() -> dict[str, type[Node]]:
    """Return the operations of the package by name."""
    _import_ops()
    return {
        c.__name__: c for c in sorted(_public(Node), key=lambda c: c.__name__) if c.__module__.startswith("volara_expr.ops.")
    }


@cache
def _import_ops() -> None:
    import volara_expr.ops

    for module in iter_modules(volara_expr.ops.__path__):
        import_module(f"volara_expr.ops.{module.name}")


def _public(cls: type[Node]) -> Iterator[type[Node]]:
    for sub in cls.__subclasses__():
        if "__dataclass_fields__" in vars(sub) and not sub.__name__.startswith("_"):
            yield sub
        yield from _public(sub)


def name_of_op(cls: type[Node]) -> str:
    """Return the name that files give an operation: that of its class, and of its module where that is not ours."""
    ours = cls.__module__.startswith("volara_expr.ops.")
    return cls.__name__ if ours else f"{cls.__module__}:{cls.__qualname__}"


def op_named(name: str) -> type[Node] | None:
    """Return the operation of a name; None if there is none.

    Raises
    ------
    Mismatch
        If "module:name" names something else than an operation.
    """
    if ":" not in name:
        return ops().get(name)
    found = imported(name)
    if not isinstance(found, type) or not issubclass(found, Node):
        raise Mismatch(f"{name} is no operation: a class derived from ArrayNode or a table")
    return found


def imported(name: str) -> Any:
    """Import what "module:name" names.

    Raises
    ------
    Mismatch
        If there is no such module or name.
    """
    module, _, path = name.partition(":")
    try:
        found: Any = import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as e:
        raise Mismatch(f"{name!r} cannot be imported ({e}); write module:name of something that can, as in numpy:sqrt") from e
    return found


@cache
def field_types(cls: type) -> dict[str, Any]:
    """Return the declared type of each field of a dataclass."""
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


# --- to plain data -------------------------------------------------------------------------------------------------------


def encode(value: Any, reference: Callable[[Node], str]) -> Any:
    """Return a value of a node's field as plain data; nodes by what `reference` calls them.

    Raises
    ------
    ValueError
        If it has no plain form: a function that cannot be imported, a large array.
    """

    def inner(v: Any) -> Any:
        return encode(v, reference)

    if isinstance(value, Node):
        return reference(value)
    if value is None or type(value) in (bool, int):
        return value
    if type(value) is str:
        return value.replace("${", "$${")
    if type(value) is float:
        return value if isfinite(value) else {"float": str(value)}
    if type(value) is complex:
        return {"complex": [inner(value.real), inner(value.imag)]}
    if isinstance(value, np.generic) and value.dtype.kind in "biufc" and value.dtype.itemsize <= 16:
        return {"scalar": [value.dtype.name, inner(value.item())]}
    if isinstance(value, np.dtype):
        return value.name if value.isnative else value.str
    if isinstance(value, Fraction):
        return str(value)
    if isinstance(value, tuple):
        return [inner(v) for v in value]
    if isinstance(value, np.ndarray):
        return {"array": encode_array(value)}
    if isinstance(value, Function):
        return encode_function(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: inner(getattr(value, f.name)) for f in dataclasses.fields(value)}
    raise ValueError(f"a {type(value).__qualname__} has no place in a file; write its result to a store and open that")


def encode_array(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return an array as plain data: few integers one by one, others as the bytes of a C-ordered little-endian array."""
    if array.nbytes > MOST_BYTES:
        raise ValueError(
            f"a NumPy array of {array.nbytes:,} bytes is too much for a text, which takes {MOST_BYTES:,}; write it to a store and open that"
        )
    about = {"dtype": array.dtype.name, "shape": list(array.shape)}
    if array.dtype.kind in "biu" and array.size <= FEW:
        return {**about, "values": array.reshape(-1).tolist()}
    raw = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return {**about, "base64": base64.b64encode(raw).decode()}


def encode_function(function: Function) -> dict[str, Any]:
    """Return the import path of a user's function, with the name that was given to it."""
    call = function.call
    path = f"{getattr(call, '__module__', None)}:{getattr(call, '__qualname__', None)}"
    try:
        same = not path.startswith("__main__:") and imported(path) is call
    except Mismatch:
        same = False
    if not same:
        raise ValueError(f"{function!r} cannot be imported from another program, so no file can name it; put it into a module")
    return {"function": path} | ({"name": function.name} if function.name is not None else {})


# --- from plain data -----------------------------------------------------------------------------------------------------


def decode(value: Any, hint: Any) -> Any:
    """Return the value of a field from plain data and the field's declared type; nodes stand for themselves.

    Raises
    ------
    Mismatch
        If it is not of that type.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _decode_union(value, args)
    if hint is Any:
        return value
    if origin is Literal:
        if value not in args:
            raise Mismatch(f"{value!r} is none of {', '.join(map(repr, args))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise Mismatch(f"{value!r} is no list")
        every = args[:1] * len(value) if args[1:] == (...,) else args
        if len(every) != len(value):
            raise Mismatch(f"a list of {len(value)}, expected {len(every)} entries")
        return tuple(decode(v, h) for v, h in zip(value, every, strict=True))
    kind = origin or hint
    if isinstance(value, kind if kind not in (float, complex) else (int, float, complex)) and not _is_other_number(value, kind):
        return value
    return _decode_as(value, kind)


def _is_other_number(value: Any, kind: Any) -> bool:
    """Whether a number is given where another kind of number belongs: a boolean for an integer, a complex for a float."""
    return (isinstance(value, bool) and kind in (int, float)) or (isinstance(value, complex) and kind is float)


def _decode_union(value: Any, kinds: tuple[Any, ...]) -> Any:
    wrong = []
    for kind in kinds:
        try:
            return decode(value, kind)
        except Mismatch as e:
            wrong.append(str(e))
    raise Mismatch(" and ".join(dict.fromkeys(wrong)))


def _decode_as(value: Any, kind: Any) -> Any:
    """Decode what has no form of its own in plain data."""
    key: Any
    content: Any
    key, content = next(iter(value.items())) if isinstance(value, dict) and value else ("", None)
    try:
        if key == "float" and kind in (float, complex):
            return float(content)
        if key == "complex" and kind is complex:
            return complex(*(decode(v, float) for v in content))
        if key == "scalar" and kind in (np.generic, int, float, complex):
            dtype = np.dtype(content[0])
            return dtype.type(decode(content[1], complex))
        if key == "array" and kind is np.ndarray:
            return decode_array(content)
        if key == "function" and kind is Function:
            return Function(imported(content), value.get("name"))
        if kind is np.dtype and isinstance(value, str):
            return np.dtype(value)
        if kind is Fraction and isinstance(value, (int, float, str)):
            return exact(value)
        if dataclasses.is_dataclass(kind) and isinstance(value, dict):
            return kind(**decode_fields(kind, value))  # type: ignore[operator]
    except Mismatch:
        raise
    except (TypeError, ValueError, LookupError, ArithmeticError) as e:
        raise Mismatch(f"{value!r} is no {kind.__name__} ({e})") from e
    raise Mismatch(f"{value!r} is no {'array' if kind is ArrayNode else 'table' if kind is TableNode else kind.__name__}")


def decode_fields(cls: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a dataclass from a mapping."""
    return {name: decode(given[name], hint) for name, hint in field_types(cls).items() if name in given}


def decode_array(about: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Return the array of `encode_array`."""
    dtype = np.dtype(about["dtype"])
    if "values" in about:
        flat = np.array(about["values"], dtype)
    else:
        flat = np.frombuffer(base64.b64decode(about["base64"], validate=True), dtype.newbyteorder("<")).astype(dtype)
    array = flat.reshape(about["shape"])
    array.flags.writeable = False
    return array
