"""Pipeline files: what they make, what is said of mistakes in them, and the commands that run, show and delete what they made."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import volara_expr as ve
from volara_expr.cli import cli

COMMAND = Path(sys.executable).with_name("volara-expr")
FILE = """\
volara_expr: 1
parameters:
  affs: null
  out: out.zarr
  bias: -0.5
steps:
  stored: {op: open, url: "${affs}"}
  seg: {op: relabel, of: "${frags}", lut: "${lut}"}
  scaled: {op: normalize, of: "${stored}", lo: 0, hi: 255}
  frags:
    op: watershed
    of: ${scaled}
    bias: ${bias}
    block_size: [8, 8, 8]
  graph: {op: agglomerate, of: "${frags}", affs: "${scaled}", scores: {direct: [0, 1, 2]}}
  lut: {op: mutex_watershed, of: "${graph}", weights: {direct: [1, -0.6]}}
outputs:
  ${out}/frags: ${frags}
  ${out}/graph: ${graph}
  ${out}/seg: ${seg}
options:
  chunks: 8
"""


@pytest.fixture(scope="module")
def affs(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("in") / "affs.zarr"
    data = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 16), np.uint8)
    offsets = [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    ve.from_numpy(data, voxel_size=(4, 4, 4), units="nm", neighborhood=offsets).write(path, progress=False)
    return path


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "seg.yaml"
    path.write_text(FILE)
    return path


def run(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *map(str, args)], capture_output=True, text=True, timeout=120, cwd=cwd)


def call(*args: object, stdin: str = "") -> Result:
    """The same command in this process."""
    return CliRunner().invoke(cli, [*map(str, args)], input=stdin)


def test_a_file_is_the_expression_that_python_makes(file, affs):
    scaled = ve.open(affs).normalize(0, 255)
    frags = scaled.watershed(bias=-0.25, block_size=8)
    lut = frags.agglomerate(scaled, scores={"direct": [0, 1, 2]}).mutex_watershed({"direct": (1, -0.6)})
    pipeline = ve.load_pipeline(file, affs=str(affs), bias=-0.25)
    assert pipeline["seg"].key == frags.relabel(lut).key
    assert list(pipeline.outputs) == ["out.zarr/frags", "out.zarr/graph", "out.zarr/seg"]
    assert pipeline.options == {"chunks": 8}
    assert ve.load_pipeline(file, affs=str(affs))["seg"].key != pipeline["seg"].key
    assert "watershed" in pipeline.plan().explain()


def test_nodes_and_methods_name_the_same(tmp_path, affs):
    text = """
    volara_expr: 1
    parameters: {affs: null}
    steps:
      a: {op: open, url: "${affs}"}
      raw: {op: index, of: "${a}", key: "0, 2:14, ::-1"}
      near: {op: world, of: "${a}", offset: [8, 8, 8], shape: [16, 16, 16], unit: nm}
      one: {op: gaussian, of: "${raw}", sigma: 1}
      two: {op: GaussianFilter, array: "${raw}", sigma: [1.0, 1.0, 1.0]}
      sum: {op: Elementwise, ufunc: add, operands: ["${one}", "${two}"]}
      turned: {op: transpose, of: "${raw}", axes: [x, y, z]}
      both: {op: stack, arrays: ["${raw}", "${raw}"]}
      mine: {op: map_blocks, of: "${one}", fn: "numpy:cos"}
      table: {op: lut, values: {1: 7, 2: 9}}
      labels: {op: relabel, of: "${raw}", lut: "${table}"}
      price: {op: threshold, of: "${one}", value: 1e-2}
    """
    (tmp_path / "p.yaml").write_text(text)
    p = ve.load_pipeline(tmp_path / "p.yaml", affs=str(affs))
    a = ve.open(affs)
    raw = a[0, 2:14, ::-1]
    smooth = raw.gaussian(1)
    made = {
        "raw": raw,
        "near": a.world["8nm":"24nm", "8nm":"24nm", "8nm":"24nm"],
        "two": smooth,
        "sum": smooth + smooth,
        "turned": raw.transpose(2, 1, 0),
        "both": ve.stack([raw, raw]),
        "mine": smooth.map_blocks(np.cos),
        "labels": raw.relabel({1: 7, 2: 9}),
        "price": smooth.threshold(0.01),
    }
    assert {n: p[n].key for n in made} == {n: e.key for n, e in made.items()}
    with pytest.raises(KeyError, match=r"no step 'labelz' \(did you mean labels\?\)"):
        p["labelz"]
    with pytest.raises(ValueError, match=r"names no outputs; add them"):
        p.write()


MISTAKES = {
    "a key twice": (("  out: out.zarr", "  out: a\n  out: b"), r":5: 'out' is here and in line 4; keep one"),
    "no YAML": (("steps:", "steps: ["), r"seg.yaml:\d+: .*this is no YAML"),
    "a tag": (("bias: -0.5", "bias: !!python/name:os.system x"), r":5: the tag .*python.* is not read"),
    "another version": (("volara_expr: 1", "volara_expr: 2"), r":1: volara_expr: format 2; this version reads volara_expr: 1"),
    "an unknown section": (("options:", "optoins:"), r":21: optoins: unknown key \(did you mean options\?\)"),
    "an unknown operation": (
        ("op: relabel", "op: relable"),
        r":8: steps.seg.op: Array has no operation 'relable' \(did you mean relabel",
    ),
    "an unknown argument": (
        ("block_size", "blok_size"),
        r":14: steps.frags.blok_size: .*no argument 'blok_size' \(did you mean block_size\?",
    ),
    "volara's argument": (("block_size: [8", "noise_eps: [8"), r":14: steps.frags.noise_eps: .*here it is noise"),
    "a wrong value": (
        ("[8, 8, 8]", "[8, 8]"),
        r":14: steps.frags.block_size: block_size has 2 entries but there are 3 space axes",
    ),
    "an unknown step": (
        ("of: ${scaled}", "of: ${scald}"),
        r":12: steps.frags.of: no parameter and no step is called 'scald' \(did you mean scaled",
    ),
    "a circle": (('lut: "${lut}"', 'lut: "${seg}"'), r":8: steps.seg.lut: \$\{seg\} depends on itself: seg -> seg"),
    "no operation": (("op: watershed", "opp: watershed"), r":10: steps.frags: a step is a mapping with the key op"),
    "a missing argument": (("    bias: ${bias}\n", ""), r":11: steps.frags.*missing a required argument: 'bias'"),
    "an option of nothing": (("chunks: 8", "chunk: 8"), r":22: options.chunk: no option of write \(did you mean chunks\?\)"),
    "an output that is none": (("/seg: ${seg}", "/seg: ${bias}"), r":20: outputs.*/seg: '\$\{bias\}' is no array"),
    "a function that is none": (
        ('op: normalize, of: "${stored}", lo: 0, hi: 255', 'op: map_blocks, of: "${stored}", fn: "numpy:nothing"'),
        r":9: steps.scaled.fn: 'numpy:nothing' cannot be imported",
    ),
    "a field of a node": (
        ('op: normalize, of: "${stored}", lo: 0, hi: 255', 'op: Normalize, array: "${stored}", lo: a, hi: 255'),
        r":9: steps.scaled.lo: 'a' is no float",
    ),
    "a field that is none": (
        ('op: normalize, of: "${stored}", lo: 0', 'op: Normalize, array: "${stored}", low: 0'),
        r":9: steps.scaled.low: Normalize has no 'low' \(did you mean lo",
    ),
}


@pytest.mark.parametrize(("change", "message"), MISTAKES.values(), ids=list(MISTAKES))
def test_mistakes_name_file_line_and_key(change, message, file, affs):
    assert change[0] in FILE
    file.write_text(FILE.replace(*change))
    with pytest.raises(ValueError, match=r"seg\.yaml") as caught:
        ve.load_pipeline(file, affs=str(affs))
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)


def test_parameters_are_asked_for_and_known(file):
    with pytest.raises(ValueError, match=r"seg\.yaml:3: parameters\.affs: has no default; give it, as in --set affs="):
        ve.load_pipeline(file)
    with pytest.raises(ValueError, match=r"no parameter 'bais' \(did you mean bias\?\); it has affs, out, bias"):
        ve.load_pipeline(file, affs="x", bais=1)


def test_a_failing_block_names_the_step(tmp_path):
    file = tmp_path / "fails.yaml"
    ve.from_numpy(np.zeros((8, 8), np.uint8)).write(tmp_path / "a.zarr", progress=False)
    file.write_text(f"""
