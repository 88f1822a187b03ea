from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import volara_expr as ve
from executors import Serial
from volara_expr.geometry import BlockGrid, Box
from volara_expr.plan.targets import Output, Target
from volara_expr.run.driver import make_jobs, plan_for
from volara_expr.run.job import unit_box, units
from volara_expr.run.places import Workspace


@given(st.lists(st.integers(1, 11), min_size=1, max_size=4).map(tuple), st.randoms())
def test_numbers_are_those_of_each_index(shape, random):
    grid = BlockGrid(Box.of_shape(shape), (1,) * len(shape), (0,) * len(shape))
    chosen = np.array([random.random() < 0.3 for _ in range(grid.n_blocks)], bool).reshape(shape)
    assert grid.numbers(chosen).tolist() == sorted(grid.number(tuple(map(int, i))) for i in np.argwhere(chosen))


@pytest.fixture(
    params=[
        ((2, 9, 14, 11), "cells"),
        ((40,), "blocks"),
        ((7, 30, 20), "blocks"),
    ],
    ids=["channels and tables", "line", "volume"],
)
def job(request, tmp_path):
    """A job of several blocks, some of several write units."""
    shape, kind = request.param
    data = np.zeros(shape, np.uint8)
    if kind == "cells":
        affs = ve.from_numpy(data, neighborhood=[(1, 0, 0), (0, 1, 0)]).normalize(0, 255)
        node = affs.watershed(bias=-0.5, block_size=(4, 4, 4)).agglomerate(affs, scores={"direct": slice(0, 2)}).node
        block = (4, 8, 4)
    else:
        node = (ve.from_numpy(data) + 1).node
        block = (6,) * len(shape)
    chunks = None if kind == "cells" else (3,) * len(shape)
    workspace = Workspace(str(tmp_path / "out.zarr.volara_expr"))
    executor = Serial(block=block)
    output = Output(node, str(tmp_path / "out.zarr"), chunks, None, (("format", "zarr"),))
    plan = plan_for([output], workspace, executor, None)
    return make_jobs(plan, executor, workspace, False)[0][0]


@pytest.mark.parametrize("chance", [0.0, 0.3, 0.9, 0.99, 1.0])
def test_pending_are_the_blocks_with_a_unit_that_is_not_recorded(job, chance):
    nodes = job.nodes()
    random = np.random.default_rng(0)
    for digest in job.stored:
        place = job.places[digest]
        log = place.ledger.writer("test")
        log.append([(unit_box(i), 0) for i in np.ndindex(*place.grid.shape) if random.random() < chance])
        log.close()

    def is_open(i):
        for digest in job.stored:
            place, target = job.places[digest], Target(nodes[digest], "")
            done = place.ledger.done()
            if done is None or not done[units(target, place, job.grid.box(i)).slices((0,) * done.ndim)].all():
                return True
        return False

    ranges = list(job.pending())
    assert [i for r in ranges for i in r] == [i for i in range(job.n_blocks) if is_open(i)]
    assert job.n_blocks > 1
    assert all(a.stop < b.start for a, b in pairwise(ranges))
