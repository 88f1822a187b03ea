"""The mutex watershed against mwatershed on an edge list that is built here, voxel by voxel, from the stated rule."""

from __future__ import annotations

import itertools
import math
import pickle

import mwatershed
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from volara_expr.kernels import BadVoxel, mutex_watershed
from volara_expr.kernels.fragments import crop_components
from volara_expr.kernels.mutex_watershed import Workspace, fragments

M64 = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
STEP = (0xD1342543DE82EF95, 0xAF251AF3B0F025B5, GOLDEN)


def mix(h):
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9 & M64
    h = (h ^ (h >> 27)) * 0x94D049BB133111EB & M64
    return h ^ (h >> 31)


def voxel_hash(seed, purpose, c, absolute):
    h = mix((mix(seed & M64) + (2 * c + purpose) * GOLDEN) & M64)
    for x, step in zip(absolute[::-1], STEP[::-1], strict=False):
        h = (h + x * step) & M64
    return mix(h)


def edges_by_rule(
    affs, offsets, bias, strides=None, random_strides=False, noise=0.0, seed=0, table=None, origin=None, mask=None
):
    """(positive, u, v) in order, u and v being raster indices."""
    C, *shape = affs.shape
    strides = [[1] * len(shape)] * C if strides is None else strides
    origin = [0] * len(shape) if origin is None else origin
    classes = sorted({tuple(s) for s in strides}, key=lambda s: (math.prod(s) != 1, [tuple(t) for t in strides].index(s)))
    edges = []
    for c, v in itertools.product(range(C), np.ndindex(*shape)):
        to = tuple(int(a + b) for a, b in zip(v, offsets[c], strict=True))
        if any(not 0 <= a < n for a, n in zip(to, shape, strict=True)) or (mask is not None and not (mask[v] and mask[to])):
            continue
        absolute = [int(o + a) for o, a in zip(origin, v, strict=True)]
        if random_strides:
            if voxel_hash(seed, 1, c, absolute) > M64 // int(math.prod(strides[c])):
                continue
        elif any(a % s for a, s in zip(absolute, strides[c], strict=True)):
            continue
        x = float(affs[(c, *v)]) if table is None else float(table[affs[(c, *v)]])
        value = x + float(bias[c])
        if noise:
            h = voxel_hash(seed, 0, c, absolute)
            total = sum(h >> 16 * k & 0xFFFF for k in range(4))
            value += noise * ((total - 131070.0) * (3**0.5 / 65536))
        w = round(min(max(value, -2047.0), 2047.0) * 2**20)
        i, j = (int(np.ravel_multi_index(p, shape)) for p in (v, to))
        edges.append((-abs(w), classes.index(tuple(strides[c])), i, c, w > 0, j))
    edges.sort()
    return [(positive, i, j) for _, _, i, _, positive, j in edges]


def split(labels):
    """Connected components of equal label, numbered by first voxel."""
    found, dense = np.unique(labels, return_inverse=True)
    dense = dense.reshape(labels.shape) + (found[0] != 0)
    pieces, top = np.zeros(labels.shape, np.int64), 0
    for label, box in enumerate(ndimage.find_objects(dense), start=1):
        part, n = ndimage.label(dense[box] == label, np.ones((3,) * labels.ndim))
        pieces[box][part > 0] = part[part > 0] + top
        top += n
    found, first, inverse = np.unique(pieces, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(np.where(found == 0, -1, first))) + (0 not in found)
    return rank[inverse].reshape(labels.shape).astype(np.uint32)


def clusters_by_mwatershed(edges, shape):
    """Node 0 of mwatershed is a dummy, because it loses the cluster whose representative is 0."""
    labels = np.zeros(math.prod(shape), np.int64)
    for node, segment in mwatershed.cluster([(positive, i + 1, j + 1) for positive, i, j in edges]):
        labels[node - 1] = segment + 1
    positive = {n for p, i, j in edges if p for n in (i, j)}
    labels[[i for i in range(labels.size) if i not in positive]] = 0
    return labels.reshape(shape)


