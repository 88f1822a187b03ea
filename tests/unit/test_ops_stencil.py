"""Filters against SciPy on the whole array, for every type, boundary mode and block; halos; users' functions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import volara_expr as ve
from volara_expr.array.base import node_of
from volara_expr.array.core import Array
from volara_expr.geometry import Halo
from volara_expr.testing.check import assert_blockwise_equal, assert_same, evaluate

rng = np.random.default_rng(17)
DTYPES = ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8"]
MODES = ["reflect", "mirror", "nearest", "constant"]
windows = st.tuples(st.integers(1, 5), st.integers(1, 6))


def lazy(data: np.ndarray) -> Array:
    return Array(node_of(data))


def image(dtype: str, shape: tuple[int, ...] = (9, 11)) -> np.ndarray:
    return rng.integers(0, 2 if dtype == "?" else 120, shape).astype(dtype)


def usable(x: np.ndarray) -> np.ndarray:
    return x.astype("f4") if x.dtype == np.float16 else x


@given(st.sampled_from(DTYPES), st.sampled_from(MODES), st.tuples(*[st.sampled_from([0, 0.3, 1, 2.6])] * 2), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_gaussian_is_scipys(dtype, mode, sigma, seed):
    x = image(dtype)
    out = "f8" if dtype == "f8" else "f4"
    expected = ndimage.gaussian_filter(usable(x), sigma, output=out, mode=mode, cval=3, truncate=2.5)
    assert_blockwise_equal(lazy(x).gaussian(sigma, mode, 2.5, 3), expected, seed=seed)


@given(st.sampled_from(DTYPES), st.sampled_from(MODES), windows, st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_median_is_scipys(dtype, mode, size, seed):
    x = image(dtype)
    expected = ndimage.median_filter(usable(x), size=size, mode=mode, cval=1).astype(dtype)
    assert_blockwise_equal(lazy(x).median(size, mode, 1), expected, seed=seed)


@given(st.sampled_from(DTYPES), st.sampled_from(MODES), windows, st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_uniform_is_scipys_up_to_rounding(dtype, mode, size, seed):
    x = image(dtype)
    a = lazy(x).uniform(size, mode, 2)
    assert_blockwise_equal(a, seed=seed)
    expected = ndimage.uniform_filter(x.astype("f8"), size, mode=mode, cval=2)
    np.testing.assert_allclose(evaluate(a), expected, rtol=1e-6)


@given(st.sampled_from(DTYPES), st.sampled_from(MODES), windows, st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_extremes_are_scipys(dtype, mode, size, seed):
    x = image(dtype)
    for name in ("minimum_filter", "maximum_filter"):
        expected = getattr(ndimage, name)(usable(x), size, mode=mode, cval=1).astype(dtype)
        assert_blockwise_equal(getattr(lazy(x), name)(size, mode, 1), expected, seed=seed)


def test_extremes_keep_every_bit_of_labels():
    x = np.array([2**63 + 3, 5, 2**64 - 1, 7], "u8")
    assert_same(evaluate(lazy(x).maximum_filter(2)), np.array([2**63 + 3, 2**63 + 3, 2**64 - 1, 2**64 - 1], "u8"))


@pytest.mark.parametrize("shape", [(41,), (9, 13)])
@pytest.mark.parametrize("name", ["median", "minimum_filter", "maximum_filter", "gaussian", "uniform"])
def test_the_sign_of_zero_does_not_depend_on_the_block(name, shape):
    x = rng.choice([0.0, -0.0, 1, -1], shape, p=[0.4, 0.4, 0.1, 0.1])
    for seed in range(5):
        assert_blockwise_equal(getattr(lazy(x), name)(3), seed=seed)


def test_uniform_of_integers_is_the_rounded_true_mean():
    x = image("u1", (30,))
    padded = np.pad(x, 1, "symmetric").astype("f8")
    assert_same(evaluate(lazy(x).uniform(3)), ((padded[:-2] + padded[1:-1] + padded[2:]) / 3).astype("f4"))


def test_a_chain_at_the_rim_needs_no_padding():
    x = image("u1", (20, 20))
    a = lazy(x).gaussian(1.2).median(3).uniform((1, 4))
    b = ndimage.median_filter(ndimage.gaussian_filter(x, 1.2, output="f4"), 3)
    expected = (ndimage.correlate1d(b.astype("f8"), np.ones(4), 1) / 4).astype("f4")
    assert_blockwise_equal(a, expected)


def test_channels_are_mapped_over():
    x = image("f4", (2, 5, 6, 7))
    assert_blockwise_equal(lazy(x).gaussian(1), np.stack([ndimage.gaussian_filter(c, 1) for c in x]))
    assert lazy(x).median((1, 3, 4)).node.halo() == Halo((0, 0, 1, 2), (0, 0, 1, 1))


def test_physical_lengths():
    a = ve.from_numpy(image("u1", (6, 6, 6)), voxel_size=(40, 4, 4), units="nm")
    assert a.gaussian("20nm").node.sigma == (0.5, 5.0, 5.0)
    assert a.median("20nm").node.size == (1, 5, 5)
    assert a.map_blocks(np.negative, halo="20nm").node.reach == (1, 5, 5)
    with pytest.raises(ValueError, match="give voxels instead"):
        lazy(image("u1")).gaussian("20nm")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda a: a.gaussian(-1), ValueError, r"sigma=\(-1\.0, -1\.0\)"),
        (lambda a: a.gaussian(1, mode="wrap"), ValueError, "far side of the volume"),
        (lambda a: a.median(3, mode="odd"), ValueError, "'odd' is none of"),
        (lambda a: a.median(0), ValueError, "1 or more"),
        (lambda a: a.median(2.5), ValueError, "whole number"),
        (lambda a: a.median((3, 3, 3)), ValueError, r"3 entries but there are 2 space axes \(y, x\)"),
        (lambda a: a.median(3, "constant", 0.5), ValueError, "no value of dtype uint8"),
        (lambda a: a.minimum_filter(3, "constant", 256), OverflowError, "256"),
        (lambda a: (a * 1j).gaussian(1), TypeError, "real numbers"),
        (lambda a: a.map_blocks(np.negative, halo=-1), ValueError, "negative"),
    ],
)
def test_mistakes_fail_where_they_are_made(call, error, message):
    with pytest.raises(error, match=message):
        call(lazy(image("u1")))


def test_map_blocks():
    x = image("u1", (12, 9))
    seen = []

    def laplace(block):
        seen.append(block.shape)
        block = block.astype("f4")  # what the function does to its copy does not matter
        return ndimage.laplace(block)

    a = lazy(x).map_blocks(laplace, halo=1, dtype="f4", name="laplace")
    assert_blockwise_equal(a, ndimage.laplace(x.astype("f4")))
    assert len(set(seen)) > 1
    assert a.node is lazy(x).map_blocks(lambda b: b, halo=1, dtype="f4", name="laplace").node
    assert lazy(x).map_blocks(lambda b: b + 1).node is lazy(x).map_blocks(lambda b: b + 1).node


def test_map_blocks_cannot_change_its_input():
    x = image("u1")

    def scribble(block):
        block[:] = 0
        return block

    a = lazy(x)
    assert_blockwise_equal(a.map_blocks(scribble) + a, x)


def test_map_blocks_checks_what_comes_back():
    a = lazy(image("u1"))
    with pytest.raises(ValueError, match=r"returned shape \(8, 11\) for a block of shape \(9, 11\)"):
        evaluate(a.map_blocks(lambda b: b[1:]))
    with pytest.raises(TypeError, match="dtype='float64'"):
        evaluate(a.map_blocks(lambda b: b / 2))


def test_an_opaque_function_says_what_it_captured():
    handle = object()
    a, b = (lazy(image("u1")).map_blocks(lambda x: x + (handle is None)) for _ in range(2))
    assert "handle" in a.node.function.opaque
    assert a.node is not b.node
