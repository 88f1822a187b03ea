"""Components, chosen labels, flooding and tables of labels: SciPy's and scikit-image's on the whole volume, for any grid."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import measure, morphology, segmentation

import volara_expr as ve
from executors import Serial
from volara_expr.ops.components import ComponentPairs
from volara_expr.ops.shape import with_faces
from volara_expr.testing.check import assert_blockwise_equal, evaluate

rng = np.random.default_rng(8)
sides = st.one_of(st.tuples(st.integers(1, 200)), st.tuples(*[st.integers(1, 90)] * 2), st.tuples(*[st.integers(1, 20)] * 3))


def cells(nd):
    return st.tuples(*[st.integers(2, 9)] * nd)


@given(st.data(), sides, st.sampled_from([0.3, 0.5, 0.7]))
@settings(max_examples=20, deadline=None)
def test_components_are_scipys(data, shape, density):
    x = rng.random(shape) < density
    connectivity = data.draw(st.integers(1, x.ndim))
    block = tuple(max(b, -(-n // 8)) for b, n in zip(data.draw(cells(x.ndim)), shape, strict=True))
    expected, _ = ndimage.label(x, ndimage.generate_binary_structure(x.ndim, connectivity))
    a = ve.from_numpy(x).components(connectivity, block_size=block)
    assert_blockwise_equal(a, expected.astype("u8"), seed=data.draw(st.integers(0, 99)))
    values = rng.integers(0, 3, shape)
    pieces = measure.label(values, background=0, connectivity=connectivity).astype("u8")
    assert_blockwise_equal(ve.from_numpy(values).components(connectivity, equal=True, block_size=block), pieces)


@given(st.data(), sides, st.integers(0, 30))
@settings(max_examples=20, deadline=None)
def test_small_labels_and_small_pieces_go(data, shape, min_size):
    x = rng.random(shape) < 0.4
    connectivity = data.draw(st.integers(1, x.ndim))
    labels, n = ndimage.label(x, ndimage.generate_binary_structure(x.ndim, connectivity))
    sizes = np.bincount(labels.ravel(), minlength=n + 1)
    kept = labels * (sizes >= min_size)[labels]
    assert_blockwise_equal(ve.from_numpy(labels).remove_small(min_size), kept)
    assert_blockwise_equal(ve.from_numpy(x).remove_small(min_size, connectivity), kept > 0)


@given(st.data(), sides, st.sampled_from([None, 3, 20]))
@settings(max_examples=20, deadline=None)
def test_holes_are_filled(data, shape, max_size):
    x = rng.random(shape) < 0.6
    connectivity = data.draw(st.integers(1, x.ndim))
    structure = ndimage.generate_binary_structure(x.ndim, connectivity)
    expected = ndimage.binary_fill_holes(x, structure)
    if max_size is not None:
        holes, n = ndimage.label(expected & ~x, structure)
        sizes = np.bincount(holes.ravel(), minlength=n + 1)
        expected = x | ((holes > 0) & (sizes <= max_size)[holes])
    assert_blockwise_equal(ve.from_numpy(x).fill_holes(max_size, connectivity), expected)


@given(st.data(), sides, st.sampled_from(["u1", "i2", "f4", "f8"]), st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_local_maxima_are_scikit_images(data, shape, dtype, levels):
    x = rng.integers(0, levels, shape).astype(dtype)
    connectivity = data.draw(st.one_of(st.none(), st.integers(1, x.ndim)))
    expected = morphology.local_maxima(x, connectivity=connectivity)
    assert_blockwise_equal(ve.from_numpy(x).local_maxima(connectivity), expected.astype(bool))


def test_channels_are_mapped_over():
    x = rng.random((3, 30, 40)) < 0.6
    a = ve.from_numpy(x, axes=("c", "y", "x"))
    assert_blockwise_equal(a.fill_holes(), np.stack([ndimage.binary_fill_holes(p) for p in x]))
    values = rng.integers(0, 9, x.shape)
    expected = np.stack([morphology.local_maxima(p) for p in values]).astype(bool)
    assert_blockwise_equal(ve.from_numpy(values, axes=("c", "y", "x")).local_maxima(), expected)


@given(st.data(), sides, st.sampled_from(["u1", "i4", "f4"]), st.sampled_from([2, 20, 2000]))
@settings(max_examples=30, deadline=None)
def test_one_flooded_block_is_scikit_images(data, shape, dtype, levels):
    image = rng.integers(0, min(levels, 255 if dtype == "u1" else levels), shape).astype(dtype)
    seeds = np.where(rng.random(shape) < 0.03, rng.integers(1, 99, shape), 0)
    mask = rng.random(shape) < 0.9
    connectivity = data.draw(st.integers(1, image.ndim))
    expected = segmentation.watershed(image, seeds, connectivity, mask=mask)
    a = ve.from_numpy(image).flood(seeds, mask, connectivity, block_size=max(shape), context=0)
    assert_blockwise_equal(a, expected.astype(seeds.dtype))


@given(st.data(), st.tuples(*[st.integers(6, 40)] * 2), st.integers(0, 6))
@settings(max_examples=20, deadline=None)
def test_flooded_blocks_depend_on_their_own_grid_alone(data, shape, context):
    image = rng.integers(0, 20, shape).astype("u1")
    seeds = np.where(rng.random(shape) < 0.05, rng.integers(1, 99, shape), 0)
    block = data.draw(cells(2))
    a = ve.from_numpy(image).flood(seeds, block_size=block, context=context)
    expected = np.zeros_like(seeds)
    for y in range(0, shape[0], block[0]):
        for x in range(0, shape[1], block[1]):
            lo = max(0, y - context), max(0, x - context)
            read = tuple(slice(s, p + b + context) for s, p, b in zip(lo, (y, x), block, strict=True))
            labels = evaluate(ve.from_numpy(image[read]).flood(seeds[read], block_size=99, context=0))
            inner = labels[y - lo[0] :, x - lo[1] :][: block[0], : block[1]]
            expected[y : y + block[0], x : x + block[1]] = inner
    assert_blockwise_equal(a, expected, seed=data.draw(st.integers(0, 99)))


def test_basins_within_reach_of_the_context_are_those_of_the_whole():
    centres = np.stack(np.meshgrid(np.arange(8, 96, 16), np.arange(8, 96, 16), indexing="ij"), -1).reshape(-1, 2)
    seeds = np.zeros((96, 96), np.int32)
    seeds[tuple(centres.T)] = np.arange(1, len(centres) + 1)
    image = ndimage.distance_transform_edt(seeds == 0) + rng.random(seeds.shape) * 0.01
    a = ve.from_numpy(image).flood(seeds, block_size=(40, 24), context=32)
    assert_blockwise_equal(a, segmentation.watershed(image, seeds))


SEEDS = np.where(rng.random((20, 21)) < 0.2, rng.integers(1, 99, (20, 21)), 0)
FLOOD = ve.from_numpy(rng.random((20, 21))).flood(SEEDS, block_size=5, context=3)


def test_a_context_one_voxel_short_is_caught(monkeypatch):
    whole = evaluate(FLOOD)
    monkeypatch.setattr(type(FLOOD.node), "_read", lambda self, b: b.grow((2,) * 2, (2,) * 2).clip(self.spec.box))
    with pytest.raises(AssertionError, match="voxels differ"):
        assert_blockwise_equal(FLOOD, whole)


@given(sides, st.sampled_from(["u1", "i4", "f4"]), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_tables_are_scikit_images(shape, dtype, seed):
    random = np.random.default_rng(seed)
    labels = np.where(random.random(shape) < 0.5, random.integers(1, 12, shape), 0)
    raw = (random.standard_normal(shape) * 40).astype(dtype)
    size = (40, 4, 2.5)[-labels.ndim :]
    seg = ve.from_numpy(labels, voxel_size=size, offset=(100,) * labels.ndim)
    table = seg.table({"raw": raw, "twice": ve.from_numpy(raw) * 2}).compute().to_pydict()
    found = {label: k for k, label in enumerate(table["label"])}
    assert list(found) == sorted(set(labels[labels > 0].tolist()))
    for label, k in found.items():
        at = np.argwhere(labels == label)
        values = raw[labels == label]
        assert table["size"][k] == len(at)
        for axis, name in enumerate(seg.axes):
            assert (table[f"{name}_lo"][k], table[f"{name}_hi"][k]) == (at[:, axis].min(), at[:, axis].max() + 1)
            np.testing.assert_allclose(table[name][k], (at[:, axis].mean() + 0.5) * size[axis] + 100, rtol=1e-12)
        assert (table["raw_min"][k], table["raw_max"][k]) == (values.min(), values.max())
        np.testing.assert_allclose(table["raw_mean"][k], values.mean(dtype="f8"), rtol=1e-6, atol=1e-6)
        assert table["twice_max"][k] == (values * values.dtype.type(2)).max()


def test_no_execution_grid_changes_a_table(tmp_path):
    labels = rng.integers(0, 40, (150, 140)).repeat(2, 1)
    raw = rng.standard_normal(labels.shape)
    seg = ve.from_numpy(labels)
    first = seg.table(raw).compute()
    assert first.column_names[:2] == ["label", "size"]
    assert first.column_names[-3:] == ["mean", "min", "max"]
    written = seg.table(raw).write(tmp_path / "out.zarr/cells", executor=Serial(block=(64, 128)), progress=False)
    assert pq.read_table(tmp_path / "out.cells.parquet") == first
    assert written.compute() == first
    assert "label, size" in repr(written)
    crop = seg[30:80, 10:20]
    assert crop.table().compute()["y_hi"].to_numpy().max() <= 50


def test_faces_one_voxel_thinner_are_caught(monkeypatch):
    x = rng.random((24, 25, 26)) < 0.12
    a = ve.from_numpy(x).components(3, block_size=6)
    whole = evaluate(a)

    def thin(self, cell):
        for i in range(3):
            if cell.hi[i] < self.labels.spec.box.hi[i]:
                yield i, with_faces(cell, i, cell.hi[i] - 1, cell.hi[i] + 1)

    monkeypatch.setattr(ComponentPairs, "_slabs", thin)
    with pytest.raises(AssertionError, match="voxels differ"):
        assert_blockwise_equal(a, whole)


def test_labels_run_through_time():
    labels = np.zeros((3, 4, 5), int)
    labels[1:, 2, 3] = 7
    table = ve.from_numpy(labels, axes=("t", "y", "x")).table().compute().to_pylist()
    assert table == [
        {"label": 7, "size": 2, "t_lo": 1, "t_hi": 3, "y_lo": 2, "y_hi": 3, "x_lo": 3, "x_hi": 4, "y": 2.5, "x": 3.5}
    ]


def test_tables_skip_what_a_mask_leaves_out():
    labels = np.array([[1, 1, 2, 2, 2]])
    raw = ve.from_numpy(np.array([[1, 2, 3, 4, 5]])).mask(np.array([[1, 0, 1, 1, 0]]))
    table = ve.from_numpy(labels).table(raw).compute().to_pydict()
    assert table["size"] == [1, 2]
    assert table["mean"] == [1.0, 3.5]


def test_refusals():
    a = ve.from_numpy(np.zeros((4, 5)))
    with pytest.raises(TypeError, match="name nothing"):
        a.table()
    with pytest.raises(ValueError, match=r"no voxels: shape \(0, 5\)"):
        (a[:0] > 0).components().table()
    with pytest.raises(TypeError, match="seeds of dtype float64"):
        a.flood(a)
    with pytest.raises(ValueError, match="the seeds"):
        a.flood(np.zeros((4, 6), int))
    with pytest.raises(TypeError, match="neither labels nor a mask"):
        a.remove_small(3)
    with pytest.raises(ValueError, match="connectivity is 3"):
        a.local_maxima(3)
    with pytest.raises(TypeError, match="what is inside"):
        a.fill_holes()
