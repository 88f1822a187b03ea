from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from volara_expr.geometry import Roi
from volara_expr.store import graph_db, tables
from volara_expr.store.graph_db import GraphDB, build_graph_db, check_scores

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
        tmp_path / "g.duckdb", tmp_path / "n.parquet", tmp_path / "e.parquet", {"axes": ["z"]}, memory_limit_bytes=2**28
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
