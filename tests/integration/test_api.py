"""The names that users rely on, their signatures, and what their documentation must say."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

import executors
import volara_expr as ve
from executors.protocol import Executor

SIGNATURES = {
    "open": "(url, *, level=0, neighborhood=None)",
    "from_numpy": "(a, *, voxel_size=None, units=None, axes=None, offset=None, neighborhood=None)",
    "open_graph": "(path)",
    "Lut": "(ids, values=None)",
    "Roi": "(offset, shape, unit=None)",
    "write": "(expressions, *, executor=None, chunks=None, shards=None, levels=1, format='ome-zarr', overwrite=False, keep='tables', "
    "progress=True)",
    "submit": "(expressions, *, executor=None, chunks=None, shards=None, levels=1, format='ome-zarr', overwrite=False, keep='tables', "
    "progress=False)",
    "Array.write": "(self, url, *, executor=None, chunks=None, shards=None, levels=1, format='ome-zarr', overwrite=False, "
    "keep='tables', progress=True)",
    "Array.submit": "(self, url, **options)",
    "Array.plan": "(self, block=None, executor=None)",
    "Array.compute": "(self, executor=None)",
    "Array.preview": "(self, **region)",
    "Array.normalize": "(self, lo, hi)",
    "Array.scale_shift": "(self, scale, shift)",
    "Array.clip": "(self, lo=None, hi=None)",
    "Array.threshold": "(self, value)",
    "Array.astype": "(self, dtype, *, copy=None)",
    "Array.map_blocks": "(self, fn, halo=0, dtype=None, name=None)",
    "Array.watershed": "(self, bias, strides=None, block_size=64, context=None, *, noise=0.0, sigma=None, seed=0, random_strides=False, "
    "mask=None, min_size=0, min_mean_affinity=0.0, min_extent=None, ids='float53')",
    "Array.agglomerate": "(self, affs, scores, mean_of=None, block_size=None)",
    "Array.relabel": "(self, lut, missing='keep')",
    "Array.mask": "(self, m, fill=0)",
    "Array.pipe": "(self, function, *args, **kwargs)",
    "Array.checkpoint": "(self)",
    "Array.at": "(self, other)",
    "Graph.mutex_watershed": "(self, weights, combine=False)",
    "Graph.components": "(self, thresholds)",
    "Graph.sweep": "(self, weights, combine=False)",
    "Graph.nodes": "(self, roi=None)",
    "Graph.edges": "(self, roi=None)",
    "Graph.sql": "(self, query)",
    "Graph.to_networkx": "(self, roi=None)",
    "Run.wait": "(self, timeout=None)",
    "Run.cancel": "(self)",
    "Run.result": "(self)",
    "Plan.explain": "(self)",
}
METHODS = [
    "all",
    "any",
    "argmax",
    "argmin",
    "max",
    "min",
    "sum",
    "mean",
    "transpose",
    "flip",
    "pad",
    "concat",
    "stack",
    "gaussian",
    "median",
    "uniform",
    "downsample",
    "resample_like",
    "components",
    "squeeze",
    "expand_dims",
    "with_neighborhood",
]
PUBLIC = [*SIGNATURES, *(f"Array.{name}" for name in METHODS)]
EAGER_LIMIT_S = 0.25
HEAVY = [
    "numba",
    "scipy",
    "zarr",
    "tensorstore",
    "duckdb",
    "pyarrow",
    "networkx",
    "numpy",
    "matplotlib",
    "dill",
    "multiprocess",
    "tqdm",
    "click",
    "psutil",
]


def resolve(name: str):
    thing = ve
    for part in name.split("."):
        thing = getattr(thing, part)
    return thing


REQUIRED = object()


def promised(signature: str) -> dict[str, object]:
    """Names and defaults of a documented signature, in order."""
    function = ast.parse(f"def f{signature}: ...").body[0]
    assert isinstance(function, ast.FunctionDef)
    at = function.args
    defaults = [REQUIRED] * (len(at.args) - len(at.defaults)) + [ast.literal_eval(d) for d in at.defaults]
    found = dict(zip([a.arg for a in at.args], defaults, strict=True))
    return found | {a.arg: ast.literal_eval(d) for a, d in zip(at.kwonlyargs, at.kw_defaults, strict=True) if d is not None}


def documented() -> list[str]:
    """Every public function, class and method of the package."""
    found = []
    for name in ve.__all__:
        thing = getattr(ve, name)
        if inspect.ismodule(thing) or not callable(thing):
            continue
        found.append(name)
        if inspect.isclass(thing):
            found += [f"{name}.{m}" for m, f in inspect.getmembers(thing) if inspect.isroutine(f) and is_ours(m, f)]
    return found


def is_ours(name: str, function) -> bool:
    return not name.startswith("_") and (getattr(function, "__module__", "") or "").startswith("volara_expr")


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_exist(name):
    assert callable(resolve(name))


@pytest.mark.parametrize(("name", "documented"), SIGNATURES.items(), ids=list(SIGNATURES))
def test_calls_as_documented_work(name, documented):
    """Parameters have their names, places and defaults; what was added since may be left out."""
    actual = inspect.signature(resolve(name)).parameters
    for at, (parameter, default) in enumerate(promised(documented).items()):
        assert parameter in actual
        assert default is REQUIRED or actual[parameter].default == default
        if actual[parameter].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            assert list(actual)[at] == parameter
    added = [p for n, p in actual.items() if n not in promised(documented) and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    assert [p.name for p in added if p.default is p.empty] == []


def test_all_is_what_dir_shows():
    assert set(ve.__all__) <= set(dir(ve))
    assert [name for name in ve.__all__ if not hasattr(ve, name)] == []
    with pytest.raises(AttributeError, match="no attribute 'opne'"):
        _ = ve.opne


def test_executors_are_found_by_name():
    assert ve.executors is executors
    for entry in entry_points(group="volara_expr.executors"):
        made: Executor = entry.load()
        assert list(inspect.signature(made.run).parameters) == list(inspect.signature(Executor.run).parameters), entry.name
        assert entry.load().__name__ in executors.__all__


SECTION = re.compile(r"^(\w[\w ]+)\n-{3,}$", re.MULTILINE)


@pytest.mark.parametrize("name", documented())
def test_documentation(name):
    """A summary in one line; parameters documented as they are named; sections in numpydoc's order."""
    thing = resolve(name)
    doc = inspect.getdoc(thing)
    assert doc, f"{name} says nothing"
    summary, _, rest = doc.partition("\n")
    assert summary.rstrip().endswith("."), f"the summary of {name} is not one sentence in one line: {summary!r}"
    assert not rest or rest.startswith("\n"), f"an empty line is missing after the summary of {name}"
    sections = SECTION.findall(doc)
    order = ["Parameters", "Attributes", "Returns", "Raises", "Notes", "References", "Examples"]
    assert sections == [s for s in order if s in sections], f"sections of {name}: {sections}"
    if "Parameters" in sections:
        text = doc.split("Parameters\n----------\n", 1)[1]
        text = text[: m.start()] if (m := SECTION.search(text)) else text
        named = [
            n.strip().lstrip("*")
            for line in text.splitlines()
            if re.match(r"\*{0,2}\w", line)
            for n in line.split(":")[0].split(",")
        ]
        actual = [p for p in inspect.signature(thing).parameters if p != "self"]
        assert set(named) <= set(actual), f"{name} documents {named} but takes {actual}"
        assert named == [p for p in actual if p in named], f"{name} documents its parameters in another order"