volara_expr: 1
steps:
  a: {{op: open, url: "{tmp_path}/a.zarr"}}
  flat: {{op: map_blocks, of: "${{a}}", fn: "numpy:ravel"}}
outputs: {{"{tmp_path}/out.zarr": "${{flat}}"}}
""")
    done = run("run", file, "--quiet", cwd=tmp_path)
    assert done.returncode == 1
    assert "in map_blocks(ravel), made in fails.yaml:5: steps.flat" in done.stderr


def test_run_plan_status_and_drop(file, affs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    setting = ("--set", f"affs={affs}")
    assert "out.zarr/frags" in call("plan", file, *setting).output
    assert not Path("out.zarr").exists()
    done = run("run", file, *setting, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = ve.load_pipeline(file, affs=str(affs))["seg"].compute()
    assert (ve.open("out.zarr/seg").compute() == expected).all()

    again = call("run", file, *setting, "--set", "bias=-0.4", "-q")
    assert "holds the result of another expression" in str(again.exception)
    outputs = {
        n["name"]: (n["done"], n["total"]) for n in json.loads(call("status", "out.zarr", "--json").output) if n["named"]
    }
    assert outputs == {"frags": (8, 8), "graph": (1, 1), "seg": (8, 8)}
    assert re.search(r"^seg +8/8 +done  output, relabel$", call("status", "out.zarr").output, re.MULTILINE)

    call("drop", "out.zarr", stdin="n\n")
    assert Path("out.zarr/seg").exists()
    call("drop", "out.zarr/seg", "--yes")
    assert not Path("out.zarr/seg").exists()
    assert Path("out.zarr/frags").exists()
    call("drop", "out.zarr", "--yes")
    assert sorted(os.listdir()) == ["seg.yaml"]
    assert "no run has written to" in str(call("status", "out.zarr").exception)


def test_status_of_a_run_that_was_stopped(tmp_path):
    """Counted by write units, from what is recorded."""
    x = ve.from_numpy(np.arange(64.0).reshape(8, 8))

    def stop(block):
        if block.min() > 30:
            raise KeyboardInterrupt
        return block

    with pytest.raises(KeyboardInterrupt):
        x.map_blocks(stop, name="stop").write(
            tmp_path / "o.zarr", chunks=(4, 4), executor=ve.executors.Serial(block=(4, 4)), progress=False
        )
    (state,) = json.loads(call("status", tmp_path / "o.zarr", "--json").output)
    assert (state["done"], state["total"]) == (2, 4)


def test_drop_leaves_what_others_wrote(tmp_path, affs):
    out = tmp_path / "out.zarr"
    ve.open(affs)[0].gaussian(1).write(out / "smooth", progress=False)
    ve.open(affs)[1].write(out / "theirs", progress=False)
    marked = next(p for p in (out / "theirs").rglob("zarr.json") if "volara_expr" in p.read_text())
    about = json.loads(marked.read_text())
    del about["attributes"]["volara_expr"]
    marked.write_text(json.dumps(about))
    done = call("drop", out, "--yes")
    assert done.exit_code == 0, done.output
    assert not (out / "smooth").exists()
    assert (out / "theirs").exists()
    assert not Path(f"{out}.volara_expr").exists()


def test_the_schema_is_printed():
    assert json.loads(call("schema").output)["title"] == "volara_expr pipeline"
