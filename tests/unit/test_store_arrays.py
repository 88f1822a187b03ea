from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from volara_expr import store
from volara_expr.geometry import Axis, Box, Space
from volara_expr.store.arrays import _write_error

PLAIN = Space.plain(2)


def make(tmp_path: Path, **how: Any) -> store.ArrayInfo:
    settings: dict[str, Any] = {"shape": (20, 20), "dtype": "u4", "chunks": (4, 4), "space": PLAIN, "format": "zarr"} | how
    return store.create_array(tmp_path / "a.zarr" / "raw", **settings)


@pytest.mark.parametrize("how", [{}, {"shards": (8, 8)}, {"format": "zarr2"}, {"compression": None}], ids=str)
def test_blocks_read_what_blocks_wrote(tmp_path: Path, how: dict[str, Any]):
    info = make(tmp_path, **how)
    assert store.write_unit(info) == how.get("shards", (4, 4))
    data = np.arange(400, dtype=np.uint32).reshape(20, 20)
    with store.Arrays(threads=1) as arrays:
        for index in np.ndindex(info.grid):
            box = info.chunk_box(index)
            writable = np.array(data[box.slices((0, 0))].T.copy().T)  # Fortran order
            pending = arrays.write(info.url, box, writable)
            writable[:] = 0  # the caller's again
            assert pending.result() is None
            assert pending.done()
            arrays.sync(info.url, box)
        box = Box((3, 5), (18, 20))
        got = arrays.read(info, box).result()
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, data[box.slices((0, 0))])
    np.testing.assert_array_equal(zarr.open_array(info.url, mode="r")[:], data)
    assert all(os.path.isfile(f"{info.url}/{info.chunk_key(index)}") for index in np.ndindex(info.grid))


def test_voxels_never_written_are_the_fill_value(tmp_path: Path):
    info = make(tmp_path, fill=7)
    with store.Arrays() as arrays:
        assert (arrays.read(info, info.box).result() == 7).all()
        assert arrays.read(info, Box((3, 3), (3, 9))).result().shape == (0, 6)
        arrays.sync(info, info.box)  # nothing to sync


def test_what_another_process_wrote_is_seen(tmp_path: Path):
    info = make(tmp_path)
    with store.Arrays() as ours, store.Arrays() as theirs:
        assert not ours.read(info, info.box).result().any()
        theirs.write(info, info.box, np.ones((20, 20), np.uint32)).result()
        assert ours.read(info, info.box).result().all()


def test_an_array_made_anew_is_opened_anew(tmp_path: Path):
    old = make(tmp_path)
    with store.Arrays() as arrays:
        arrays.read(old, old.box).result()
        new = make(tmp_path, shape=(5, 5), delete=True)
        assert arrays.read(new, new.box).result().shape == (5, 5)


@pytest.mark.parametrize("how", [{}, {"shards": (8, 8)}, {"format": "zarr2"}], ids=str)
@pytest.mark.parametrize("damage", [b"", b"not a chunk"], ids=["truncated", "overwritten"])
def test_a_damaged_chunk_is_named(tmp_path: Path, how: dict[str, Any], damage: bytes):
    info = make(tmp_path, shape=(18, 20), **how)
    with store.Arrays() as arrays:
        arrays.write(info, info.box, np.ones((18, 20), np.uint32)).result()
    index = (info.grid[0] - 1, 1)  # at the rim
    file = Path(info.url) / info.chunk_key(index)
    assert file.is_file()
    file.write_bytes(damage)
    with store.Arrays() as arrays:
        with pytest.raises(OSError, match="damaged") as caught:
            arrays.read(info, info.box).result()
        assert f"chunk {info.chunk_key(index)} " in str(caught.value)
        assert str(file) in str(caught.value)
        hole = info.chunk_box(index)
        assert arrays.read(info, Box((0, 0), (hole.lo[0], 20))).result().all()
        arrays.write(info, hole, np.full(hole.shape, 2, np.uint32)).result()  # the remedy
        assert arrays.read(info, info.box).result().all()


