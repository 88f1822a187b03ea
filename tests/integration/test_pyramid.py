"""Pyramids: written with the image, means of images and most frequent labels, half-voxel positions right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import volara_expr as ve
from executors import Multiprocessing, Serial


@pytest.mark.parametrize("executor", [Serial(block=(64, 64, 64)), Multiprocessing(2)])
def test_levels_are_means(tmp_path: Path, executor: object) -> None:
    data = np.random.default_rng(0).integers(0, 255, (64, 80, 96), dtype=np.uint8)
    image = ve.from_numpy(data, voxel_size=(40, 4, 4), units="nm")
    image.write(tmp_path / "o.zarr/raw", levels=3, chunks=32, executor=executor, progress=False)
    expected = data
    for level in range(1, 3):
        sums = expected.reshape(*(m for n in expected.shape for m in (n // 2, 2))).astype(np.int64).sum(axis=(1, 3, 5))
        expected = ((2 * sums + 8) // 16).astype(np.uint8)
        made = ve.open(tmp_path / "o.zarr/raw", level=level)
        np.testing.assert_array_equal(made.compute(), expected)
        assert made.roi == image.roi


def test_levels_of_labels_are_labels(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 5, (8, 8, 8)).astype(np.uint64).repeat(3, 0).repeat(3, 1).repeat(3, 2)
    ve.from_numpy(labels, voxel_size=4, units="nm").write(tmp_path / "o.zarr/seg", levels=2, progress=False)
    coarse = ve.open(tmp_path / "o.zarr/seg", level=1).compute()
    assert set(np.unique(coarse)) <= set(np.unique(labels))


def test_another_image_replaces_all_levels(tmp_path: Path) -> None:
    image = ve.from_numpy(np.full((32, 32, 32), 7, np.uint8), voxel_size=4, units="nm")
    image.write(tmp_path / "o.zarr/raw", levels=2, progress=False)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        (image + 1).write(tmp_path / "o.zarr/raw", levels=2, progress=False)
    (image + 1).write(tmp_path / "o.zarr/raw", levels=2, overwrite=True, progress=False)
    assert ve.open(tmp_path / "o.zarr/raw", level=1).compute().min() == 8
