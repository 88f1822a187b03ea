"""Lazy array expressions for volumes too large for memory, compiled to fused blockwise jobs.

>>> import numpy as np
>>> import volara_expr as ve
>>> image = ve.from_numpy(np.arange(12, dtype=np.uint8).reshape(3, 4))
>>> (image + 1 > 5).compute().sum()
np.int64(7)
"""

from __future__ import annotations

from importlib import import_module
from types import FunctionType
from typing import TYPE_CHECKING, Any

from volara_expr.config import config  # at once: importing the module later would put the module in its place

if TYPE_CHECKING:
    import executors
    from volara_expr.array.core import Array
    from volara_expr.array.dask import from_dask
    from volara_expr.array.functions import align, concat, concatenate, stack, where
    from volara_expr.array.graph import Graph, NotComputed, open_graph
    from volara_expr.array.lut import Lut
    from volara_expr.array.pipeline import Pipeline, from_json, load_pipeline
    from volara_expr.array.sources import from_numpy
    from volara_expr.array.sources import open_array as open
    from volara_expr.array.tables import Table
    from volara_expr.array.viewing import show
    from volara_expr.array.writing import Run, submit, write
    from volara_expr.geometry import Roi
    from volara_expr.plan.plan import Plan

__all__ = [
    "Array",
    "Graph",
    "Lut",
    "NotComputed",
    "Pipeline",
    "Plan",
    "Roi",
    "Run",
    "Table",
    "align",
    "concat",
    "concatenate",
    "config",
    "executors",
    "from_dask",
    "from_json",
    "from_numpy",
    "load_pipeline",
    "open",
    "open_graph",
    "show",
    "stack",
    "submit",
    "where",
    "write",
]

__version__ = "0.1.0"

_HOMES = {
    "Array": "volara_expr.array.core",
    "Graph": "volara_expr.array.graph",
    "Lut": "volara_expr.array.lut",
    "NotComputed": "volara_expr.array.graph",
    "Pipeline": "volara_expr.array.pipeline",
    "Plan": "volara_expr.plan.plan",
    "Roi": "volara_expr.geometry",
    "Run": "volara_expr.array.writing",
    "Table": "volara_expr.array.tables",
    "align": "volara_expr.array.functions",
    "concat": "volara_expr.array.functions",
    "concatenate": "volara_expr.array.functions",
    "from_dask": "volara_expr.array.dask",
    "from_json": "volara_expr.array.pipeline",
    "from_numpy": "volara_expr.array.sources",
    "load_pipeline": "volara_expr.array.pipeline",
    "open": "volara_expr.array.sources:open_array",
    "open_graph": "volara_expr.array.graph",
    "show": "volara_expr.array.viewing",
    "stack": "volara_expr.array.functions",
    "submit": "volara_expr.array.writing",
    "where": "volara_expr.array.functions",
    "write": "volara_expr.array.writing",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import volara_expr` is fast."""
    if name == "executors":
        return import_module("executors")
    if name not in _HOMES:
        if name.startswith("_"):
            raise AttributeError(f"module 'volara_expr' has no attribute {name!r}")
        import_module("volara_expr.array.teach").no_name(name, __all__)
    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(import_module(module), attribute or name)
    if isinstance(value, FunctionType) and not hasattr(value, "__wrapped__"):
        value = import_module("volara_expr.array.teach").teaching(value)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted({*globals(), *__all__})
