from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volara_expr.geometry import Roi
from volara_expr.store import graph_db, tables
from volara_expr.store.graph_db import GraphDB, build_graph_db, check_scores, merge_tables

LIMIT = 2**28


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


METADATA = {
    "axes": ["z", "y", "x"],
    "units": ["nanometer"] * 3,
    "voxel_size": ["40.5", 4, 4],
    "origin": [0, 100, 0],
    "scales": {"direct": 4, "raw": 2},
    "digest": "abc",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Nodes at voxels (0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0); a chain of edges."""
    big = np.uint64(2**63)
    nodes = {
        "id": np.arange(1, 5, dtype=np.uint64) + big,
        "size": np.array([2, 1, 1, 4]),
        "z_sum": np.array([0, 1, 2, 12]),
        "y_sum": np.zeros(4, np.int64),
        "x_sum": np.zeros(4, np.int64),
        "raw_sum": np.array([6, 7, 8, 16]),
    }
    edges = {
        "u": np.array([1, 2, 3], np.uint64) + big,
        "v": np.array([2, 3, 4], np.uint64) + big,
        "direct_sum": np.array([12, -6, 0]),
        "direct_count": np.array([2, 1, 0]),
        'odd "name_sum': np.array([1, 2, 3]),
        'odd "name_count': np.array([1, 1, 2]),
    }
    tables.write_table(tmp_path / "n.parquet", nodes)
    tables.write_table(tmp_path / "e.parquet", edges)
    build_graph_db(tmp_path / "g.duckdb", tmp_path / "n.parquet", tmp_path / "e.parquet", METADATA)
    return tmp_path / "g.duckdb"


def test_means_and_centres(path: Path):
    graph = GraphDB(path)
    assert graph.scores == ("direct", 'odd "name')
    assert graph.metadata == METADATA
    nodes = graph.nodes()
    assert nodes.column_names == ["id", "size", "z", "y", "x", "raw"]
    assert nodes["id"].to_pylist() == [2**63 + k for k in range(1, 5)]
    assert nodes["z"].to_pylist() == [20.25, 60.75, 101.25, 141.75]
    assert nodes["y"].to_pylist() == [102.0] * 4
    assert nodes["raw"].to_pylist() == [1.5, 3.5, 4.0, 2.0]
    edges = graph.edges()
    assert edges.column_names[:5] == ["u", "v", "direct", "direct_sum", "direct_count"]
    assert edges["direct"].to_pylist() == [1.5, -1.5, None]
    assert edges['odd "name'].to_pylist() == [1.0, 2.0, 1.5]
    assert [str(f.type) for f in edges.schema][:5] == ["uint64", "uint64", "double", "int64", "int64"]
    assert graph.sql("SELECT sum(size)::BIGINT AS n FROM nodes")["n"].to_pylist() == [8]


@pytest.mark.parametrize(
    ("z", "nodes", "edges"),
    [
        ((0, 40), [1], [1]),
        (("60.75", "40.5"), [2], [1, 2]),
        ((0, "60.75"), [1], [1]),
        ((0, 1000), [1, 2, 3, 4], [1, 2, 3]),
        ((500, 1), [], []),
    ],
)
def test_a_roi_is_half_open_and_takes_edges_with_one_end_in_it(path: Path, z: Any, nodes: list[int], edges: list[int]):
    graph = GraphDB(path)
    roi = Roi((z[0], 100, 0), (z[1], 4, 4), "nm")
    assert [i - 2**63 for i in graph.nodes(roi)["id"].to_pylist()] == nodes
    assert [i - 2**63 for i in graph.edges(roi)["u"].to_pylist()] == edges
    assert graph.nodes(roi.to("um")) == graph.nodes(roi)
    assert not len(graph.nodes(Roi((0, 104, 0), (1000, 4, 4))))


def test_networkx(path: Path):
    graph = GraphDB(path)
    whole = graph.to_networkx()
    assert (whole.number_of_nodes(), whole.number_of_edges()) == (4, 3)
    assert whole.nodes[2**63 + 4]["raw"] == 2.0
    assert whole.edges[2**63 + 2, 2**63 + 3]["direct"] == -1.5
    part = graph.to_networkx(Roi((0, 100, 0), (40, 4, 4)))
    assert sorted(n - 2**63 for n in part) == [1, 2]
    assert part.nodes[2**63 + 2]["size"] == 1  # an end outside the Roi has its attributes too


def test_a_box_query_reads_few_row_groups(tmp_path: Path):
    """Rows in block order make DuckDB's zonemaps an index."""
    n = 500_000
    at = np.arange(n)
    ids = at.astype(np.uint64) + np.uint64(1)
    tables.write_table(tmp_path / "n.parquet", {"id": ids, "size": np.ones(n, np.int64), "z_sum": at})
    edges = {"u": ids[:-1], "v": ids[1:], "s_sum": at[1:], "s_count": np.ones(n - 1, np.int64)}
    tables.write_table(tmp_path / "e.parquet", edges)
    build_graph_db(
        tmp_path / "g.duckdb", tmp_path / "n.parquet", tmp_path / "e.parquet", {"axes": ["z"]}, memory_limit_bytes=LIMIT
    )
    graph = GraphDB(tmp_path / "g.duckdb")
    roi = Roi((1000,), (10,))
    assert (len(graph.nodes(roi)), len(graph.edges(roi))) == (10, 11)
    with graph_db._connect(str(tmp_path / "g.duckdb")) as connection:
        plan = connection.execute(f"EXPLAIN ANALYZE {graph._edge_query(roi)}").fetchall()[0][1]
    scanned = [line.split("Scanned:")[1].split("│")[0] for line in plan.splitlines() for _ in range(line.count("Scanned:"))]
    assert scanned or duckdb.__version__.startswith("1.")  # version 1 does not tell
    assert all(s.split("/")[0].strip() == "1" and int(s.split("/")[1]) > 1 for s in scanned), plan


HOLD = "import duckdb, sys; c = duckdb.connect(sys.argv[1], read_only={}); print('open', flush=True); sys.stdin.read()"


@pytest.mark.parametrize("read_only", [False, True])
def test_two_processes(path: Path, read_only: bool):
    with subprocess.Popen([sys.executable, "-c", HOLD.format(read_only), path], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        try:
            if read_only:
                assert len(GraphDB(path).nodes()) == 4
            else:
                with pytest.raises(OSError, match=f"written by another process.*PID {other.pid}.*wait.*Parquet"):
                    GraphDB(path)
        finally:
            other.communicate("")
    assert len(GraphDB(path).nodes()) == 4


def test_threads_share_a_graph(path: Path):
    graph = GraphDB(path)
    with ThreadPoolExecutor(4) as pool:
        assert {len(t) for t in pool.map(lambda _: graph.edges(), range(12))} == {3}


def test_building_again_replaces_the_file_under_its_readers(path: Path):
    graph = GraphDB(path)
    tables.write_table(path.parent / "n.parquet", {k: v[:2] for k, v in tables.read_table(path.parent / "n.parquet").items()})
    build_graph_db(path, path.parent / "n.parquet", path.parent / "e.parquet", METADATA)
    assert len(graph.nodes()) == 2
    assert sorted(p.name for p in path.parent.iterdir()) == ["e.parquet", "g.duckdb", "n.parquet"]


def test_files_that_hold_no_graph(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no region graph at"):
        GraphDB(tmp_path / "none.duckdb")
    (tmp_path / "text.duckdb").write_text("hello" * 1000)
    with pytest.raises(OSError, match=r"not a valid DuckDB database file.*build it again"):
        GraphDB(tmp_path / "text.duckdb")
    duckdb.connect(tmp_path / "other.duckdb").close()
    with pytest.raises(OSError, match="no region graph"):
        GraphDB(tmp_path / "other.duckdb")


def test_questions_that_have_no_answer(path: Path):
    graph = GraphDB(path)
    with pytest.raises(ValueError, match=r"cannot answer.*nowhere"):
        graph.sql("SELECT * FROM nowhere")
    with pytest.raises(ValueError, match="read-only"):
        graph.sql("DELETE FROM nodes")
    with pytest.raises(ValueError, match="the Roi has 2 axes, the graph 3"):
        graph.nodes(Roi((0, 0), (1, 1)))
    check_scores(["direct"], graph.scores)
    with pytest.raises(KeyError, match="no score long; the graph has direct"):
        check_scores(["direct", "long"], graph.scores)


def test_tables_that_make_no_graph(path: Path):
    nodes, edges = path.parent / "n.parquet", path.parent / "e.parquet"
    with pytest.raises(KeyError, match=r"no column w_sum; it has id"):
        build_graph_db(path, nodes, edges, {"axes": ["w"]})
    with pytest.raises(KeyError, match="no column id"):
        build_graph_db(path, edges, nodes, {})
    with pytest.raises(ValueError, match="'axes' is 'zyx'"):
        build_graph_db(path, nodes, edges, {"axes": "zyx"})
    damaged = bytearray(nodes.read_bytes())
    damaged[4:200] = b"\xff" * 196
    nodes.write_bytes(damaged)
    with pytest.raises(OSError, match=r"cannot build .*g\.duckdb"):
        build_graph_db(path, nodes, edges, METADATA)
    assert len(GraphDB(path).nodes()) == 4
    assert sorted(p.name for p in path.parent.iterdir()) == ["e.parquet", "g.duckdb", "n.parquet"]
