"""What can be wrong with a request is said before anything runs: what, the two numbers, and the remedy."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import volara_expr as ve
from executors import Serial
from tests.integration.helpers import BLOCK, NEIGHBORHOOD, SHAPE, affinities, contents, main_job, store_affinities

FAR = np.zeros((8, 8), np.uint8)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    return store_affinities(tmp_path_factory.mktemp("in") / "affs.zarr")


@pytest.fixture(scope="module")
def carrying(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that says what its neighborhood is."""
    path = tmp_path_factory.mktemp("in") / "w.zarr/affs"
    affs = ve.from_numpy(
        affinities(), axes=("offsets", "z", "y", "x"), voxel_size=(40, 8, 8), units="nm", neighborhood=NEIGHBORHOOD
    )
    affs.write(path, progress=False)
    return path


@pytest.mark.parametrize(
    ("neighborhood", "message"),
    [
        (
            NEIGHBORHOOD[::-1],
            r"carries the neighborhood \(\(1, 0, 0\).*but \(\(0, 0, 6\).*was given; leave it out, or correct the store",
        ),
        (NEIGHBORHOOD[:4], r"carries the neighborhood .*\(0, 0, 6\)\), but \(\(1, 0, 0\).*\(3, 0, 0\)\) was given"),
    ],
)
def test_neighborhood_differs_from_the_carried_one(neighborhood: Any, message: str, carrying: Path) -> None:
    with pytest.raises(ValueError, match=message):
        ve.open(carrying, neighborhood=neighborhood)
    assert ve.open(carrying, neighborhood=NEIGHBORHOOD).neighborhood == NEIGHBORHOOD


@pytest.mark.parametrize(
    ("neighborhood", "message"),
    [
        (NEIGHBORHOOD[:4], r"the neighborhood has 4 offsets but .*affs\.zarr has 9 channels"),
        ([(1, 0)] * 9, r"offset \(1, 0\) has 2 entries but .* has 3 space axes"),
        ([(0, 0, 0)] * 9, r"offset \(0, 0, 0\) links a voxel with itself"),
    ],
)
def test_neighborhood_does_not_fit(neighborhood: Any, message: str, url: str) -> None:
    with pytest.raises(ValueError, match=message):
        ve.open(url, neighborhood=neighborhood)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bias": [-0.5] * 3}, "bias has 3 entries but there are 9 offsets; give one each, or one for all"),
        ({"bias": -0.5, "strides": [(1, 1, 1)] * 3}, "strides has 3 entries but there are 9 offsets"),
        ({"bias": -0.5, "strides": (1, 1)}, r"give 3 numbers of at least 1 for each offset"),
        ({"bias": -0.5, "block_size": (16, 16)}, r"block_size has 2 entries but there are 3 space axes \(z, y, x\)"),
    ],
)
def test_parameters_of_the_watershed(options: dict[str, Any], message: str, url: str) -> None:
    with pytest.raises(ValueError, match=message):
        ve.open(url, neighborhood=NEIGHBORHOOD).watershed(**options)


def test_unknown_neighborhood(url: str) -> None:
    with pytest.raises(ValueError, match=r"neighborhood of these affinities is not known.*ve\.open\(\.\.\., neighborhood="):
        ve.open(url).watershed(bias=-0.5)


def test_float_labels() -> None:
    with pytest.raises(TypeError, match=r"labels of dtype float32 cannot be looked up.*astype\('uint64'\)"):
        ve.from_numpy(np.zeros((4, 4), np.float32)).relabel({1: 2})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"offset": (16, 0)},
            r"lie apart along 'y'.*Roi\[0:64, 0:64\] nm.*Roi\[16:80, 0:64\] nm.*ve\.align\(a, b\).*b\.at\(a\)",
        ),
        ({"voxel_size": 4}, r"differ in voxel size along 'y'.*\(8, 8\) nm.*\(4, 4\) nm.*resample_like\(a, order=0\)"),
    ],
)
def test_misaligned_inputs(other: dict[str, Any], message: str) -> None:
    a = ve.from_numpy(FAR, voxel_size=8, units="nm")
    b = ve.from_numpy(FAR, **({"voxel_size": 8, "units": "nm"} | other))
    with pytest.raises(ValueError, match=message):
        a + b


