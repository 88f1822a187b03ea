"""Region graph: for any cells equal to the kernels on the whole volume, and clustered as by definition."""

import numpy as np
import pytest

import volara_expr as ve
from executors import Serial
from tests.unit.nodes import (
    BIAS,
    MIXED,
    SHAPE,
    STRIDES,
    affinities,
    all_rows,
    as_graph,
    as_rows,
    evaluate,
    handle,
    merged,
    node,
    run_global,
)
from volara_expr.array.graph import NotComputed, open_graph
from volara_expr.array.labels import Labels
from volara_expr.kernels import BadVoxel
from volara_expr.kernels.edges import FIXED_POINT, edge_sums, node_sums
from volara_expr.ops.graph_tables import EdgeTable, NodeTable, fixed_point_scale
from volara_expr.ops.pointwise import Cast, Elementwise, Normalize
from volara_expr.run.block import resolve
from volara_expr.run.tables import TableFiles
from volara_expr.store.graph_db import GraphDB


def labels_like(shape=SHAPE, seed=3, n=40):
    coarse = np.random.default_rng(seed).integers(0, n, [-(-s // 3) for s in shape]).astype(np.uint64)
    full = coarse.repeat(3, 0).repeat(3, 1).repeat(3, 2)[tuple(map(slice, shape))]
    return np.where(full % np.uint64(5) == 0, 0, full + np.uint64(2**60))


SCORES = {"near": slice(0, 3), "far": [5, (0, -3, 0)]}
CHANNELS = ((0, 1, 2), (5, 3))


def edges_by_kernel(labels, values, table=None):
    zero = (0, 0, 0)
    score = [-1] * len(MIXED)
    for s, channels in enumerate(CHANNELS):
        for c in channels:
            score[c] = s
    u, v, sums = edge_sums(labels, zero, values, zero, MIXED, score, 2, zero, labels.shape, table=table)
    return as_rows(("u", "v", "near_sum", "near_count", "far_sum", "far_count"), [u, v, *sums.T])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize(("cell", "lo"), [((5, 18, 7), (0, 0, 0)), ((8, 8, 8), (3, -5, 70)), ((2, 3, 2), (0, 1, 0))])
def test_edges_of_any_cells_add_up_to_those_of_the_whole(dtype, cell, lo):
    labels, affs = labels_like(), affinities(dtype)
    a, f = node(labels, lo=lo), node(affs, "ozyx", (0, *lo), MIXED)
    sources = {a: labels, f: affs}
    expected = edges_by_kernel(labels, affs)
    tables = {k: EdgeTable(a, f, ("near", "far"), CHANNELS, k, cell) for k in ("owned", "inner", "faces")}
    rows = {k: all_rows(t, sources) for k, t in tables.items()}
    assert len(expected) > 50
    assert merged(rows["owned"], ("u", "v")) == expected
    assert merged(rows["inner"] + rows["faces"], ("u", "v")) == expected
    assert tables["inner"].cells.n_blocks > 8
    assert sum(len(r["u"]) for r in rows["faces"]) > 20


def test_faces_read_thin_slabs_only():
    labels, affs = labels_like(), affinities()
    a, f = node(labels), node(affs, "ozyx", neighborhood=MIXED)
    table = EdgeTable(a, f, ("near",), ((0, 1, 2),), "faces", (6, 6, 7))
    cell = table.cells.box_at((1, 1, 1))
    demands = table.demands(cell)
    assert len(demands) == 3  # unit steps leave through the upper faces only
    assert [d[0].shape for d in demands] == [(2, 6, 7), (6, 2, 7), (6, 6, 2)]
    assert [d[1].shape for d in demands] == [(3, 1, 6, 7), (3, 6, 1, 7), (3, 6, 6, 1)]
    last = table.cells.box_at((2, 2, 2))
    assert table.demands(last) == []
    assert len(table.rows(resolve(table.kernel), last, [], [])["u"]) == 0


def test_coded_affinities_are_summed_as_their_values():
    labels, affs = labels_like(), affinities()
    a, f = node(labels), Normalize(node(affs, "ozyx", neighborhood=MIXED), 0.0, 255.0)
    values = (affs.astype(np.float64) / 255).astype(np.float32)
    table = EdgeTable(a, f, ("near", "far"), CHANNELS, "owned", (8, 8, 8))
    assert merged(all_rows(table, {a: labels}), ("u", "v")) == edges_by_kernel(labels, values)
    # the logarithm of code 0 is infinite, which matters only where a voxel has it
    some = np.maximum(affs, 1)
    logs = Elementwise("log", (Cast(node(some, "ozyx", neighborhood=MIXED), np.dtype(np.float32)),))
    table = EdgeTable(a, logs, ("near", "far"), CHANNELS, "owned", (8, 8, 8))
    expected = edges_by_kernel(labels, np.log(some.astype(np.float32)))
    assert merged(all_rows(table, {a: labels}), ("u", "v")) == expected


@pytest.mark.parametrize("cell", [(5, 18, 7), (4, 4, 4)])
def test_nodes_of_any_cells_add_up_to_those_of_the_whole(cell):
    labels = labels_like()
    raw = np.random.default_rng(5).integers(0, 200, SHAPE).astype(np.uint8)
    depth = np.random.default_rng(6).normal(size=SHAPE)
    lo = (7, -4, 11)
    a = node(labels, lo=lo)
    table = NodeTable(a, (node(raw, lo=lo), node(depth, lo=lo)), ("raw", "depth"), cell)
    ids, sums = node_sums(labels, lo, [raw, depth])
    columns = ("id", "size", "z_sum", "y_sum", "x_sum", "raw_sum", "depth_sum")
    assert table.columns == columns
    assert merged(all_rows(table, {a: labels}), ("id",)) == as_rows(columns, [ids, *sums.T])


def graph_of(tmp_path, dtype=np.float32):
    """A region graph of a watershed, computed block by block, and what it should be."""
    affs = affinities(dtype)
    raw = np.random.default_rng(5).integers(0, 200, SHAPE).astype(np.uint8)
    where = {"origin": (1000, 0, -40), "voxel_size": (40, 4, 4)}
    f = node(affs, "ozyx", neighborhood=MIXED, origin=(0, *where["origin"]), voxel_size=(1, *where["voxel_size"]))
    frags = Labels.watershed(handle(f), BIAS, STRIDES, (8, 8, 9))
    graph = frags.agglomerate(handle(f), SCORES, {"raw": handle(node(raw, **where))})
    labels = evaluate(frags.node)
    return graph, labels, affs, raw, as_graph(graph.node, {frags.node: labels}, tmp_path)


def test_region_graph_of_a_watershed(tmp_path):
    graph, labels, affs, raw, (nodes, edges, db) = graph_of(tmp_path)
    assert [t.kind for t in graph.node.edges.parts] == ["inner", "faces"]
    with pytest.raises(NotComputed, match=r"graph\.write"):
        graph.nodes()
    expected = edges_by_kernel(labels, affs)
    found = edges.read()
    assert as_rows(found, found.values()) == expected
    opened = open_graph(db.path)
    assert opened.scores == graph.scores == ("near", "far")
    rows = opened.edges().to_pylist()
    for row, e in zip(rows, expected, strict=True):
        for s in ("near", "far"):
            mean = e[f"{s}_sum"] / FIXED_POINT / e[f"{s}_count"] if e[f"{s}_count"] else None
            assert row[s] == mean
    for row in opened.nodes().to_pylist():
        where = np.argwhere(labels == row["id"])
        assert row["size"] == len(where)
        position = np.array([1000, 0, -40]) + (where.mean(0) + 0.5) * [40, 4, 4]
        np.testing.assert_allclose([row["z"], row["y"], row["x"]], position)
        assert row["raw"] == pytest.approx(raw[labels == row["id"]].mean())
    assert len(nodes.read()["id"]) == len(np.unique(labels[labels > 0]))
    assert GraphDB(db.path).metadata["digest"] == graph.node.digest


def lut_of(lut, nodes, edges, tmp_path, name):
    """Run a clustering; returns its table as a dict."""
    held = run_global(lut.node, [nodes, edges], tmp_path, name).read()
    assert (held["id"][1:] > held["id"][:-1]).all()
    return dict(zip(held["id"].tolist(), held["value"].tolist(), strict=True))


def test_clusterings_equal_their_definition_and_work_on_an_opened_graph(tmp_path):
    graph, labels, _, _, (nodes, edges, db) = graph_of(tmp_path)
    opened = open_graph(db.path)
    weights = {"far": (2.0, -1.1), "near": (1.0, -0.45)}
    expected = {True: {}, False: {}}
    ids = np.unique(labels[labels > 0]).tolist()
    for combine in (True, False):
        found = []
        for e in edges_rows(edges):
            terms = [
                f * (e[f"{s}_sum"] / FIXED_POINT / e[f"{s}_count"]) + b for s, (f, b) in weights.items() if e[f"{s}_count"]
            ]
            found += [(w, e["u"], e["v"]) for w in ([sum(terms)] if combine else terms)]
        expected[combine] = by_definition(ids, found)
        lut = graph.mutex_watershed(weights, combine)
        assert lut_of(lut, nodes, edges, tmp_path, f"lut{combine}") == expected[combine]
        again = opened.mutex_watershed(weights, combine)
        stored = [TableFiles(path=t.path, table=t.table, columns=t.columns) for t in again.node.tables]
        assert lut_of(again, *stored, tmp_path, f"stored{combine}") == expected[combine]
    assert expected[True] != expected[False]
    assert 1 < len(set(expected[False].values())) < len(ids)
    joined = [(1.0, e["u"], e["v"]) for e in edges_rows(edges) if e["near_sum"] > 0.52 * FIXED_POINT * e["near_count"] > 0]
    assert lut_of(graph.components({"near": 0.52}), nodes, edges, tmp_path, "cc") == by_definition(ids, joined)
    assert [lut.node for lut in graph.sweep([weights, {"near": (1, 0)}])] == [
        graph.mutex_watershed(weights).node,
        graph.mutex_watershed({"near": (1.0, 0.0)}).node,
    ]


def edges_rows(edges):
    found = edges.read()
    return as_rows(found, found.values())


def by_definition(ids, edges):
    """The mutex watershed by sets."""
    segment = {i: {i} for i in ids}
    apart = set()
    for w, u, v in sorted(edges, key=lambda e: -abs(e[0])):
        a, b = segment[u], segment[v]
        if a is b:
            continue
        if w <= 0:
            apart.add((u, v))
        elif not any((p in a and q in b) or (p in b and q in a) for p, q in apart):
            a |= b
            for i in b:
                segment[i] = a
    return {i: min(segment[i]) for i in ids}


def test_agglomerate_moves_arrays_to_the_labels_voxels_and_checks_the_rest():
    labels, affs = labels_like(), affinities()
    where = {"origin": (2, 0, 0)}
    a = handle(node(labels, **where))
    f = handle(node(affs, "ozyx", (0, 2, 0, 0), MIXED))  # the same place, counted from another voxel
    graph = a.agglomerate(f, SCORES, {"raw": labels}, block_size=7)
    table = graph.node.edges.parts[0]
    assert table.kind == "owned"
    assert table.affs.spec.box.lo == (0, 0, 0, 0)
    assert merged(all_rows(table, {a.node: labels}), ("u", "v")) == edges_by_kernel(labels, affs)
    assert graph.node.scales == (("near", 1), ("far", 1), ("raw", 1))
    assert fixed_point_scale(np.dtype(np.float32)) == FIXED_POINT
    cases = [
        (ValueError, "lie apart", lambda: a.agglomerate(handle(node(affs, "ozyx", (0, 3, 0, 0), MIXED)), SCORES)),
        (ValueError, "should cover", lambda: a.agglomerate(handle(node(affs[:, 1:], "ozyx", neighborhood=MIXED)), SCORES)),
        (TypeError, "astype", lambda: handle(node(labels.astype(float), **where)).agglomerate(f, SCORES)),
        (KeyError, "not in the neighborhood", lambda: a.agglomerate(f, {"s": [(9, 9, 9)]})),
        (IndexError, "channel 6", lambda: a.agglomerate(f, {"s": [6]})),
        (ValueError, "none", lambda: a.agglomerate(f, {"s": slice(6, 9)})),
        (ValueError, "twice", lambda: a.agglomerate(f, {"s": [0, 0]})),
        (ValueError, "letters", lambda: a.agglomerate(f, {"a-b": [0]})),
        (ValueError, "the table itself", lambda: a.agglomerate(f, {"u": [0]})),
        (ValueError, "another name", lambda: a.agglomerate(f, {"s": [0]}, {"s": labels})),
        (KeyError, "no score 'sharp'", lambda: graph.mutex_watershed({"sharp": (1.0, 0.0)})),
        (ValueError, "factor, bias", lambda: graph.mutex_watershed({"near": 1.0})),
        (KeyError, "no score 'sharp'", lambda: graph.components({"sharp": 0.5})),
    ]
    for kind, words, wrong in cases:
        with pytest.raises(kind, match=words):
            wrong()


def test_values_that_have_no_sum_are_named_in_absolute_coordinates():
    labels, affs, lo = labels_like().astype(np.int64) % 2**50, affinities(np.float32), (5, -7, 30)
    affs[1, 6, 8, 9] = np.nan
    labels[6, 8, 9], labels[6, 9, 9] = 1, 2
    a, f = node(labels, lo=lo), node(affs, "ozyx", (0, *lo), MIXED)
    edges = EdgeTable(a, f, ("far", "near"), ((5, 4), (2, 1)), "owned", (4, 4, 4))
    with pytest.raises(BadVoxel, match="channel first") as error:
        all_rows(edges, {a: labels, f: affs})
    assert error.value.voxel == (1, 11, 1, 39)
    with pytest.raises(BadVoxel) as error:
        all_rows(NodeTable(a, (node(affs[1], lo=lo),), ("m",), (4, 4, 4)), {a: labels})
    assert error.value.voxel == (11, 1, 39)
    labels[3, 4, 5] = -1
    for table in (edges, NodeTable(a, (), (), (4, 4, 4))):
        with pytest.raises(BadVoxel, match="label -1") as error:
            all_rows(table, {a: labels, f: np.zeros_like(affs)})
        assert error.value.voxel == (8, -3, 35)


def test_written_graphs_are_equal_for_any_cells_and_any_execution_block(tmp_path):
    affs = ve.from_numpy(affinities(np.float32), voxel_size=(40, 4, 4), units="nm", neighborhood=MIXED)
    frags = affs.watershed(BIAS, STRIDES, (8, 8, 9))
    graphs = {"a": frags.agglomerate(affs, SCORES), "b": frags.agglomerate(affs, SCORES, block_size=(8, 8, 9))}
    root = str(tmp_path / "out.zarr")
    ve.write({f"{root}/{k}": g for k, g in graphs.items()} | {f"{root}/frags": frags}, executor=Serial(), progress=False)
    stored = ve.open(f"{root}/frags")
    again = stored.agglomerate(affs, SCORES, block_size=5)
    ve.write({f"{root}/c": again}, executor=Serial(block=(10, 10, 10)), progress=False)
    a, b, c = (open_graph(f"{root}/{k}") for k in "abc")
    assert a.edges().num_rows > 100
    assert a.edges().equals(b.edges())
    assert a.edges().equals(c.edges())
    assert a.nodes().equals(b.nodes())
    assert a.nodes().equals(c.nodes())
    weights = {"near": (1.0, -0.45), "far": (2.0, -1.1)}
    segments = [f.relabel(g.mutex_watershed(weights), "error").compute() for f, g in ((frags, graphs["a"]), (stored, c))]
    np.testing.assert_array_equal(*segments)