@st.composite
def blocks(draw):
    """Blocks of 30 to 250 voxels; a third of them has three levels only, so that merging and splitting edges tie."""
    nd = draw(st.sampled_from([2, 3]))
    shape = tuple(draw(st.permutations([5, 6, 15][-nd:] if draw(st.booleans()) else [1, 7, 5][:nd] if nd == 3 else [9, 9])))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    C = draw(st.sampled_from([1, 2, 3, 5, 9, 17]))
    offsets = rng.integers(-1, 2, (C, nd)) * rng.choice([1, 1, 3, 20], (C, 1), p=[0.4, 0.2, 0.35, 0.05])
    offsets[~offsets.any(1), 0] = rng.choice([-1, 1])
    dtype = np.dtype(draw(st.sampled_from(["u1", "u1", "u2", "i1", "i8", "f2", "f4", ">f4", "f8"])))
    top = draw(st.sampled_from([2, 11, 100]))
    affs = rng.integers(0, top + 1, (C, *shape)).astype(dtype)
    options = {"bias": -top * rng.choice([0.5, 0.5, 0.45, 0.6], C)}
    if dtype.kind == "f":
        affs, options["bias"] = affs / dtype.type(top), options["bias"] / top
    elif dtype.kind == "u" and draw(st.booleans()):
        options |= {"table": rng.permutation(256**dtype.itemsize) % (top + 1) / top, "bias": options["bias"] / top}
    if draw(st.booleans()):
        options["strides"] = rng.choice([[2] * nd, [1] * nd, [1, 3, 2][:nd]], C)
        options["random_strides"] = draw(st.booleans())
        options["origin"] = rng.integers(-9, 9, nd)
    if draw(st.booleans()):
        options["noise"] = draw(st.sampled_from([0.0, 0.1]))
    if draw(st.booleans()):
        options["mask"] = rng.random(shape) < 0.8
    return affs, offsets, {**options, "seed": draw(st.integers(-(2**70), 2**70))}


SHARED = Workspace()


@settings(max_examples=300, deadline=None)
@given(blocks())
def test_equals_mwatershed_on_the_same_edges(block):
    affs, offsets, options = block
    truth = split(clusters_by_mwatershed(edges_by_rule(affs, offsets, **options), affs.shape[1:]))
    labels, n = fragments(affs, offsets, workspace=SHARED, **options)
    np.testing.assert_array_equal(labels, truth)
    assert labels.dtype == np.uint32
    assert n == truth.max()


