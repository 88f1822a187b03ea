"""The JSON schema of pipeline files, from the classes of nodes and the signatures of methods; for editors that complete and check."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np

from volara_expr.array.core import Array
from volara_expr.array.encoding import field_types, ops
from volara_expr.array.graph import Graph
from volara_expr.array.steps import FORMAT, methods, starts
from volara_expr.array.writing import write
from volara_expr.expr import Node
from volara_expr.expr.digest import Function
from volara_expr.ops.sources import InMemory

__all__ = ["schema"]

REFERENCE = {"$ref": "#/$defs/reference"}
NUMBERS = {"$ref": "#/$defs/number"}


def schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of pipeline files.

    Examples
    --------
    >>> "GaussianFilter" in schema()["$defs"]["step"]["properties"]["op"]["anyOf"][0]["enum"]
    True
    """
    found = {name: [node_schema(cls)] for name, cls in ops().items() if cls is not InMemory}
    found["InMemory"] = [
        closed({"op": {}, "known": type_schema(field_types(InMemory)["known"]), "data": special("array")}, ["data"])
    ]
    for name, function in starts().items():
        found.setdefault(name, []).append(call_schema(function, of=False))
    for handle in (Array, Graph):
        for name, method in methods(handle).items():
            found.setdefault(name, []).append(call_schema(method, of=True))
    checks = [{"if": {"properties": {"op": {"const": name}}}, "then": any_of(each)} for name, each in found.items()]
    options: dict[str, Any] = {n: {} for n in inspect.signature(write).parameters if n != "expressions"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "volara_expr pipeline",
        "type": "object",
        "required": ["volara_expr", "steps"],
        "additionalProperties": False,
        "properties": {
            "volara_expr": {"const": FORMAT},
            "parameters": {"type": "object"},
            "steps": {"type": "object", "additionalProperties": {"$ref": "#/$defs/step"}},
            "outputs": {"type": "object", "additionalProperties": REFERENCE},
            "options": {"type": "object", "properties": options, "additionalProperties": False},
            "result": REFERENCE,
        },
        "$defs": {
            "reference": {"type": "string", "pattern": r"^\$\{[^{}]+\}$"},
            "number": {"anyOf": [{"type": "number"}, special("float"), special("complex"), special("scalar")]},
            "step": {
                "type": "object",
                "required": ["op"],
                "properties": {"op": {"anyOf": [{"enum": list(found)}, {"pattern": "^[A-Za-z_][\\w.]*:[\\w.]+$"}]}},
                "allOf": checks,
            },
        },
    }


def node_schema(cls: type[Node]) -> dict[str, Any]:
    """Return the schema of a step that names a node's class."""
    defaults = {f.name: f.default for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    fields = {n: any_of([REFERENCE, type_schema(h)]) for n, h in field_types(cls).items()}
    needed = [n for n in fields if defaults[n] is dataclasses.MISSING]
    about = (inspect.getdoc(cls) or "").partition("\n")[0]
    return closed({"op": {}, **fields}, needed) | {"description": about}


def call_schema(function: Callable[..., Any], of: bool) -> dict[str, Any]:
    """Return the schema of a step that names a function or a method; values of arguments are checked when it is read."""
    parameters = list(inspect.signature(function).parameters.values())[1 if of else 0 :]
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    fields: dict[str, Any] = {"op": {}} | ({"of": REFERENCE} if of else {})
    about = (inspect.getdoc(function) or "").partition("\n")[0]
    return closed(fields | {p.name: {} for p in parameters}, [*(["of"] if of else []), *needed]) | {"description": about}


def closed(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """Return the schema of a mapping with these keys and no others."""
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def special(key: str) -> dict[str, Any]:
    """Return the schema of a mapping of one key that stands for what plain data has no form for."""
    return {"type": "object", "required": [key]}


def any_of(choices: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the schema of any of several, each once."""
    flat = [c for choice in choices for c in (choice["anyOf"] if set(choice) == {"anyOf"} else [choice])]
    unique = [c for i, c in enumerate(flat) if c not in flat[:i]]
    return unique[0] if len(unique) == 1 else {"anyOf": unique}


def type_schema(hint: Any) -> dict[str, Any]:
    """Return the schema of a field from its declared type."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any_of([type_schema(a) for a in args])
    if origin is Literal:
        return {"enum": list(args)}
    if origin is tuple and args[1:] == (...,):
        return {"type": "array", "items": any_of([REFERENCE, type_schema(args[0])])}
    if origin is tuple:
        return {"type": "array", "prefixItems": [type_schema(a) for a in args], "minItems": len(args), "maxItems": len(args)}
    kind = origin or hint
    plain: dict[Any, dict[str, Any]] = {
        bool: {"type": "boolean"},
        int: {"type": "integer"},
        float: NUMBERS,
        complex: any_of([NUMBERS, {"type": "boolean"}]),
        str: {"type": "string"},
        type(None): {"type": "null"},
        np.generic: special("scalar"),
        np.ndarray: special("array"),
        np.dtype: {"type": "string"},
        Fraction: {"type": ["string", "number"]},
        Function: special("function"),
    }
    if kind in plain:
        return plain[kind]
    if isinstance(kind, type) and issubclass(kind, Node):
        return REFERENCE
    if dataclasses.is_dataclass(kind):
        return closed({n: type_schema(h) for n, h in field_types(kind).items()}, [])  # type: ignore[arg-type]
    return {}
