"""Faults that a block meets: which block, where, why and what to do; all else is kept, and mending the cause is enough."""

from __future__ import annotations

import errno
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import volara_expr as ve
from executors import Multiprocessing, Serial
from executors.protocol import BlockFailures, Event, Job
from tests.integration.helpers import (
    BLOCK,
    CELLS,
    NEIGHBORHOOD,
    SHAPE,
    affinities,
    blocks_run,
    contents,
    differing_bytes,
    leftovers,
    main_job,
    store_affinities,
    write,
)

SPOT = (20, 17, 40)
BLOCK_OF_SPOT = 1 * 9 + 1 * 3 + 2
EXECUTORS = [Serial(block=BLOCK), Multiprocessing(2, block=BLOCK)]
IDS = ["serial", "processes"]


def float_affinities(value: float) -> np.ndarray[Any, Any]:
    affs = affinities().astype(np.float32) / 255
    affs[(0, *SPOT)] = value
    return affs


def failures_of(folder: Path, job: dict[str, Any], executor: Any) -> BlockFailures:
    with pytest.raises(BlockFailures) as caught:
        write(folder, job, executor)
    return caught.value


def reproduce(failures: BlockFailures) -> str:
    """Run the command that the first failure names, as a user would; returns what it printed."""
    command = re.search(r"python (-m executors\.worker \S+ \d+)$", failures.failures[0].where, re.M)
    assert command, failures.failures[0].where
    assert command[0] in str(failures)
    done = subprocess.run([sys.executable, *shlex.split(command[1])], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    return done.stderr


@pytest.mark.parametrize("executor", EXECUTORS, ids=IDS)
def test_nan_in_watershed(executor: Any, tmp_path: Path) -> None:
    job = main_job(store_affinities(tmp_path / "affs.zarr", float_affinities(np.nan)))
    failures = failures_of(tmp_path, job, executor)
    (failure,) = [f for f in failures.failures if f.block == BLOCK_OF_SPOT]
    assert "voxels [16:32, 16:32, 32:48]" in failure.where
    assert re.match(r"pid \d+", failure.worker)
    assert failure.attempts == 3
    assert re.search(
        r"BadVoxel: the affinity.*channel 0 is nan; fill such voxels or mask them \(voxel \(0, 20, 17, 40\)", failure.traceback
    )
    assert failures.n_done == CELLS - len(failures.failures) > 0
    assert all(str(f.block) in str(failures) for f in failures.failures)
    assert "run the same line again" in str(failures)
    assert "BadVoxel: the affinity" in reproduce(failures)
    again = failures_of(tmp_path, job, executor)
    assert {f.block for f in again.failures} == {f.block for f in failures.failures}, "only what failed is tried again"
    assert again.n_done == 0


def test_nan_in_agglomerate(tmp_path: Path) -> None:
    good, bad = affinities().astype(np.float32) / 255, float_affinities(np.nan)
    bad[0, SPOT[0] - 3 : SPOT[0] + 3] = np.nan
    affs = ve.open(store_affinities(tmp_path / "good.zarr", good), neighborhood=NEIGHBORHOOD)
    frags = affs.watershed(bias=-0.5, block_size=16)
    frags.write(tmp_path / "out.zarr/frags", chunks=BLOCK, progress=False)
    damaged = ve.open(store_affinities(tmp_path / "bad.zarr", bad), neighborhood=NEIGHBORHOOD)
    job = {"graph": frags.agglomerate(damaged, scores={"direct": slice(0, 3)})}
    failures = failures_of(tmp_path, job, Serial(block=BLOCK))
    assert re.search(r"BadVoxel: .*nan.*voxel \(0, (1[7-9]|2[0-2]), \d+, \d+\)", failures.failures[0].traceback)
    assert "BadVoxel" in reproduce(failures)


@pytest.mark.parametrize("executor", EXECUTORS, ids=IDS)
def test_damaged_chunk(executor: Any, tmp_path: Path) -> None:
    url = store_affinities(tmp_path / "affs.zarr")
    chunk = Path(url, "c/0/1/1/2")
    whole, state = chunk.read_bytes(), chunk.stat()
    chunk.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    os.utime(chunk, ns=(state.st_atime_ns, state.st_mtime_ns))
    frags = {"frags": main_job(url)["frags"]}
    failures = failures_of(tmp_path, frags, executor)
    assert BLOCK_OF_SPOT in {f.block for f in failures.failures}
    text = failures.failures[-1].traceback
    assert re.search(
        r"OSError: cannot read .*affs\.zarr: chunk c/0/1/1/2 \(voxels \[0:9, 16:32, 16:32, 32:48\], file .*damaged.*restore it",
        text,
    )
    assert "c/0/1/1/2" in reproduce(failures)
    chunk.write_bytes(whole)
    os.utime(chunk, ns=(state.st_atime_ns, state.st_mtime_ns))
    ran = blocks_run(write(tmp_path, frags, executor))
    assert list(ran.values()) == [len(failures.failures)], "the mended chunk's blocks, and no others"
    assert leftovers(tmp_path) == []
    (tmp_path / "fresh").mkdir()
    write(tmp_path / "fresh", frags)
    assert differing_bytes(contents(tmp_path), contents(tmp_path / "fresh")) == 0


@pytest.mark.parametrize("executor", EXECUTORS, ids=IDS)
def test_id_missing_from_a_table(executor: Any, tmp_path: Path) -> None:
    """The labels come from memory, so that the command shows that they are shipped for it."""
    labels = np.ones(SHAPE, np.uint64)
    labels[SPOT] = 7
    job = {"seg": ve.from_numpy(labels).relabel({1: 5}, missing="error")}
    failures = failures_of(tmp_path, job, executor)
    assert [f.block for f in failures.failures] == [BLOCK_OF_SPOT]
    assert re.search(
        r"BadVoxel: label 7 is not among the 1 ids.*missing='keep' or 'zero' \(voxel \(20, 17, 40\)", str(failures)
    )
    assert "label 7 is not among" in reproduce(failures)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(mount)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a file system")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def fill(disk: Path, leave_bytes: int) -> Path:
    state = os.statvfs(disk)
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(state.f_bavail * state.f_frsize - leave_bytes))
    return ballast