def test_fragments_and_affinities_of_different_boxes(url: str) -> None:
    job = main_job(url)
    affs = ve.open(url, neighborhood=NEIGHBORHOOD)
    with pytest.raises(ValueError, match=r"shape \(32, 48, 48\).*should cover shape \(31, 48, 48\).*ve\.align"):
        job["frags"][1:].agglomerate(affs, scores={"direct": slice(0, 3)})
    with pytest.raises(IndexError, match="takes channel 11 of 9"):
        job["frags"].agglomerate(affs, scores={"direct": [11]})
    with pytest.raises(KeyError, match="no score 'y'; the graph has 'direct', 'long'"):
        job["graph"].mutex_watershed({"y": (1, 0)})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"chunks": (24, 24, 24)},
            ValueError,
            r"chunks of 24 and watershed blocks of 16 along 'z' divide neither way.*divide 16",
        ),
        ({"chunks": (16, 16)}, ValueError, r"chunks \(16, 16\) has 2 entries; the array has 3 axes \(z, y, x\)"),
        ({"chunks": (0, 16, 16)}, ValueError, r"chunks must be positive, got \(0, 16, 16\)"),
        (
            {"chunks": BLOCK, "shards": (24, 24, 24)},
            ValueError,
            r"shards of 24 along 'z' do not hold whole chunks of 16.*example 32",
        ),
        (
            {"chunks": BLOCK, "shards": (32, 32, 32), "format": "zarr2"},
            ValueError,
            r"zarr v2, which has no shards; use 'ome-zarr'",
        ),
        ({"format": "tiff"}, ValueError, r"unknown format 'tiff'; known are ome-zarr"),
        ({"levels": 0}, ValueError, r"levels=0"),
        (
            {"executor": Serial(memory="10 MB")},
            MemoryError,
            r"one block of .*projected to need .*B and a worker may use 10 MB.*Remedies",
        ),
        ({"executor": Serial(block=(16, 16))}, ValueError, r"block \(16, 16\) has 2 entries; blocks run along 3 axes"),
        ({"executor": "dusk"}, ValueError, r"there is no executor 'dusk'; found are .*multiprocessing.*serial"),
        ({"executor": 3}, TypeError, r"3 is no executor; give one of executors\.Serial\(\)"),
    ],
)
def test_what_write_cannot_do(options: dict[str, Any], error: type[Exception], message: str, url: str, tmp_path: Path) -> None:
    frags = main_job(url)["frags"]
    with pytest.raises(error, match=message):
        frags.write(tmp_path / "out.zarr/frags", progress=False, **options)
    assert not list(tmp_path.rglob("c")), "nothing was written"
    assert not list(tmp_path.glob("*.tmp"))
    assert (frags.write(tmp_path / "out.zarr/frags", progress=False).compute() == frags.compute()).all()


def test_plan_too_big_names_the_worst_step_and_remedies(url: str, tmp_path: Path) -> None:
    blurred = ve.open(url)[0].astype(np.float64).gaussian(sigma=8).threshold(1)
    with pytest.raises(MemoryError) as caught:
        blurred.write(tmp_path / "out.zarr/x", executor=Serial(memory="425 MiB"), chunks=SHAPE, progress=False)
    message = str(caught.value)
    assert re.search(r"one block of \(32, 48, 48\).*the most is held at gaussianfilter\(", message), message
    assert all(remedy in message for remedy in ("smaller chunks", "fewer workers", "checkpoint()", "more memory"))
    made = blurred.write(tmp_path / "out.zarr/x", executor=Serial(memory="1 GB"), chunks=(16, 16, 16), progress=False)
    assert (made.compute() == blurred.compute()).all()


