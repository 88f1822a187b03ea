"""Steps of a pipeline file, made into expressions; mistakes are named by file, line and key."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import numpy as np

from volara_expr.array.base import Expression
from volara_expr.array.core import Array
from volara_expr.array.document import Lines, PipelineError
from volara_expr.array.encoding import Mismatch, decode, field_types, imported, op_named, ops
from volara_expr.array.graph import Graph
from volara_expr.array.steps import FORMAT, expression_of, methods, starts
from volara_expr.array.teach import call_text
from volara_expr.expr.origin import from_line
from volara_expr.ops.sources import InMemory, in_memory

__all__ = ["KEYS", "Builder", "near"]

KEYS = ("volara_expr", "parameters", "steps", "outputs", "options", "result")
REFERENCE = re.compile(r"\$\$\{|\$\{([^{}]*)\}")
MISTAKES = (ValueError, TypeError, LookupError, ArithmeticError, OSError)


class Builder:
    """Makes the steps of a file, each when it is first asked for."""

    def __init__(self, content: Any, file: str, given: Mapping[str, Any]) -> None:
        self.file = file
        if not isinstance(content, Lines):
            raise PipelineError(f"{file}: a pipeline is a mapping of {', '.join(KEYS)}; see `volara-expr schema`")
        self.root = content
        for key in content:
            if key not in KEYS:
                raise self.error(content, key, f"unknown key{near(str(key), KEYS)}; known are {', '.join(KEYS)}")
        if content.get("volara_expr") != FORMAT:
            raise self.error(
                content, "volara_expr", f"format {content.get('volara_expr')!r}; this version reads volara_expr: {FORMAT}"
            )
        self.defaults, self.sources = self.section("parameters"), self.section("steps")
        for name in given:
            if name not in self.defaults:
                known = ", ".join(map(str, self.defaults)) or "none"
                raise PipelineError(f"{file}: no parameter {name!r}{near(name, self.defaults)}; it has {known}")
        for name in self.defaults:
            if name in self.sources:
                raise self.error(self.sources, name, "a parameter has this name too; choose another", "steps")
        self.given = given
        self.made: dict[str, Any] = {}
        self.open: list[str] = []

    def section(self, key: str) -> Lines:
        """Return one of the mappings at the top."""
        found = self.root.get(key)
        if found is None:
            return Lines(1)
        if not isinstance(found, Lines):
            raise self.error(self.root, key, f"expected a mapping, got {found!r}")
        return found

    def error(self, at: Lines, key: Any, text: object, *path: object) -> PipelineError:
        """Return an error that names file, line and key."""
        line = at.lines.get(key, at.line)
        return PipelineError(f"{self.file}:{line}: {'.'.join(map(str, (*path, key)))}: {text}")

    def value(self, raw: Any) -> Any:
        """Return a value with parameters and steps in place of their names."""
        if isinstance(raw, dict):
            return {self.value(k): self.value(v) for k, v in raw.items()}
        if isinstance(raw, list):
            return [self.value(v) for v in raw]
        if not isinstance(raw, str):
            return raw
        whole = REFERENCE.fullmatch(raw)
        if whole and whole[1] is not None:
            return self.named(whole[1])
        return REFERENCE.sub(lambda m: "${" if m[1] is None else self.text(m[1]), raw)

    def text(self, name: str) -> str:
        """Return a parameter within a text."""
        found = self.named(name)
        if not isinstance(found, (str, int, float)):
            raise ValueError(f"${{{name}}} within a text is {found!r}; only texts and numbers can be")
        return str(found)

    def named(self, name: str) -> Any:
        """Return the parameter or the step of a name."""
        if name in self.made:
            return self.made[name]
        if name in self.open:
            raise ValueError(f"${{{name}}} depends on itself: {' -> '.join([*self.open, name])}")
        self.open.append(name)
        try:
            if name in self.defaults:
                found = self.parameter(name)
            elif name in self.sources:
                found = self.step(name)
            else:
                known = [*self.defaults, *self.sources]
                raise LookupError(f"no parameter and no step is called {name!r}{near(name, known)}")
        finally:
            self.open.pop()
        self.made[name] = found
        return found

    def parameter(self, name: str) -> Any:
        """Return what was given for a parameter, or its default."""
        raw = self.given.get(name, self.defaults[name])
        if raw is None:
            raise self.error(self.defaults, name, f"has no default; give it, as in --set {name}=...", "parameters")
        return raw if name in self.given else self.value(raw)

    def step(self, name: str) -> Any:
        """Make a step."""
        raw = self.sources[name]
        if not isinstance(raw, Lines) or "op" not in raw:
            raise self.error(self.sources, name, "a step is a mapping with the key op, as in {op: open, url: ...}", "steps")
        arguments: dict[str, Any] = {}
        key: Any = "op"
        try:
            for key, entry in raw.items():
                if key != "op":
                    arguments[key] = self.value(entry)
            key = "op"
            with from_line(f"{self.file}:{self.sources.lines[name]}: steps.{name}"):
                return self.make(str(raw["op"]), arguments)
        except PipelineError:
            raise
        except MISTAKES as e:
            text = str(e.args[0]) if isinstance(e, KeyError) and e.args else str(e)
            said = text.partition("; it takes")[0]
            places = {k: re.search(rf"\b{re.escape(str(k))}\b", said) for k in raw if k not in ("op", "of")}
            named = [(m.start(), k) for k, m in places.items() if m]
            blamed = min(named)[1] if named else key
            raise self.error(raw, blamed, text.removeprefix(f"{blamed}: "), "steps", name) from e

    def make(self, op: str, arguments: dict[str, Any]) -> Any:
        """Do what a step says."""
        if op[:1].isupper() or ":" in op:
            return self.node(op, arguments)
        of = arguments.get("of")
        own = methods(type(of)) if isinstance(of, Expression) else {}
        function = own.get(op) or starts().get(op)
        if function is None:
            what = (
                f"{type(of).__name__} has no operation {op!r}"
                if own
                else f"no operation {op!r} without of: ${{an array or a graph}}"
            )
            raise LookupError(what + near(op, self.every()))
        if op == "map_blocks" and "fn" in arguments:
            try:
                arguments["fn"] = imported(str(arguments["fn"]))
            except Mismatch as e:
                raise Mismatch(f"fn: {e}") from e
        signature = inspect.signature(function)
        positional = [arguments.pop("of")] if op in own else []
        for p in signature.parameters.values():
            if p.kind is p.VAR_POSITIONAL:  # transpose(*axes)
                positional += arguments.pop(p.name, [])
        try:
            signature.bind(*positional, **arguments)
        except TypeError as e:
            raise TypeError(call_text(op, signature, arguments, str(e))) from e
        return function(*positional, **arguments)

    def every(self) -> list[str]:
        """Return the names of all operations."""
        return [*starts(), *methods(Array), *methods(Graph), *ops()]

    def node(self, op: str, arguments: dict[str, Any]) -> Any:
        """Make a node from its fields."""
        cls = op_named(op)
        if cls is None:
            raise LookupError(f"no operation {op!r}{near(op, self.every())}")
        nodes = {k: unwrap(v) for k, v in arguments.items()}
        if cls is InMemory:
            known, data = field_types(InMemory)["known"], nodes.get("data")
            return Array(in_memory(decode(data, np.ndarray), decode(nodes.get("known"), known)))
        types = field_types(cls)
        for key in nodes:
            if key not in types:
                raise LookupError(f"{op} has no {key!r}{near(str(key), types)}; it has {', '.join(types)}")
        fields = {}
        for key, value in nodes.items():
            try:
                fields[key] = decode(value, types[key])
            except Mismatch as e:
                raise Mismatch(f"{key}: {e}") from e
        return expression_of(cls(**fields))

    def evaluated(self, section: str, key: str) -> Any:
        """Return a value beside the steps; `section` is empty for a key at the top."""
        where = self.section(section) if section else self.root
        try:
            return self.value(where[key])
        except PipelineError:
            raise
        except MISTAKES as e:
            raise self.error(where, key, e.args[0] if e.args else e, *([section] if section else [])) from e


def unwrap(value: Any) -> Any:
    """Return nodes in place of their handles."""
    if isinstance(value, Expression):
        return value.node
    if isinstance(value, list):
        return [unwrap(v) for v in value]
    return {k: unwrap(v) for k, v in value.items()} if isinstance(value, dict) else value


def near(name: str, known: Iterable[Any]) -> str:
    """Return " (did you mean ...?)" where a known name is near."""
    found = get_close_matches(name, [str(k) for k in known], 2, 0.6)
    return f" (did you mean {' or '.join(found)}?)" if found else ""
