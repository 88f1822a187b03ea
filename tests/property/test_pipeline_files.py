"""Expressions written down and read again are the same ones: every operation, and random pipelines."""

from __future__ import annotations

import json
import subprocess
import sys

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import volara_expr as ve
from volara_expr.array.document import parse, to_yaml
from volara_expr.array.encoding import ops
from volara_expr.array.schema import schema
from volara_expr.expr import topological
from volara_expr.testing.strategies import Pipeline, pipelines

OFFSETS = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (2, 0, 0)]
NOT_IN_FILES = {"DaskSource"}
"""A Dask array is a graph of Python objects."""


def double(x):
    return x * 2


@pytest.fixture(scope="module")
def expressions(tmp_path_factory):
    """Expressions that hold every operation between them."""
    rng = np.random.default_rng(0)
    space = {"voxel_size": (4, 2, 2), "units": "nm"}
    raw = ve.from_numpy(rng.integers(0, 256, (6, 8, 9), np.uint8), **space)
    stored = ve.from_numpy(rng.random((4, 6, 8, 9), np.float32), **space, neighborhood=OFFSETS)
    folder = tmp_path_factory.mktemp("in")
    affs = stored.write(folder / "affs.zarr", progress=False, format="zarr")
    frags = affs.gaussian("3nm").watershed(bias=-0.5, strides=(2, 2, 2), block_size=4, min_extent=1, ids="uint64")
    graph = frags.agglomerate(affs, {"near": [0, 1, 2], "far": [(2, 0, 0)]}, mean_of={"raw": raw})
    made = graph.write(folder / "out.zarr/graph", progress=False)
    lut = graph.mutex_watershed({"near": (1.0, -0.5), "far": (0.5, -0.25)}, combine=True)
    seg = frags.relabel(lut, missing="zero")
    cells = (raw > 100).components(2)
    counts, edges = raw.histogram(4)
    smooth = raw.astype("float32").gaussian(1, mode="constant", value=float("nan"))
    return [
        *(graph, lut, seg, made, made.components({"near": 0.5}), frags[1:3].checkpoint()),
        *(counts, edges, raw.quantile([0.25, 0.5]), raw.mean(), raw.sum(), raw.max(), cells, frags.relabel({1: 7, 2: 2**60})),
        *(
            smooth,
            raw.median(3),
            raw.uniform((1, 2, 3)),
            raw.minimum_filter(2),
            raw.maximum_filter(3),
            raw.downsample(2, "max"),
        ),
        *(raw.downsample((1, 2, 2)).resample_like(raw), raw.upsample(2), raw.astype("int8", saturate=True), raw.astype(">u2")),
        *(
            raw.normalize(0, 255),
            raw.scale_shift(2, -1),
            raw.threshold(np.float32(0.1)),
            raw.clip(None, 9),
            raw.mask(raw > 7, fill=3),
        ),
        *(
            raw.flip(1).transpose("x", "z", "y"),
            raw[::2, 3, [1, 0]],
            raw.expand_dims(0).squeeze(0),
            raw.pad(2, "reflect"),
            raw[1:].at(raw[:5]),
        ),
        *(ve.where(raw > 3, raw, np.uint8(4)), raw * 1j, raw + np.float64("inf"), raw == True, stored.argmax(0, keepdims=True)),  # noqa: E712
        *(ve.concat([raw, raw]), ve.stack([raw, raw * 2, raw]), raw.world["8nm":"12nm"], raw.map_blocks(double, halo=1)),
        *(
            raw.map_blocks(np.cumsum, name="sums"),
            smooth.gaussian_gradient_magnitude(1),
            smooth.hessian_eigenvalues(1),
            smooth.sobel(0),
        ),
        *(
            (raw > 9).distance_transform(max_distance=3),
            cells.expand_labels(2),
            cells.remove_small(3),
            cells.table({"raw": raw}),
        ),
        *(
            raw.flood(cells),
            raw.grey_opening(3),
            (raw > 3).fill_holes(),
            raw.correlate1d([1, 2, 1], 0),
            (raw > 3).binary_erosion(),
        ),
    ]