def test_requests_that_do_not_fit(tmp_path: Path):
    info = make(tmp_path)
    with store.Arrays() as arrays:
        with pytest.raises(ValueError, match=r"\[0:21, 0:4\] reaches beyond .*\[0:20, 0:20\]"):
            arrays.read(info, Box((0, 0), (21, 4)))
        with pytest.raises(ValueError, match="reaches beyond"):
            arrays.read(info, Box((0,), (1,)))
        with pytest.raises(ValueError, match=r"shape \(4, 5\) does not fill the box .* \(4, 4\)"):
            arrays.write(info, Box((0, 0), (4, 4)), np.zeros((4, 5), np.uint32))
        with pytest.raises(TypeError, match="uint32, the block int64; convert"):
            arrays.write(info, Box((0, 0), (4, 4)), np.zeros((4, 4), np.int64))


def test_a_write_that_the_file_system_refuses(tmp_path: Path):
    info = make(tmp_path)
    (Path(info.url) / "c").write_text("a file where a folder must go")
    with store.Arrays() as arrays, pytest.raises(OSError, match=r"cannot write \[0:4, 0:4\] of .*check permissions"):
        arrays.write(info, Box((0, 0), (4, 4)), np.ones((4, 4), np.uint32)).result()


def test_a_full_disk_is_told_from_other_errors(tmp_path: Path):
    info = make(tmp_path)
    full = ValueError("RESOURCE_EXHAUSTED: Failed to write 143360 bytes: No space left on device [os_error_code='28']")
    error = _write_error(info, info.box, full)
    assert error.errno == errno.ENOSPC
    assert "free space" in str(error)


def test_sync_reaches_every_chunk_file_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    info = make(tmp_path)
    box = Box((4, 8), (12, 16))
    synced = set()
    fsync = os.fsync

    def recording(handle: int) -> None:
        synced.add(os.fstat(handle).st_ino)
        fsync(handle)

    with store.Arrays() as arrays:
        arrays.write(info, info.box, np.ones((20, 20), np.uint32)).result()
        monkeypatch.setattr(os, "fsync", recording)
        arrays.sync(info, box)
    files = [Path(info.url) / info.chunk_key(i) for i in [(1, 2), (1, 3), (2, 2), (2, 3)]]
    folders = [Path(info.url), Path(info.url) / "c", *(Path(info.url) / "c" / k for k in "12")]
    assert synced == {p.stat().st_ino for p in files + folders}


def test_creation_is_idempotent_and_says_what_differs(tmp_path: Path):
    first = make(tmp_path, levels=2, format="ome-zarr", attributes={"volara_expr": {"digest": "a"}})
    store.update_attributes(tmp_path / "a.zarr/raw", {"note": 1})  # more than was asked for may be there
    with store.Arrays() as arrays:
        arrays.write(first, first.box, np.ones((20, 20), np.uint32)).result()
        again = make(tmp_path, levels=2, format="ome-zarr", attributes={"volara_expr": {"digest": "a"}})
        assert again.attributes["note"] == 1
        for how, message in [
            ({"dtype": "u8"}, "data_type is 'uint32' there, 'uint64' asked"),
            ({"chunks": (5, 5)}, r"chunk_shape is \[4, 4\] there, \[5, 5\] asked"),
            ({"levels": 1}, "datasets"),
            ({"fill": 1}, "fill_value is 0 there, 1 asked"),
            ({"attributes": {"volara_expr": {"digest": "b"}}}, "digest is 'a' there, 'b' asked"),
            ({"format": "zarr", "levels": 1}, "array is None there"),
            ({"space": Space((Axis("y"), Axis("x")), PLAIN.voxel_size, PLAIN.origin)}, "offset|scale|datasets"),
        ]:
            with pytest.raises(FileExistsError, match=message):
                make(tmp_path, **({"levels": 2, "format": "ome-zarr", "attributes": {"volara_expr": {"digest": "a"}}} | how))
        assert arrays.read(again, again.box).result().all()
        fresh = make(tmp_path, dtype="u8", delete=True)
        assert not arrays.read(fresh, fresh.box).result().any()
    assert os.listdir(tmp_path) == ["a.zarr"]  # no litter


