"""docs/operations.md says what the nodes say, and leaves out no operation. `python docs/build_operations.py` takes over a change."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from volara_expr.array.filters import Filters
from volara_expr.array.morphology import Morphology
from volara_expr.array.reduce import Reduce
from volara_expr.array.regions import Regions
from volara_expr.array.stencil import Stencil
from volara_expr.array.values import Values

SCRIPT = Path(__file__).parents[2] / "docs" / "build_operations.py"
UNLISTED = {"symmetric_eigenvalues", "resample_like"}
"""Shown by `hessian_eigenvalues`; to other arrays' voxels, so without a counterpart."""


def script():
    spec = importlib.util.spec_from_file_location("build_operations", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date():
    module = script()
    assert module.PAGE.read_text() == module.page(), "run `python docs/build_operations.py`"


def test_the_page_names_every_operation():
    text = SCRIPT.with_name("operations.md").read_text()
    methods = {n for c in (Filters, Morphology, Reduce, Regions, Stencil, Values) for n in vars(c) if not n.startswith("_")}
    assert not {n for n in methods - UNLISTED if n not in text}
