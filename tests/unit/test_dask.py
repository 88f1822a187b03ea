from __future__ import annotations

import pickle
import subprocess
import sys
from collections import Counter

import dask
import dask.array as da
import numpy as np
import pytest

import volara_expr as ve
from executors import Multiprocessing, Serial


@pytest.fixture
def volume():
    return np.random.default_rng(0).integers(0, 255, (20, 30, 40), np.uint8)


class Source:
    """What a Dask array is made of; counts the chunks that are asked for."""

    def __init__(self, data):
        self.data, self.shape, self.ndim, self.dtype = data, data.shape, data.ndim, data.dtype
        self.asked = Counter()

    def __getitem__(self, index):
        self.asked[tuple((s.start, s.stop) for s in index)] += 1
        return self.data[index]


def counted(a):
    """The array behind a function that notes the shape of each block that it is given."""
    seen = []

    def note(block):
        seen.append(block.shape)
        return block

    return a.map_blocks(note, dtype=a.dtype, name="note"), seen


def test_each_dask_chunk_evaluates_its_own_region(volume):
    a, seen = counted(ve.from_numpy(volume))
    d = (a + 1).to_dask(chunks=(10, 30, 20))
    assert d.numblocks == (2, 1, 2)
    assert not seen  # nothing is evaluated to learn what the array is
    with dask.config.set(scheduler="synchronous"):
        assert (d.blocks[1, 0, 0].compute() == volume[10:, :, :20] + 1).all()
        assert seen == [(10, 30, 20)]
        assert (d.compute() == volume + 1).all()
    assert seen == [(10, 30, 20)] * 5


def test_halos_come_from_beyond_the_chunk(volume):
    a = ve.from_numpy(volume).gaussian(2)
    assert (a.to_dask(chunks=(7, 11, 13)).compute() == a.compute()).all()


def test_a_dask_array_is_named_by_its_expression(volume):
    a = ve.from_numpy(volume) > 3
    d = a.to_dask()
    assert d.name == f"volara_expr-{a.key}"
    assert d.dtype == a.dtype
    assert isinstance(d._meta, np.ndarray)
    assert a.to_dask().name == d.name
    assert d.chunksize == (20, 30, 40)


def test_numpy_arrays_travel_with_the_dask_array(volume, tmp_path):
    (tmp_path / "d.pickle").write_bytes(pickle.dumps((ve.from_numpy(volume) + 1).to_dask(chunks=(10, 30, 40))))
    code = f"import pickle; print(int(pickle.load(open({str(tmp_path / 'd.pickle')!r}, 'rb')).astype('i8').sum().compute()))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(out) == (volume + 1).astype("i8").sum()


def test_from_dask_computes_the_chunks_that_a_block_touches(volume):
    source = Source(volume)
    a = ve.from_dask(da.from_array(source, chunks=(10, 10, 40), asarray=False, meta=np.empty((0, 0, 0), np.uint8)) + 1)
    assert not source.asked
    assert (a[:10, 5:15].compute() == volume[:10, 5:15] + 1).all()
    assert sum(source.asked.values()) == 2


@pytest.mark.parametrize("executor", [Serial(block=(16, 16, 16)), Multiprocessing(2)], ids=["serial", "processes"])
def test_from_dask_gives_the_same_in_any_process(volume, tmp_path, executor):
    shift = 3
    d = da.from_array(volume, chunks=(7, 11, 40)).map_blocks(lambda block: block // 2 + shift)
    a = ve.from_dask(d, voxel_size=(40, 4, 4), units="nm")
    out = a.gaussian(1).write(tmp_path / "out.zarr", chunks=(8, 8, 8), executor=executor, progress=False)
    assert out.voxel_size == (40, 4, 4)
    assert (out.compute() == ve.from_numpy(volume // 2 + 3, voxel_size=(40, 4, 4)).gaussian(1).compute()).all()


def test_from_dask_as_it_is(volume, tmp_path):
    a = ve.from_dask(da.from_array(volume, chunks=10))
    assert (a.compute() == volume).all()
    assert (a.preview(z=3) == volume[3:4]).all()
    assert (a.write(tmp_path / "out.zarr", progress=False).compute() == volume).all()


def test_identity_is_the_dask_token(volume):
    def make(step):
        return ve.from_dask(da.from_array(volume, chunks=10) + step)

    assert make(1).key == make(1).key != make(2).key
    random = da.random.default_rng().random((4, 4), chunks=2)
    again = da.random.default_rng().random((4, 4), chunks=2)
    assert ve.from_dask(random).key != ve.from_dask(again).key
    assert ve.from_dask(random, name="noise").key == ve.from_dask(again, name="noise").key


def test_what_cannot_be_a_source():
    x = da.arange(10, chunks=5)
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        ve.from_dask(x[x > 3])
    with pytest.raises(TypeError, match="Python objects"):
        ve.from_dask(da.from_array(np.array([None, 1]), chunks=1))
    with pytest.raises(ValueError, match="2 axes are named"):
        ve.from_dask(da.zeros((4, 4, 4)), axes=("y", "x"))


def test_there_and_back(volume):
    a = ve.from_numpy(volume)
    assert (ve.from_dask((a.to_dask(chunks=(10, 10, 10)) + 1)[5:]).compute() == volume[5:] + 1).all()
