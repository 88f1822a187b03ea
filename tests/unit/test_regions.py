"""Watershed and region graph: equal in any crop, for any cells, to the kernels on the whole volume."""

from fractions import Fraction

import numpy as np
import pytest
from scipy import ndimage

import volara_expr as ve
from executors import Serial
from volara_expr.array.graph import NotComputed, open_graph
from volara_expr.array.labels import Labels
from volara_expr.expr.node import ArraySpec
from volara_expr.geometry import Axis, Box, Space
from volara_expr.kernels import BadVoxel
from volara_expr.kernels.edges import FIXED_POINT, edge_sums, node_sums
from volara_expr.kernels.mutex_watershed import fragments
from volara_expr.ops.graph_tables import EdgeTable, NodeTable, fixed_point_scale
from volara_expr.ops.pointwise import Cast, Elementwise, Normalize
from volara_expr.ops.sources import in_memory
from volara_expr.run.block import Program, resolve
from volara_expr.run.tables import TableFiles
from volara_expr.store.graph_db import GraphDB
from volara_expr.store.tables import write_part

NEAR = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
MIXED = (*NEAR, (0, -3, 0), (0, 0, 4), (-2, 1, -3))
SHAPE = (13, 18, 21)


def space(*names, origin=None, voxel_size=None):
    kinds = {"o": "offsets", "c": "channel", "t": "time"}
    n = len(names)
    axes = tuple(Axis(k, kinds.get(k, "space"), None if k in kinds else "nanometer") for k in names)
    return Space(axes, tuple(map(Fraction, voxel_size or (1,) * n)), tuple(map(Fraction, origin or (0,) * n)))


def node(data, names="zyx", lo=None, neighborhood=None, frame=None, **where):
    box = Box.of_shape(data.shape, lo)
    return in_memory(data, ArraySpec(box, data.dtype, space(*names, **where), neighborhood, frame))


def affinities(dtype=np.uint8, shape=SHAPE, neighborhood=MIXED, seed=0):
    values = np.random.default_rng(seed).random((len(neighborhood), *shape))
    return (values * 255).astype(np.uint8) if dtype == np.uint8 else (values.astype(dtype))


def evaluate(n, box=None, tables=None):
    """The voxels of a box, all sources in memory."""
    program = Program([n], [])
    boxes = program.demand({n: box or n.spec.box})
    read = lambda leaf, b: leaf.data[b.slices(leaf.spec.box.lo)]  # noqa: E731
    return program.evaluate(boxes, read, tables or (lambda t: None), [n])[n].data


def all_rows(table, sources, cells=None):
    """The rows of every cell of a block table; `sources` gives the array of each input."""
    found = []
    kernel = resolve(table.kernel)
    for number in range(table.cells.n_blocks):
        cell = table.cells.box(number)
        reads = []
        for demand in table.demands(cell):
            patches = []
            for x, box in zip(table.arrays, demand, strict=True):
                box = box.clip(x.spec.box)
                patches.append(evaluate_patch(x, box, sources))
            reads.append(patches)
        rows = table.rows(kernel, cell, reads, [])
        assert set(rows) == set(table.columns)
        found.append({c: np.asarray(rows[c]) for c in table.columns})
    return found


def evaluate_patch(x, box, sources):
    from volara_expr.expr.node import Patch

    if x in sources:
        return Patch(box, sources[x][box.slices(x.spec.box.lo)])
    program = Program([x], [])
    read = lambda leaf, b: leaf.data[b.slices(leaf.spec.box.lo)]  # noqa: E731
    return program.evaluate(program.demand({x: box}), read, lambda t: None, [x])[x]


def merged(groups, keys):
    """Rows of equal keys added up, in the order of the keys."""
    columns = list(groups[0])
    sums = {}
    for g in groups:
        for row in zip(*(g[c].tolist() for c in columns), strict=True):
            named = dict(zip(columns, row, strict=True))
            key = tuple(named.pop(k) for k in keys)
            total = sums.setdefault(key, dict.fromkeys(named, 0))
            for c, value in named.items():
                total[c] += value
    return [{**dict(zip(keys, k, strict=True)), **sums[k]} for k in sorted(sums)]


