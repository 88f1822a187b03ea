"""Proof that a halo is needed: one voxel less must show."""

from __future__ import annotations

import pytest

from volara_expr.array.core import Array
from volara_expr.geometry import Box
from volara_expr.testing.check import assert_blockwise_equal, evaluate


def shortened(need, axis, low, which=0):
    """The rule of an op, one voxel short on one side."""

    def short(self, box):
        boxes = list(need(self, box))
        lo, hi = list(boxes[which].lo), list(boxes[which].hi)
        (lo if low else hi)[axis] += 1 if low else -1
        boxes[which] = Box(tuple(lo), tuple(hi))
        return tuple(boxes)

    return short


def assert_halo_is_needed(array: Array, axis: int, low: bool, monkeypatch: pytest.MonkeyPatch, which: int = 0) -> None:
    """Blocks equal the whole, but not when the op's rule asks for one voxel less."""
    whole = evaluate(array)
    assert_blockwise_equal(array, whole)
    cls = type(array.node)
    monkeypatch.setattr(cls, "need", shortened(cls.need, axis, low, which))
    with pytest.raises(AssertionError, match="voxels differ"):
        assert_blockwise_equal(array, whole)