@pytest.mark.parametrize("name", [n for n in documented() if inspect.isfunction(resolve(n))])
def test_operations_with_parameters_show_a_use_that_runs(name):
    doc = inspect.getdoc(resolve(name)) or ""
    assert "+SKIP" not in doc
    assert ">>>" in doc or "Parameters" not in SECTION.findall(doc)


def fresh(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_loads_nothing_heavy():
    loaded = fresh("import sys, volara_expr\nprint(*sys.modules)").split()
    assert [name for name in HEAVY if name in loaded] == []


def test_import_is_fast():
    code = "from time import perf_counter as t\na = t()\nimport volara_expr\nprint(t() - a)"
    assert min(float(fresh(code)) for _ in range(5)) < EAGER_LIMIT_S


def test_planning_loads_no_compiler():
    code = (
        "import sys, numpy as np, volara_expr as ve\n"
        "a = ve.from_numpy(np.zeros((1, 70, 70, 70), np.uint8), neighborhood=[(1, 0, 0)])\n"
        "frags = a.normalize(0, 255).watershed(-0.5)\n"
        "seg = frags.relabel(frags.agglomerate(a, scores={'s': [0]}).mutex_watershed({'s': (1.0, -0.5)}))\n"
        "seg.plan().explain(), repr(seg)\n"
        "print(*sys.modules)"
    )
    assert [name for name in ("numba", "scipy", "zarr", "tensorstore") if name in fresh(code).split()] == []
