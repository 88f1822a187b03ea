from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volara_expr.kernels import BadVoxel
from volara_expr.kernels.edges import base_boxes, edge_sums, node_sums, slab

FAST = settings(deadline=None, max_examples=60)


def as_integers(values, table):
    if table is not None:
        return table[values]
    return np.rint(values.astype(np.float64) * 2**24).astype(np.int64) if values.dtype.kind == "f" else values.astype(np.int64)


def oracle(case, cell_lo, cell_hi, kind="owned", axis=0, side=1):
    """Every voxel pair, one by one."""
    labels, labels_lo, values, values_lo, offsets, scores, n_scores, table = case
    numbers = as_integers(values, table)
    rows = defaultdict(lambda: np.zeros(2 * n_scores, np.int64))
    for c, offset in enumerate(offsets):
        for base in itertools.product(*map(range, cell_lo, cell_hi)):
            other = tuple(np.add(base, offset))
            i, j = np.subtract(base, labels_lo), np.subtract(other, labels_lo)
            if scores[c] < 0 or (np.minimum(i, j) < 0).any() or (np.maximum(i, j) >= labels.shape).any():
                continue
            left = [k for k in range(labels.ndim) if not cell_lo[k] <= other[k] < cell_hi[k]]
            if kind == "inner" and left:
                continue
            if kind == "face" and (not left or left[0] != axis or (side == 1) != (other[axis] >= cell_hi[axis])):
                continue
            u, v = sorted((int(labels[tuple(i)]), int(labels[tuple(j)])))
            if u and u != v:
                rows[u, v][2 * scores[c] :][:2] += numbers[(c, *np.subtract(base, values_lo))], 1
    return dict(rows)


def as_rows(result):
    u, v, sums = result
    assert u.dtype == v.dtype == np.uint64
    assert sums.dtype == np.int64
    assert (u < v).all()
    keys = list(zip(u.tolist(), v.tolist(), strict=True))
    assert keys == sorted(set(keys))
    return dict(zip(keys, sums, strict=True))


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def add(parts):
    total = {}
    for rows in parts:
        for key, sums in rows.items():
            total[key] = total.get(key, 0) + sums
    return total


@st.composite
def cases(draw, max_side=6):
    nd = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = tuple(draw(st.integers(1, max_side)) for _ in range(nd))
    names = np.array([0, 1, 2, 3, 2**32 - 1], np.uint32)
    if draw(st.booleans()):
        names = np.array([0, 1, 2**32, 2**53, 2**64 - 1], np.uint64)
    labels = names[rng.integers(0, draw(st.integers(1, 5)), shape)]
    offsets = rng.integers(-3, 4, (draw(st.integers(1, 4)), nd))
    n_scores = draw(st.integers(1, 2))
    scores = rng.integers(-1, n_scores, len(offsets))
    labels_lo = rng.integers(-9, 9, nd)
    grow = rng.integers(0, 2, nd)
    kind, table = draw(st.sampled_from(["u1", "u2", "i8", "f4", "f8", "table"])), None
    size = (len(offsets), *(shape + grow))
    if kind == "table":
        kind, table = draw(st.sampled_from([("u1", rng.integers(-9, 9, 256)), ("u2", rng.integers(-9, 9, 65536))]))
    values = rng.normal(0, 9, size).astype(kind) if kind[0] == "f" else rng.integers(0, 255, size).astype(kind)
    return labels, labels_lo, values, labels_lo - grow, offsets, scores, n_scores, table


def sums_of(case, cell_lo, cell_hi, **kind):
    *args, table = case
    return as_rows(edge_sums(*args, cell_lo, cell_hi, table=table, **kind))


@given(cases(), st.data())
@FAST
def test_equals_brute_force(case, data):
    labels, labels_lo = case[:2]
    lo = [data.draw(st.integers(k, k + n - 1)) for k, n in zip(labels_lo, labels.shape, strict=True)]
    hi = [data.draw(st.integers(a + 1, k + n)) for a, k, n in zip(lo, labels_lo, labels.shape, strict=True)]
    for kind in ("owned", "inner"):
        assert_same(sums_of(case, lo, hi, kind=kind), oracle(case, lo, hi, kind))
    for axis, side in itertools.product(range(labels.ndim), (-1, 1)):
        assert_same(sums_of(case, lo, hi, kind="face", axis=axis, side=side), oracle(case, lo, hi, "face", axis, side))


