"""Morphology, distances and boundaries: SciPy's and scikit-image's, block by block, with every halo proven to be needed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import segmentation

import volara_expr as ve
from tests.property.mutation import assert_halo_is_needed
from volara_expr.testing.check import assert_blockwise_equal, evaluate

rng = np.random.default_rng(5)
grey = [
    "grey_erosion",
    "grey_dilation",
    "grey_opening",
    "grey_closing",
    "white_tophat",
    "black_tophat",
    "morphological_gradient",
]
modes = st.sampled_from(["reflect", "mirror", "nearest", "constant"])
sides = st.one_of(st.tuples(*[st.integers(1, 16)] * 2), st.tuples(*[st.integers(1, 8)] * 3))


@st.composite
def footprints(draw, nd):
    shape = draw(st.tuples(*[st.integers(1, 4)] * nd))
    inside = np.array(draw(st.lists(st.booleans(), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))).reshape(shape)
    inside.reshape(-1)[draw(st.integers(0, inside.size - 1))] = True
    return inside


@given(st.data(), sides, st.sampled_from(["uint8", "int16", "uint64", "float32", "float64"]), st.sampled_from(grey), modes)
@settings(max_examples=60, deadline=None)
def test_grey_morphology_is_scipys(data, shape, dtype, name, mode):
    x = rng.integers(0, 200, shape).astype(dtype)
    form = {"footprint": data.draw(footprints(x.ndim))}
    if data.draw(st.booleans()):
        form = {"size": data.draw(st.tuples(*[st.integers(1, 5)] * x.ndim))}
    expected = getattr(ndimage, name)(x, **form, mode=mode, cval=7)
    assert_blockwise_equal(
        getattr(ve.from_numpy(x), name)(**form, mode=mode, value=7), expected, seed=data.draw(st.integers(0, 99))
    )


@given(st.data(), sides, st.sampled_from(["float64", "int32"]), st.sampled_from(grey))
@settings(max_examples=30, deadline=None)
def test_elements_with_heights(data, shape, dtype, name):
    x = rng.integers(-1000, 1000, shape).astype(dtype)
    inside = data.draw(footprints(x.ndim))
    heights = rng.integers(-5, 9, inside.shape).astype(float)
    expected = getattr(ndimage, name)(x, footprint=inside, structure=heights)
    assert_blockwise_equal(getattr(ve.from_numpy(x), name)(footprint=inside, structure=heights), expected)


def test_heights_keep_to_the_range_of_integers():
    x = np.array([[0, 3, 250, 255]], np.uint8)
    np.testing.assert_array_equal(evaluate(ve.from_numpy(x).grey_dilation(structure=[[10]])), [[10, 13, 255, 255]])
    np.testing.assert_array_equal(evaluate(ve.from_numpy(x).grey_erosion(structure=[[10]])), [[0, 0, 240, 245]])


@given(st.data(), sides, st.sampled_from(["erosion", "dilation", "opening", "closing"]), st.integers(1, 3), st.booleans())
@settings(max_examples=50, deadline=None)
def test_binary_morphology_is_scipys(data, shape, name, iterations, border):
    x = rng.random(shape) < data.draw(st.sampled_from([0.2, 0.5, 0.8]))
    structure = data.draw(st.one_of(st.none(), footprints(x.ndim)))
    extra = {"border_value": border} if name in ("erosion", "dilation") else {}
    expected = getattr(ndimage, f"binary_{name}")(x, structure, iterations, **extra)
    a = getattr(ve.from_numpy(x.astype("u1") * 3), f"binary_{name}")(structure, iterations, **extra)
    assert_blockwise_equal(a, expected, seed=data.draw(st.integers(0, 99)))


def test_channels_are_mapped_over():
    x = rng.integers(0, 99, (3, 9, 10))
    a = ve.from_numpy(x, axes=("c", "y", "x"))
    inside = np.array([[1, 1, 0], [0, 1, 1]])
    expected = np.stack([ndimage.grey_dilation(plane, footprint=inside) for plane in x])
    assert_blockwise_equal(a.grey_dilation(footprint=inside), expected)
    assert_blockwise_equal((a > 60).distance_transform(3), np.stack([capped(plane > 60, 3) for plane in x]))


def capped(x, cap, sampling=None):
    """SciPy's distance, which knows no distance to what is not there."""
    if x.all():
        return np.full(x.shape, float(cap))
    return np.minimum(ndimage.distance_transform_edt(x, sampling), cap)


