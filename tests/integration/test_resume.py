"""Kill anything and run again: the same bytes. Changed parameters, functions, inputs or outputs: nothing old is reused."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import volara_expr as ve
from executors import Multiprocessing, Serial
from tests.integration.helpers import (
    BIAS,
    BLOCK,
    CELLS,
    SHAPE,
    STRIDES,
    Stopping,
    affinities,
    blocks_run,
    contents,
    differing_bytes,
    end,
    gone,
    kill,
    leftovers,
    main_job,
    recorded_bytes,
    start,
    store_affinities,
    wait_for_record,
    wait_until,
    workers_of,
    write,
)

SEG = "out.zarr/seg"


@pytest.fixture(scope="module")
def affs(tmp_path_factory: pytest.TempPathFactory) -> str:
    return store_affinities(tmp_path_factory.mktemp("in") / "affs.zarr")


@pytest.fixture(scope="module")
def undisturbed(affs: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run that nothing disturbs leaves: bytes, blocks and size of its ledgers."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = write(folder, main_job(affs), Serial(block=BLOCK))
    return {"bytes": contents(folder), "blocks": blocks_run(run), "recorded": recorded_bytes(folder)}


@pytest.mark.parametrize(
    ("whom", "block", "seed"),
    [
        ("worker", BLOCK, 1),
        ("worker", BLOCK, 2),
        ("driver", BLOCK, 3),
        ("driver", (32, 16, 48), 4),
        ("both", BLOCK, 5),
        ("both", None, 6),
    ],
)
def test_killed_run_goes_on_to_the_same_bytes(
    whom: str, block: tuple[int, ...] | None, seed: int, affs: str, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    rng = random.Random(seed)
    process = start(affs, tmp_path)
    wait_for_record(process, tmp_path, rng.randrange(1, undisturbed["recorded"] // 2))
    pids = [w.pid for w in workers_of(process.pid)]
    assert kill(process, whom, rng)
    if whom == "worker":
        wait_until(lambda: any(gone(pid) for pid in pids))
        assert process.poll() is None, "the worker was to die in the middle"
        status, errors = end(process)
        assert status == 0, errors
    else:
        assert end(process)[0] == -signal.SIGKILL
        wait_until(lambda: all(gone(pid) for pid in pids))
        resumed = blocks_run(write(tmp_path, main_job(affs), Serial(block=block)))
        if block == BLOCK:
            assert 0 < sum(resumed.values()) < sum(undisturbed["blocks"].values())
    assert differing_bytes(contents(tmp_path), undisturbed["bytes"]) == 0
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("executor", [Serial(block=(16, 16, 48)), Multiprocessing(2, block=BLOCK)], ids=["serial", "processes"])
def test_other_executor_and_grid_continue(executor: Any, affs: str, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, main_job(affs), Stopping(7, block=BLOCK))
    resumed = blocks_run(write(tmp_path, main_job(affs), executor))
    first = next(iter(resumed.values()))
    # two more may be in the writers' hands when the seventh is reported, and three make a block of the other grid
    assert first in (range(CELLS - 9, CELLS - 6) if executor.hints.block == BLOCK else (3, 4)), resumed
    assert differing_bytes(contents(tmp_path), undisturbed["bytes"]) == 0


def test_completed_output_runs_nothing_again(affs: str, tmp_path: Path) -> None:
    first = write(tmp_path, main_job(affs))
    before = contents(tmp_path)
    again = write(tmp_path, main_job(affs), Multiprocessing(2))
    assert blocks_run(first)
    assert again.reports == []
    assert contents(tmp_path) == before
    alone = write(tmp_path, {"seg": main_job(affs)["seg"]})
    assert alone.reports == []


def test_output_written_beside_another_is_known_by_itself(affs: str, tmp_path: Path) -> None:
    job = main_job(affs)
    ve.write({str(tmp_path / "first.zarr/seg"): job["seg"], str(tmp_path / "out.zarr/graph"): job["graph"]}, progress=False)
    assert write(tmp_path, {"graph": job["graph"]}).reports == []


def test_changed_parameter_is_refused_and_replaced_on_request(affs: str, tmp_path: Path) -> None:
    stored = ve.open(affs, neighborhood=main_job(affs)["frags"].node.arrays[0].spec.neighborhood).normalize(0, 255)
    old = stored.watershed(bias=BIAS, strides=STRIDES, block_size=16)
    new = stored.watershed(bias=-0.55, strides=STRIDES, block_size=16)
    old.write(tmp_path / SEG, chunks=BLOCK, progress=False)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r"(?s)another expression.*overwrite=True.*- #.*bias.*-0\.6.*\+ #.*bias.*-0\.55"):
        new.write(tmp_path / SEG, chunks=BLOCK, progress=False)
    assert contents(tmp_path) == before
    assert old.submit(tmp_path / SEG, chunks=BLOCK).result(), "the refusal left the old result as it was"
    replaced = new.write(tmp_path / SEG, chunks=BLOCK, overwrite=True, progress=False).compute()
    assert (replaced == new.compute()).all()
    assert (replaced != old.compute()).any()
    with pytest.raises(FileExistsError):
        old.write(tmp_path / SEG, chunks=BLOCK, progress=False)


def test_plan_that_fails_deletes_nothing(affs: str, tmp_path: Path) -> None:
    frags = main_job(affs)["frags"]
    frags.write(tmp_path / SEG, chunks=BLOCK, progress=False)
    before = contents(tmp_path)
    with pytest.raises(MemoryError):
        (frags + 1).write(tmp_path / SEG, chunks=BLOCK, executor=Serial(memory="1 MB"), overwrite=True, progress=False)
    with pytest.raises(ValueError, match="divide neither way"):
        frags.write(tmp_path / SEG, chunks=(24, 24, 24), overwrite=True, progress=False)
    assert contents(tmp_path) == before
    assert frags.submit(tmp_path / SEG, chunks=BLOCK).reports == []


def test_other_chunks_never_meet_the_old_ledger(affs: str, tmp_path: Path) -> None:
    frags = main_job(affs)["frags"]
    with pytest.raises(KeyboardInterrupt):
        frags.write(tmp_path / SEG, chunks=BLOCK, executor=Stopping(5, block=BLOCK), progress=False)
    with pytest.raises(FileExistsError, match=r"write units of \(16, 16, 16\), not \(8, 8, 8\) as asked for"):
        frags.write(tmp_path / SEG, chunks=(8, 8, 8), progress=False)
    made = frags.write(tmp_path / SEG, chunks=(8, 8, 8), overwrite=True, progress=False)
    assert (made.compute() == frags.compute()).all()


def test_pyramid_goes_on_and_is_made_whole(affs: str, tmp_path: Path) -> None:
    frags = main_job(affs)["frags"]

    def levels(name: str) -> list[bytes]:
        return [ve.open(tmp_path / name, level=k).compute().tobytes() for k in range(3)]

    frags.write(tmp_path / "whole.zarr/x", levels=3, chunks=BLOCK, progress=False)
    with pytest.raises(KeyboardInterrupt):
        frags.write(tmp_path / SEG, levels=3, chunks=BLOCK, executor=Stopping(CELLS + 1, block=BLOCK), progress=False)
    frags.write(tmp_path / SEG, levels=3, chunks=BLOCK, progress=False)
    assert levels(SEG) == levels("whole.zarr/x")
    shutil.rmtree(tmp_path / SEG / "1")
    with pytest.raises(FileExistsError, match="without all the levels asked for"):
        frags.write(tmp_path / SEG, levels=3, chunks=BLOCK, progress=False)
    frags.write(tmp_path / SEG, levels=3, chunks=BLOCK, overwrite=True, progress=False)
    assert levels(SEG) == levels("whole.zarr/x")


def test_overwrite_always_starts_afresh(affs: str, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    first = write(tmp_path, main_job(affs), Serial(block=BLOCK))
    again = write(tmp_path, main_job(affs), Serial(block=BLOCK), overwrite="always")
    assert blocks_run(again) == blocks_run(first) == undisturbed["blocks"]
    assert differing_bytes(contents(tmp_path), undisturbed["bytes"]) == 0


def test_keep_all_keeps_arrays_and_is_reused(affs: str, tmp_path: Path) -> None:
    job = main_job(affs)
    write(tmp_path, {"seg": job["seg"]}, keep="all")
    assert [p.parts[-3] for p in map(Path, leftovers(tmp_path))] == ["nodes"], "the fragments stay"
    other = job["frags"].relabel(job["graph"].mutex_watershed({"direct": (1.0, -0.7), "long": (1.0, -0.6)}))
    ran = blocks_run(write(tmp_path, {"other": other}))
    assert [name.split("/")[-1] for name in ran] == ["segments by mutex watershed", "other"]
    assert leftovers(tmp_path), "a run that keeps nothing leaves what another was asked to keep"


@pytest.mark.parametrize("value", [3, 4])
def test_changed_closure_value_is_another_function(value: int, affs: str, tmp_path: Path) -> None:
    def add(by: int) -> ve.Array:
        return ve.open(affs).map_blocks(lambda x: x // 4 + by)

    add(3).write(tmp_path / SEG, progress=False)
    assert (add(value).key == add(3).key) == (value == 3)
    if value == 3:
        assert add(value).submit(tmp_path / SEG).reports == []
    else:
        with pytest.raises(FileExistsError, match=r"(?s)another expression.*captured value of a function"):
            add(value).write(tmp_path / SEG, progress=False)


class Model:
    """What a function captures that has no canonical form."""

    factor = 2


def test_opaque_function_names_what_it_captures(affs: str, tmp_path: Path) -> None:
    def mapped(name: str | None) -> ve.Array:
        model = Model()
        return ve.open(affs).map_blocks(lambda x: x // model.factor, name=name)

    mapped(None).write(tmp_path / "a.zarr/x", progress=False)
    with pytest.raises(FileExistsError, match=r"(?s)captured variable 'model'.*Model.*name="):
        mapped(None).write(tmp_path / "a.zarr/x", progress=False)
    mapped("halve").write(tmp_path / "b.zarr/x", progress=False)
    run = mapped("halve").submit(tmp_path / "b.zarr/x")
    run.result()
    assert run.reports == []


def test_input_rewritten_after_it_was_opened(tmp_path: Path) -> None:
    url = store_affinities(tmp_path / "affs.zarr")
    job = main_job(url)
    rewrite(url)
    with pytest.raises(RuntimeError, match=r"affs\.zarr changed since it was opened"):
        write(tmp_path, job)
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.parametrize("finished", [True, False])
def test_input_rewritten_between_sessions_is_never_reused(finished: bool, tmp_path: Path) -> None:
    url = store_affinities(tmp_path / "affs.zarr")
    if finished:
        write(tmp_path, main_job(url))
    else:
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, main_job(url), Stopping(CELLS + 8, block=BLOCK))
    rewrite(url)
    with pytest.raises(FileExistsError, match="another expression"):
        write(tmp_path, main_job(url))
    write(tmp_path, main_job(url), overwrite=True)
    (tmp_path / "fresh").mkdir()
    write(tmp_path / "fresh", main_job(url))
    assert differing_bytes(contents(tmp_path), contents(tmp_path / "fresh")) == 0


def test_input_rewritten_while_running(tmp_path: Path) -> None:
    url = store_affinities(tmp_path / "affs.zarr")

    class Meddling(Serial):
        def run(self, jobs: Any, on_event: Any = None, should_stop: Any = None) -> None:
            super().run(jobs)
            rewrite(url)

    with pytest.raises(RuntimeError, match="changed while the run was going on"):
        write(tmp_path, main_job(url), Meddling())
    job = main_job(url)
    with pytest.raises(FileExistsError):
        write(tmp_path, job)
    write(tmp_path, job, overwrite=True)
    assert (ve.open(tmp_path / SEG).compute() == job["seg"].compute()).all()


def rewrite(url: str) -> None:
    shutil.rmtree(url)
    store_affinities(url, affinities(seed=1))


@pytest.mark.parametrize("what", ["frags", "seg", "graph"])
def test_deleted_output_is_computed_whole(what: str, affs: str, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, main_job(affs))
    if what == "graph":
        os.unlink(tmp_path / "out.graph.duckdb")
    else:
        shutil.rmtree(tmp_path / "out.zarr" / what)
    ran = blocks_run(write(tmp_path, main_job(affs), Serial(block=BLOCK)))
    assert list(ran.values()) == ([1] if what == "graph" else [CELLS]), ran
    assert differing_bytes(contents(tmp_path), undisturbed["bytes"]) == 0


def test_deleted_intermediates_are_computed_again(affs: str, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    job = main_job(affs)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, job, Stopping(CELLS + 3, block=BLOCK))
    for node in (tmp_path / "out.zarr.volara_expr/nodes").iterdir():
        if (node / "parts").exists():
            shutil.rmtree(node / "parts")
    resumed = blocks_run(write(tmp_path, main_job(affs), Serial(block=BLOCK)))
    assert next(iter(resumed.values())) == CELLS, resumed
    assert differing_bytes(contents(tmp_path), undisturbed["bytes"]) == 0


def test_killed_while_intermediates_are_removed(affs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half an intermediate, its metadata still there, must not pass for the whole."""
    job = main_job(affs)

    def die(path: Any, **_: Any) -> None:
        chunks = sorted(Path(path).rglob("array.zarr/c/0"))
        if chunks:
            monkeypatch.undo()
            shutil.rmtree(chunks[0])
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", die)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, {"seg": job["seg"]})
    other = job["frags"].relabel({1: 1})
    write(tmp_path, {"other": other})
    assert (ve.open(tmp_path / "out.zarr/other").compute() == other.compute()).all()
    assert leftovers(tmp_path) == []


