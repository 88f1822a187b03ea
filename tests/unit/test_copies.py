"""A source that is written as it is: the stage must read the source, not the array that it fills."""

from __future__ import annotations

import numpy as np
import pytest

import volara_expr as ve
from executors import Multiprocessing, Serial

VALUES = np.arange(1, 1001, dtype=np.uint16).reshape(10, 10, 10)


@pytest.mark.parametrize("executor", [Serial(), Multiprocessing(2)], ids=repr)
def test_sources_are_copied(tmp_path, executor):
    first = ve.from_numpy(VALUES).write(tmp_path / "first.zarr", executor=executor, progress=False)
    second = first.write(tmp_path / "second.zarr", executor=executor, progress=False)
    np.testing.assert_array_equal(first.compute(), VALUES)
    np.testing.assert_array_equal(second.compute(executor), VALUES)
    np.testing.assert_array_equal(ve.from_numpy(VALUES + 1).compute(executor), VALUES + 1)