def noisy_block(shape, levels=256, seed=0):
    """uint8 affinities that merge about as readily as they split, so that clusters grow and hold many mutexes."""
    rng = np.random.default_rng(seed)
    affs = ndimage.gaussian_filter(rng.random((6, *shape)), (0, 1, 1, 1))
    affs = (affs - affs.min()) / np.ptp(affs)
    offsets = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (3, 0, 0), (0, -3, 0), (0, 0, 3)]
    return (affs * (levels - 1)).astype(np.uint8) * (255 // (levels - 1)), offsets, {"bias": [-0.42] * 3 + [-0.5] * 3}


@pytest.fixture(scope="module")
def large():
    affs, offsets, options = noisy_block((34, 35, 36))
    options["table"] = np.arange(256) / 255
    return affs, offsets, options, clusters_by_mwatershed(edges_by_rule(affs, offsets, **options), affs.shape[1:])


def test_grown_tables_equal_mwatershed(large):
    affs, offsets, options, truth = large
    workspace = Workspace()
    for turn in ("at first", "with what the block before left"):
        labels, n = fragments(affs, offsets, workspace=workspace, **options)
        np.testing.assert_array_equal(labels, split(truth), err_msg=turn)
        assert 50 < n < affs[0].size / 4
        assert workspace.held("spare table"), "the table did not grow, so this proves nothing"
        assert workspace.held("mutexes") > 2 << 16, "the lists of mutexes did not grow, so this proves nothing"


@pytest.mark.parametrize("as_float", [False, True])
def test_64_bit_codes_equal_32_bit_codes(large, monkeypatch, as_float):
    affs, offsets, options, _ = large
    if as_float:
        affs, options = options["table"][affs], {"bias": options["bias"]}
    options = {**options, "mask": np.arange(affs[0].size).reshape(affs[0].shape) % 97 != 0}
    narrow, _ = fragments(affs, offsets, **options)
    monkeypatch.setattr(mutex_watershed, "U32_CODES", 0)
    wide, _ = fragments(affs, offsets, **options)
    np.testing.assert_array_equal(wide, narrow)


def test_crop_splits_into_connected_components(large):
    affs, offsets, options, truth = large
    crop = (slice(3, 30), slice(17, 18), slice(-30, None))
    labels, n = fragments(affs, offsets, crop=crop, **options)
    np.testing.assert_array_equal(labels, split(truth[crop]))
    assert n > len(np.unique(truth[crop])), "the crop cuts no fragment, so this proves nothing"
    two, _ = fragments(affs, offsets, crop=(slice(2, 30), slice(4, 30), slice(3, 32)), **options)
    np.testing.assert_array_equal(two, split(truth[2:30, 4:30, 3:32]))


@settings(max_examples=100, deadline=None)
@given(st.tuples(*[st.integers(1, 9)] * 3), st.integers(0, 2**32), st.sampled_from([0.3, 0.7, 0.95]))
def test_crops_are_split_as_scipy_splits_them(shape, seed, alike):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, shape, dtype=np.uint32)
    labels[rng.random(shape) < alike] = rng.integers(0, 2)  # runs, and pieces that touch at edges and corners alone
    low = np.array([rng.integers(0, n) for n in shape])
    high = [int(rng.integers(a, n)) + 1 for a, n in zip(low, shape, strict=True)]
    crop = labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    out = np.full(crop.shape, 99, np.uint32)
    start, parent = np.empty(crop.size + 1, np.uint32), np.empty(crop.size, np.uint32)
    n = crop_components(labels, low, np.empty(crop.shape[0] * crop.shape[1] + 1, np.int64), start, parent, out)
    np.testing.assert_array_equal(out, split(crop))
    assert n == out.max()


def test_filters_use_the_whole_block(large):
    affs, offsets, options, truth = large
    _, dense = np.unique(truth, return_inverse=True)
    size = np.bincount(dense.ravel())
    direct = options["table"][affs[:3]]
    other = np.random.default_rng(1).integers(0, 100, (3, *truth.shape)).astype(np.uint8)
    index = np.arange(len(size))
    means = [ndimage.mean(np.mean(a, axis=0), dense.reshape(truth.shape), index) for a in (direct, other)]
    extent = np.array([[s.stop - s.start for s in box] for box in ndimage.find_objects(dense.reshape(truth.shape) + 1)])
    crop = (slice(5, 30), slice(5, 30), slice(5, 30))
    keeps = [
        ({"min_size": 40}, size >= 40),
        ({"min_mean_affinity": 0.4321}, means[0] >= 0.4321),
        ({"min_mean_affinity": 49.4321, "mean_affs": other}, means[1] >= 49.4321),
        ({"min_extent": (2, 3, 4)}, (extent >= (2, 3, 4)).all(axis=1)),
        ({"min_size": 9, "min_extent": (3, 1, 1)}, (size >= 9) & (extent[:, 0] >= 3)),
    ]
    for filters, keep in keeps:
        kept = np.where(keep[dense.reshape(truth.shape)], truth, 0)
        assert 0 < (kept > 0).sum() < (truth > 0).sum()
        labels, n = fragments(affs, offsets, crop=crop, **filters, **options)
        np.testing.assert_array_equal(labels, split(kept[crop]))
        assert n == labels.max()


@pytest.mark.parametrize("options", [{"noise": 0.3}, {"strides": [(1, 3)]}, {"strides": [(1, 3)], "random_strides": True}])
def test_a_block_has_the_edges_that_the_volume_has(options):
    affs = np.full((1, 20, 50), 0.6, np.float32)
    volume, _ = fragments(affs, [(0, 1)], bias=[-0.5], origin=(-7, 1000), **options)
    box = (slice(4, 17), slice(11, 43))
    block, _ = fragments(affs[:, *box], [(0, 1)], bias=[-0.5], origin=(-3, 1011), **options)
    # Rows are chains, whose edges act on their own; a run that ends at the box's border may lose its only positive edge.
    inner = block[:, 1:-1]
    same = (volume[box][:, 1:-2] == volume[box][:, 2:-1]) & (volume[box][:, 1:-2] > 0)
    np.testing.assert_array_equal((inner[:, :-1] == inner[:, 1:]) & (inner[:, :-1] > 0), same)
    assert 0.1 < same.mean() < 0.9


