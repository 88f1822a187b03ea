from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volara_expr.store import tables

BIG = 2**63


def group(n: int, start: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    ids = np.arange(start, start + n, dtype=np.uint64) + np.uint64(BIG)
    return {"id": ids, "sum": -np.arange(n), "mean": np.linspace(0, 1, n, dtype=np.float32)}


def assert_same(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(got) == list(expected)
    for name in expected:
        assert got[name].dtype == expected[name].dtype
        np.testing.assert_array_equal(got[name], expected[name])


def test_a_part_has_one_row_group_per_block(tmp_path: Path):
    path = tmp_path / "deep" / "part.parquet"
    groups = [group(5), group(0), group(7, 100)]
    tables.write_part(path, groups, {"scale": "16777216"})
    assert pq.ParquetFile(path).num_row_groups == 3
    for got, expected in zip(tables.read_groups(path, [2, 0, 1]), [groups[2], groups[0], groups[1]], strict=True):
        assert_same(got, expected)
    assert tables.read_metadata(path)["scale"] == "16777216"
    assert os.listdir(path.parent) == ["part.parquet"]


def test_a_part_may_hold_no_rows_at_all(tmp_path: Path):
    tables.write_part(tmp_path / "p.parquet", [group(0), group(0)])
    for got in tables.read_groups(tmp_path / "p.parquet", [0, 1]):
        assert_same(got, group(0))
    assert_same(tables.read_table(tmp_path / "p.parquet"), group(0))


def test_a_row_group_larger_than_the_usual_stays_one(tmp_path: Path):
    n = 2**20 + 5
    tables.write_part(tmp_path / "p.parquet", [{"id": np.arange(n)}])
    assert pq.ParquetFile(tmp_path / "p.parquet").num_row_groups == 1


def test_columns_in_any_layout(tmp_path: Path):
    columns = {"a": np.arange(10)[::2], "b": np.arange(5, dtype=">u4"), "c": np.asfortranarray(np.ones((5, 2)))[:, 1]}
    tables.write_table(tmp_path / "t.parquet", columns)
    got = tables.read_table(tmp_path / "t.parquet")
    for name in columns:
        np.testing.assert_array_equal(got[name], columns[name])
    assert list(tables.read_table(tmp_path / "t.parquet", ["c"])) == ["c"]


@settings(max_examples=30, deadline=None)
@given(
    ids=st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=40),
    lo=st.integers(-5, 2**64),
    width=st.integers(0, 2**62),
    size=st.integers(1, 50),
)
def test_a_range_is_that_of_the_whole(tmp_path_factory: Any, ids: list[int], lo: int, width: int, size: int):
    path = tmp_path_factory.mktemp("range") / "lut.parquet"
    column = np.sort(np.array(ids, np.uint64))
    columns = {"id": column, "to": column // np.uint64(2)}
    tables.write_table(path, columns, row_group_size=size)
    keep = np.array([lo <= int(v) <= lo + width for v in column], bool)
    assert_same(tables.read_range(path, "id", lo, lo + width), {k: v[keep] for k, v in columns.items()})


def test_a_range_decodes_only_its_row_groups(tmp_path: Path):
    path = tmp_path / "lut.parquet"
    columns = {"id": np.arange(1000, dtype=np.uint64), "to": np.arange(1000, dtype=np.uint64)}
    tables.write_table(path, columns, row_group_size=100)
    with pq.ParquetFile(path) as file:
        at = file.metadata.row_group(9).column(1)
    with open(path, "r+b") as damaged:
        damaged.seek(at.data_page_offset)
        damaged.write(b"\xff" * at.total_compressed_size)
    assert len(tables.read_range(path, "id", 250, 449)["to"]) == 200
    with pytest.raises(OSError, match=r"lut\.parquet is damaged"):
        tables.read_range(path, "id", 900, 900)


@pytest.mark.parametrize("keep", [0, 3, 0.5, 0.99])
def test_a_truncated_part_is_named(tmp_path: Path, keep: float):
    path = tmp_path / "part.parquet"
    tables.write_part(path, [group(1000), group(1000)])
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if keep >= 1 else keep * len(whole))])
    with pytest.raises(OSError, match=r"part\.parquet is damaged.*run again"):
        tables.read_groups(path, [0])


def test_a_flipped_bit_is_noticed(tmp_path: Path):
    path = tmp_path / "part.parquet"
    tables.write_part(path, [{"id": np.random.default_rng(0).integers(0, 2**62, 1000)}])
    with pq.ParquetFile(path) as file:
        at = file.metadata.row_group(0).column(0)
    data = bytearray(path.read_bytes())
    data[at.data_page_offset + at.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="damaged"):
        tables.read_groups(path, [0])


def test_what_is_not_there(tmp_path: Path):
    path = tmp_path / "part.parquet"
    with pytest.raises(FileNotFoundError, match="is missing; delete the ledger"):
        tables.read_groups(path, [0])
    tables.write_part(path, [group(3)])
    with pytest.raises(OSError, match="has 1 row groups and row group 4 was asked for"):
        tables.read_groups(path, [0, 4])
    with pytest.raises(KeyError, match=r"no column to .*id, sum, mean"):
        tables.read_table(path, ["to"])
    with pytest.raises(KeyError, match="no column to "):
        tables.read_range(path, "to", 0, 1)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], "at least one"),
        ([{"a": np.arange(2)}, {"a": np.arange(2.0)}], r"row group 1 .* a \(double\), the first a \(int64\)"),
        ([{"a": np.arange(2), "b": np.arange(3)}], "one length"),
        ([{"a": np.zeros((2, 2))}], "one dimension"),
        ([{"a": np.array(["x"])}], "use integers or floats"),
    ],
)
def test_columns_that_make_no_table(tmp_path: Path, groups: Any, message: str):
    with pytest.raises(ValueError, match=message):
        tables.write_part(tmp_path / "p.parquet", groups)
    assert os.listdir(tmp_path) == []


def test_reading_leaves_pandas_alone_and_keeps_types(tmp_path):
    columns = {"id": np.arange(5, dtype=np.uint64), "sum": np.arange(5, dtype=np.int32), "mean": np.arange(5) / 2}
    path = tmp_path / "t.parquet"
    tables.write_table(path, columns, row_group_size=2)
    code = (
        "import sys; from volara_expr.store.tables import read_table; t = read_table(sys.argv[1]); "
        "print([(k, v.dtype.name, v.tolist()) for k, v in t.items()], 'pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{[(k, v.dtype.name, v.tolist()) for k, v in columns.items()]} False"


def test_nulls_become_nan_and_no_rows_keep_their_type():
    found = tables.to_numpy(pa.table({"a": pa.array([1.5, None]), "b": pa.array([1, 2], pa.uint16())}))
    np.testing.assert_array_equal(found["a"], [1.5, np.nan])
    assert tables.to_numpy(pa.table({"b": pa.array([], pa.uint16())}))["b"].dtype == found["b"].dtype == np.uint16
