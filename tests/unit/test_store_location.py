from __future__ import annotations

import os
from pathlib import Path

import pytest
import zarr

from volara_expr import store
from volara_expr.store import Location
from volara_expr.store.files import replacing


@pytest.mark.parametrize(
    ("url", "root", "path"),
    [
        ("/d/out.zarr", "/d/out.zarr", ""),
        ("/d/out.zarr/", "/d/out.zarr", ""),
        ("/d/out.zarr/a/b", "/d/out.zarr", "a/b"),
        ("/d/out.ome.zarr/0", "/d/out.ome.zarr", "0"),
        ("/d/a.n5/raw", "/d/a.n5", "raw"),
        ("/d/a.zarr/b.zarr/c", "/d/a.zarr", "b.zarr/c"),
        ("/d/x/y", "/d/x/y", ""),
        ("/d/x/../y.zarr/raw", "/d/y.zarr", "raw"),
        ("file:///d/with%20space.zarr/a", "/d/with space.zarr", "a"),
        ("https://h.org/d/em.zarr/raw", "https://h.org/d/em.zarr", "raw"),
        ("s3://bucket/em", "s3://bucket/em", ""),
        ("gs://bucket/em.zarr", "gs://bucket/em.zarr", ""),
    ],
)
def test_a_url_splits_at_the_store(url: str, root: str, path: str):
    assert store.locate(url) == Location(root, path)


def test_a_store_without_suffix_is_found_by_its_groups(tmp_path: Path):
    zarr.create_group(store=tmp_path / "volume" / "sample")
    zarr.create_group(store=tmp_path / "volume")
    assert store.locate(tmp_path / "volume/sample/raw/fine") == Location(f"{tmp_path}/volume", "sample/raw/fine")
    assert store.locate(tmp_path / "other/raw") == Location(f"{tmp_path}/other/raw", "")


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert store.locate("out.zarr/seg").root == os.path.realpath(tmp_path / "out.zarr")


def test_an_empty_url_is_refused():
    with pytest.raises(ValueError, match="empty"):
        store.locate("")


@pytest.mark.parametrize(
    ("url", "suffix", "file"),
    [
        ("/d/out.zarr/graph", ".duckdb", "/d/out.graph.duckdb"),
        ("/d/out.ome.zarr/a/lut", ".parquet", "/d/out.a.lut.parquet"),
        ("/d/graph.duckdb", ".duckdb", "/d/graph.duckdb"),
        ("/d/graph.duckdb", ".nodes.parquet", "/d/graph.nodes.parquet"),
        ("/d/out.zarr", ".duckdb", "/d/out.duckdb"),
    ],
)
def test_tables_lie_beside_the_store(url: str, suffix: str, file: str):
    assert store.locate(url).file(suffix) == file


def test_workspace_and_parents():
    location = store.locate("/d/out.zarr/a/b")
    assert location.workspace == "/d/out.zarr.volara_expr"
    assert [p.url for p in location.parents] == ["/d/out.zarr/a", "/d/out.zarr"]
    assert (location / "0").url == "/d/out.zarr/a/b/0"


def test_a_file_is_whole_or_as_it_was(tmp_path: Path):
    target = tmp_path / "deep" / "file"
    with replacing(str(target)) as name:
        Path(name).write_text("first")

    def fail() -> None:
        with replacing(str(target)) as name:
            Path(name).write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text() == "first"
    assert os.listdir(target.parent) == ["file"]