def as_rows(columns, arrays):
    return [dict(zip(columns, row, strict=True)) for row in zip(*(a.tolist() for a in arrays), strict=True)]


def run_global(table, opened, tmp_path, name):
    out = str(tmp_path / (name + table.suffix))
    table.run(resolve(table.kernel), opened, out, 1 << 28)
    return TableFiles(path=out, columns=table.columns)


def write_parts(table, groups, tmp_path, name):
    """A block table as workers leave it: rows of several cells in a file, and a row group that no ledger names."""
    junk = {c: np.ones(3, a.dtype) for c, a in groups[0].items()}
    parts = []
    for k in range(0, len(groups), 3):
        path = str(tmp_path / f"{name}-{k}.parquet")
        write_part(path, [junk, *groups[k : k + 3]])
        parts.append((path, list(range(1, 1 + len(groups[k : k + 3])))))
    return TableFiles(parts=parts, columns=table.columns)


def as_graph(graph, sources, tmp_path):
    """Compute a region graph by hand."""
    nodes, edges = (
        run_global(
            t, [write_parts(p, all_rows(p, sources), tmp_path, f"{name}{k}") for k, p in enumerate(t.parts)], tmp_path, name
        )
        for t, name in ((graph.nodes, "nodes"), (graph.edges, "edges"))
    )
    return nodes, edges, run_global(graph, [nodes, edges], tmp_path, "graph")


# ---------------------------------------------------------------- watershed


