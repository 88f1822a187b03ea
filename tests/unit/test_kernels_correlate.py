"""Sums along an axis, by NumPy and compiled: SciPy's bits, and never more of them than are asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from volara_expr.kernels import stencil

MODES = ["reflect", "mirror", "nearest", "constant"]
shapes = st.one_of(
    st.tuples(st.integers(1, 70)),
    st.tuples(*[st.integers(1, 40)] * 2),
    st.tuples(*[st.integers(1, 9)] * 4),
    st.tuples(st.integers(1, 4), st.integers(1, 12), st.integers(250, 600)),
    st.tuples(st.integers(1000, 2100), st.integers(1, 9)),
)


COLD = {"NumPy": 1 << 62, "compiled": 0}


@pytest.fixture(params=COLD)
def way(request, monkeypatch):
    monkeypatch.setattr(stencil, "COLD_VOXELS", COLD[request.param])


def bits(x: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(x), np.nan, x).view(f"u{x.itemsize}")


def weights_of(parity: int, taps: int, rng: np.random.Generator) -> np.ndarray:
    weights = rng.standard_normal(taps)
    if parity and taps % 2:
        weights[taps // 2 + 1 :] = parity * weights[: taps // 2][::-1]
        weights[taps // 2] *= parity == 1 or rng.random() < 0.5
        weights[0] += rng.choice([0, 1e-16])  # SciPy's tolerance
    return weights


@given(
    shapes,
    st.integers(1, 19),
    st.sampled_from([1, -1, 0]),
    st.sampled_from(["f4", "f8", "u1", "?"]),
    st.sampled_from(MODES),
    st.integers(0, 999),
)
@settings(max_examples=150, deadline=None)
def test_sums_are_scipys_bits(shape, taps, parity, dtype, mode, seed):
    rng = np.random.default_rng(seed)
    axis = int(rng.integers(len(shape)))
    start, stop = np.sort(rng.integers(0, shape[axis] + 1, 2)) if seed % 2 else (0, shape[axis])
    x = (rng.standard_normal(shape) * 50).astype(dtype)
    if dtype == "f4" and seed % 3 == 0:
        x[rng.random(shape) < 0.05] = rng.choice([np.nan, np.inf, -np.inf, 3e38, -0.0])
    weights, out = weights_of(parity, taps, rng), "f8" if dtype == "f8" else "f4"
    whole = ndimage.correlate1d(x, weights, axis, output=out, mode=mode, cval=2.5)
    expected = np.take(whole, range(start, stop), axis)
    for cold in COLD.values():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stencil, "COLD_VOXELS", cold)
            patch.setattr(stencil, "PIECE", 500)
            found = stencil.correlate1d(x, weights, axis, mode, 2.5, out, slice(start, stop))
        np.testing.assert_array_equal(bits(found), bits(expected))


@pytest.mark.parametrize("dtype", ["i4", "u8", "f2"])
def test_integers_are_summed_as_scipy_takes_them(way, dtype):
    x = np.random.default_rng(1).integers(0, 30_000, (6, 20)).astype(dtype)
    if dtype == "u8":
        x += np.uint64(2**60 + 1)
    found = stencil.correlate1d(x, np.array([0.3, 0.4, 0.3]), 1, "mirror", 0, "f4", slice(0, 20))
    source = x.astype("f4") if dtype == "f2" else x
    np.testing.assert_array_equal(found, ndimage.correlate1d(source, [0.3, 0.4, 0.3], 1, output="f4", mode="mirror"))


@pytest.mark.parametrize("order", [(0, 0, 0), (1, 0, 2), (3, 1, 0)])
@pytest.mark.parametrize("mode", MODES)
def test_gaussians_and_their_derivatives_are_scipys(way, order, mode):
    x = np.random.default_rng(2).random((17, 33, 41), dtype=np.float32)
    sigma, whole = (1.3, 0.0 if order[1] == 0 else 0.6, 2.0), tuple(slice(0, n) for n in x.shape)
    expected = ndimage.gaussian_filter(x, sigma, order, mode=mode, cval=0.7, truncate=3)
    np.testing.assert_array_equal(stencil.gaussian(x, sigma, order, 3.0, mode, 0.7, "f4", whole), expected)
    part = (slice(2, 9), slice(0, 33), slice(40, 41))
    np.testing.assert_array_equal(stencil.gaussian(x, sigma, order, 3.0, mode, 0.7, "f4", part), expected[part])


def test_layout_does_not_matter_and_inputs_stay_as_they_are(way):
    x = np.random.default_rng(3).random((12, 14, 16))
    x.flags.writeable = False
    weights = np.array([1.0, 2.0, 4.0])
    for view in (x.T, x[::2, 1:], x[:, :, ::-1]):
        for axis in range(3):
            n = view.shape[axis]
            found = stencil.correlate1d(view, weights, axis, "nearest", 0, "f8", slice(0, n))
            np.testing.assert_array_equal(found, ndimage.correlate1d(view, weights, axis, mode="nearest"))
    y = np.arange(5.0)
    stencil.uniform(y, (3,), "reflect", 0, "f8", (slice(0, 5),))
    stencil.gaussian(y, (1.0,), (0,), 4.0, "reflect", 0, "f8", (slice(0, 5),))
    np.testing.assert_array_equal(y, np.arange(5.0))
    assert y.flags.writeable


def test_the_compiled_loop_comes_in_when_there_is_enough_to_do(monkeypatch):
    from volara_expr.kernels import correlate

    shapes = []
    monkeypatch.setattr(correlate, "correlate_rows", lambda source, *rest: shapes.append(source.shape))
    monkeypatch.setattr(stencil, "COLD_VOXELS", 1000)
    monkeypatch.setattr(stencil, "_summed", [0])
    for _ in range(4):
        stencil.correlate1d(np.zeros((4, 10, 10)), np.ones(3), 1, "reflect", 0, "f8", slice(0, 10))
    assert shapes == [(4, 10, 10)] * 2