def test_every_operation_is_the_same_after_a_file(expressions):
    seen = set()
    for expression in expressions:
        node = expression.node
        seen |= {type(n).__name__ for n in topological([node])}
        for text in (expression.to_json(), expression.to_yaml()):
            again = ve.from_json(text)
            assert type(again) is type(expression)
            assert again.node.digest == node.digest
            assert all(type(a) is type(b) and a.spec == b.spec for a, b in [(again.node, node)] if hasattr(node, "spec"))
    assert set(ops()) - seen == NOT_IN_FILES, "an operation that no expression of this test has"


def test_json_is_what_the_schema_says(expressions):
    validator = jsonschema.Draft202012Validator(schema())
    for expression in expressions:
        errors = list(validator.iter_errors(json.loads(expression.to_json())))
        assert not errors, f"{expression!r}: {errors[0].message} at {list(errors[0].path)}"
    for op in ("gausian", "GaussianFiltr"):
        assert list(validator.iter_errors({"volara_expr": 1, "steps": {"a": {"op": op, "of": "${b}"}}}))
    wrong = {"op": "GaussianFilter", "array": "${a}", "sigma": [1, "a"]}
    assert list(validator.iter_errors({"volara_expr": 1, "steps": {"b": wrong}}))


@given(pipelines())
@settings(max_examples=60)
def test_random_pipelines(pipeline: Pipeline):
    array = pipeline.array
    if any(type(n).__name__ == "MapBlocks" for n in topological([array.node])):
        assert "volara_expr.testing.strategies:_quiet_cross" in array.to_json()
    for text in (array.to_json(), array.to_yaml()):
        assert ve.from_json(text).key == array.key


def test_another_process_has_the_same_expression_and_the_same_values(tmp_path):
    x = ve.from_numpy(
        np.random.default_rng(0).integers(0, 200, (9, 10, 11), np.uint8), voxel_size=(0.5, 0.25, 0.25), units="um"
    )
    labels = (x.gaussian("0.5um") > 100).components()
    (tmp_path / "labels.json").write_text(labels.to_json())
    code = (
        "import sys, volara_expr as ve\n"
        "a = ve.from_json(open(sys.argv[1]).read())\n"
        "print(a.key, a.compute().sum(), a.node.spec.space.describe_voxel())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "labels.json"], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == f"{labels.key} {labels.compute().sum()} (0.5, 0.25, 0.25) um".split()


def test_what_no_text_can_hold_is_refused():
    x = ve.from_numpy(np.zeros((8, 8)))
    with pytest.raises(
        ValueError, match=r"map_blocks\(.*lambda.*function: .*cannot be imported from another program.*put it into a module"
    ):
        x.map_blocks(lambda b: b).to_json()
    with pytest.raises(ValueError, match=r"8,388,608 bytes is too much for a text, which takes 1,048,576; write it to a store"):
        ve.from_numpy(np.zeros((1024, 1024))).to_json()


def test_stored_arrays_are_opened_again_in_yaml_and_pinned_in_json(tmp_path):
    url = tmp_path / "a.zarr"
    stored = ve.from_numpy(np.zeros((8, 8), np.uint8)).write(url, progress=False)
    smooth = stored.gaussian(1)
    as_yaml, as_json = smooth.to_yaml(), smooth.to_json()
    assert "op: open" in as_yaml
    assert "  stored:\n" in as_yaml, "steps are called as the variables"
    ve.from_numpy(np.ones((8, 8), np.uint8)).write(url, progress=False, overwrite=True)
    assert ve.from_json(as_yaml).key != smooth.key
    assert ve.from_json(as_yaml).compute().max() == 1
    with pytest.raises(RuntimeError, match="changed since it was opened"):
        ve.from_json(as_json).compute()


def test_a_deep_expression_is_no_recursion():
    x = ve.from_numpy(np.zeros(4))
    for _ in range(1500):
        x = x + 1
    assert ve.from_json(x.to_json()).key == x.key


WORDS = st.text(
    st.characters(exclude_categories=("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")) | st.sampled_from("\n\t"), max_size=8
)
WORDS |= st.sampled_from(
    ["no", "on", "~", "null", "1e5", "0x1f", "1_000", "2026-01-01", ".5", "- a", "a: b", "#", "<<", "${a}", " "]
)


@given(
    st.dictionaries(
        WORDS, st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | WORDS, max_size=6
    )
)
def test_texts_are_read_as_they_were_written(content):
    for written in (to_yaml(content), json.dumps(content, ensure_ascii=False)):
        again = parse(written, "text")
        assert again == content
        assert [type(v) for v in again.values()] == [type(v) for v in content.values()]