def by_hand(affs, origin, block, context, **options):
    """The watershed of each block by the kernel itself, on arrays that are cut by hand."""
    shape = affs.shape[1:]
    n_blocks = [-(-(o + n) // b) - o // b for o, n, b in zip(origin, shape, block, strict=True)]
    out = np.zeros(shape, np.uint64)
    bits = int(np.prod(block)).bit_length()
    for index in np.ndindex(*n_blocks):
        lo = [max(0, (o // b + k) * b - o) for o, k, b in zip(origin, index, block, strict=True)]
        hi = [min(n, (o // b + k + 1) * b - o) for o, k, b, n in zip(origin, index, block, shape, strict=True)]
        rlo = [max(0, a - c) for a, c in zip(lo, context, strict=True)]
        rhi = [min(n, b + c) for b, c, n in zip(hi, context, shape, strict=True)]
        cut = affs[(slice(None), *map(slice, rlo, rhi))]
        crop = tuple(slice(a - r, b - r) for a, b, r in zip(lo, hi, rlo, strict=True))
        labels, _ = fragments(cut, MIXED, origin=[o + r for o, r in zip(origin, rlo, strict=True)], crop=crop, **options)
        number = (int(np.ravel_multi_index(index, n_blocks)) + 1) << bits
        out[tuple(map(slice, lo, hi))] = np.where(labels, labels + np.uint64(number), 0)
    return out


BIAS = (-0.5,) * 3 + (-0.6,) * 3
STRIDES = ((1, 1, 1),) * 3 + ((2, 2, 2),) * 3


@pytest.mark.parametrize("origin", [(0, 0, 0), (5, -7, 30)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_watershed_is_that_of_its_blocks_in_any_crop(origin, dtype):
    affs = affinities(dtype)
    source = node(affs, "ozyx", (0, *origin), MIXED)
    bias = BIAS if dtype != np.uint8 else tuple(255 * b for b in BIAS)
    frags = Labels.watershed(handle(source), bias, STRIDES, (8, 8, 9), (1, 2, 3)).node
    expected = by_hand(affs, origin, (8, 8, 9), (1, 2, 3), bias=bias, strides=STRIDES)
    assert frags.spec.dtype == np.uint64
    assert frags.spec.space.names == ("z", "y", "x")
    assert frags.unit == (8, 8, 9)
    np.testing.assert_array_equal(evaluate(frags), expected)
    assert len(np.unique(expected)) > 20
    rng = np.random.default_rng(1)
    for _ in range(6):
        lo = [int(rng.integers(0, n - 1)) for n in SHAPE]
        hi = [int(rng.integers(a + 1, n + 1)) for a, n in zip(lo, SHAPE, strict=True)]
        box = Box(tuple(lo), tuple(hi)).shift(origin)
        np.testing.assert_array_equal(evaluate(frags, box), expected[tuple(map(slice, lo, hi))])


def handle(n):
    from volara_expr.array.core import Array

    return Array(n)


def test_watershed_crops_of_one_source_share_ids_and_leading_axes_are_mapped_over():
    affs = affinities()
    whole = node(affs, "ozyx", (0, 0, 0, 0), MIXED)
    cut = affs[:, :, :, 9:]
    crop = node(cut, "ozyx", (0, 0, 0, 9), MIXED, frame=whole.spec.box)
    a = Labels.watershed(handle(whole), -120.0, None, (8, 8, 9), 0).node
    b = Labels.watershed(handle(crop), -120.0, None, (8, 8, 9), 0).node
    np.testing.assert_array_equal(evaluate(a)[:, :, 9:], evaluate(b))
    # (time, offsets, space): each time point is a block of its own
    both = np.stack([affs, affs[..., ::-1]])
    t = Labels.watershed(handle(node(both, "tozyx", neighborhood=MIXED)), -120.0, None, (8, 8, 9), 0).node
    assert t.unit == (1, 8, 8, 9)
    labels = evaluate(t)
    shift = np.uint64(2 * 3 * 3 << t_bits(t))
    np.testing.assert_array_equal(labels[0], evaluate(a))
    second = evaluate(Labels.watershed(handle(node(both[1], "ozyx", neighborhood=MIXED)), -120.0, None, (8, 8, 9), 0).node)
    np.testing.assert_array_equal(labels[1], np.where(second, second + shift, 0))


def t_bits(n):
    return int(np.prod(n.unit)).bit_length()


def test_watershed_reads_codes_as_the_values_they_stand_for():
    affs = affinities()
    source = node(affs, "ozyx", neighborhood=MIXED)
    frags = Labels.watershed(handle(Normalize(source, 0.0, 255.0)), BIAS, STRIDES, (8, 8, 9)).node
    assert frags.context == (2, 3, 4)
    values = ((affs.astype(np.float64)) / 255).astype(np.float32)
    expected = by_hand(values, (0, 0, 0), (8, 8, 9), (2, 3, 4), bias=BIAS, strides=STRIDES)
    np.testing.assert_array_equal(evaluate(frags), expected)


def test_watershed_of_masked_affinities_leaves_out_what_is_outside():
    affs = affinities(np.float32)
    inside = np.zeros(SHAPE, np.uint8)
    inside[3:, 2:15, 5:20] = 7
    source, m = node(affs, "ozyx", neighborhood=MIXED), node(inside)
    given = Labels.watershed(handle(source), BIAS, block_size=(8, 8, 9), mask=handle(m)).node
    carried = Labels.watershed(handle(source).mask(handle(m)), BIAS, block_size=(8, 8, 9)).node
    later = Labels.watershed(handle(source).mask(handle(m), -1.0) * 1.0, BIAS, block_size=(8, 8, 9)).node
    assert carried is given
    expected = by_hand_masked(affs, inside)
    for frags in (given, later):
        np.testing.assert_array_equal(evaluate(frags), expected)
    assert not expected[inside == 0].any()
    assert later.mask is m


def by_hand_masked(affs, inside):
    out = np.zeros(SHAPE, np.uint64)
    context, block = (2, 3, 4), (8, 8, 9)
    for k, index in enumerate(np.ndindex(2, 3, 3), 1):
        lo = [i * b for i, b in zip(index, block, strict=True)]
        hi = [min(a + b, n) for a, b, n in zip(lo, block, SHAPE, strict=True)]
        rlo = [max(0, a - c) for a, c in zip(lo, context, strict=True)]
        cut = tuple(slice(a, b + c) for a, b, c in zip(rlo, hi, context, strict=True))
        crop = tuple(slice(a - r, b - r) for a, b, r in zip(lo, hi, rlo, strict=True))
        labels, _ = fragments(affs[:, *cut], MIXED, bias=BIAS, origin=rlo, crop=crop, mask=inside[cut])
        out[tuple(map(slice, lo, hi))] = np.where(labels, labels + np.uint64(k << 10), 0)
    return out


def test_watershed_of_smoothed_affinities_filters_by_those_as_they_were():
    affs = affinities(np.float32)
    source = node(affs, "ozyx", neighborhood=MIXED)
    options = {"min_mean_affinity": 0.5, "min_size": 3, "min_extent": (1, 1, 2)}
    n = handle(source).watershed(BIAS, STRIDES, SHAPE, 0, sigma=(0, 1.0, 0.5), noise=0.01, seed=7, **options).node
    assert n.mean_affs is source
    smooth = ndimage.gaussian_filter(affs.astype(np.float64), (0, 0, 1.0, 0.5)).astype(np.float32)
    shared = {"bias": BIAS, "strides": STRIDES, "noise": 0.01, "seed": 7}
    expected, count = fragments(smooth, MIXED, **shared, mean_affs=affs, **options)
    other, _ = fragments(smooth, MIXED, **shared, **options)
    found = evaluate(n)
    np.testing.assert_array_equal(found, np.where(expected, expected + np.uint64(1 << 13), 0))
    assert count > 5
    assert (expected != other).any()
    assert handle(source).watershed(BIAS, sigma=1.0).node.mean_affs is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bias": [-0.5] * 3}, "3 entries but there are 6 offsets"),
        ({"bias": -0.5, "strides": [(1, 1, 1)] * 2}, "2 entries but there are 6 offsets"),
        ({"bias": -0.5, "strides": (1, 1)}, "3 numbers of at least 1"),
        ({"bias": float("nan")}, "finite"),
        ({"bias": -0.5, "block_size": (8, 8)}, "2 entries but there are 3 space axes"),
        ({"bias": -0.5, "block_size": 1.5}, "1.5 voxels"),
        ({"bias": -0.5, "block_size": 0}, "at least 1"),
        ({"bias": -0.5, "context": (1, 1)}, "2 entries but there are 3 space axes"),
        ({"bias": -0.5, "ids": "int32"}, "'float53'"),
        ({"bias": -0.5, "mask": np.ones((2, 2, 2), bool)}, "should cover"),
    ],
)
def test_mistakes_in_a_watershed_are_errors_on_its_line(options, words):
    source = node(affinities(), "ozyx", neighborhood=MIXED)
    with pytest.raises(ValueError, match=words):
        Labels.watershed(handle(source), **options)


def test_watershed_needs_a_neighborhood_numbers_and_room_for_ids():
    affs = affinities()
    with pytest.raises(ValueError, match="with_neighborhood"):
        Labels.watershed(handle(node(affs, "czyx")), -0.5)
    with pytest.raises(TypeError, match="bool"):
        Labels.watershed(handle(node(affs > 3, "ozyx", neighborhood=MIXED)), -0.5)
    fits, wide = (node(affs, "ozyx", neighborhood=MIXED, frame=Box((0,) * 4, (6, n, n, n))) for n in (10**5, 10**6))
    Labels.watershed(handle(fits), -0.5, block_size=256)
    with pytest.raises(ValueError, match="take at most 0 blocks"):
        Labels.watershed(handle(wide), -0.5, block_size=2**20)
    with pytest.raises(ValueError, match=r"take at most 268,435,455 blocks.*uint64"):
        Labels.watershed(handle(wide), -0.5, block_size=256)
    Labels.watershed(handle(wide), -0.5, block_size=256, ids="uint64")


def test_a_voxel_that_is_not_a_number_is_named_in_absolute_coordinates():
    affs = affinities(np.float32)
    affs[2, 9, 4, 17] = np.nan
    frags = Labels.watershed(handle(node(affs, "ozyx", (0, 5, -7, 30), MIXED)), -0.5, block_size=8).node
    with pytest.raises(BadVoxel) as error:
        evaluate(frags)
    assert error.value.voxel == (2, 14, -3, 47)


# ---------------------------------------------------------------- region graph


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
