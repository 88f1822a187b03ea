from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from volara_expr.kernels.components import first_voxels, label, touching_pairs
from volara_expr.kernels.graph import components

FAST = settings(deadline=None, max_examples=150)


@st.composite
def images(draw, max_side=7):
    dtype = draw(st.sampled_from([bool, np.uint8, np.int32, np.uint64]))
    values = st.booleans() if dtype is bool else st.integers(0, draw(st.integers(1, 3)))
    image = draw(hnp.arrays(dtype, hnp.array_shapes(max_dims=3, max_side=max_side), elements=values))
    return image, draw(st.integers(1, image.ndim))


def scipy_label(image, connectivity, equal):
    """Each value on its own, then numbered anew by first voxel."""
    structure = ndimage.generate_binary_structure(image.ndim, connectivity)
    if not equal:
        return ndimage.label(image != 0, structure)
    out, n = np.zeros(image.shape, int), 0
    for value in set(image.ravel().tolist()) - {0}:
        part, k = ndimage.label(image == value, structure)
        out[part > 0] = part[part > 0] + n
        n += k
    names, first, inverse = np.unique(out, return_index=True, return_inverse=True)
    number = np.zeros(len(names), int)
    number[np.argsort(np.where(names == 0, -1, first))] = np.arange(len(names)) + (0 not in names)
    return number[inverse].reshape(image.shape), n


@given(images(), st.booleans())
@FAST
def test_equals_scipy(case, equal):
    image, connectivity = case
    labels, n = label(image, connectivity, equal=equal)
    expected, m = scipy_label(image, connectivity, equal)
    assert labels.dtype == np.uint32
    assert n == m
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(first_voxels(labels, n), [labels.ravel().tolist().index(k + 1) for k in range(n)])


@pytest.mark.parametrize("connectivity", [1, 2, 3])
@pytest.mark.parametrize("density", [0.15, 0.3, 0.6])
def test_equals_scipy_on_larger_images(connectivity, density):
    image = np.random.default_rng(0).random((30, 40, 50)) < density
    labels, n = label(image.transpose(2, 0, 1), connectivity)
    expected, m = scipy_label(image.transpose(2, 0, 1), connectivity, False)
    assert n == m
    np.testing.assert_array_equal(labels, expected)


def test_only_equal_values_connect():
    image = np.array([[1, 1, 2], [0, 2, 1]], np.int16)
    assert label(image, 1, equal=True)[0].tolist() == [[1, 1, 2], [0, 3, 4]]
    assert label(image, 2, equal=True)[0].tolist() == [[1, 1, 2], [0, 2, 1]]
    assert label(image, 1)[0].tolist() == [[1, 1, 1], [0, 1, 1]]


def test_empty_and_absent():
    assert label(np.zeros((0, 3), bool))[1] == 0
    assert label(np.zeros((2, 0, 3), bool))[1] == 0
    assert first_voxels(np.array([[0, 3], [1, 3]], np.uint32), 3).tolist() == [2, -1, 1]


@given(images(9), st.integers(1, 4), st.booleans(), st.integers(-5, 5))
@FAST
def test_pieces_and_touching_pairs_make_the_whole(case, size, equal, shift):
    """Label each cell on its own, join what touches: the components of the whole image."""
    image, connectivity = case
    nd, lo = image.ndim, np.full(image.ndim, shift)
    pieces, n = np.zeros(image.shape, np.uint64), 0
    cells = list(itertools.product(*(range(0, length, size) for length in image.shape)))
    for cell in cells:
        box = tuple(slice(c, c + size) for c in cell)
        labels, k = label(image[box], connectivity, equal=equal)
        pieces[box] = labels + np.uint64(n) * (labels > 0)
        n += k
    u, v = [], []
    for cell in cells:
        begin = np.maximum(np.subtract(cell, [0] + [1] * (nd - 1)), 0)
        box = tuple(slice(b, c + size + 1) for b, c in zip(begin, cell, strict=True))
        pairs = touching_pairs(
            pieces[box], begin + lo, cell + lo, np.add(cell, size) + lo, connectivity, image[box] if equal else None
        )
        assert (pairs[0] < pairs[1]).all()
        rows = list(zip(*(p.tolist() for p in pairs), strict=True))
        assert rows == sorted(set(rows))
        u.append(pairs[0])
        v.append(pairs[1])
    joined = components(np.concatenate(u), np.concatenate(v), n + 1)[pieces]
    expected, m = label(image, connectivity, equal=equal)
    assert len(set(joined[image != 0].tolist())) == m
    assert len(set(zip(joined[image != 0].tolist(), expected[image != 0].tolist(), strict=True))) == m


@given(images(5), st.data())
@FAST
def test_touching_pairs_equal_brute_force(case, data):
    image, connectivity = case
    image = (image.astype(np.uint64) * np.arange(1, image.size + 1, dtype=np.uint64).reshape(image.shape)) % np.uint64(7)
    values = data.draw(hnp.arrays(np.uint8, image.shape, elements=st.integers(0, 1)))
    lo = [data.draw(st.integers(0, n - 1)) for n in image.shape]
    hi = [data.draw(st.integers(a + 1, n)) for a, n in zip(lo, image.shape, strict=True)]
    for given_ in (None, values):
        expected = set()
        for base in itertools.product(*map(range, lo, hi)):
            for step in itertools.product((-1, 0, 1), repeat=image.ndim):
                other = tuple(np.add(base, step))
                out = any(not a <= k < b for a, k, b in zip(lo, other, hi, strict=True))
                if step <= (0,) * image.ndim or np.abs(step).sum() > connectivity or not out:
                    continue
                if all(0 <= k < n for k, n in zip(other, image.shape, strict=True)):
                    pair = sorted((int(image[base]), int(image[other])))
                    if pair[0] and pair[0] != pair[1] and (given_ is None or values[base] == values[other]):
                        expected.add(tuple(pair))
        u, v = touching_pairs(image, [0] * image.ndim, lo, hi, connectivity, given_)
        assert list(zip(u.tolist(), v.tolist(), strict=True)) == sorted(expected)


def test_errors():
    with pytest.raises(ValueError, match="connectivity is 3; it runs from 1 to 2"):
        label(np.zeros((2, 2), bool), 3)
    with pytest.raises(TypeError, match="float64; threshold it first"):
        label(np.zeros((2, 2)))
    with pytest.raises(ValueError, match="4 axes"):
        label(np.zeros((1, 1, 1, 1), bool))
    with pytest.raises(ValueError, match="connectivity is 0"):
        touching_pairs(np.zeros((2, 2), np.uint64), (0, 0), (0, 0), (2, 2), 0)
    with pytest.raises(ValueError, match="do not match"):
        touching_pairs(np.zeros((2, 2), np.uint64), (0, 0), (0, 0), (2, 2), 1, np.zeros(3))
