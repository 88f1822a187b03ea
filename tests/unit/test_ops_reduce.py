"""Reductions: NumPy's values and types, exact over channels."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from volara_expr.array.base import node_of
from volara_expr.array.core import Array
from volara_expr.ops.reduce import FUNCTIONS
from volara_expr.testing.check import assert_blockwise_equal

rng = np.random.default_rng(11)
DTYPES = ["?", "u1", "i2", "u4", "i8", "u8", "f2", "f4", "f8"]


def lazy(data: np.ndarray) -> Array:
    return Array(node_of(data))


def values(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if np.dtype(dtype).kind in "biu":
        return rng.integers(0, 2 if dtype == "?" else 100, shape).astype(dtype)
    return (rng.standard_normal(shape) * 10).astype(dtype)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_channel_reductions_are_numpys_and_exact(function, dtype):
    x = values(dtype, (9, 3, 4, 5))
    for keepdims in (False, True):
        a = getattr(lazy(x), function)("c", keepdims=keepdims)
        assert a.node.exactness == "exact"
        assert_blockwise_equal(a, getattr(np, function)(x, axis=0, keepdims=keepdims))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("axis", [None, -1, 1])
def test_space_reductions(function, axis):
    for dtype in ("u1", "f4"):
        x = values(dtype, (2, 3, 4, 5))
        a = getattr(lazy(x), function)(axis)
        exact = a.node.exactness == "exact"
        assert exact or (dtype == "f4" and axis is not None and function in ("sum", "mean"))
        # Without an axis, sums are rounded once, which NumPy's are not.
        same = exact and (axis is not None or function not in ("sum", "mean"))
        assert_blockwise_equal(a, np.asarray(getattr(np, function)(x, axis=axis)), rtol=None if same else 1e-5)


def test_several_axes():
    x = values("i4", (2, 3, 4, 5))
    assert_blockwise_equal(lazy(x).sum((0, "x")), x.sum((0, 3)))
    assert_blockwise_equal(lazy(x).max(("z", "y"), keepdims=True), x.max((1, 2), keepdims=True))
    assert_blockwise_equal(lazy(x) - lazy(x).min(), x - x.min())


def test_floats_over_channels_add_in_index_order():
    x = values("f4", (200, 2, 3)) * np.float32(1e3)
    last = np.ascontiguousarray(np.moveaxis(x, 0, -1))
    first = lazy(x).with_neighborhood([(0, 0)] * 200, axis=0)
    total = np.zeros((2, 3), "f4")
    for row in x:
        total += row
    assert_blockwise_equal(first.sum(0), total)
    assert (last.sum(-1) != total).any()  # NumPy's own order depends on the memory layout
    assert_blockwise_equal(first.transpose(1, 2, 0).sum(-1), total)


def test_axes_and_neighborhoods():
    affs = lazy(values("f4", (2, 3, 4, 5))).with_neighborhood([(1, 0, 0), (0, 1, 0)])
    assert affs.max(0).node.spec.space.names == ("z", "y", "x")
    assert affs.max(1).node.spec.neighborhood is None
    kept = affs.max(1, keepdims=True).node.spec
    assert kept.space.voxel_size == (1, 3, 1, 1)
    assert kept.space.axes[0].type == "channel"


def test_refusals():
    a = lazy(np.zeros((2, 0)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_blockwise_equal(a.sum(1), np.zeros(2))
    with pytest.raises(ValueError, match=r"max of no voxels: shape \(2, 0\)"):
        a.max(1)
    with pytest.raises(ValueError, match="names an axis twice"):
        a.sum((0, "y"))
    with pytest.raises(ValueError, match="no axis 5 among 2"):
        a.sum(5)