def test_unknown_path_lists_what_is_there(carrying: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no array or group at .*w\.zarr/raw; .*w\.zarr holds: affs"):
        ve.open(carrying.parent / "raw")
    with pytest.raises(FileNotFoundError, match=r"the folder .* holds: .*w\.zarr"):
        ve.open(carrying.parent.parent / "v.zarr")
    with pytest.raises(ValueError, match=r"has no level 3; its levels are 0"):
        ve.open(carrying, level=3)


def test_unreadable_metadata(carrying: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.zarr"
    shutil.copytree(carrying.parent, copy)
    (copy / "affs/0/zarr.json").write_text('{"zarr_format": 3, ')
    with pytest.raises(ValueError, match=r"affs/0/zarr\.json is broken: .*restore the file from a copy, or delete the array"):
        ve.open(copy / "affs")


def test_unreadable_output(url: str, tmp_path: Path) -> None:
    frags = main_job(url)["frags"]
    frags.write(tmp_path / "out.zarr/frags", progress=False)
    (tmp_path / "out.zarr/frags/0/zarr.json").write_text("{")
    with pytest.raises(ValueError, match=r"zarr\.json is broken"):
        frags.write(tmp_path / "out.zarr/frags", progress=False)
    shutil.rmtree(tmp_path / "out.zarr/frags")
    assert (frags.write(tmp_path / "out.zarr/frags", progress=False).compute() == frags.compute()).all()


def test_something_else_stands_at_the_output(url: str, tmp_path: Path) -> None:
    frags = main_job(url)["frags"]
    foreign = store_affinities(tmp_path / "foreign.zarr")
    (tmp_path / "folder.zarr").mkdir()
    (tmp_path / "folder.zarr/readme").write_text("mine")
    frags.write(tmp_path / "out.zarr/frags", progress=False)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r"foreign\.zarr exists and .*choose another name, or pass overwrite=True"):
        frags.write(foreign, progress=False)
    with pytest.raises(
        FileExistsError, match=r"folder\.zarr exists and is no zarr array or group.*remove it or choose another"
    ):
        frags.write(tmp_path / "folder.zarr", overwrite=True, progress=False)
    with pytest.raises(ValueError, match=r"out\.zarr also holds frags.*remove those by hand"):
        frags.write(tmp_path / "out.zarr", overwrite=True, progress=False)
    with pytest.raises(FileExistsError, match=r"out\.zarr/frags exists and holds the result of another expression"):
        (frags + 1).write(tmp_path / "out.zarr/frags", progress=False)
    shutil.rmtree(tmp_path / "out.zarr.volara_expr/frags")
    with pytest.raises(FileExistsError, match=r"result of this expression, but its ledger .* is gone.*overwrite=True"):
        frags.write(tmp_path / "out.zarr/frags", progress=False)
    assert contents(tmp_path) == before
    assert (tmp_path / "folder.zarr/readme").read_text() == "mine"
    assert (frags.write(foreign, overwrite=True, progress=False).compute() == frags.compute()).all()


@pytest.mark.parametrize("overwrite", [False, True, "always"])
def test_output_would_replace_an_input(overwrite: Any, tmp_path: Path) -> None:
    url = store_affinities(tmp_path / "in.zarr/affs")
    affs = ve.open(url)
    links: list[Callable[[], Path]] = [lambda: Path(url), lambda: Path(url).parent, lambda: Path(url) / "more"]
    for place in links:
        with pytest.raises(ValueError, match=r"in\.zarr/affs, an input of this run, cannot both be there.*Write beside it"):
            affs[0].write(place(), overwrite=overwrite, progress=False)
    (tmp_path / "link.zarr").symlink_to(tmp_path / "in.zarr")
    with pytest.raises(ValueError, match="an input of this run"):
        affs[0].write(tmp_path / "link.zarr/affs", overwrite=overwrite, progress=False)
    assert (affs.compute() == affinities()).all()


def test_outputs_would_replace_each_other(url: str, tmp_path: Path) -> None:
    affs = ve.open(url)
    for other in (f"{tmp_path}/out.zarr/a", f"{tmp_path}/./out.zarr"):
        with pytest.raises(ValueError, match="another output of this run"):
            ve.write({f"{tmp_path}/out.zarr": affs[0], other: affs[1]}, progress=False)


def test_output_on_a_server(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"cannot write to s3://bucket/out\.zarr.*on a file system"):
        ve.open(url).write("s3://bucket/out.zarr", progress=False)
    assert list(tmp_path.iterdir()) == []