@given(cases(9), st.integers(1, 5))
@FAST
def test_cells_and_faces_add_up_to_the_whole(case, size):
    labels, labels_lo = case[:2]
    end = labels_lo + labels.shape
    whole = sums_of(case, labels_lo, end)
    parts = []
    for lo in itertools.product(*(range(k // size * size, h, size) for k, h in zip(labels_lo, end, strict=True))):
        cell = np.maximum(lo, labels_lo), np.minimum(np.add(lo, size), end)
        owned = sums_of(case, *cell)
        faces = [sums_of(case, *cell, kind="face", axis=axis, side=side) for axis in range(labels.ndim) for side in (-1, 1)]
        assert_same(add([sums_of(case, *cell, kind="inner"), *faces]), owned)
        parts.append(owned)
    assert_same(add(parts), whole)


@given(cases(8))
@FAST
def test_a_slab_holds_all_that_a_face_needs(case):
    labels, labels_lo, values, values_lo, offsets, scores, n_scores, table = case
    middle = labels_lo + np.array(labels.shape) // 3, labels_lo + (2 * np.array(labels.shape) + 2) // 3
    for axis, side in itertools.product(range(labels.ndim), (-1, 1)):
        expected = sums_of(case, *middle, kind="face", axis=axis, side=side)
        boxes = slab(*middle, offsets, axis, side)
        if boxes is None:
            assert not expected
            continue
        (a, b), (c, d) = (np.clip(box, labels_lo, labels_lo + labels.shape) for box in boxes)
        thin = labels[tuple(map(slice, a - labels_lo, b - labels_lo))]
        rows = values[(slice(None), *map(slice, c - values_lo, d - values_lo))]
        assert_same(
            sums_of((thin, a, rows, c, offsets, scores, n_scores, table), *middle, kind="face", axis=axis, side=side), expected
        )


def test_slab_of_the_six_nearest_and_long_offsets():
    offsets = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (4, 0, 0), (-2, 3, 0)]
    assert slab((0, 0, 0), (8, 8, 8), offsets, 0, 1) == (((4, 0, 0), (12, 8, 8)), ((4, 0, 0), (8, 8, 8)))
    assert slab((0, 0, 0), (8, 8, 8), offsets, 0, -1) == (((-2, 0, 0), (2, 11, 8)), ((0, 0, 0), (2, 8, 8)))
    assert slab((0, 0, 0), (8, 8, 8), offsets, 2, -1) is None
    begin, end = base_boxes((0, 0, 0), (8, 8, 8), offsets, "inner")
    assert begin[-1].tolist() == [2, 0, 0]
    assert end[-1].tolist() == [8, 5, 8]


def test_tables_that_must_grow():
    """More labels and pairs than the first tables hold."""
    shape = (40, 20, 20)
    rng = np.random.default_rng(3)
    labels = rng.permutation(np.arange(1, 16001, dtype=np.uint64) * np.uint64(2**37)).reshape(shape)
    values = rng.integers(0, 256, (2, *shape), np.uint8)
    u, v, sums = edge_sums(labels, (0, 0, 0), values, (0, 0, 0), [(0, 0, 1), (1, 0, 0)], [0, 1], 2, (0, 0, 0), shape)
    assert len(u) == 40 * 20 * 19 + 39 * 20 * 20
    assert sums.sum(axis=0).tolist() == [values[0, :, :, :-1].sum(), 15200, values[1, :-1].sum(), 15600]
    first = sorted((labels[5, 6, 7], labels[5, 6, 8]))
    row = np.flatnonzero((u == first[0]) & (v == first[1]))
    assert sums[row].tolist() == [[values[0, 5, 6, 7], 1, 0, 0]]
    ids, sizes = node_sums(labels, (0, 0, 0))
    np.testing.assert_array_equal(ids, np.sort(labels, axis=None))
    assert (sizes[:, 0] == 1).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 40000.0])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("nd", [1, 2, 3])
