from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from volara_expr.testing import volumes

SHAPE = (32, 80, 96)


@pytest.fixture(scope="module")
def sample():
    return volumes.cells(SHAPE, seed=3)


def test_cells_have_the_documented_types(sample):
    raw, truth = sample
    assert raw.shape == truth.shape == SHAPE
    assert raw.dtype == np.uint8
    assert truth.dtype == np.uint64


def test_equal_seeds_give_equal_volumes(sample):
    again = volumes.cells(SHAPE, seed=3)
    other = volumes.cells(SHAPE, seed=4)
    for first, same, different in zip(sample, again, other, strict=True):
        np.testing.assert_array_equal(first, same)
        assert (first != different).mean() > 0.05


def test_each_cell_is_one_piece_that_no_other_touches(sample):
    truth = sample[1]
    pieces, count = ndimage.label(truth > 0)
    assert count == truth.max() == np.unique(truth).size - 1
    assert np.unique(np.stack([pieces.ravel(), truth.ravel().astype(int)]), axis=1).shape[1] == count + 1
    sizes = np.bincount(truth.ravel().astype(int))[1:]
    assert sizes.min() >= 100
    assert sizes.max() > 8 * sizes.min()


def test_membranes_are_thin_dark_and_imperfect(sample):
    raw, truth = sample
    membrane = truth == 0
    assert 0.05 < membrane.mean() < 0.35
    assert raw[membrane].mean() < raw[~membrane].mean() - 25
    # Gaps and organelles: no grey value separates membrane from cytoplasm.
    assert np.percentile(raw[membrane], 98) > np.percentile(raw[~membrane], 10)


def test_organelles_darken_the_cytoplasm_and_leave_the_truth(sample):
    raw, truth = volumes.cells(SHAPE, seed=3, organelles=False)
    np.testing.assert_array_equal(truth, sample[1])
    assert raw[truth > 0].mean() > sample[0][truth > 0].mean() + 1


def test_slices_differ_in_brightness(sample):
    raw, truth = sample
    medians = np.array([np.median(section[cells > 0]) for section, cells in zip(raw, truth, strict=True)])
    assert np.abs(np.diff(medians)).mean() > 1


def test_cells3d_like_gives_cells_by_the_recipe_of_the_tutorial():
    stack = volumes.cells3d_like()
    assert stack.shape == (2, 60, 256, 256)
    assert stack.dtype == np.uint8
    membranes, nuclei = (ndimage.gaussian_filter(channel.astype(float), 1.0) for channel in stack)
    labels, count = ndimage.label((nuclei > 30) & (membranes < 10))
    sizes = np.bincount(labels.ravel())[1:]
    whole = np.count_nonzero(sizes > 2000)
    assert 15 <= whole <= 45
    assert count < 60
    assert (labels[30] > 0).mean() > 0.08
