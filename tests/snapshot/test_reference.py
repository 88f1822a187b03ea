"""The reference is that of the docstrings: `python docs/build_reference.py` takes over a change."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

import volara_expr as ve
from volara_expr.array.core import Array
from volara_expr.array.graph import Graph
from volara_expr.array.steps import methods

DOCS = Path(__file__).parents[2] / "docs"
AGAIN = "run `python docs/build_reference.py`"
spec = importlib.util.spec_from_file_location("build_reference", DOCS / "build_reference.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)


@pytest.mark.parametrize(("path", "make"), build.pages().items(), ids=[p.stem for p in build.pages()])
def test_pages_are_up_to_date(path, make):
    assert path.read_text() == make(), AGAIN


def test_no_page_and_no_picture_is_left_over():
    assert {p.name for p in (DOCS / "reference").iterdir()} == {p.name for p in build.pages()}, AGAIN
    assert {p.stem for p in (DOCS / "img" / "ops").iterdir()} == set(build.PICTURES), AGAIN


def test_everything_public_is_on_a_page():
    text = "".join(make() for make in build.pages().values())
    headed = set(re.findall(r"^### (\w+)$", text, re.MULTILINE))
    named = {n for n in dir(Array) if not n.startswith("_") and callable(getattr(Array, n))}
    functions = {n for n in ve.__all__ if not isinstance(getattr(ve, n), type) and callable(getattr(ve, n))}
    assert named - headed == set()
    assert functions - headed - {"concatenate"} == set()


def test_every_operation_has_a_picture_and_an_example():
    ops = {**methods(Array), **methods(Graph)}
    assert set(ops) - set(build.PICTURES) == build.UNSEEN & set(ops), "add a line to PICTURES"
    without = [n for n in ops if ">>>" not in (ops[n].__doc__ or "")]
    assert without == []


def test_pictures_show_what_their_lines_make():
    """Up to a few pixels: generated noise may differ in its last bits between versions of SciPy."""
    for name in build.PICTURES:
        image = build.picture(name)
        old = build.pixels((DOCS / "img" / "ops" / f"{name}.png").read_bytes())
        rows = np.frombuffer(old, np.uint8).reshape(image.shape[0], -1)[:, 1:].reshape(image.shape)
        differ = (np.abs(rows.astype(int) - image) > 2).any(axis=-1).mean()
        assert differ < 0.02, f"{name}: {differ:.0%} of the pixels differ; {AGAIN}"
        panels = image.shape[1] - build.SIDE - build.GAP
        changed = panels != build.SIDE or (image[:, : build.SIDE] != image[:, -build.SIDE :]).any()
        assert changed or name in {"astype", "normalize", "concat"}, f"{name}: nothing is to be seen"
