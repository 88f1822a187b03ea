"""A preview is exact where arrays are concerned, and makes tables of the region's own cells."""

from __future__ import annotations

import os

import numpy as np
import pytest

import volara_expr as ve

OFFSETS = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 3, 0), (0, 0, 3)]


@pytest.fixture
def affs() -> ve.Array:
    rng = np.random.default_rng(1)
    return ve.from_numpy(
        rng.integers(0, 256, (5, 20, 40, 40), dtype=np.uint8), voxel_size=4, units="nm", neighborhood=OFFSETS
    ).normalize(0, 255)


def segmentation(affs: ve.Array) -> tuple[ve.Array, ve.Array]:
    frags = affs.watershed(bias=[-0.5] * 3 + [-0.7] * 2, block_size=(10, 16, 16), context=3)
    graph = frags.agglomerate(affs, scores={"direct": slice(0, 3), "long": slice(3, 5)})
    return frags, frags.relabel(graph.mutex_watershed({"direct": (1.0, -0.5), "long": (1.0, -0.6)}))


def test_preview_of_everything_is_the_result(affs: ve.Array) -> None:
    frags, seg = segmentation(affs)
    np.testing.assert_array_equal(seg.preview(), seg.compute())
    np.testing.assert_array_equal(frags.preview(z=slice(3, 9), x=-1), frags.compute()[3:9, :, -1:])


def test_preview_of_a_region_joins_what_lies_in_it(affs: ve.Array) -> None:
    frags, seg = segmentation(affs)
    region = {"z": slice(0, 10), "y": slice(0, 16), "x": slice(0, 32)}  # two whole cells
    shown, pieces = seg.preview(**region), frags.preview(**region)
    assert set(np.unique(shown)) <= set(np.unique(pieces))
    assert len(np.unique(shown)) < len(np.unique(pieces))


def test_preview_stores_nothing(affs: ve.Array, tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    segmentation(affs)[1].preview(z=5)
    assert os.listdir(".") == []


def test_a_wrong_region_is_an_error(affs: ve.Array) -> None:
    with pytest.raises(TypeError, match="no axis w; its axes are c, z, y, x"):
        affs.preview(w=3)
    with pytest.raises(IndexError, match="z=30 selects nothing of 20 voxels"):
        affs.preview(z=30)
