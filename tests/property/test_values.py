"""Lazy values: exact, for any type and any execution grid, and equal to NumPy's."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import volara_expr as ve
from executors import Serial
from volara_expr.kernels.values import exact_limbs, limbs_value
from volara_expr.testing.check import assert_blockwise_equal, evaluate
from volara_expr.testing.strategies import DTYPES

rng = np.random.default_rng(7)
shapes = npst.array_shapes(min_dims=1, max_dims=3, max_side=40)
finite = npst.arrays(
    np.float64, npst.array_shapes(max_dims=1, max_side=30), elements=st.floats(allow_nan=False, allow_infinity=False)
)


def sample(dtype, shape, seed=0):
    x = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return (x.standard_normal(shape) * 30).astype(dtype)
    if dtype.kind == "b":
        return x.random(shape) < 0.5
    info = np.iinfo(dtype)
    return x.integers(info.min, info.max, shape, dtype, endpoint=True)


def true_sum(x):
    return sum(map(Fraction, x.reshape(-1).tolist()), Fraction(0))


def rounded(exact, dtype):
    with np.errstate(over="ignore"):
        return np.float64(float(exact)).astype(dtype)


@given(finite, st.randoms())
def test_sums_are_the_true_ones_rounded_once_in_any_order_and_grouping(x, random):
    parts = np.split(x, sorted(random.sample(range(x.size + 1), min(3, x.size))))
    random.shuffle(parts)
    limb, total = (np.concatenate(c) for c in zip(*map(exact_limbs, parts), strict=True))
    try:
        expected = math.fsum(x)
    except OverflowError:
        expected = float(np.sign(float(true_sum(x) / 2**1000))) * math.inf
    assert limbs_value(limb, total) == expected


@given(st.sampled_from(DTYPES), shapes, st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_values_are_numpys(dtype, shape, seed):
    x = sample(dtype, shape, seed)
    a = ve.from_numpy(x)
    for name in ("min", "max", "any", "all"):
        assert_blockwise_equal(getattr(a, name)(), np.asarray(getattr(np, name)(x)))
    if x.dtype.kind == "f":
        wide = np.float64(float(true_sum(x)))
        assert evaluate(a.sum()) == rounded(wide, x.dtype)
    else:
        assert_blockwise_equal(a.sum(), np.asarray(x.sum()))
    mean = rounded(true_sum(x) / x.size, a.mean().dtype)
    assert evaluate(a.mean()) == mean
    assert a.mean().dtype == x.mean().dtype


@given(st.sampled_from(DTYPES), shapes, st.integers(0, 99), st.lists(st.floats(0, 1), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_quantiles_are_numpys(dtype, shape, seed, q):
    x = sample(dtype, shape, seed)
    a = ve.from_numpy(x).quantile(q)
    assert a.dtype == (x.dtype if x.dtype.kind == "f" else np.float64)
    assert_blockwise_equal(a, np.quantile(x.astype(np.float64), q).astype(a.dtype))


@given(st.sampled_from(DTYPES), shapes, st.integers(1, 9), st.booleans())
@settings(max_examples=80, deadline=None)
def test_histograms_are_numpys(dtype, shape, bins, given_range):
    x = sample(dtype, shape)
    if x.dtype.kind in "iu" and x.dtype.itemsize == 8:
        x //= 2**30
    limits = (-3.5, 40.0) if given_range else None
    counts, edges = ve.from_numpy(x).histogram(bins, limits)
    expected, at = np.histogram(x.astype({"b": "u1", "f": "f8"}.get(x.dtype.kind, x.dtype)), bins, limits)
    np.testing.assert_array_equal(evaluate(counts), expected)
    np.testing.assert_array_equal(evaluate(edges), at)


def test_nans_and_infinities():
    x = np.array([1.0, np.nan, np.inf])
    a = ve.from_numpy(x)
    assert all(np.isnan(evaluate(v)) for v in (a.sum(), a.mean(), a.min(), a.max(), a.quantile(0.5)))
    for y in (x[2:], -x[2:], np.array([np.inf, 1.0]), np.array([-np.inf, np.inf])):
        np.testing.assert_array_equal(
            evaluate(ve.from_numpy(y).sum()), math.inf - math.inf if np.ptp(np.sign(y)) > 1 else y.sum()
        )
    assert math.isinf(evaluate(ve.from_numpy(np.full(3, 1e308)).sum()))


def test_values_enter_arithmetic_and_skip_what_a_mask_leaves_out():
    x = rng.random((40, 70)).astype("f4")
    a = ve.from_numpy(x)
    mean = np.float32(float(true_sum(x) / x.size))
    assert_blockwise_equal((a - a.mean()) / a.max(), (x - mean) / x.max())
    inside = rng.random(x.shape) < 0.3
    b = a.mask(inside, fill=5)
    assert evaluate(b.max()) == x[inside].max()
    assert evaluate(b.sum()) == np.float32(float(true_sum(x[inside])))
    assert evaluate((b * 2).histogram(4, (0, 2))[0]).sum() == inside.sum()
    assert evaluate(b.quantile(1.0)) == x[inside].max()
    assert evaluate((b - b.min()).max()) == x[inside].max() - x[inside].min()
    with pytest.raises(ValueError, match="leaves none of its voxels"):
        evaluate(a.mask(np.zeros(x.shape, bool)).min())


def test_no_execution_grid_changes_a_value(tmp_path):
    x = (rng.standard_normal((90, 140)) * 10.0 ** rng.integers(-9, 9, (90, 140))).astype("f8")
    a = ve.from_numpy(x)
    scaled = (a - a.mean()) / (a.max() - a.quantile(0.3))
    made = [scaled.compute(Serial(block=b)) for b in [(512, 512), (1024, 1024)]]
    np.testing.assert_array_equal(*made)
    written = scaled.write(tmp_path / "a.zarr", executor=Serial(block=(64, 32)), chunks=32, progress=False).compute()
    np.testing.assert_array_equal(written, made[0])
    assert a.sum().compute() == math.fsum(x.reshape(-1))
    assert isinstance(a.mean().compute(), np.float64)
    first = (a - a.mean() + a.max()).plan().stages[0]
    assert len(first.targets) == 2  # sums and extremes share one pass


def test_all_axes_by_name_or_number_are_no_axis():
    a = ve.from_numpy(sample("f4", (4, 5)))
    assert a.sum(("y", "x")).node is a.sum((0, -1)).node is a.sum().node
    assert a.sum(()).shape == (4, 5)
    counts = a.histogram(4)[0]
    assert (counts.sum().compute(), counts.max().min().compute()) == (20, counts.compute().max())


def test_values_are_stored(tmp_path):
    x = sample("i4", (20, 30))
    values = {f"{tmp_path}/v.zarr/max": ve.from_numpy(x).max(), f"{tmp_path}/v.zarr/counts": ve.from_numpy(x).histogram(5)[0]}
    made = ve.write(values, format="zarr", progress=False)
    assert [v.compute().tolist() for v in made.values()] == [x.max(), np.histogram(x, 5)[0].tolist()]


def test_percentiles():
    x = rng.integers(0, 4000, (60, 80)).astype("u2")
    a = ve.from_numpy(x)
    lo, hi = np.percentile(x, (1, 99))
    assert_blockwise_equal(a.normalize(percentiles=(1, 99)), ((x - lo) / (hi - lo)).astype("f4"))
    assert evaluate(a.percentile(50)) == np.percentile(x, 50)


def test_refusals():
    a = ve.from_numpy(np.zeros((0, 3)))
    assert evaluate(a.sum()) == 0
    with pytest.raises(ValueError, match="min of no voxels"):
        a.min()
    with pytest.raises(ValueError, match="lie in 0 to 1"):
        ve.from_numpy(np.zeros(3)).quantile(50)
    with pytest.raises(ValueError, match="at least 1 bin"):
        ve.from_numpy(np.zeros(3)).histogram(0)
    with pytest.raises(TypeError, match="real numbers"):
        ve.from_numpy(np.zeros(3, complex)).quantile(0.5)


def image_with_windows(folder, windows):
    x = rng.integers(0, 900, (len(windows), 5, 6, 7)).astype("u2")
    url = f"{folder}/image.zarr"
    ve.from_numpy(x, axes=("c", "z", "y", "x")).write(url, progress=False)
    group = zarr.open_group(url)
    channels = [{"window": {"start": lo, "end": hi, "min": 0, "max": 1}} if hi else {} for lo, hi in windows]
    group.attrs["ome"] = dict(group.attrs["ome"]) | {"omero": {"channels": channels}}
    return x, ve.open(url)


def test_stored_windows(tmp_path):
    windows = np.array([(10, 500), (0, 255), (-5, 90.5)])
    x, a = image_with_windows(tmp_path, windows)
    lo, hi = windows.T[:, :, None, None, None]
    expected = ((x.astype("f8") - lo) / (hi - lo)).astype("f4")
    np.testing.assert_array_equal(a.normalize("omero").compute(), expected)
    np.testing.assert_array_equal(a[2].normalize("omero").compute(), expected[2])
    np.testing.assert_array_equal(a[::-2, 1:].normalize("omero").compute(), expected[::-2, 1:])
    np.testing.assert_array_equal(a[[1, 0]][:, 2].normalize("omero").compute(), expected[[1, 0], 2])
    with pytest.raises(ValueError, match=r"not of 'add'; use ve\.open"):
        (a + 1).normalize("omero")
    with pytest.raises(TypeError, match="two intensities"):
        a.normalize(3)


def test_windows_that_are_not_stored(tmp_path):
    _, a = image_with_windows(tmp_path, [(1, 2), (0, 0)])
    with pytest.raises(ValueError, match=r"0 intensity windows .* for 2 channels"):
        a.normalize("omero")


@given(st.sampled_from(DTYPES), st.sampled_from([d for d in DTYPES if np.dtype(d).kind in "iu"]), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_saturating_casts_keep_to_the_range(old, new, seed):
    x = sample(old, (9, 11), seed)
    info = np.iinfo(new)
    if x.dtype.kind == "f":
        with np.errstate(over="ignore"):
            x = (x * 10.0 ** np.random.default_rng(seed).integers(0, 18, x.shape)).astype(old)
        x.flat[:3] = np.nan, np.inf, -np.inf
    expected = [0 if v != v else max(info.min, min(info.max, int(v) if abs(v) < np.inf else v)) for v in x.reshape(-1).tolist()]
    expected = [info.max if v == np.inf else info.min if v == -np.inf else v for v in expected]
    assert_blockwise_equal(ve.from_numpy(x).astype(new, saturate=True), np.array(expected, new).reshape(x.shape))


@given(
    st.sampled_from([d for d in DTYPES if np.dtype(d).itemsize < 8 or np.dtype(d).kind == "f"]),
    st.integers(0, 99),
    st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_argmax_of_groups_never_wraps(dtype, seed, keepdims):
    x = sample(dtype, (4, 9, 8), seed)
    wide = x.astype("f8") if x.dtype.kind == "f" else x.astype("i8")
    groups = [[0, 2], [1], [-1, 0, 1]]
    sums = np.stack([sum(wide[i] for i in g[1:]) + wide[g[0]] if len(g) < 3 else wide[-1] + wide[0] + wide[1] for g in groups])
    a = ve.from_numpy(x, axes=("c", "y", "x")).argmax("c", keepdims, combine=groups)
    assert_blockwise_equal(a, sums.argmax(0, keepdims=keepdims))


def test_groups_that_cannot_be_summed():
    a = ve.from_numpy(np.zeros((3, 4), np.uint64), axes=("c", "x"))
    assert_blockwise_equal(a.argmax(0, combine=[[2], [0]]), np.zeros(4, np.int64))
    with pytest.raises(TypeError, match="can wrap"):
        a.argmax(0, combine=[[0, 2]])
    with pytest.raises(IndexError, match="beyond the 3 of axis 'c'"):
        a.argmax(0, combine=[[3]])
    with pytest.raises(ValueError, match="empty group"):
        a.argmax(0, combine=[[1], []])
    with pytest.raises(TypeError, match="name it"):
        a.argmax(combine=[[1]])
    with pytest.raises(TypeError, match="no range to keep to"):
        ve.from_numpy(np.zeros(3, complex)).astype("u1", saturate=True)
