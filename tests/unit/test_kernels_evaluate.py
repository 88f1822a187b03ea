from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage import metrics

from volara_expr.kernels.evaluate import adapted_rand_error, contingency, variation_of_information


@st.composite
def pairs(draw):
    shape = draw(hnp.array_shapes(max_dims=3, max_side=6))
    return tuple(
        draw(hnp.arrays(dtype, shape, elements=st.integers(0, draw(st.integers(1, 5))))) for dtype in (np.uint64, np.uint32)
    )


@given(pairs(), st.lists(st.integers(0, 5), max_size=2))
@settings(deadline=None, max_examples=150)
def test_contingency_equals_a_counter(case, ignore):
    seg, truth = case
    expected = Counter((s, t) for s, t in zip(seg.ravel().tolist(), truth.ravel().tolist(), strict=True) if t not in ignore)
    s, t, n = contingency(seg, truth, ignore)
    assert (s.dtype, t.dtype, n.dtype) == (np.uint64, np.uint32, np.int64)
    assert list(zip(s.tolist(), t.tolist(), strict=True)) == sorted(expected)
    assert dict(zip(zip(s.tolist(), t.tolist(), strict=True), n.tolist(), strict=True)) == expected


@given(pairs())
@settings(deadline=None, max_examples=150)
def test_figures_equal_scikit_image(case):
    seg, truth = (a.astype(np.int64) for a in case)
    for ignore in [(), (0,)]:
        if not np.isin(truth, ignore, invert=True).any():
            with pytest.raises(ValueError, match="no voxel counts"):
                variation_of_information(seg, truth, ignore)
            continue
        split, merge = metrics.variation_of_information(truth, seg, ignore_labels=ignore)
        np.testing.assert_allclose(variation_of_information(seg, truth, ignore), (split, merge), atol=1e-12)
        with np.errstate(invalid="ignore", divide="ignore"):
            error, _, _ = metrics.adapted_rand_error(truth, seg, ignore_labels=ignore)
        if np.isnan(error):  # every voxel alone in both
            error = 0.0
        np.testing.assert_allclose(adapted_rand_error(seg, truth, ignore), error, atol=1e-12)


@given(pairs(), st.integers(0, 6))
@settings(deadline=None, max_examples=50)
def test_tables_of_parts_make_the_table_of_the_whole(case, cut):
    seg, truth = case
    parts = [contingency(seg[part], truth[part]) for part in (np.s_[:cut], np.s_[cut:])]
    s, t, n = (np.concatenate(column) for column in zip(*parts, strict=True))
    for a, b in zip(contingency(s, t, count=n), contingency(seg, truth), strict=True):
        np.testing.assert_array_equal(a, b)
    assert variation_of_information(s, t, count=n) == variation_of_information(seg, truth)
    assert adapted_rand_error(s, t, count=n) == adapted_rand_error(seg, truth)


def test_which_is_split_and_which_is_merge():
    one, two = np.zeros(8, int), np.repeat([0, 1], 4)
    assert variation_of_information(two, one) == (1.0, 0.0)
    assert variation_of_information(one, two) == (0.0, 1.0)
    assert adapted_rand_error(two, one) == adapted_rand_error(one, two) == pytest.approx(1 - 24 / (56 + 24) * 2)
    assert adapted_rand_error(two, two) == 0


def test_errors():
    with pytest.raises(ValueError, match=r"\[\(2,\), \(3,\), None\]; crop"):
        contingency(np.zeros(2, int), np.zeros(3, int))
    with pytest.raises(ValueError, match="no voxel counts"):
        adapted_rand_error(np.zeros(0, int), np.zeros(0, int))
