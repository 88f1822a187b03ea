"""The command line: what it makes is what the Python API makes, and what it says to a user is one message."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import numpy as np
import pytest
import zarr

import volara_expr as ve
from volara_expr.cli import main

OFFSETS = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (4, 0, 0), (0, 4, 0), (0, 0, 4)]
COMMAND = Path(sys.executable).with_name("volara-expr")
OPTIONS = ["--block-size", "16,32,32", "--chunks", "16,32,32"]


@pytest.fixture(scope="module")
def affs(tmp_path_factory) -> Path:
    """Affinities of smooth noise, (6, 32, 64, 64) uint8, with voxel size and neighborhood."""
    rng = np.random.default_rng(0)
    image = ve.from_numpy(rng.integers(0, 256, (6, 32, 64, 64), np.uint8), voxel_size=(40, 4, 4), units="nm")
    smooth = ((image.gaussian((0.8, 2, 2)) - 127) * 6 + 127).clip(0, 255).astype(np.uint8).with_neighborhood(OFFSETS)
    smooth.write(path := tmp_path_factory.mktemp("data") / "sample.zarr" / "affs", progress=False)
    return path


def run(*args: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *map(str, args)], capture_output=True, text=True, timeout=120, cwd=cwd)


def segment(affs: Path, out: Path, *options: object) -> subprocess.CompletedProcess[str]:
    return run("segment", affs, "--out", out, *OPTIONS, *options)


def content(out: Path) -> dict[str, object]:
    """Everything that a run leaves: bytes of every chunk, and rows of the tables."""
    chunks = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file() and "/c/" in str(p)}
    assert chunks
    with duckdb.connect(str(out.with_suffix(".graph.duckdb")), read_only=True) as db:
        tables = {t: db.sql(f"select * from {t}").fetchall() for t in ("nodes", "edges")}
    lut = duckdb.sql(f"select * from '{out.with_suffix('.lut.parquet')}'").fetchall()
    return {**chunks, **tables, "lut": lut}


@pytest.fixture(scope="module")
def by_python(affs, tmp_path_factory) -> Path:
    """What the command line does, written in Python."""
    out = tmp_path_factory.mktemp("python") / "out.zarr"
    values = ve.open(affs).normalize(0, 255)
    strides = [(1, 1, 1)] * 3 + [(3, 3, 3)] * 3
    fragments = values.watershed(bias=[-0.5] * 3 + [-0.6] * 3, strides=strides, block_size=(16, 32, 32))
    graph = fragments.agglomerate(values, scores={"direct": slice(0, 3), "long": slice(3, 6)})
    lut = graph.mutex_watershed({"direct": (1.0, -0.6), "long": (1.0, -0.7)})
    outputs = {
        f"{out}/fragments": fragments,
        f"{out}/graph": graph,
        f"{out}/lut": lut,
        f"{out}/segments": fragments.relabel(lut),
    }
    ve.write(outputs, chunks=(16, 32, 32), progress=False)
    return out


def test_segment_makes_the_bytes_that_python_makes(affs, by_python, tmp_path):
    done = segment(affs, tmp_path / "out.zarr", "--executor", "multiprocessing:2")
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "out.zarr") == content(by_python)
    segments = zarr.open(str(tmp_path / "out.zarr" / "segments" / "0"))[:]
    assert f"{len(np.unique(zarr.open(str(tmp_path / 'out.zarr' / 'fragments' / '0'))[:])) - 1:,} fragments" in done.stdout
    assert 1 < len(np.unique(segments)) < segments.size
    assert "blocks" in done.stdout
    assert f"graph: {tmp_path / 'out.graph.duckdb'}" in done.stdout


def test_resume_after_a_kill(affs, by_python, tmp_path):
    out = tmp_path / "out.zarr"
    command = [COMMAND, "segment", affs, "--out", out, *OPTIONS, "-x", "multiprocessing:2"]
    started = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    records = Path(f"{out}.volara_expr")
    deadline = time.monotonic() + 60
    while not any(records.rglob("done/*.log")):  # something is finished
        assert started.poll() is None, started.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(started.pid, signal.SIGKILL)
    assert started.wait() == -signal.SIGKILL
    started.stdout.close()
    assert not out.with_suffix(".lut.parquet").exists(), "it was killed too late to be resumed"
    before = {p: p.stat().st_mtime_ns for p in records.rglob("done/*.log")}
    again = segment(affs, out)
    assert again.returncode == 0, again.stderr
    assert content(out) == content(by_python)
    assert before.items() <= {p: p.stat().st_mtime_ns for p in records.rglob("done/*.log")}.items(), (
        "earlier records were thrown away"
    )


def test_a_second_run_does_nothing_and_other_parameters_are_refused(affs, by_python, tmp_path):
    out = tmp_path / "out.zarr"
    assert segment(affs, out, "--quiet").stdout == ""
    chunk = next(out.rglob("c/0/0/0"))
    written = chunk.stat().st_mtime_ns
    assert segment(affs, out, "--quiet").returncode == 0
    assert chunk.stat().st_mtime_ns == written
    refused = segment(affs, out, "--bias", "-0.4")
    assert refused.returncode == 1
    assert refused.stderr.startswith("Error: ")
    assert "overwrite" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert content(out) == content(by_python)
    assert segment(affs, out, "--bias", "-0.4", "--overwrite", "--quiet").returncode == 0
    assert content(out) != content(by_python)


def test_dry_run_prints_the_plan_and_touches_nothing(affs, tmp_path):
    done = segment(affs, tmp_path / "out.zarr", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Plan of 6 stages")
    assert "watershed [halo (4, 4, 4)]" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_options_reach_the_expression(affs, tmp_path):
    done = segment(
        affs, tmp_path / "out.zarr", "--dry-run", "--context", "6", "--mean-of", f"raw={affs}", "-x", "multiprocessing:3"
    )
    assert done.returncode == 1
    assert "mean" in done.stderr or "axes" in done.stderr  # affinities are no image over the same voxels
    done = segment(affs, tmp_path / "out.zarr", "--dry-run", "--context", "6", "--sigma", "1", "-x", "multiprocessing:3")
    assert "for 3 workers" in done.stdout
    assert "gaussian" in done.stdout


def test_info(affs, by_python):
    shown = run("info", affs).stdout
    assert "(40, 4, 4) nm" in shown
    about = json.loads(run("info", affs, "--json").stdout)
    assert about["shape"] == [6, 32, 64, 64]
    assert about["neighborhood"] == [list(o) for o in OFFSETS]
    graph = json.loads(run("info", by_python / "graph", "--json").stdout)
    assert graph["scores"] == ["direct", "long"]
    assert graph["edges"] == len(ve.open_graph(by_python / "graph").edges())
    segments = json.loads(run("info", by_python / "segments", "--json").stdout)
    assert (segments["dtype"], segments["chunks"]) == ("uint64", [16, 32, 32])


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["segment", "AFFS"], 2, "Missing option '--out'"),
        (["segment", "AFFS", "--out", "OUT", "--bias", "x"], 2, "'x' is no list of numbers"),
        (["segment", "AFFS", "--out", "OUT", "--neighborhood", "1,0"], 1, "carries the neighborhood ((1, 0, 0),"),
        (["segment", "AFFS", "--out", "OUT", "--bias", "-0.5,-0.6"], 1, "bias has 2"),
        (["segment", "nothing.zarr", "--out", "OUT"], 1, "nothing.zarr"),
        (["segment", "AFFS", "--out", "OUT", "-x", "slurmm"], 1, "there is no executor 'slurmm'; found are"),
        (["segment", "AFFS", "--out", "OUT", "--mean-of", "raw"], 1, "NAME=URL"),
        (["info", "nothing.zarr/affs"], 1, "nothing.zarr"),
        (["segmnt"], 2, "No such command 'segmnt'"),
    ],
)
def test_errors_are_one_message(affs, tmp_path, monkeypatch, capsys, args, code, says):
    monkeypatch.chdir(tmp_path)
    places = {"AFFS": str(affs), "OUT": str(tmp_path / "out.zarr")}
    monkeypatch.setattr(sys, "argv", ["volara-expr", *(places.get(a, a) for a in args)])
    with pytest.raises(SystemExit) as stop:
        main()
    shown = capsys.readouterr()
    assert stop.value.code == code
    assert says in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert not (tmp_path / "out.zarr").exists()


def test_help_and_version():
    assert "volara-expr" in run("--version").stdout
    shown = run("segment", "--help").stdout
    for option in ("--bias", "--stride", "--block-size", "--executor", "--dry-run", "--mask"):
        assert option in shown
