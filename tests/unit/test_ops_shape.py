"""Indexing, world coordinates, padding and joining: NumPy's values, exact positions, neighborhoods that keep their meaning."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from volara_expr.array.base import node_of
from volara_expr.array.core import Array
from volara_expr.array.functions import align, concat, stack, where
from volara_expr.expr.node import ArraySpec
from volara_expr.geometry import Axis, Box, Roi, Space
from volara_expr.ops.sources import in_memory
from volara_expr.testing.check import assert_blockwise_equal, assert_same, evaluate

rng = np.random.default_rng(3)


def lazy(data: np.ndarray) -> Array:
    return Array(node_of(data))


def placed(data, lo=None, voxel_size=(40, 4, 4), origin=(0, 0, 0), neighborhood=None) -> Array:
    n = len(voxel_size)
    axes = [Axis("c", "offsets" if neighborhood else "channel")] * (data.ndim - n)
    axes += [Axis(name, "space", "nanometer") for name in "zyx"[-n:]]
    pad = (Fraction(0),) * (data.ndim - n)
    space = Space(tuple(axes), tuple(1 + p for p in pad) + tuple(map(Fraction, voxel_size)), pad + tuple(map(Fraction, origin)))
    return Array(in_memory(data, ArraySpec(Box.of_shape(data.shape, lo), data.dtype, space, neighborhood)))


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_basic_indices_are_numpys(data):
    x = np.arange(5 * 4 * 6, dtype="i4").reshape(5, 4, 6)
    key = data.draw(hnp.basic_indices(x.shape, allow_newaxis=True, allow_ellipsis=True, max_dims=5))
    a = placed(x, lo=(3, -2, 0))[key]
    assert_blockwise_equal(a, x[key], seed=1)


@pytest.mark.parametrize(
    "key", [[0, 3], np.array([-1, 0, -1]), (slice(1, 4), [2, 0]), (2, [1, 1]), (Ellipsis, [5, 0], None), [], ([1, 2], 3)]
)
def test_one_list_picks_entries(key):
    x = np.arange(5 * 4 * 6).reshape(5, 4, 6)
    assert_blockwise_equal(lazy(x)[key], x[key])


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (5, "index 5 is out of range for axis 0 of 5"),
        ((0, [4]), "axis 1 of 4"),
        (np.ones((5, 4, 6), bool), r"ve\.where"),
        ([True] * 5, "boolean"),
        (([0], [0]), "two steps"),
        ((0, slice(None), [0]), "two steps"),
        ((0, 0, 0, 0), r"4 indices for an array of 3 axes \(z, y, x\)"),
        (1.5, "is no index"),
        ("x", "is no index"),
        ((Ellipsis, Ellipsis), "at most one"),
    ],
)
def test_indices_that_cannot_work(key, message):
    with pytest.raises(IndexError, match=message):
        lazy(np.zeros((5, 4, 6)))[key]


def test_crops_keep_their_place_and_steps_start_a_new_grid():
    a = placed(np.zeros((10, 20, 20)), lo=(5, 0, 0), origin=(1000, 0, 0))
    crop = a[2:4, :, 3].node.spec
    assert crop.box == Box((7, 0), (9, 20))
    assert crop.frame == Box((5, 0), (15, 20))
    assert crop.space.names == ("z", "y")
    strided = a[1::2].node.spec  # shows voxels 6, 8, ..., whose centres lie at 1000 + 40 * 6.5, ...
    assert strided.box == Box((0, 0, 0), (5, 20, 20))
    assert strided.space.voxel_size[0] == 80
    assert strided.space.origin[0] + 40 == 1000 + 40 * Fraction(13, 2)
    flipped = a.flip("z").node.spec
    assert flipped.space.roi(flipped.box) == a.node.spec.space.roi(a.node.spec.box)
    assert flipped.box.lo[0] == 0
    assert a[4:5:3].node.spec.box.lo[0] == 9  # one voxel is a plain crop whatever the step
    assert a[[1, 4]].node.spec.space.axes[0] == Axis("z", "channel")


def test_crops_of_one_array_meet_in_the_world():
    x = rng.integers(0, 100, (10, 4, 4))
    a = placed(x)
    with pytest.raises(ValueError, match="lie apart along 'z'"):
        a[1:] - a[:-1]
    assert_blockwise_equal(a[1:] - a[:-1].at(a[1:]), x[1:] - x[:-1])
    left, right = align(a[1:], a[:-1])
    assert_blockwise_equal(left + right, x[1:-1] * 2)
    assert_blockwise_equal(where(a[2:] > 50, a[2:], 0), np.where(x[2:] > 50, x[2:], 0))
    with pytest.raises(ValueError, match=r"\(9, 4, 4\) and \(10, 4, 4\)"):
        a[1:].at(a)


def test_world_coordinates():
    x = rng.integers(0, 100, (10, 20, 20))
    a = placed(x, lo=(2, 0, 0), origin=(100, 0, 0))  # z from 180 to 580 nm
    assert_same(evaluate(a.world["200nm":"0.3um"]), x[0:3])
    assert_same(evaluate(a.world[220:260, 8:]), x[1:2, 2:])
    assert_same(evaluate(a.world[Roi((0, 4, 0), (260, 5, 1000), "nm")]), x[:2, 1:3])
    assert_same(evaluate(a.world[Roi((0, 0, 0), (260, 4, 4)).to_funlib()]), x[:2, :1, :1])
    assert evaluate(a.world[5000:6000]).shape == (0, 20, 20)
    with pytest.raises(IndexError, match="takes a Roi"):
        a.world[3]
    with pytest.raises(ValueError, match="unknown unit"):
        a.world["3parsec":]


def test_moving_voxels_is_no_halo():
    a = placed(rng.random((3, 9, 9, 9)))
    for moved in (a[1:], a[:, ::-1], a[:, 1::2], a[[2, 0]], a.max(0), a[:, 1:] - a[:, :-1].at(a[:, 1:])):
        assert set(moved.node.halo().lo + moved.node.halo().hi) == {0}


def test_empty_slices_compute_nothing():
    a = lazy(np.zeros((4, 4)))
    b = (a[0:0] + 1).astype("u1")
    assert evaluate(b).shape == (0, 4)
    assert evaluate(b).dtype == np.uint8


@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 6)),
    width=st.tuples(*[st.tuples(st.integers(0, 9), st.integers(0, 9))] * 2),
    mode=st.sampled_from(["constant", "edge", "reflect"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_pad_is_numpys(shape, width, mode, seed):
    x = np.random.default_rng(seed).integers(0, 255, shape, dtype="u1")
    kwargs = {"constant_values": 7} if mode == "constant" else {}
    a = lazy(x).pad(width, mode, 7)
    assert a.node.spec.box.lo == tuple(-w[0] for w in width)
    assert_blockwise_equal(a, np.pad(x, width, mode, **kwargs), seed=seed)


def test_pad_refuses():
    a = placed(np.zeros((3, 4, 4), "u1"))
    assert a.pad(("40nm", 1, (0, "8nm"))).node.spec.shape == (5, 6, 6)
    with pytest.raises(ValueError, match=r"0\.5 and 0\.5 voxels"):
        a.pad("20nm")
    with pytest.raises(ValueError, match="no value of dtype uint8"):
        a.pad(1, value=0.5)
    with pytest.raises(OverflowError):
        a.pad(1, value=256)
    with pytest.raises(ValueError, match="negative"):
        a.pad(-1)
    with pytest.raises(ValueError, match="2 entries for 3 space axes"):
        a.pad((1, 1))


def test_transpose_squeeze_expand():
    x = rng.random((3, 4, 5)).astype("f4")
    a = placed(x)
    assert_blockwise_equal(a.transpose(), x.T)
    assert_blockwise_equal(a.transpose("y", 0, -1), x.transpose(1, 0, 2))
    assert_blockwise_equal(a.expand_dims(-1).squeeze("c") * a, x * x)
    assert a[None].expand_dims(0).node.spec.space.names == ("c2", "c", "z", "y", "x")
    with pytest.raises(ValueError, match="no axis 'w'"):
        a.transpose("w", "y", "x")
    with pytest.raises(ValueError, match="no order of the 3 axes"):
        a.transpose(0, 0, 1)
    with pytest.raises(ValueError, match="axis 1 has 4 entries"):
        a.squeeze(1)


def test_joins():
    x, y = rng.integers(0, 9, (3, 4), dtype="u1"), rng.random((2, 4))
    assert_blockwise_equal(concat([lazy(x), lazy(y), lazy(x)]), np.concatenate([x, y, x]))
    assert_blockwise_equal(lazy(x).concat(lazy(x), axis="x"), np.concatenate([x, x], 1))
    assert_blockwise_equal(stack([lazy(x), lazy(x) + 1], axis=-1), np.stack([x, x + 1], -1))
    a = placed(rng.random((6, 4)), lo=(2, 0), voxel_size=(4, 4), origin=(0, 0))
    joined = concat([a[:2], a[4:]]).node.spec
    assert joined.box == Box((2, 0), (6, 4))
    with pytest.raises(ValueError, match="cannot be joined"):
        concat([lazy(x), lazy(y[:, 1:])])
    with pytest.raises(ValueError, match="lie apart"):
        stack([a[1:], a[:-1]])
    with pytest.raises(ValueError, match="nothing to stack"):
        stack([])


def test_neighborhoods_keep_their_meaning_or_go():
    hood = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    affs = placed(rng.random((3, 4, 5, 6)), neighborhood=hood)

    def kept(a):
        return a.node.spec.neighborhood

    assert kept(affs[1:]) == hood[1:]
    assert kept(affs[::-1]) == hood[::-1]
    assert kept(affs[[2, 0]]) == (hood[2], hood[0])
    assert kept(affs[:, 1:3, 2:]) == hood
    assert kept(affs.transpose("c", "x", "z", "y")) == ((0, 1, 0), (0, 0, 1), (1, 0, 0))
    assert kept(affs.pad(2)) == hood
    assert kept(affs.at(affs)) == hood
    assert kept(affs.concat(affs[:1])) == (*hood, hood[0])
    for gone in (affs[0], affs[:, ::2], affs.flip("y"), affs[:, 0], affs[:, [0, 1]], affs.concat(lazy(np.zeros((1, 4, 5, 6))))):
        assert kept(gone) is None
        assert all(axis.type != "offsets" for axis in gone.node.spec.space.axes)
    z = placed(rng.random((4, 5, 6)))
    made = stack([z, z * 2], neighborhood=[(1, 0, 0), (0, 2, 0)])
    assert kept(made) == ((1, 0, 0), (0, 2, 0))
    assert made.node.spec.space.axes[0].type == "offsets"
    with pytest.raises(ValueError, match="1 offsets of lengths"):
        stack([z, z], neighborhood=[(1, 0, 0)])
    with pytest.raises(ValueError, match="no channel axis"):
        z.with_neighborhood(hood)


def test_voxel_sizes_are_exact():
    a = lazy(np.zeros((4, 6)))[1:].with_voxel_size((0.406, 0.1), offset=(10, 0), unit="um")
    spec = a.node.spec
    assert spec.space.placed
    assert spec.space.roi(spec.box) == Roi((10, 0), ("1.218", "0.6"), "um")
    with pytest.raises(ValueError, match="positive"):
        a.with_voxel_size((0, 1))


def test_moving_voxels_keeps_tables():
    x = rng.integers(0, 256, (6, 7, 8), dtype="u1")
    chain = lazy(x).normalize(0, 255)[1:, ::-1].transpose(2, 0, 1)[[0, 3]].expand_dims(0).threshold(0.3)
    expected = (x / 255.0).astype("f4")[1:, ::-1].transpose(2, 0, 1)[[0, 3]][None] > 0.3
    assert_blockwise_equal(chain, expected.astype("u1"))
