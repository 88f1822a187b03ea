"""Watershed: equal in any crop to the kernel on blocks cut by hand."""

import numpy as np
import pytest
from scipy import ndimage

from tests.unit.nodes import BIAS, MIXED, SHAPE, STRIDES, affinities, evaluate, handle, node
from volara_expr.array.labels import Labels
from volara_expr.geometry import Box
from volara_expr.kernels import BadVoxel
from volara_expr.kernels.mutex_watershed import fragments
from volara_expr.ops.pointwise import Normalize


def by_hand(affs, origin, block, context, **options):
    """The watershed of each block by the kernel itself, on arrays that are cut by hand."""
    shape = affs.shape[1:]
    n_blocks = [-(-(o + n) // b) - o // b for o, n, b in zip(origin, shape, block, strict=True)]
    out = np.zeros(shape, np.uint64)
    bits = int(np.prod(block)).bit_length()
    for index in np.ndindex(*n_blocks):
        lo = [max(0, (o // b + k) * b - o) for o, k, b in zip(origin, index, block, strict=True)]
        hi = [min(n, (o // b + k + 1) * b - o) for o, k, b, n in zip(origin, index, block, shape, strict=True)]
        rlo = [max(0, a - c) for a, c in zip(lo, context, strict=True)]
        rhi = [min(n, b + c) for b, c, n in zip(hi, context, shape, strict=True)]
        cut = affs[(slice(None), *map(slice, rlo, rhi))]
        crop = tuple(slice(a - r, b - r) for a, b, r in zip(lo, hi, rlo, strict=True))
        labels, _ = fragments(cut, MIXED, origin=[o + r for o, r in zip(origin, rlo, strict=True)], crop=crop, **options)
        number = (int(np.ravel_multi_index(index, n_blocks)) + 1) << bits
        out[tuple(map(slice, lo, hi))] = np.where(labels, labels + np.uint64(number), 0)
    return out


@pytest.mark.parametrize("origin", [(0, 0, 0), (5, -7, 30)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_watershed_is_that_of_its_blocks_in_any_crop(origin, dtype):
    affs = affinities(dtype)
    source = node(affs, "ozyx", (0, *origin), MIXED)
    bias = BIAS if dtype != np.uint8 else tuple(255 * b for b in BIAS)
    frags = Labels.watershed(handle(source), bias, STRIDES, (8, 8, 9), (1, 2, 3)).node
    expected = by_hand(affs, origin, (8, 8, 9), (1, 2, 3), bias=bias, strides=STRIDES)
    assert frags.spec.dtype == np.uint64
    assert frags.spec.space.names == ("z", "y", "x")
    assert frags.unit == (8, 8, 9)
    np.testing.assert_array_equal(evaluate(frags), expected)
    assert len(np.unique(expected)) > 20
    rng = np.random.default_rng(1)
    for _ in range(6):
        lo = [int(rng.integers(0, n - 1)) for n in SHAPE]
        hi = [int(rng.integers(a + 1, n + 1)) for a, n in zip(lo, SHAPE, strict=True)]
        box = Box(tuple(lo), tuple(hi)).shift(origin)
        np.testing.assert_array_equal(evaluate(frags, box), expected[tuple(map(slice, lo, hi))])


def test_watershed_crops_of_one_source_share_ids_and_leading_axes_are_mapped_over():
    affs = affinities()
    whole = node(affs, "ozyx", (0, 0, 0, 0), MIXED)
    cut = affs[:, :, :, 9:]
    crop = node(cut, "ozyx", (0, 0, 0, 9), MIXED, frame=whole.spec.box)
    a = Labels.watershed(handle(whole), -120.0, None, (8, 8, 9), 0).node
    b = Labels.watershed(handle(crop), -120.0, None, (8, 8, 9), 0).node
    np.testing.assert_array_equal(evaluate(a)[:, :, 9:], evaluate(b))
    # (time, offsets, space): each time point is a block of its own
    both = np.stack([affs, affs[..., ::-1]])
    t = Labels.watershed(handle(node(both, "tozyx", neighborhood=MIXED)), -120.0, None, (8, 8, 9), 0).node
    assert t.unit == (1, 8, 8, 9)
    labels = evaluate(t)
    shift = np.uint64(2 * 3 * 3 << t_bits(t))
    np.testing.assert_array_equal(labels[0], evaluate(a))
    second = evaluate(Labels.watershed(handle(node(both[1], "ozyx", neighborhood=MIXED)), -120.0, None, (8, 8, 9), 0).node)
    np.testing.assert_array_equal(labels[1], np.where(second, second + shift, 0))


def t_bits(n):
    return int(np.prod(n.unit)).bit_length()


def test_watershed_reads_codes_as_the_values_they_stand_for():
    affs = affinities()
    source = node(affs, "ozyx", neighborhood=MIXED)
    frags = Labels.watershed(handle(Normalize(source, 0.0, 255.0)), BIAS, STRIDES, (8, 8, 9)).node
    assert frags.context == (2, 3, 4)
    values = ((affs.astype(np.float64)) / 255).astype(np.float32)
    expected = by_hand(values, (0, 0, 0), (8, 8, 9), (2, 3, 4), bias=BIAS, strides=STRIDES)
    np.testing.assert_array_equal(evaluate(frags), expected)


def test_watershed_of_masked_affinities_leaves_out_what_is_outside():
    affs = affinities(np.float32)
    inside = np.zeros(SHAPE, np.uint8)
    inside[3:, 2:15, 5:20] = 7
    source, m = node(affs, "ozyx", neighborhood=MIXED), node(inside)
    given = Labels.watershed(handle(source), BIAS, block_size=(8, 8, 9), mask=handle(m)).node
    carried = Labels.watershed(handle(source).mask(handle(m)), BIAS, block_size=(8, 8, 9)).node
    later = Labels.watershed(handle(source).mask(handle(m), -1.0) * 1.0, BIAS, block_size=(8, 8, 9)).node
    assert carried is given
    expected = by_hand_masked(affs, inside)
    for frags in (given, later):
        np.testing.assert_array_equal(evaluate(frags), expected)
    assert not expected[inside == 0].any()
    assert later.mask is m


def by_hand_masked(affs, inside):
    out = np.zeros(SHAPE, np.uint64)
    context, block = (2, 3, 4), (8, 8, 9)
    for k, index in enumerate(np.ndindex(2, 3, 3), 1):
        lo = [i * b for i, b in zip(index, block, strict=True)]
        hi = [min(a + b, n) for a, b, n in zip(lo, block, SHAPE, strict=True)]
        rlo = [max(0, a - c) for a, c in zip(lo, context, strict=True)]
        cut = tuple(slice(a, b + c) for a, b, c in zip(rlo, hi, context, strict=True))
        crop = tuple(slice(a - r, b - r) for a, b, r in zip(lo, hi, rlo, strict=True))
        labels, _ = fragments(affs[:, *cut], MIXED, bias=BIAS, origin=rlo, crop=crop, mask=inside[cut])
        out[tuple(map(slice, lo, hi))] = np.where(labels, labels + np.uint64(k << 10), 0)
    return out


def test_watershed_of_smoothed_affinities_filters_by_those_as_they_were():
    affs = affinities(np.float32)
    source = node(affs, "ozyx", neighborhood=MIXED)
    options = {"min_mean_affinity": 0.5, "min_size": 3, "min_extent": (1, 1, 2)}
    n = handle(source).watershed(BIAS, STRIDES, SHAPE, 0, sigma=(0, 1.0, 0.5), noise=0.01, seed=7, **options).node
    assert n.mean_affs is source
    smooth = ndimage.gaussian_filter(affs.astype(np.float64), (0, 0, 1.0, 0.5)).astype(np.float32)
    shared = {"bias": BIAS, "strides": STRIDES, "noise": 0.01, "seed": 7}
    expected, count = fragments(smooth, MIXED, **shared, mean_affs=affs, **options)
    other, _ = fragments(smooth, MIXED, **shared, **options)
    found = evaluate(n)
    np.testing.assert_array_equal(found, np.where(expected, expected + np.uint64(1 << 13), 0))
    assert count > 5
    assert (expected != other).any()
    assert handle(source).watershed(BIAS, sigma=1.0).node.mean_affs is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bias": [-0.5] * 3}, "3 entries but there are 6 offsets"),
        ({"bias": -0.5, "strides": [(1, 1, 1)] * 2}, "2 entries but there are 6 offsets"),
        ({"bias": -0.5, "strides": (1, 1)}, "3 numbers of at least 1"),
        ({"bias": float("nan")}, "finite"),
        ({"bias": -0.5, "block_size": (8, 8)}, "2 entries but there are 3 space axes"),
        ({"bias": -0.5, "block_size": 1.5}, "1.5 voxels"),
        ({"bias": -0.5, "block_size": 0}, "at least 1"),
        ({"bias": -0.5, "context": (1, 1)}, "2 entries but there are 3 space axes"),
        ({"bias": -0.5, "ids": "int32"}, "'float53'"),
        ({"bias": -0.5, "mask": np.ones((2, 2, 2), bool)}, "should cover"),
    ],
)
def test_mistakes_in_a_watershed_are_errors_on_its_line(options, words):
    source = node(affinities(), "ozyx", neighborhood=MIXED)
    with pytest.raises(ValueError, match=words):
        Labels.watershed(handle(source), **options)


def test_watershed_needs_a_neighborhood_numbers_and_room_for_ids():
    affs = affinities()
    with pytest.raises(ValueError, match="with_neighborhood"):
        Labels.watershed(handle(node(affs, "czyx")), -0.5)
    with pytest.raises(TypeError, match="bool"):
        Labels.watershed(handle(node(affs > 3, "ozyx", neighborhood=MIXED)), -0.5)
    fits, wide = (node(affs, "ozyx", neighborhood=MIXED, frame=Box((0,) * 4, (6, n, n, n))) for n in (10**5, 10**6))
    Labels.watershed(handle(fits), -120.0, block_size=256)
    with pytest.raises(ValueError, match="take at most 0 blocks"):
        Labels.watershed(handle(wide), -0.5, block_size=2**20)
    with pytest.raises(ValueError, match=r"take at most 268,435,455 blocks.*uint64"):
        Labels.watershed(handle(wide), -0.5, block_size=256)
    Labels.watershed(handle(wide), -120.0, block_size=256, ids="uint64")


def test_biases_that_fit_no_whole_number_are_refused():
    affs = handle(node(affinities(), "ozyx", neighborhood=MIXED))
    with pytest.raises(ValueError, match=r"biases lie between -1 and 1 .*normalize\(0, 255\)"):
        Labels.watershed(affs, -0.5)
    Labels.watershed(affs, -127.5)


def test_a_voxel_that_is_not_a_number_is_named_in_absolute_coordinates():
    affs = affinities(np.float32)
    affs[2, 9, 4, 17] = np.nan
    frags = Labels.watershed(handle(node(affs, "ozyx", (0, 5, -7, 30), MIXED)), -0.5, block_size=8).node
    with pytest.raises(BadVoxel) as error:
        evaluate(frags)
    assert error.value.voxel == (2, 14, -3, 47)
