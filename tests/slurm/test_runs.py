"""Whole plans on SLURM: same bytes as on one machine, without a driver, and by the command line."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

import volara_expr as ve
from executors import Serial, Slurm
from executors.contract import wait_until
from executors.protocol import detached_runs

MAKE = """
import time
import numpy as np
import volara_expr as ve
from executors import Slurm

def slow(block):
    time.sleep(0.5)
    return block

raw = ve.from_numpy(np.random.default_rng(3).random((128, 128, 64), np.float32), voxel_size=(4, 4, 4))
smooth = raw.map_blocks(slow, halo=0, dtype="f4").gaussian(1.0)
parts = {{{out!r} + "/smooth": smooth, {out!r} + "/mask": smooth > 0.7 * smooth.max()}}
"""


def made(out):
    """The expressions of the script, here."""
    names: dict = {}
    exec(MAKE.format(out=out), names)
    return names["parts"]


def assert_same(out, tmp_path):
    plain = str(tmp_path / "plain.zarr")
    ve.write(made(plain), executor=Serial(), progress=False)
    for name in ("smooth", "mask"):
        got, wanted = (ve.open(f"{url}/{name}").compute() for url in (out, plain))
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


def run_cli(capsys, monkeypatch, *words):
    from volara_expr.cli import main

    monkeypatch.setattr(sys, "argv", ["volara-expr", *words])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


def test_a_plan_gives_the_same_bytes_as_serial(cluster, tmp_path):
    out = str(tmp_path / "out.zarr")
    executor = Slurm(cpus=2, throttle=2, poll_s=0.3, block=(64, 64, 64))
    ve.write(made(out), executor=executor, progress=False)
    assert_same(out, tmp_path)
    assert not (tmp_path / "out.zarr.volara_expr" / "jobs").exists()


def test_a_run_goes_on_without_its_script_and_is_attached_by_the_command_line(
    cluster, background, tmp_path, capsys, monkeypatch
):
    out = str(tmp_path / "out.zarr")
    script = tmp_path / "script.py"
    submit = 've.submit(parts, executor=Slurm(throttle=2, poll_s=0.3, block=(64, 64, 64)))\nprint("submitted")'
    script.write_text(MAKE.format(out=out) + submit)
    process = background(sys.executable, str(script))
    assert process.communicate(timeout=60) == ("submitted\n", "")
    jobs = tmp_path / "out.zarr.volara_expr" / "jobs"
    assert len(detached_runs(jobs)) == 1
    code, text, _ = run_cli(capsys, monkeypatch, "status", out)
    assert code == 0
    assert "running" in text
    assert re.search(r"\b\d+/4 blocks, 0 set aside, round 1\n", text)
    other = ve.from_numpy(np.zeros((128, 128, 64), "f4"), voxel_size=(4, 4, 4))
    with pytest.raises(FileExistsError, match=r"may still write to .*volara-expr cancel"):
        other.write(f"{out}/smooth", overwrite=True, progress=False)
    wait_until(lambda: not detached_runs(jobs), 60)
    code, text, _ = run_cli(capsys, monkeypatch, "attach", out)
    assert (code, text) == (0, f"complete: {out}/smooth, {out}/mask\n")
    assert not jobs.exists()
    assert_same(out, tmp_path)


def test_a_run_is_cancelled_by_the_command_line_and_goes_on(cluster, tmp_path, capsys, monkeypatch):
    out = str(tmp_path / "out.zarr")
    executor = Slurm(throttle=1, poll_s=0.3, block=(64, 64, 64))
    run = ve.submit(made(out), executor=executor)
    assert run.status == "running"
    code, text, _ = run_cli(capsys, monkeypatch, "cancel", out)
    assert code == 0
    assert text.startswith("cancelled: ")
    assert cluster.queue() == []
    assert run.wait(30)
    assert run.status == "cancelled"
    code, _, err = run_cli(capsys, monkeypatch, "attach", out)
    assert code == 1
    assert "was cancelled; write the same outputs again" in err
    ve.write(made(out), executor=Serial(), progress=False)
    assert_same(out, tmp_path)


def test_a_command_without_a_run_says_so(tmp_path, capsys, monkeypatch):
    code, _, err = run_cli(capsys, monkeypatch, "cancel", str(tmp_path / "out.zarr"))
    assert code == 1
    assert "no SLURM run lies at" in err