def test_bad_values_are_named_where_they_are_used(bad, dtype, nd):
    labels = np.array([1, 1, 2, 2], np.uint32).reshape((1,) * (nd - 1) + (4,))
    values = np.full((2, *labels.shape), bad, dtype)
    values[0] = 0.5
    offsets = np.zeros((2, nd), int)
    offsets[:, -1] = 1

    def call():
        return edge_sums(labels, [7] * nd, values, [7] * nd, offsets, [0, 0], 1, [7] * nd, [11] * nd)

    with pytest.raises(BadVoxel, match="fixed point") as caught:
        call()
    assert caught.value.voxel == (1,) + (0,) * (nd - 1) + (1,)
    values[1, ..., 1] = -(2.0**15)
    assert call()[2].tolist() == [[2**23 - 2**39, 2]]

    with pytest.raises(BadVoxel, match="fixed point") as caught:
        node_sums(labels, [0] * nd, [values[1]])
    assert caught.value.voxel == (0,) * nd


@given(cases())
@FAST
def test_node_sums_equal_brute_force(case):
    labels, labels_lo, values, _, _, _, _, _ = case
    values = [a[tuple(map(slice, labels.shape))] for a in values]
    ids, sums = node_sums(labels, labels_lo, values)
    assert ids.tolist() == sorted(set(labels.ravel().tolist()) - {0})
    assert sums.shape == (len(ids), 1 + labels.ndim + len(values))
    for label, row in zip(ids, sums, strict=True):
        where = np.argwhere(labels == label)
        voxels = tuple(where.T)
        expected = [len(where), *(where + labels_lo).sum(axis=0), *(as_integers(a[voxels], None).sum() for a in values)]
        assert row.tolist() == expected


def test_errors():
    labels, values = np.ones((4, 4), np.uint32), np.ones((1, 4, 4), np.uint8)

    def call(labels=labels, values=values, values_lo=(0, 0), offsets=((0, 1),), scores=(0,), hi=(4, 4), **more):
        return edge_sums(labels, (0, 0), values, values_lo, offsets, scores, 1, (0, 0), hi, **more)

    assert [a.shape for a in call()] == [(0,), (0,), (0, 2)]
    assert [a.shape for a in call(scores=(-1,))] == [(0,), (0,), (0, 2)]
    for error, match, given_ in [
        (TypeError, "labels have dtype int64", {"labels": labels.astype(np.int64)}),
        (TypeError, "values have dtype complex128", {"values": values.astype(complex)}),
        (
            ValueError,
            "18446744073709551615 does not fit the int64",
            {"values": values.astype(np.uint64) * np.uint64(2**64 - 1)},
        ),
        (ValueError, "do not match", {"values": values[0]}),
        (ValueError, r"give offsets \(n, 2\)", {"offsets": ((0, 0, 1),)}),
        (ValueError, "1 channels of values, 2 offsets", {"offsets": ((0, 1), (1, 0))}),
        (ValueError, "scores", {"scores": (1,)}),
        (ValueError, r"values cover \[0 1\] to \[4 5\], pairs start in \[0 0\] to \[4 3\]", {"values_lo": (0, 1)}),
        (ValueError, "kind is 'outer'", {"kind": "outer"}),
        (ValueError, "no face at axis 2", {"kind": "face", "axis": 2}),
        (ValueError, "no face at axis 0, side 0", {"kind": "face", "side": 0}),
        (TypeError, r"table \(256,\) for int8", {"values": values.astype(np.int8), "table": np.zeros(256, np.int64)}),
        (TypeError, "table", {"table": np.zeros(255, np.int64)}),
        (TypeError, "float64 table", {"table": np.zeros(256)}),
    ]:
        with pytest.raises(error, match=match):
            call(**given_)
    with pytest.raises(ValueError, match="do not match"):
        node_sums(labels, (0, 0), [np.ones((4, 3))])
    with pytest.raises(ValueError, match="one to three"):
        node_sums(np.ones((1, 1, 1, 1), np.uint32), (0,) * 4)
