"""The region graph does not depend on how the work was cut, ordered or repeated: integers add exactly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import volara_expr as ve
from executors import Serial
from volara_expr.kernels.edges import edge_sums, node_sums

OFFSETS = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (-3, 0, 0), (0, 5, -2), (2, 2, 2)]
SCORES = {"direct": slice(0, 3), "long": [3, 4, 5]}


class Shuffled(Serial):
    """Runs the blocks of each job in random order, and one of them twice."""

    def __init__(self, seed: int, **options: Any) -> None:
        super().__init__(**options)
        self.seed = seed
        self.ran: list[tuple[str, int]] = []

    def run(self, jobs: Any, on_event: Any = lambda _: None, should_stop: Any = lambda: False) -> None:
        for job in jobs:
            pending = [i for r in job.pending() for i in r]
            np.random.default_rng(self.seed).shuffle(pending)
            job.setup("cpu")
            try:
                for i in [*pending, *pending[:1]]:
                    job.write(job.compute(job.read(i)))
                    self.ran.append((job.name, i))
            finally:
                job.close()
            job.finish()


def rows(table: pa.Table) -> dict[str, list[Any]]:
    return {name: table.column(name).to_pylist() for name in table.column_names}


@pytest.fixture(scope="module")
def volume() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    affs = rng.random((6, 37, 41, 53))
    labels = rng.integers(0, 60, (19, 21, 27)).repeat(2, 0).repeat(2, 1).repeat(2, 2)[:37, :41, :53].astype(np.uint64)
    return affs, labels


@pytest.fixture(scope="module")
def whole(volume: tuple[np.ndarray, np.ndarray]) -> tuple[Any, Any]:
    """One call over the whole volume."""
    affs, labels = volume
    edges = edge_sums(labels, (0, 0, 0), affs, (0, 0, 0), OFFSETS, [0, 0, 0, 1, 1, 1], 2, (0, 0, 0), labels.shape)
    return edges, node_sums(labels, (0, 0, 0))


@pytest.mark.parametrize(
    ("cells", "block"),
    [((64, 64, 64), (64, 64, 64)), ((16, 16, 16), (32, 16, 48)), ((11, 13, 17), (22, 13, 34)), ((7, 41, 9), (7, 41, 27))],
)
def test_given_labels(volume: Any, whole: Any, tmp_path: Path, cells: tuple[int, ...], block: tuple[int, ...]) -> None:
    affs = ve.from_numpy(volume[0], voxel_size=(40, 4, 4), units="nm", neighborhood=OFFSETS)
    labels = ve.from_numpy(volume[1], voxel_size=(40, 4, 4), units="nm")
    graph = labels.agglomerate(affs, scores=SCORES, block_size=cells)
    executor = Shuffled(sum(cells), block=block)
    made = graph.write(tmp_path / "graph.duckdb", executor=executor)
    assert len(executor.ran) > len(set(executor.ran)), "no block ran twice"
    edges, nodes = rows(made.edges()), rows(made.nodes())
    (u, v, sums), (ids, node) = whole
    assert edges["u"] == u.tolist()
    assert edges["v"] == v.tolist()
    for k, name in enumerate(("direct_sum", "direct_count", "long_sum", "long_count")):
        assert edges[name] == sums[:, k].tolist(), name
    assert nodes["id"] == ids.tolist()
    assert nodes["size"] == node[:, 0].tolist()


def grids() -> Iterator[tuple[int, tuple[int, ...]]]:
    yield 1, (16, 16, 16)
    yield 2, (32, 48, 16)
    yield 3, (64, 64, 64)


def test_watershed_fragments(volume: Any, tmp_path: Path) -> None:
    affs = ve.from_numpy(volume[0], voxel_size=4, units="nm", neighborhood=OFFSETS)
    frags = affs.watershed(bias=[-0.4] * 3 + [-0.8] * 3, block_size=(16, 16, 16), context=3, noise=0.01)
    graph = frags.agglomerate(affs, scores=SCORES, mean_of={"first": affs[0]})
    results = []
    for seed, block in grids():
        executor = Shuffled(seed, block=block)
        out = ve.write({tmp_path / f"{seed}.zarr/frags": frags, tmp_path / f"{seed}.zarr/graph": graph}, executor=executor)
        g = out[str(tmp_path / f"{seed}.zarr/graph")]
        results.append((rows(g.nodes()), rows(g.edges()), out[str(tmp_path / f"{seed}.zarr/frags")].compute()))
    for nodes, edges, array in results[1:]:
        assert nodes == results[0][0]
        assert edges == results[0][1]
        np.testing.assert_array_equal(array, results[0][2])
    # and equal to one computation over the whole volume, on the fragments found
    u, v, sums = edge_sums(
        results[0][2], (0, 0, 0), volume[0], (0, 0, 0), OFFSETS, [0, 0, 0, 1, 1, 1], 2, (0, 0, 0), results[0][2].shape
    )
    assert results[0][1]["u"] == u.tolist()
    assert results[0][1]["v"] == v.tolist()
    assert results[0][1]["long_sum"] == sums[:, 2].tolist()