def test_refused_requests_leave_nothing(tmp_path: Path):
    one_space = Space((Axis("c", "channel"), Axis("x")), PLAIN.voxel_size, PLAIN.origin)
    for how, message in [
        (
            {"format": "ome-zarr", "space": one_space},
            "OME-Zarr cannot hold the axes c .channel., x .space.: Length of space axes .1. not valid.*format='zarr'",
        ),
        ({"format": "tiff"}, "unknown format"),
        ({"format": "zarr2", "shards": (8, 8)}, "no shards"),
        ({"shards": (6, 8)}, r"shards \(6, 8\) are no multiple of chunks \(4, 4\)"),
        ({"levels": 2}, "pyramid"),
        ({"chunks": (4,)}, "differ in length"),
        ({"compression": "lzma"}, "unknown compression"),
        ({"format": "ome-zarr", "levels": 2, "level_factors": (2,)}, "one positive number each"),
    ]:
        with pytest.raises(ValueError, match=message):
            make(tmp_path, **how)
    assert os.listdir(tmp_path) == []


def test_a_store_is_one_zarr_version_and_arrays_hold_nothing(tmp_path: Path):
    make(tmp_path, format="zarr2")
    with pytest.raises(ValueError, match=r"cannot hold an array of zarr v3; use format='ome-zarr-0.4' or 'zarr2'"):
        store.create_array(tmp_path / "a.zarr/b", shape=(4, 4), dtype="u1", chunks=(4, 4), space=PLAIN)
    with pytest.raises(ValueError, match="is an array and cannot hold"):
        store.create_array(tmp_path / "a.zarr/raw/b", shape=(4, 4), dtype="u1", chunks=(4, 4), space=PLAIN, format="zarr2")
    (tmp_path / "b.zarr").mkdir()
    (tmp_path / "b.zarr" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is no zarr array or group"):
        store.create_array(tmp_path / "b.zarr", shape=(4, 4), dtype="u1", chunks=(4, 4), space=PLAIN)


def test_many_axes(tmp_path: Path):
    shape = (2,) * 7
    info = make(tmp_path, shape=shape, chunks=shape, space=Space.plain(7))
    assert info.space == Space.plain(7)


def test_a_refused_replacement_keeps_the_old(tmp_path: Path):
    old = make(tmp_path, format="zarr2")
    with pytest.raises(ValueError, match="cannot hold an array of zarr v3"):
        make(tmp_path, format="zarr", delete=True)
    assert store.open_array(old.url) == old


def test_delete_spares_what_it_was_not_asked_for(tmp_path: Path):
    make(tmp_path, format="ome-zarr", levels=2)
    store.create_array(tmp_path / "a.zarr/seg", shape=(4, 4), dtype="u1", chunks=(4, 4), space=PLAIN)
    with pytest.raises(ValueError, match="also holds raw/0, raw/1, seg/0"):
        store.delete(tmp_path / "a.zarr")
    store.delete(tmp_path / "a.zarr/raw")
    with pytest.raises(FileNotFoundError, match="holds: seg/0"):
        store.delete(tmp_path / "a.zarr/raw")
    assert store.open_array(tmp_path / "a.zarr/seg").shape == (4, 4)


@pytest.mark.parametrize("format", ["ome-zarr", "ome-zarr-0.4", "zarr2"])
def test_attributes_change_one_by_one(tmp_path: Path, format: Any):
    info = make(tmp_path, format=format, attributes={"a": 1})
    store.update_attributes(tmp_path / "a.zarr/raw", {"volara_expr": {"digest": "x"}})
    held = store.read_attributes(tmp_path / "a.zarr/raw")
    assert (held["a"], held["volara_expr"]) == (1, {"digest": "x"})
    assert dict(zarr.open_array(info.url, mode="r").attrs) == held
    assert store.open_array(info.url).metadata_digest == info.metadata_digest


@pytest.mark.parametrize(
    ("block", "unit", "shape", "fitting"),
    [
        ((8, 8), (4, 8), None, None),
        ((20, 4), (8, 4), (20, 20), None),
        ((20, 5), (8, 4), (20, 20), "(20, 8)"),
        ((3, 8), (4, 4), None, "(4, 8)"),
    ],
)
def test_alignment(block: Any, unit: Any, shape: Any, fitting: str | None):
    if fitting is None:
        store.check_alignment(block, unit, shape)
        return
    with pytest.raises(ValueError, match="is not a multiple of") as caught:
        store.check_alignment(block, unit, shape)
    assert f"use blocks of {fitting}" in str(caught.value)