def test_output_of_the_same_name_elsewhere_is_not_reused(affs: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first = blocks_run(write(tmp_path / "a", main_job(affs)))
    assert blocks_run(write(tmp_path / "b", main_job(affs))) == first
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_table_replaced_through_another_workspace_is_not_reused(affs: str, tmp_path: Path) -> None:
    job = main_job(affs)
    other = job["frags"].agglomerate(
        ve.open(affs, neighborhood=job["frags"].node.arrays[0].spec.neighborhood), scores={"x": [0, 1]}
    )
    table = str(tmp_path / "out.zarr/graph")
    ve.write({table: job["graph"]}, progress=False)
    ve.write({str(tmp_path / "out.graph.duckdb"): other}, overwrite=True, progress=False)
    with pytest.raises(FileExistsError):
        ve.write({table: job["graph"]}, progress=False)
    assert ve.open_graph(table).scores == ("x",)


BIASES = [-0.3, -0.45, -0.5, -0.55, -0.7]


def segmentations(job: dict[str, Any]) -> dict[str, Any]:
    luts = job["graph"].sweep({"direct": (1.0, b), "long": (1.0, -0.6)} for b in BIASES)
    return {f"seg{k}": job["frags"].relabel(lut) for k, lut in enumerate(luts)}


def test_sweep_runs_the_watershed_once(affs: str, tmp_path: Path) -> None:
    job = main_job(affs)
    for name in ("plan", "loop"):
        (tmp_path / name).mkdir()
    ran = blocks_run(write(tmp_path / "plan", segmentations(job), Serial(block=BLOCK)))
    assert [n for name, n in ran.items() if "watershed" in name and "segments" not in name] == [CELLS], ran
    assert ran["segments by mutex watershed"] == len(BIASES)
    frags = blocks_run(write(tmp_path / "loop", {"frags": job["frags"]}, Serial(block=BLOCK)))
    assert list(frags.values()) == [CELLS]
    made = [blocks_run(write(tmp_path / "loop", {n: seg}, Serial(block=BLOCK))) for n, seg in segmentations(job).items()]
    assert not any("frags" in name for ran in made for name in ran), made
    assert [next(iter(ran)) for ran in made[1:]] == ["segments by mutex watershed"] * 4, made
    assert all(contents(tmp_path / "loop")[k] == v for k, v in contents(tmp_path / "plan").items() if "/seg" in k)
    assert len({ve.open(tmp_path / "plan/out.zarr" / f"seg{k}").compute().tobytes() for k in range(len(BIASES))}) > 2


def test_second_driver_waits_and_takes_the_result(affs: str, undisturbed: dict[str, Any], tmp_path: Path, caplog: Any) -> None:
    process = start(affs, tmp_path)
    wait_for_record(process, tmp_path)
    run = write(tmp_path, main_job(affs), Serial(block=BLOCK))
    status, errors = end(process)
    assert status == 0, errors
    assert "waiting until it ends" in caplog.text
    assert run.reports == []
    assert differing_bytes(contents(tmp_path), undisturbed["bytes"]) == 0


def test_second_driver_takes_over_from_one_that_is_killed(affs: str, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    process = start(affs, tmp_path)
    wait_for_record(process, tmp_path)
    threading.Timer(0.1, process.kill).start()
    write(tmp_path, main_job(affs), Serial(block=BLOCK))
    assert end(process)[0] == -signal.SIGKILL
    assert differing_bytes(contents(tmp_path), undisturbed["bytes"]) == 0


def test_waiting_driver_can_be_cancelled(affs: str, tmp_path: Path) -> None:
    class Slow(Serial):
        def run(self, jobs: Any, on_event: Any = None, should_stop: Any = None) -> None:
            time.sleep(0.5)
            super().run(jobs)

    first = ve.submit({str(tmp_path / SEG): main_job(affs)["frags"]}, executor=Slow())
    wait_until((tmp_path / "out.zarr.volara_expr/lock").exists)
    second = ve.submit({str(tmp_path / SEG): main_job(affs)["frags"]})
    time.sleep(0.05)
    second.cancel()
    assert second.status == "cancelled"
    assert first.result()


def test_block_may_compute_something_itself(tmp_path: Path) -> None:
    image = ve.from_numpy(np.arange(64, dtype=np.uint8))
    nested = image.map_blocks(lambda x: x + ve.from_numpy(np.ones(1, np.uint8)).map_blocks(np.negative).compute()[0])
    assert (nested.compute() == np.arange(64, dtype=np.uint8) + 255).all()


def test_ctrl_c_in_a_script_says_that_the_run_can_go_on(affs: str, undisturbed: dict[str, Any], tmp_path: Path) -> None:
    process = start(affs, tmp_path)
    wait_for_record(process, tmp_path)
    pids = [w.pid for w in workers_of(process.pid)]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    status, errors = end(process)
    assert status == -signal.SIGINT
    assert "KeyboardInterrupt" in errors
    assert "run the same line again" in errors
    assert all(gone(pid) for pid in pids)
    resumed = blocks_run(write(tmp_path, main_job(affs), Serial(block=BLOCK)))
    assert sum(resumed.values()) < sum(undisturbed["blocks"].values())
    assert differing_bytes(contents(tmp_path), undisturbed["bytes"]) == 0


def test_volume_is_what_the_counts_assume() -> None:
    assert np.prod([n // b for n, b in zip(SHAPE, BLOCK, strict=True)]) == CELLS