@given(sides, st.sampled_from([0.0, 1.0, 2.5, 4.0, 40.0]), st.sampled_from([0.5, 0.9, 0.99]), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_distances_are_scipys(shape, cap, density, seed):
    x = np.random.default_rng(seed).random(shape) < density
    assert_blockwise_equal(ve.from_numpy(x).distance_transform(cap), capped(x, cap), seed=seed)


@given(sides, st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_distances_in_world_units(shape, seed):
    x = np.random.default_rng(seed).random(shape) < 0.9
    size = (40.5, 4, 3.3)[-x.ndim :]
    placed = ve.from_numpy(x, voxel_size=size, units="nm")
    a = placed.distance_transform(60, sampling="world")
    assert a.node is placed.distance_transform(60.0, sampling=size).node
    assert_blockwise_equal(a, seed=seed)
    np.testing.assert_allclose(evaluate(a), capped(x, 60, size), rtol=1e-14)


@given(sides, st.sampled_from([0, 1, 2, 3.5]), st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_expanded_labels_are_the_nearest_and_smallest(shape, distance, seed):
    random = np.random.default_rng(seed)
    x = np.where(random.random(shape) < 0.08, random.integers(1, 9, shape), 0)
    a = ve.from_numpy(x).expand_labels(distance)
    each = np.full((10, *shape), np.inf)
    for label in np.unique(x[x > 0]):
        each[label] = ndimage.distance_transform_edt(x != label)
    near = each.min(axis=0)
    expected = np.where(near <= distance, each.argmin(axis=0), 0)
    assert_blockwise_equal(a, expected, seed=seed)
    theirs = segmentation.expand_labels(x, distance) if x.any() else x
    alone = (each == near).sum(axis=0) == 1
    np.testing.assert_array_equal(theirs[alone], expected[alone])


@given(
    sides,
    st.sampled_from(["thick", "inner", "outer"]),
    st.integers(1, 3),
    st.sampled_from(["u1", "i4", "u8", "?"]),
    st.integers(0, 3),
)
@settings(max_examples=50, deadline=None)
def test_boundaries_are_scikit_images(shape, mode, connectivity, dtype, background):
    x = (rng.random(shape) * 3).astype(dtype)
    connectivity = min(connectivity, x.ndim)
    background = min(background, 1) if dtype == "?" else background
    expected = segmentation.find_boundaries(x, connectivity, mode, background)
    assert_blockwise_equal(ve.from_numpy(x).find_boundaries(connectivity, mode, background), expected.astype(bool))


X = rng.random((15, 14))
A = ve.from_numpy(X)
SPARSE = np.zeros((15, 14), np.uint8)
SPARSE[[5, 10, 2, 12, 7], [5, 9, 11, 2, 13]] = [1, 2, 3, 4, 5]
ELEMENT = np.ones((3, 3)) * [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
WITH_HALO = {
    "erosion": A.grey_erosion(footprint=ELEMENT),
    "dilation": A.grey_dilation(structure=ELEMENT),
    "binary dilation": (A > 0.8).binary_dilation(ELEMENT),
    "distance": (ve.from_numpy(SPARSE) == 0).distance_transform(3),
    "expanded labels": ve.from_numpy(SPARSE).expand_labels(3),
}


@pytest.mark.parametrize("low", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", WITH_HALO)
def test_a_halo_one_voxel_short_is_caught(name, axis, low, monkeypatch):
    assert_halo_is_needed(WITH_HALO[name], axis, low, monkeypatch)


def test_refusals():
    a = ve.from_numpy(np.zeros((4, 5)))
    with pytest.raises(ValueError, match="give size, footprint or structure"):
        a.grey_erosion()
    with pytest.raises(ValueError, match="footprint has 1 axes and the array 2 space axes"):
        a.grey_erosion(footprint=[1, 1])
    with pytest.raises(ValueError, match="one entry at least"):
        a.grey_erosion(footprint=[[0]])
    with pytest.raises(ValueError, match=r"value=0\.5 is no value of dtype uint8"):
        a.astype("u1").grey_erosion(footprint=ELEMENT, mode="constant", value=0.5)
    with pytest.raises(TypeError, match="more than 64 bits"):
        a.astype("u8").grey_erosion(structure=ELEMENT)
    with pytest.raises(TypeError, match="holds booleans"):
        (a > 0).grey_erosion(structure=ELEMENT)
    with pytest.raises(ValueError, match="iterations=0"):
        a.binary_dilation(iterations=0)
    with pytest.raises(ValueError, match="a distance of -1"):
        a.distance_transform(-1)
    with pytest.raises(ValueError, match="2 space axes; give one each"):
        a.distance_transform(1, sampling=(1, 2, 3))
    with pytest.raises(ValueError, match="more than 64-bit integers square"):
        a.distance_transform(1e12)
    with pytest.raises(TypeError, match="cannot grow"):
        a.expand_labels()
    with pytest.raises(ValueError, match="none of 'thick'"):
        (a > 0).find_boundaries(mode="subpixel")
