"""Tables merged in memory and with DuckDB: the same rows, the same errors."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volara_expr.store import merge as module
from volara_expr.store import tables
from volara_expr.store.merge import merge_tables

LIMIT = 2**28


@pytest.fixture(autouse=True, scope="module", params=["in memory", "DuckDB"])
def _way(request):
    few = module.FEW_ROWS
    if request.param == "DuckDB":
        module.FEW_ROWS = -1
    yield
    module.FEW_ROWS = few


def merge(
    parts: Any, out: Path, keys: tuple[str, ...] = ("u", "v"), sums: tuple[str, ...] = ("s_sum", "s_count"), **how: Any
) -> dict[str, Any]:
    merge_tables(parts, out, keys=keys, sums=sums, memory_limit_bytes=LIMIT, tmp_dir=out.parent / "tmp", **how)
    return tables.read_table(out)


def expected(rows: list[tuple[int, int, int, int]]) -> list[tuple[int, ...]]:
    total: dict[tuple[int, int], list[int]] = {}
    for u, v, s, c in rows:
        t = total.setdefault((u, v), [0, 0])
        t[0] += s
        t[1] += c
    return [(*k, *total[k]) for k in sorted(total)]


def columns(rows: list[tuple[int, int, int, int]]) -> dict[str, Any]:
    u, v, s, c = zip(*rows, strict=True) if rows else ((), (), (), ())
    return {
        "u": np.array(u, np.uint64),
        "v": np.array(v, np.uint64),
        "s_sum": np.array(s, np.int64),
        "s_count": np.array(c, np.int64),
        "other": np.zeros(len(rows)),
    }


def as_rows(table: dict[str, Any]) -> list[tuple[int, ...]]:
    return [tuple(map(int, row)) for row in zip(*table.values(), strict=True)]


ids = st.sampled_from([1, 2, 3, 2**53 + 1, 2**53 + 2, 2**64 - 1])
rows = st.lists(st.tuples(ids, ids, st.integers(-(2**55), 2**55), st.integers(0, 10)), max_size=60)


@settings(max_examples=20, deadline=None)
@given(rows=rows, cuts=st.lists(st.integers(0, 60), max_size=6), file_cut=st.integers(0, 6), seed=st.integers(0, 99))
def test_merging_parts_is_merging_the_whole(tmp_path_factory: Any, rows: Any, cuts: list[int], file_cut: int, seed: int):
    folder = tmp_path_factory.mktemp("merge")
    shuffled = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    edges = [0, *sorted(min(c, len(rows)) for c in cuts), len(rows)]
    groups = [columns(shuffled[a:b]) for a, b in pairwise(edges)]
    parts = []
    for k, part in enumerate([groups[:file_cut], groups[file_cut:]]):
        if part:
            junk = columns([(7, 7, 7, 7)])  # a row group that no record names
            tables.write_part(folder / f"{k}.parquet", [junk, *part])
            parts.append((folder / f"{k}.parquet", range(1, 1 + len(part))))
    got = merge(parts, folder / "out.parquet")
    assert as_rows(got) == expected(rows)
    assert list(got) == ["u", "v", "s_sum", "s_count"]
    assert [a.dtype for a in got.values()] == [np.uint64, np.uint64, np.int64, np.int64]


def test_merging_many_row_groups_under_little_memory(tmp_path: Path):
    rng = np.random.default_rng(0)
    n = 400_000
    whole = {
        "u": rng.integers(1, 10**6, n).astype(np.uint64),
        "v": rng.integers(1, 10**6, n).astype(np.uint64),
        "s_sum": rng.integers(-(10**9), 10**9, n),
        "s_count": np.ones(n, np.int64),
    }
    step = n // 2000
    groups = [{k: a[i : i + step] for k, a in whole.items()} for i in range(0, n, step)]
    tables.write_part(tmp_path / "a.parquet", groups[:1000])
    tables.write_part(tmp_path / "b.parquet", groups[1000:])
    parts = [(tmp_path / "a.parquet", range(1000)), (tmp_path / "b.parquet", range(1000))]
    got = merge(parts, tmp_path / "out.parquet", threads=2)
    key = np.stack([whole["u"], whole["v"]])
    unique, inverse = np.unique(key, axis=1, return_inverse=True)
    np.testing.assert_array_equal(np.stack([got["u"], got["v"]]), unique)
    sums = np.zeros(unique.shape[1], np.int64)
    np.add.at(sums, inverse.ravel(), whole["s_sum"])
    np.testing.assert_array_equal(got["s_sum"], sums)


def test_nothing_to_merge(tmp_path: Path):
    assert as_rows(merge([], tmp_path / "out.parquet")) == []


def test_a_damaged_part_stops_the_merge(tmp_path: Path):
    tables.write_part(tmp_path / "a.parquet", [columns([(1, 2, 3, 4)])])
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(OSError, match=r"b\.parquet is damaged"):
        merge([(tmp_path / "a.parquet", [0]), (tmp_path / "b.parquet", [0])], tmp_path / "out.parquet")
    with pytest.raises(FileNotFoundError, match=r"c\.parquet is missing"):
        merge([(tmp_path / "a.parquet", [0]), (tmp_path / "c.parquet", [0])], tmp_path / "out.parquet")
    with pytest.raises(OSError, match="row group 1 was asked"):
        merge([(tmp_path / "a.parquet", [0, 1])], tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_a_column_that_is_not_there(tmp_path: Path):
    tables.write_part(tmp_path / "a.parquet", [columns([(1, 2, 3, 4)])])
    with pytest.raises(KeyError, match="no column size; it has u, v, s_sum"):
        merge([(tmp_path / "a.parquet", [0])], tmp_path / "out.parquet", sums=("size",))


def test_a_sum_beyond_64_bits_is_an_error(tmp_path: Path):
    tables.write_part(tmp_path / "a.parquet", [columns([(1, 2, 2**62, 1)] * 2)])
    with pytest.raises(OverflowError, match="64 bits"):
        merge([(tmp_path / "a.parquet", [0])], tmp_path / "out.parquet")


def test_a_merge_that_cannot_be_written(tmp_path: Path):
    tables.write_part(tmp_path / "a.parquet", [columns([(1, 2, 3, 1)] * 2)])
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        merge([(tmp_path / "a.parquet", [0])], tmp_path / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "folder"]


def test_extremes_are_kept_in_the_type_of_their_column(tmp_path: Path):
    rng = np.random.default_rng(1)
    rows = {
        "id": rng.integers(1, 9, 100).astype(np.uint32),
        "lo": rng.integers(-99, 99, 100),
        "hi": rng.integers(0, 99, 100).astype(np.uint16),
    }
    tables.write_part(tmp_path / "a.parquet", [{k: v[:60] for k, v in rows.items()}, {k: v[60:] for k, v in rows.items()}])
    got = merge([(tmp_path / "a.parquet", [0, 1])], tmp_path / "out.parquet", keys=("id",), sums=(), least=["lo"], most=["hi"])
    found = np.unique(rows["id"])
    assert {k: v.dtype for k, v in got.items()} == {"id": np.uint32, "lo": np.int64, "hi": np.uint16}
    np.testing.assert_array_equal(got["id"], found)
    np.testing.assert_array_equal(got["lo"], [rows["lo"][rows["id"] == i].min() for i in found])
    np.testing.assert_array_equal(got["hi"], [rows["hi"][rows["id"] == i].max() for i in found])
