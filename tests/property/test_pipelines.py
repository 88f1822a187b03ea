"""Partition invariance on random pipelines, and proof that the check notices a halo that is one voxel short."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from volara_expr.array.base import node_of
from volara_expr.array.core import Array
from volara_expr.geometry import Box
from volara_expr.ops import stencil
from volara_expr.ops.derivative import Correlate1D, GaussianDerivative
from volara_expr.ops.functions import MapBlocks
from volara_expr.ops.morphology import WindowExtreme
from volara_expr.ops.resample import Downsample
from volara_expr.testing.check import assert_blockwise_equal, evaluate
from volara_expr.testing.pipelines import check, main
from volara_expr.testing.strategies import Pipeline, pipelines

EXAMPLES = int(os.environ.get("VOLARA_EXPR_PIPELINES", "150"))


@given(pipelines())
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_every_block_of_a_random_pipeline_is_numpys(pipeline: Pipeline):
    check(pipeline)


def cross(block: np.ndarray) -> np.ndarray:
    total = block.copy()
    for axis in range(block.ndim):
        view, moved = np.moveaxis(total, axis, 0), np.moveaxis(block, axis, 0)
        view[1:] += moved[:-1]
        view[:-1] += moved[1:]
    return total


A = Array(node_of(np.random.default_rng(2).random((14, 13))))
LABELS = (A * 5).astype("u1")
WITH_HALO = {
    "gaussian": A.gaussian(0.8),
    "median": A.median(3),
    "uniform": A.uniform(3),
    "minimum": A.minimum_filter(3),
    "maximum": A.maximum_filter(3),
    "map_blocks": A.map_blocks(cross, halo=1),
    "mean of bins": A.downsample(3),
    "mode of bins": LABELS.downsample(3, "mode"),
    "maximum of bins": A.downsample(3, "max"),
    "smoothed difference": (A.gaussian(0.8) - A)[2:, 1:].uniform(3),
}


def shortened(need, axis, low):
    """The rule of an op, one voxel short on one side."""

    def short(self, box):
        first, *rest = need(self, box)
        lo, hi = list(first.lo), list(first.hi)
        (lo if low else hi)[axis] += 1 if low else -1
        return (Box(tuple(lo), tuple(hi)), *rest)

    return short


@pytest.mark.parametrize("low", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", WITH_HALO)
def test_a_halo_one_voxel_short_is_caught(name, axis, low, monkeypatch):
    array = WITH_HALO[name]
    whole = evaluate(array)
    assert_blockwise_equal(array, whole)
    cls = type(array.node)
    monkeypatch.setattr(cls, "need", shortened(cls.need, axis, low))
    with pytest.raises(AssertionError, match="voxels differ"):
        assert_blockwise_equal(array, whole)


def test_every_op_with_a_halo_is_tried():
    def leaves(cls):
        return {cls} if not cls.__subclasses__() else set().union(*map(leaves, cls.__subclasses__()))

    tried = {type(array.node) for array in WITH_HALO.values()}
    tried |= {Correlate1D, GaussianDerivative, WindowExtreme}  # beside their own tests
    assert leaves(stencil._Stencil) | {MapBlocks, Downsample} <= tried


def test_random_pipelines_notice_a_short_halo(monkeypatch, capsys):
    need = stencil.GaussianFilter.need
    short = shortened(need, 0, low=False)
    monkeypatch.setattr(stencil.GaussianFilter, "need", lambda self, box: (short if self.reach()[1][0] else need)(self, box))
    assert main(100) > 0
    assert "MISMATCH Pipeline(" in capsys.readouterr().out
