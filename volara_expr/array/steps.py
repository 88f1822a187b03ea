"""The steps of pipeline files: what they may name, and expressions written down as steps."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from volara_expr.array import functions
from volara_expr.array.base import Expression
from volara_expr.array.core import Array
from volara_expr.array.document import to_yaml
from volara_expr.array.encoding import MOST_BYTES, encode, name_of_op
from volara_expr.array.graph import Graph, open_graph
from volara_expr.array.lut import Lut
from volara_expr.array.sources import open_array
from volara_expr.array.tables import Table
from volara_expr.expr import ArrayNode, GlobalTable, Node, TableNode, topological
from volara_expr.geometry import Roi
from volara_expr.ops.graph_tables import RegionGraph, StoredGraph, StoredTable
from volara_expr.ops.lut import LUT_COLUMNS
from volara_expr.ops.sources import InMemory, StoredArray

__all__ = ["FORMAT", "expression_of", "json_of", "methods", "starts", "to_document", "yaml_of"]

FORMAT = 1
RUNNING = {"compute", "write"}
"""Methods that return an expression and yet do not make one."""


# --- what a step may be --------------------------------------------------------------------------------------------------


def crop(of: Array, key: str) -> Array:
    """Index an array by a text, as in "10:20, ::2, 5"."""
    items: list[Any] = []
    for part in str(key).split(","):
        words = [w.strip() for w in part.split(":")]
        if words == ["..."]:
            items.append(...)
            continue
        try:
            numbers = [int(w) if w else None for w in words]
        except ValueError as e:
            raise IndexError(f"{key!r} is no index; write whole numbers and colons, as in '10:20, ::2, 5'") from e
        items.append(numbers[0] if len(words) == 1 else slice(*numbers))
    return of[tuple(items)]


def world(of: Array, offset: Sequence[Any], shape: Sequence[Any], unit: str | None = None) -> Array:
    """Crop an array to a box in the world."""
    return of.world[Roi(offset, shape, unit)]


def lut(values: Mapping[int, int]) -> Lut:
    """Make a look-up table."""
    return Lut(values)


def starts() -> dict[str, Callable[..., Any]]:
    """Return the functions that a step may name, by name."""
    found: dict[str, Callable[..., Any]] = {name: getattr(functions, name) for name in ("where", "concat", "stack")}
    return found | {"open": open_array, "open_graph": open_graph, "index": crop, "world": world, "lut": lut}


def methods(kind: type[Expression]) -> dict[str, Callable[..., Any]]:
    """Return the methods of an array or a graph that a step may name: those that make an expression."""
    made = {"Array", "Graph", "Lut", "Table"}
    members = {n: m for n, m in inspect.getmembers(kind, inspect.isfunction) if not n.startswith("_") and n not in RUNNING}
    return {n: m for n, m in members.items() if m.__annotations__.get("return") in made}


# --- to text -------------------------------------------------------------------------------------------------------------


def to_document(handle: Expression, names: Mapping[Node, str] | None = None, reopen: bool = False) -> dict[str, Any]:
    """Return an expression as the content of a file.

    Parameters
    ----------
    handle : Array, Graph or Lut
    names : mapping of Node to str, optional
        What steps are to be called.
    reopen : bool
        Write stored arrays as `open`, where that gives the same array: the file then follows changes of the data.

    Raises
    ------
    ValueError
        If the expression holds what no text can: functions that cannot be imported, large NumPy arrays.
    """
    called: dict[Node, str] = {}
    steps: dict[str, Any] = {}
    for node in topological([handle.node]):
        stem = re.sub(r"\W+", "_", (names or {}).get(node) or type(node).__name__.lower())
        name = next(n for k in range(1, len(called) + 2) if (n := stem if k == 1 else f"{stem}_{k}") not in steps)
        called[node] = name
        steps[name] = _step_of(node, lambda n: f"${{{called[n]}}}", reopen)
    return {"volara_expr": FORMAT, "steps": steps, "result": f"${{{called[handle.node]}}}"}


def _step_of(node: Node, reference: Callable[[Node], str], reopen: bool) -> dict[str, Any]:
    if isinstance(node, InMemory):
        if node.data is None or node.data.nbytes > MOST_BYTES:
            raise ValueError(
                f"a NumPy array of {node.spec.nbytes:,} bytes is too much for a text, which takes {MOST_BYTES:,}; write it to a store "
                "and open that"
            )
        return {"op": "InMemory", "known": encode(node.known, reference), "data": encode(node.data, reference)}
    if isinstance(node, StoredArray) and reopen and (again := _reopened(node)) is not None:
        return again
    fields: dict[str, Any] = {}
    for name, value in vars_of(node).items():
        try:
            fields[name] = encode(value, reference)
        except ValueError as e:
            raise ValueError(f"{node.label}: {name}: {e}") from e
    return {"op": name_of_op(type(node)), **fields}


def vars_of(node: Node) -> dict[str, Any]:
    """Return the fields of a node that differ from their defaults."""
    fields = {f.name: (getattr(node, f.name), f.default) for f in dataclasses.fields(node)}  # type: ignore[arg-type]
    plain = (bool, int, float, str, type(None))
    return {n: v for n, (v, default) in fields.items() if not (type(v) is type(default) in plain and v == default)}


def _reopened(node: StoredArray) -> dict[str, Any] | None:
    """Return the step that opens an array, if it is still the same."""
    step: dict[str, Any] = {"op": "open", "url": node.url}
    try:
        if open_array(node.url).node is node:
            return step
        step["neighborhood"] = [list(o) for o in node.spec.neighborhood or ()]
        return step if open_array(node.url, neighborhood=step["neighborhood"]).node is node else None
    except (OSError, ValueError):
        return None


def expression_of(node: Node) -> Any:
    """Return the handle of a node; a table that is made block by block has none and is returned itself."""
    if isinstance(node, ArrayNode):
        return Array(node)
    if isinstance(node, (RegionGraph, StoredGraph)):
        return Graph(node)
    if isinstance(node, TableNode) and node.columns == LUT_COLUMNS:
        return Lut.of(node)
    return Table(node) if isinstance(node, (GlobalTable, StoredTable)) else node


def json_of(handle: Expression) -> str:
    """Return an expression as JSON; see `Array.to_json`."""
    return json.dumps(to_document(handle), indent=1, allow_nan=False, ensure_ascii=False)


def yaml_of(handle: Expression, names: Mapping[Node, str]) -> str:
    """Return an expression as YAML; see `Array.to_yaml`."""
    return to_yaml(to_document(handle, names, reopen=True))
