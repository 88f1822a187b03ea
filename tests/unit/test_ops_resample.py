"""Bins and nearest voxels: exact values, exact positions, the same bins in every crop."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import volara_expr as ve
from volara_expr.array.base import node_of
from volara_expr.array.core import Array
from volara_expr.geometry import Box, Roi
from volara_expr.testing.check import assert_blockwise_equal, assert_same, evaluate

rng = np.random.default_rng(23)
DTYPES = ["?", "i2", "i8", "u8", "f2", "f4"]


def lazy(data: np.ndarray) -> Array:
    return Array(node_of(data))


def values(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if np.dtype(dtype).kind in "iu":
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    return (rng.standard_normal(shape) * 9).astype(dtype)


def bins(x: np.ndarray, lo: int, factor: int):
    """Slices of the bins of a line of voxels lo, lo + 1, ..."""
    return [
        slice(max(j * factor - lo, 0), min((j + 1) * factor - lo, x.shape[0]))
        for j in range(lo // factor, -(-(lo + x.shape[0]) // factor))
    ]


def reference(x: np.ndarray, lo: tuple[int, ...], factors: tuple[int, ...], method: str) -> np.ndarray:
    rows = bins(x, lo[0], factors[0])
    columns = bins(x.T, lo[1], factors[1])
    out = np.empty((len(rows), len(columns)), x.dtype)
    for i, r in enumerate(rows):
        for j, c in enumerate(columns):
            block = x[r, c]
            if method == "mean" and x.dtype.kind != "f":
                out[i, j] = (sum(map(int, block.ravel())) * 2 + block.size) // (2 * block.size)
            elif method == "mean":
                total = 0.0
                for v in block.ravel():
                    total += float(v)
                out[i, j] = total / block.size
            elif method == "mode":
                found, count = np.unique(block, return_counts=True)
                out[i, j] = found[count.argmax()]
            else:
                out[i, j] = getattr(block, method)()
    return out


@given(
    dtype=st.sampled_from(DTYPES),
    method=st.sampled_from(["mean", "mode", "min", "max"]),
    factors=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    lo=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_bins_count_from_voxel_zero(dtype, method, factors, lo, seed):
    if method == "mode" and np.dtype(dtype).kind == "f":
        dtype = "i8"
    x = values(dtype, (12, 13))
    x = x % 3 if method == "mode" and dtype != "?" else x  # ties
    a = lazy(x)[lo[0] :, lo[1] :].downsample(factors, method)
    assert_blockwise_equal(a, reference(x[lo[0] :, lo[1] :], lo, factors, method), seed=seed)


def test_stride_takes_first_voxels():
    x = values("u1", (11, 12))
    assert_blockwise_equal(lazy(x).downsample(3, "stride"), x[::3, ::3])
    a = lazy(x)[1:, 4:].downsample(3, "stride")
    assert a.node.spec.box == Box((1, 2), (4, 4))
    assert_blockwise_equal(a, x[3::3, 6::3])


def test_three_space_axes_and_a_channel():
    x = values("i2", (2, 5, 6, 7))
    whole = np.stack([evaluate(lazy(c).downsample((2, 3, 2))) for c in x])
    assert_blockwise_equal(lazy(x).downsample((2, 3, 2)), whole)
    assert_same(whole[1, 0, 0, 0], np.int16((int(x[1, :2, :3, :2].sum()) * 2 + 12) // 24).reshape(()))


def test_large_bins():
    x = values("i2", (13, 20)) % 7
    for method in ("mean", "mode"):
        assert_blockwise_equal(lazy(x)[1:].downsample(9, method), reference(x[1:], (1, 0), (9, 9), method))


def test_positions():
    a = ve.from_numpy(np.zeros((8, 8)), voxel_size=(4, 4), units="nm", offset=(100, 0))
    mean, stride = a.downsample(2).node.spec, a.downsample(2, "stride").node.spec
    assert mean.space.roi(mean.box) == Roi((100, 0), (32, 32), "nm")
    assert stride.space.origin == (mean.space.origin[0] - 2, mean.space.origin[1] - 2)
    assert a[::2, ::2].node.spec.space == stride.space
    half = a[4:].downsample(2).node.spec
    assert half.box.lo[0] == mean.box.lo[0] + 2
    assert half.frame == mean.box


def test_nearest_voxels():
    x = values("u4", (4, 5))
    coarse = ve.from_numpy(x, voxel_size=(8, 8), units="nm")
    fine = ve.from_numpy(np.zeros((8, 10)), voxel_size=("4", "4"), units="nm")
    up = coarse.resample_like(fine)
    assert_blockwise_equal(up, x.repeat(2, 0).repeat(2, 1))
    assert_blockwise_equal(up + fine, x.repeat(2, 0).repeat(2, 1) + 0.0)
    back = up.resample_like(coarse)
    assert_blockwise_equal(back, x)
    um = ve.from_numpy(np.zeros((8, 10)), voxel_size=("0.004", "0.004"), units="um")
    assert_blockwise_equal(coarse.resample_like(um), x.repeat(2, 0).repeat(2, 1))
    crop = fine[3:6, 1:]
    assert_blockwise_equal(coarse.resample_like(crop), x.repeat(2, 0).repeat(2, 1)[3:6, 1:])


@given(
    size=st.sampled_from([Fraction(1), Fraction(3, 2), Fraction(2), Fraction(7, 3)]),
    origin=st.fractions(0, 2, max_denominator=4),
    n=st.integers(1, 6),
)
@settings(max_examples=60, deadline=None)
def test_a_voxel_takes_the_voxel_that_its_centre_lies_in(size, origin, n):
    x = np.arange(20)
    a = ve.from_numpy(x, voxel_size=(1,), units="nm")
    b = ve.from_numpy(np.zeros(n), voxel_size=(size,), offset=(origin,), units="nm")
    centres = [origin + (i + Fraction(1, 2)) * size for i in range(n)]
    assert_blockwise_equal(a.resample_like(b), np.array([int(c // 1) for c in centres]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda a: a.downsample(2, "median"), ValueError, "none of 'mean'"),
        (lambda a: a.downsample(0), ValueError, "1 voxel or more"),
        (lambda a: a.downsample(1.5), ValueError, "whole number"),
        (lambda a: a.downsample(2, "mode"), TypeError, "takes labels"),
        (lambda a: a.resample_like(a, order=1), ValueError, "only order=0"),
        (lambda a: a[:2].resample_like(a), ValueError, r"does not cover the other along 'y'.*a\.world\[b\.roi\]"),
        (lambda a: a.resample_like(lazy(np.zeros((4, 4)))), ValueError, "no voxel size"),
        (lambda a: a.resample_like(a[0]), ValueError, "2 space axes cannot be put on 1"),
    ],
)
def test_mistakes_fail_where_they_are_made(call, error, message):
    with pytest.raises(error, match=message):
        call(ve.from_numpy(np.zeros((6, 6)), voxel_size=(4, 4), units="nm"))