def test_noise_is_nearly_normal_and_depends_on_the_seed():
    grid = [np.arange(-20, 20), np.arange(40), np.arange(40)]
    draws = [mutex_watershed._normal(mutex_watershed._salts(s, 0, 2)[c], grid).ravel() for s, c in ((0, 0), (1, 0), (0, 1))]
    for draw in draws:
        assert abs(draw.mean()) < 0.02
        assert abs(draw.std() - 1) < 0.02
        assert np.abs(draw).max() < 3.5
        assert abs(np.corrcoef(draw[1:], draw[:-1])[0, 1]) < 0.02
    assert np.abs(np.corrcoef(draws) - np.eye(3)).max() < 0.02


def test_no_cluster_is_lost_and_lone_voxels_need_a_positive_edge():
    labels, n = fragments(np.array([[[0.9, 0.1, 0.1, 0.0]]]), [(0, 1)], bias=[-0.5])
    assert labels.tolist() == [[1, 1, 0, 0]]
    assert n == 1
    # Voxel 2 has a positive edge to voxel 1, which the stronger mutex between 0 and 2 refuses: a fragment of one voxel.
    labels, _ = fragments(np.array([[[0.9, 0.7, 0.1]], [[0.0, 0.0, 0.0]]]), [(0, 1), (0, 2)], bias=[-0.5, -0.3])
    assert labels.tolist() == [[1, 1, 2]]


def test_layouts_give_the_same_labels():
    affs, offsets, options = noisy_block((9, 10, 11), levels=6)
    truth, _ = fragments(affs, offsets, **options)
    frozen = affs.copy()
    frozen.flags.writeable = False
    mirrored = np.ascontiguousarray(affs[..., ::-1])[..., ::-1]
    for a in (frozen, mirrored, np.asfortranarray(affs), affs.astype(">i4"), affs.astype(float)):
        np.testing.assert_array_equal(fragments(a, offsets, **options)[0], truth)


