"""Derivatives and finer voxels: SciPy's and scikit-image's, block by block, with every halo proven to be needed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import feature

import volara_expr as ve
from tests.property.mutation import assert_halo_is_needed
from volara_expr.testing.check import assert_blockwise_equal, evaluate

rng = np.random.default_rng(6)
modes = st.sampled_from(["reflect", "mirror", "nearest", "constant"])
sides = st.one_of(st.tuples(*[st.integers(1, 16)] * 2), st.tuples(*[st.integers(1, 8)] * 3))
dtypes = st.sampled_from(["uint8", "int32", "float32", "float64"])


def image(shape, dtype):
    return (rng.random(shape) * 100).astype(dtype)


def wide(x):
    return np.float64 if x.dtype == np.float64 else np.float32


@given(sides, dtypes, modes, st.lists(st.integers(-3, 3), min_size=1, max_size=6), st.data())
@settings(max_examples=60, deadline=None)
def test_direct_sums_are_scipys(shape, dtype, mode, weights, data):
    x, value = image(shape, dtype), 5.0
    axis = data.draw(st.integers(0, x.ndim - 1))
    seed = data.draw(st.integers(0, 99))
    a, how = ve.from_numpy(x), {"output": wide(x), "mode": mode, "cval": value}
    assert_blockwise_equal(a.correlate1d(weights, axis, mode, value), ndimage.correlate1d(x, weights, axis, **how), seed=seed)
    assert_blockwise_equal(a.laplace(mode, value), ndimage.laplace(x, **how), seed=seed)
    assert_blockwise_equal(a.sobel(axis, mode, value), ndimage.sobel(x, axis, **how), seed=seed)
    assert_blockwise_equal(a.prewitt(axis, mode, value), ndimage.prewitt(x, axis, **how), seed=seed)


@given(sides, dtypes, modes, st.lists(st.sampled_from([0.4, 0.9, 1.3]), min_size=3, max_size=3), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_gaussian_derivatives_are_scipys(shape, dtype, mode, sigma, seed):
    x = image(shape, dtype)
    sigma = sigma[: x.ndim]
    a, how = ve.from_numpy(x), {"output": wide(x), "mode": mode, "truncate": 3.0}
    laplace = ndimage.gaussian_laplace(x, sigma, **how)
    assert_blockwise_equal(a.gaussian_laplace(sigma, mode, truncate=3.0), laplace, seed=seed)
    magnitude = ndimage.gaussian_gradient_magnitude(x, sigma, **how)
    assert_blockwise_equal(a.gaussian_gradient_magnitude(sigma, mode, truncate=3.0), magnitude, seed=seed)


@given(
    st.one_of(st.tuples(*[st.integers(2, 12)] * 2), st.tuples(*[st.integers(2, 6)] * 3)),
    st.sampled_from(["f4", "f8"]),
    st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_curvature_and_orientation(shape, dtype, seed):
    x = image(shape, dtype)
    a = ve.from_numpy(x)
    orders = [np.eye(x.ndim, dtype=int)[i] + np.eye(x.ndim, dtype=int)[j] for i in range(x.ndim) for j in range(i, x.ndim)]
    entries = [ndimage.gaussian_filter(x, 0.8, tuple(o), output=x.dtype, truncate=3) for o in orders]
    assert_blockwise_equal(a.hessian(0.8, truncate=3), np.stack(entries), seed=seed)
    eigenvalues = feature.hessian_matrix_eigvals(entries)
    assert_blockwise_equal(a.hessian_eigenvalues(0.8, truncate=3), seed=seed)
    tolerance = 1e-9 if dtype == "f8" else 1e-3
    np.testing.assert_allclose(evaluate(a.hessian_eigenvalues(0.8, truncate=3)), eigenvalues, rtol=tolerance, atol=tolerance)
    tensor = feature.structure_tensor(x, sigma=0.7)
    assert_blockwise_equal(a.structure_tensor(0.7), seed=seed)
    np.testing.assert_allclose(evaluate(a.structure_tensor(0.7)), np.stack(tensor), rtol=1e-4, atol=1e-2)


def test_channels_are_mapped_over():
    x = image((3, 9, 10), "float32")
    a = ve.from_numpy(x, axes=("c", "y", "x"))
    assert_blockwise_equal(a.laplace(), np.stack([ndimage.laplace(p) for p in x]))
    assert_blockwise_equal(a.gaussian_laplace(1), np.stack([ndimage.gaussian_laplace(p, 1) for p in x]))
    assert a.hessian(1).shape == (3, 3, 9, 10)
    nan = np.where(rng.random(x.shape) < 0.05, np.nan, x).astype("f4")
    assert_blockwise_equal(ve.from_numpy(nan, axes=("c", "y", "x")).symmetric_eigenvalues()[:, 2:])


@given(sides, st.lists(st.integers(1, 4), min_size=3, max_size=3), st.integers(0, 99), st.integers(-4, 4))
@settings(max_examples=40, deadline=None)
def test_upsampled_voxels_are_repeated_in_place(shape, factors, seed, offset):
    x = image(shape, "uint8")
    factors = factors[: x.ndim]
    expected = x
    for axis, f in enumerate(factors):
        expected = expected.repeat(f, axis)
    placed = ve.from_numpy(x, voxel_size=(6,) * x.ndim, offset=(offset,) * x.ndim)
    a = placed.upsample(factors)
    assert_blockwise_equal(a, expected, seed=seed)
    assert (a.roi.offset, a.roi.shape) == (placed.roi.offset, placed.roi.shape)
    if min(x.shape) > 1:
        assert_blockwise_equal(placed[1:].upsample(factors), expected[factors[0] :], seed=seed)
        assert placed[1:].upsample(factors).roi.offset == placed[1:].roi.offset
    np.testing.assert_array_equal(evaluate(a.downsample(factors, "stride")), x)


A = ve.from_numpy(rng.random((21, 20)))
WITH_HALO = {
    "correlate1d along y": (A.correlate1d([1, 2, 3, 4, 5], "y"), (0,)),
    "correlate1d along x": (A.correlate1d([1, 2, 3], "x"), (1,)),
    "gaussian derivative": (ve.Array(A.gaussian_laplace(0.8).node.operands[0]), (0, 1)),
}


@pytest.mark.parametrize("low", [True, False])
@pytest.mark.parametrize(("name", "axis"), [(n, axis) for n, (_, axes) in WITH_HALO.items() for axis in axes])
def test_a_halo_one_voxel_short_is_caught(name, axis, low, monkeypatch):
    assert_halo_is_needed(WITH_HALO[name][0], axis, low, monkeypatch)


def test_refusals():
    a = ve.from_numpy(np.zeros((2, 4, 5)), axes=("c", "y", "x"))
    with pytest.raises(ValueError, match="'c' is none of space"):
        a.sobel("c")
    with pytest.raises(ValueError, match="a derivative takes both above 0"):
        a.gaussian_laplace(0)
    with pytest.raises(ValueError, match="upper triangle of a symmetric matrix"):
        a.symmetric_eigenvalues()
    with pytest.raises(ValueError, match="give at least one, all finite"):
        a.correlate1d([])
    with pytest.raises(ValueError, match="whole number of voxels"):
        a.upsample(1.5)
    with pytest.raises(ValueError, match="1 or more along each axis"):
        a.upsample(0)
