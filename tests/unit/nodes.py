"""Nodes over arrays in memory, and the running of tables by hand, cell by cell."""

from fractions import Fraction

import numpy as np

from volara_expr.expr.node import ArraySpec
from volara_expr.geometry import Axis, Box, Space
from volara_expr.ops.sources import in_memory
from volara_expr.run.block import Program, resolve
from volara_expr.run.tables import TableFiles
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


def handle(n):
    from volara_expr.array.core import Array

    return Array(n)


BIAS = (-0.5,) * 3 + (-0.6,) * 3
STRIDES = ((1, 1, 1),) * 3 + ((2, 2, 2),) * 3