def test_a_workspace_does_not_carry_anything_over():
    workspace = Workspace()
    for seed, shape in enumerate([(12, 12, 12), (3, 4, 5), (12, 13, 12)]):
        affs, offsets, options = noisy_block(shape, seed=seed)
        for a in (affs, affs / np.float32(255)):
            first, _ = fragments(a, offsets, workspace=workspace, **options)
            copy = first.copy()
            fragments(a[:, ::-1], offsets, workspace=workspace, **options)
            np.testing.assert_array_equal(first, copy)
            np.testing.assert_array_equal(first, fragments(a, offsets, **options)[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("space", [(6, 7), (4, 5, 6)])
def test_a_voxel_without_a_weight_is_named(value, space):
    nd = len(space)
    affs = np.full((nd, *space), 0.7, np.float32)
    offsets = np.eye(nd, dtype=int)
    at = (1, *(2, 3, 2)[:nd])
    affs[at] = value
    with pytest.raises(BadVoxel, match=f"channel 1 is {value}") as caught:
        fragments(affs, offsets, bias=[-0.5] * nd)
    assert caught.value.voxel == at
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.voxel) == (str(caught.value), at)
    mask = np.ones(space, bool)
    mask[at[1:]] = False
    labels, n = fragments(affs, offsets, bias=[-0.5] * nd, mask=mask)
    assert (n, labels[at[1:]]) == (1, 0)
    assert fragments(affs, offsets, bias=[-0.5] * nd, strides=[[1] * nd, [5] * nd, [1] * nd][:nd])[1] > 0


def test_a_table_entry_without_a_value_is_named_only_if_an_edge_has_it():
    table = np.r_[np.arange(255) / 254, np.nan]
    affs = np.full((1, 4, 4), 200, np.uint8)
    assert fragments(affs, [(0, 1)], bias=[-0.5], table=table)[1] == 4
    affs[0, 2, 1] = 255
    with pytest.raises(BadVoxel, match="nan") as caught:
        fragments(affs, [(0, 1)], bias=[-0.5], table=table)
    assert caught.value.voxel == (0, 2, 1)


def test_a_mean_over_nan_is_refused():
    affs = np.full((2, 4, 4), 0.9)
    affs[0, 3, 2] = np.nan  # bears no edge
    with pytest.raises(BadVoxel, match="min_mean_affinity") as caught:
        fragments(affs, [(1, 0), (0, 1)], bias=[-0.5] * 2, min_mean_affinity=0.5)
    assert caught.value.voxel == (0, 3, 2)


def test_a_mean_may_be_negative_and_takes_the_channels_there_are():
    affs = np.array([[[0.4, -0.2, -0.4, -0.5]]])
    assert fragments(affs, [(0, 1)], bias=[0.3], min_mean_affinity=-0.1)[0].tolist() == [[1, 1, 1, 0]]
    assert fragments(affs, [(0, 1)], bias=[0.3], min_mean_affinity=-0.05)[1] == 0


def test_huge_values_are_clipped():
    affs = np.array([[[1e300, -1e300, 5000.0, 0.0]]])
    assert fragments(affs, [(0, 1)], bias=[-0.5])[0].tolist() == [[1, 1, 2, 2]]


GOOD = {"affs": np.zeros((1, 3, 3), np.uint8), "offsets": [(0, 1)], "bias": [-0.5]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"affs": np.zeros((1, 3), np.uint8)}, "2-D or 3-D"),
        ({"affs": np.zeros((1, 3, 3), bool)}, "bool"),
        ({"affs": np.broadcast_to(np.uint8(0), (1, 2**16, 2**15))}, str(2**31)),
        ({"offsets": [(0, 1), (1, 0)]}, r"shape \(1, 2\)"),
        ({"offsets": [(0.0, 1.0)]}, "float64"),
        ({"offsets": [(0, 0)]}, "offset 0 is zero"),
        ({"bias": [-0.5, -0.5]}, "bias must be 1"),
        ({"bias": [np.nan]}, "nan"),
        ({"strides": [(0, 1)]}, "at least 1; got 0"),
        ({"origin": (1, 2, 3)}, r"origin .* \(2,\)"),
        ({"table": np.zeros(255)}, r"\(255,\)"),
        ({"table": np.zeros(256), "affs": np.zeros((1, 3, 3))}, "float64 affs"),
        ({"mask": np.ones((3, 4))}, r"mask has space \(3, 4\)"),
        ({"crop": (slice(0, 3, 2), slice(0, 3))}, "steps of 1"),
        ({"crop": (slice(0, 3),)}, "crop has 1"),
        ({"min_extent": (1, 2, 3)}, "min_extent"),
        ({"mean_affs": np.ones((2, 3, 4))}, r"mean_affs has space \(3, 4\)"),
        ({"noise": -1.0}, "noise"),
        ({"affs": np.zeros((0, 3, 3))}, r"\(0, 3, 3\)"),
    ],
)
def test_mistakes_are_named(change, message):
    arguments = {**GOOD, **change}
    with pytest.raises(ValueError, match=message):
        fragments(arguments.pop("affs"), arguments.pop("offsets"), **arguments)


def test_empty_results():
    labels, n = fragments(GOOD["affs"], [(0, 1)], bias=[-0.5], crop=(slice(2, 2), slice(0, 3)))
    assert (labels.shape, n) == ((0, 3), 0)
    labels, n = fragments(np.full((1, 3, 3), 9, np.uint8), [(0, 5)], bias=[0.0])
    assert (labels.any(), n) == (False, 0)
    labels, n = fragments(np.full((1, 3, 3), 9, np.uint8), [(0, 1)], bias=[0.0], mask=np.zeros((3, 3)), min_extent=(2, 2))
    assert (labels.any(), n) == (False, 0)
