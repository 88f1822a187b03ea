"""Sources of ops and kernels change together with the op's version, so that older results are never taken for new ones.

`python tests/snapshot/test_op_versions.py` takes over changes of ops whose `version` was raised, and new ops; with
``--same-results`` also changes that cannot change a result.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import sys
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

import volara_expr.ops
from volara_expr.expr import ArrayNode, BlockTable, GlobalTable, Node, TableNode

SNAPSHOT = Path(__file__).with_name("op_versions.json")
BASES = (Node, ArrayNode, TableNode, BlockTable, GlobalTable)


def subclasses(cls: type[Node]) -> Iterator[type[Node]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from subclasses(sub)


def ops() -> dict[str, type[Node]]:
    """Every op of the package, by the name that enters digests."""
    for module in pkgutil.iter_modules(volara_expr.ops.__path__):
        importlib.import_module(f"volara_expr.ops.{module.name}")
    found = {
        c
        for c in subclasses(Node)
        if c not in BASES and not c.__name__.startswith("_") and c.__module__.startswith("volara_expr.ops.")
    }
    return {c.__name__: c for c in sorted(found, key=lambda c: (c.__name__, c.__module__))}


def syntax(node: object) -> Iterator[str]:
    """The syntax tree without docstrings, comments and layout; the same in all versions of Python."""
    if isinstance(node, ast.AST):
        yield type(node).__name__
        for name, value in ast.iter_fields(node):
            if name == "body" and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                value = [v for v in value if not (isinstance(v, ast.Expr) and isinstance(v.value, ast.Constant))]
            if value not in (None, []) and name not in ("ctx", "kind"):
                yield name
                yield from syntax(value)
    elif isinstance(node, list):
        for item in node:
            yield from syntax(item)
    else:
        yield repr(node)


def digest(*sources: str) -> str:
    """Stands for what sources do."""
    text = "\n".join(part for source in sources for part in syntax(ast.parse(source)))
    return blake2b(text.encode(), digest_size=8).hexdigest()


def current() -> dict[str, dict[str, object]]:
    """Version and source of every op: its class, the private bases that it shares code with, and its kernel's module."""
    table: dict[str, dict[str, object]] = {}
    for name, cls in ops().items():
        own = [c for c in cls.__mro__ if issubclass(c, Node) and c not in BASES]
        sources = [inspect.getsource(c) for c in own]
        module = cls.kernel.partition(":")[0]
        if module:
            sources.append(inspect.getsource(importlib.import_module(module)))
        table[name] = {"version": cls.version, "kernel": cls.kernel, "source": digest(*sources)}
    return table


def stale(old: dict[str, dict[str, object]], new: dict[str, dict[str, object]]) -> list[str]:
    """Ops whose source changed although their version did not."""
    return [n for n in new if n in old and old[n] != new[n] and not new[n]["version"] > old[n]["version"]]  # type: ignore[operator]


def test_names_are_unique():
    names = [c.__name__ for c in ops().values()]
    everything = [c.__name__ for c in set(subclasses(Node)) if c not in BASES and c.__module__.startswith("volara_expr.")]
    assert sorted(n for n in everything if not n.startswith("_")) == sorted(names), "the name of an op is part of its digest"


def test_kernels_exist():
    for cls in ops().values():
        module, _, function = cls.kernel.partition(":")
        assert not module or callable(getattr(importlib.import_module(module), function)), cls.kernel


def test_syntax_ignores_layout_and_docstrings_and_nothing_else():
    one = 'def f(x):\n    """Say."""\n    return x + 1  # why\n'
    assert digest(one) == digest("def f(x):\n    return (x\n        + 1)")
    assert digest(one) != digest("def f(x):\n    return x + 2")


def test_a_raised_version_allows_a_change_and_nothing_else_does():
    old = {"Op": {"version": 1, "kernel": "", "source": "a"}}
    assert stale(old, {"Op": {"version": 1, "kernel": "", "source": "b"}}) == ["Op"]
    assert stale(old, {"Op": {"version": 2, "kernel": "", "source": "b"}}) == []
    assert stale(old, old) == []


def test_changed_ops_have_a_higher_version():
    old, new = json.loads(SNAPSHOT.read_text()), current()
    assert not stale(old, new), (
        f"the source of {', '.join(stale(old, new))} (or of its kernel's module) changed and its version did not: stored results of the "
        "older one would be taken for new ones. Raise `version` of the op if any result can differ, then run "
        "`python tests/snapshot/test_op_versions.py`; if none can, run it with --same-results"
    )
    assert old == new, "ops were added, removed or raised: run `python tests/snapshot/test_op_versions.py`"


def update(same_results: bool) -> None:
    old, new = json.loads(SNAPSHOT.read_text()) if SNAPSHOT.exists() else {}, current()
    wrong = stale(old, new)
    if wrong and not same_results:
        sys.exit(f"raise the version of {', '.join(wrong)}, or say --same-results")
    SNAPSHOT.write_text(json.dumps(new, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    update("--same-results" in sys.argv)