@pytest.mark.parametrize("leave_kb", [150, 400])
def test_full_disk(leave_kb: int, small_disk: Path, tmp_path: Path) -> None:
    job = main_job(store_affinities(tmp_path / "affs.zarr"))
    ballast = fill(small_disk, leave_kb << 10)
    failures = failures_of(small_disk, job, Multiprocessing(2, block=BLOCK))
    assert os.statvfs(small_disk).f_bavail * 4096 < 60_000, "the disk is full"
    assert re.search(rf"\[Errno {errno.ENOSPC}\].*run the same line again", str(failures))
    ballast.unlink()
    resumed = blocks_run(write(small_disk, job, Multiprocessing(2, block=BLOCK)))
    assert next(iter(resumed.values())) < CELLS
    assert leftovers(small_disk) == []
    (tmp_path / "fresh").mkdir()
    write(tmp_path / "fresh", job)
    assert differing_bytes(contents(small_disk), contents(tmp_path / "fresh")) == 0


def test_disk_full_before_anything_runs(small_disk: Path, tmp_path: Path) -> None:
    job = main_job(store_affinities(tmp_path / "affs.zarr"))
    ballast = fill(small_disk, 20 << 10)
    with pytest.raises(OSError, match="No space left") as caught:
        write(small_disk, job)
    assert "Nothing has run" in "".join(caught.value.__notes__)
    ballast.unlink()
    assert sum(blocks_run(write(small_disk, job)).values())


def no_event(event: Event) -> None:
    """Watch nothing."""


class Losing(Serial):
    """Loses the last block of the first job, and says that all went well."""

    def __init__(self, finish: bool, in_process: bool = True) -> None:
        super().__init__(block=BLOCK)
        self.finish = finish
        self.in_process = in_process

    def run(
        self, jobs: Sequence[Job], on_event: Callable[[Event], None] = no_event, should_stop: Callable[[], bool] = lambda: False
    ) -> None:
        job = jobs[0]
        job.setup("cpu")
        for i in range(job.n_blocks - 1):
            job.write(job.compute(job.read(i)))
        job.close()
        if self.finish:
            job.finish()


@pytest.mark.parametrize("finish", [True, False])
def test_lost_block_is_never_success(finish: bool, tmp_path: Path) -> None:
    frags = main_job(store_affinities(tmp_path / "affs.zarr"))["frags"]
    with pytest.raises(RuntimeError, match="lacks blocks" if finish else "is not complete after the run"):
        write(tmp_path, {"frags": frags}, Losing(finish))
    resumed = blocks_run(write(tmp_path, {"frags": frags}, Serial(block=BLOCK)))
    assert list(resumed.values()) == [1]


def test_lost_block_of_a_table_is_never_success(tmp_path: Path) -> None:
    graph = main_job(store_affinities(tmp_path / "affs.zarr"))["graph"]
    with pytest.raises(RuntimeError, match="graph is not complete after the run"):
        write(tmp_path, {"graph": graph}, Losing(False))


def test_lost_block_in_memory_is_never_success(tmp_path: Path) -> None:
    frags = main_job(store_affinities(tmp_path / "affs.zarr"))["frags"]
    with pytest.raises(RuntimeError, match=r"\d+ of \d+ blocks are in memory although none failed"):
        frags.compute(executor=Losing(True))


def test_failed_run_says_so_in_every_way(tmp_path: Path) -> None:
    labels = np.full(SHAPE, 3, np.uint64)
    run = ve.submit({str(tmp_path / "out.zarr/seg"): ve.from_numpy(labels).relabel({1: 5}, missing="error")})
    run.wait()
    assert run.status == "failed"
    with pytest.raises(BlockFailures):
        run.result()
    assert "complete" not in (tmp_path / "out.zarr/seg/0/zarr.json").read_text()
