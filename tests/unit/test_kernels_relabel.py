from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from volara_expr.kernels import BadVoxel
from volara_expr.kernels.relabel import frozen, relabel

FEW = st.integers(0, 9) | st.integers(2**53 - 3, 2**53)


@st.composite
def cases(draw):
    dtype = draw(st.sampled_from([np.uint32, np.uint64]))
    elements = FEW if dtype == np.uint64 else st.integers(0, 9)
    labels = draw(hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, max_side=6), elements=elements))
    lut = draw(st.dictionaries(FEW, FEW))
    return labels, dict(sorted(lut.items()))


@given(cases(), st.sampled_from(["keep", "zero", "error"]))
@settings(deadline=None, max_examples=150)
def test_equals_a_dictionary(case, missing):
    labels, lut = case
    lost = {"keep": lambda k: k, "zero": lambda k: 0, "error": lambda k: None}[missing]
    expected = [0 if k == 0 else lut.get(k, lost(k)) for k in labels.ravel().tolist()]
    if None in expected:
        with pytest.raises(BadVoxel, match=f"label {labels.ravel()[expected.index(None)]} is not among") as caught:
            relabel(labels, list(lut), list(lut.values()), missing=missing)
        assert caught.value.voxel == tuple(np.unravel_index(expected.index(None), labels.shape))
    else:
        result = relabel(labels, list(lut), list(lut.values()), missing=missing)
        assert result.dtype == np.uint64
        np.testing.assert_array_equal(result, np.array(expected, np.uint64).reshape(labels.shape))


def test_more_labels_than_the_memo_holds():
    rng = np.random.default_rng(0)
    ids = np.unique(rng.integers(1, 2**63, 20_000, np.uint64))
    values = rng.integers(0, 2**63, ids.size, np.uint64)
    ids, values = np.append(np.uint64(0), ids), np.append(np.uint64(0), values)
    pick = rng.integers(0, ids.size, (40, 40, 40)) * rng.integers(0, 2, (40, 40, 40))  # half of them background
    np.testing.assert_array_equal(relabel(ids[pick], ids[1:], values[1:], missing="error"), values[pick])


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.int64])
@pytest.mark.parametrize("out_dtype", [np.uint8, np.int32, np.uint32, np.uint64])
def test_dtypes(dtype, out_dtype):
    labels = np.array([[0, 1, 1], [0, 0, 1]], dtype)[:, ::-1]
    result = relabel(labels, [1], [7], out_dtype=out_dtype)
    assert result.dtype == out_dtype
    np.testing.assert_array_equal(result, labels * np.uint8(7))


def test_what_does_not_fit_is_refused():
    labels = np.array([[0, 300]], np.uint32)
    with pytest.raises(BadVoxel, match="label 300 does not fit uint8, which ends at 255") as caught:
        relabel(labels, [1], [1], out_dtype=np.uint8)
    assert caught.value.voxel == (0, 1)
    with pytest.raises(ValueError, match="value 256 does not fit uint8"):
        relabel(labels, [300], [256], out_dtype=np.uint8)
    assert relabel(labels, [300], [255], out_dtype=np.uint8).tolist() == [[0, 255]]


@pytest.mark.parametrize(
    ("labels", "ids", "values", "error", "match"),
    [
        ([1], [2, 1], [1, 1], ValueError, "ascend"),
        ([1], [1, 1], [1, 1], ValueError, "ascend"),
        ([1], [1, 2], [1], ValueError, "one value for each id"),
        ([1], [-1], [1], ValueError, "ids hold -1"),
        ([1], [1], [1.5], TypeError, "values have dtype float64"),
        ([1.0], [1], [1], TypeError, "cannot relabel float64"),
        ([-4], [1], [1], BadVoxel, "label -4 is negative"),
    ],
)
def test_errors(labels, ids, values, error, match):
    with pytest.raises(error, match=match):
        relabel(np.array(labels), ids, values)
    with pytest.raises(ValueError, match="missing is 'drop'"):
        relabel(np.array([1]), [1], [1], missing="drop")


def test_frozen_never_locks_the_original():
    array = np.arange(6).reshape(2, 3)
    assert np.shares_memory(frozen(array), array)
    assert not frozen(array).flags.writeable
    assert array.flags.writeable
    assert frozen(array.T).flags.c_contiguous
