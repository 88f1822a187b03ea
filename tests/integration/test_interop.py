"""Arrays inside NumPy, xarray, dask and napari: lazy until somebody asks for values, and then no block too many."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys

import numpy as np
import pytest

import volara_expr as ve
from volara_expr.ops.functions import MapBlocks

DATA = np.random.default_rng(0).integers(0, 256, (8, 12, 10), dtype=np.uint8)


@pytest.fixture
def blocks():
    """Shapes of the blocks that were evaluated."""
    return []


@pytest.fixture
def lazy(blocks, monkeypatch):
    def spy(self, kernel, out, patches, tables):
        blocks.append(out.shape)
        return apply(self, kernel, out, patches, tables)

    apply = MapBlocks.apply
    monkeypatch.setattr(MapBlocks, "apply", spy)
    return ve.from_numpy(DATA, voxel_size=(40, 4, 4), units="nm").map_blocks(np.copy)


NUMPY = {
    "all": lambda np_, a: np_.all(a, axis=0),
    "any": lambda np_, a: np_.any(a, axis=0),
    "amax": lambda np_, a: np_.amax(a, axis=1),
    "amin": lambda np_, a: np_.amin(a, axis=1),
    "argmax": lambda np_, a: np_.argmax(a, axis=0),
    "argmin": lambda np_, a: np_.argmin(a, axis=-1),
    "around": lambda np_, a: np_.around(a / 7),
    "clip": lambda np_, a: np_.clip(a, 10, 100),
    "concatenate": lambda np_, a: np_.concatenate([a, a], axis=1),
    "count_nonzero": lambda np_, a: np_.count_nonzero(a > 99, axis=0),
    "expand_dims": lambda np_, a: np_.expand_dims(a, 1),
    "flip": lambda np_, a: np_.flip(a, 0),
    "fliplr": lambda np_, a: np_.fliplr(a),
    "flipud": lambda np_, a: np_.flipud(a),
    "imag": lambda np_, a: np_.imag(a.astype(complex) * 1j),
    "max": lambda np_, a: np_.max(a, axis=(0, 2)),
    "mean": lambda np_, a: np_.mean(a, axis=0),
    "min": lambda np_, a: np_.min(a, axis=0, keepdims=True),
    "moveaxis": lambda np_, a: np_.moveaxis(a, [0, -1], [1, 0]),
    "pad": lambda np_, a: np_.pad(a, ((1, 2), (0, 0), (3, 0)), mode="reflect"),
    "ptp": lambda np_, a: np_.ptp(a, axis=0),
    "real": lambda np_, a: np_.real(a.astype(complex) + 2j),
    "round": lambda np_, a: np_.round(a / 7),
    "squeeze": lambda np_, a: np_.squeeze(a[:, :1]),
    "stack": lambda np_, a: np_.stack([a, a]),
    "sum": lambda np_, a: np_.sum(a, axis=0),
    "swapaxes": lambda np_, a: np_.swapaxes(a, 0, -1),
    "take": lambda np_, a: np_.take(a, [3, 1], axis=1),
    "transpose": lambda np_, a: np_.transpose(a, (2, 0, 1)),
    "ufunc": lambda np_, a: np_.float32(2) * np_.hypot(a, np_.float32(3)) + DATA,
    "where": lambda np_, a: np_.where(a > 99, a, 0),
}


@pytest.mark.parametrize("name", NUMPY)
def test_functions_of_numpy_stay_lazy_and_agree(name, lazy, blocks):
    result = NUMPY[name](np, lazy)
    assert isinstance(result, ve.Array)
    assert blocks == []
    expected = NUMPY[name](np, DATA)
    computed = result.compute()
    assert computed.dtype == expected.dtype
    np.testing.assert_array_equal(computed, expected)


def test_functions_of_numpy_on_metadata(lazy, blocks):
    assert np.shape(lazy) == (8, 12, 10)
    assert (np.ndim(lazy), np.size(lazy), np.size(lazy, 1)) == (3, 960, 12)
    assert np.result_type(lazy, np.int8) == np.int16
    assert np.can_cast(lazy, np.uint16)
    assert not np.iscomplexobj(lazy)
    assert blocks == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: np.reshape(a, -1), "numpy.reshape has no lazy form; compute.. the array first, or use downsample"),
        (lambda a: np.nanmean(a), "skipna=False"),
        (lambda a: np.linalg.norm(a), "numpy.linalg.norm has no lazy form"),
        (lambda a: np.round(a, 2), "2 decimals"),
        (lambda a: np.take(a, [1]), "give axis="),
        (lambda a: np.pad(np.stack([a, a]), 1), None),
        (lambda a: np.add.reduce(a), "use sum, max"),
        (lambda a: bool(a), "& | ~"),
        (lambda a: list(a), "not iterated"),
        (lambda a: 3 in a, r"\(a == 3\).any\(\).compute\(\)"),
        (lambda a: float(a[0, 0, 0]), "compute"),
        (lambda a: int(a[0, 0, 0]), "compute"),
        (lambda a: [0, 1][a[0, 0, 0]], "compute"),
    ],
)
def test_what_would_compute_unawares_is_refused(call, message, lazy, blocks):
    error = ValueError if message is None else TypeError
    with pytest.raises(error, match=message or "only space axes"):
        call(lazy)
    assert blocks == []


def test_asarray_computes_and_shares_nothing(lazy, blocks):
    np.testing.assert_array_equal(np.asarray(lazy, dtype=np.float32), DATA.astype(np.float32))
    assert blocks
    with pytest.raises(ValueError, match="no memory to share"):
        np.asarray(lazy, copy=False)


def test_empty_slices_evaluate_nothing_not_even_global_stages(lazy, blocks):
    labels = (lazy > 99).components()
    for empty in (lazy[0:0], lazy[:, 3:3, :], labels[0:0, 0:0]):
        result = empty.compute()
        assert (result.shape, result.dtype) == (empty.shape, empty.dtype)
    assert blocks == []


def test_no_array_namespace():
    # The array API standard promises reshape, sort and arrays of unknown size; claiming it would be untrue.
    assert not hasattr(ve.from_numpy(DATA), "__array_namespace__")


def test_pickles_carry_the_data():
    expression = ve.from_numpy(DATA.copy(), voxel_size=4, units="nm").gaussian(1) + 1
    expected, key = expression.compute(), expression.key
    text = pickle.dumps(expression)
    del expression
    gc.collect()
    again = pickle.loads(text)
    assert again.key == key
    np.testing.assert_array_equal(again.compute(), expected)


def test_graphs_and_luts_pickle_too():
    affs = ve.from_numpy(np.array([[[0.9, 0.2, 0.8, 0.0]]]), axes=("c", "y", "x"), neighborhood=[(0, 1)])
    graph = affs.watershed(bias=-0.5, block_size=8).agglomerate(affs, scores={"direct": slice(0, 1)})
    lut = graph.mutex_watershed({"direct": (1.0, -0.1)})
    assert pickle.loads(pickle.dumps(graph)).node is graph.node
    assert pickle.loads(pickle.dumps(lut)).compute() == lut.compute() == {129: 129, 130: 129}


def test_copies_are_the_same_and_hash_by_identity_of_the_expression(lazy):
    assert copy.copy(lazy) is lazy
    assert copy.deepcopy([lazy])[0] is lazy
    assert hash(lazy + 1) == hash(lazy + 1) != hash(lazy + 2)


XARRAY = {
    "isel": lambda x: x.isel(z=3),
    "slice": lambda x: x[2:5, :, ::2],
    "list": lambda x: x.isel(z=[1, 3]),
    "add": lambda x: x + 1,
    "ufunc": lambda x: np.sqrt(x),
    "compare": lambda x: x > 3,
    "where": lambda x: x.where(x > 99, 0),
    "clip": lambda x: x.clip(3, 99),
    "mean": lambda x: x.mean("z"),
    "float mean": lambda x: x.astype("f4").mean("z", skipna=False),
    "max": lambda x: x.max(["y", "x"]),
    "argmax": lambda x: x.argmax("z"),
    "transpose": lambda x: x.transpose("x", "y", "z"),
    "concat": lambda x: x[:3].pipe(lambda y: __import__("xarray").concat([y, y], "z")),
    "shift": lambda x: x.pad(z=(1, 2), constant_values=0),
    "broadcast": lambda x: x * x.isel(z=0),
}


@pytest.mark.parametrize("name", XARRAY)
def test_xarray_stays_lazy_and_agrees(name, lazy, blocks):
    xr = pytest.importorskip("xarray")
    result = XARRAY[name](xr.DataArray(lazy, dims=lazy.axes))
    assert isinstance(result.data, ve.Array)
    assert repr(result)
    assert result._repr_html_()
    assert blocks == []
    np.testing.assert_array_equal(result.values, XARRAY[name](xr.DataArray(DATA, dims=lazy.axes)).values)
    assert blocks


def test_xarray_computes_only_what_is_selected(lazy, blocks):
    xr = pytest.importorskip("xarray")
    x = xr.Dataset({"raw": (lazy.axes, lazy)}, coords={"z": np.arange(8) * 40})
    np.testing.assert_array_equal(x["raw"].sel(z=slice(80, 120)).load(), DATA[2:4])
    assert blocks == [(2, 12, 10)]


def test_dask_evaluates_one_block_a_chunk(lazy, blocks):
    da = pytest.importorskip("dask.array")
    chunked = da.from_array(lazy, chunks=(4, 12, 10), name=lazy.key, meta=DATA[:0])
    assert blocks == []
    total = (
        chunked.map_blocks(np.asarray)[:, :5].astype(int) + 1
    ).sum()  # dask itself keeps any array that knows NumPy's protocols
    assert blocks == []
    assert total.compute(scheduler="sync") == (DATA[:, :5].astype(int) + 1).sum()
    assert sorted(blocks) in ([(4, 5, 10)] * 2, [(4, 12, 10)] * 2)  # whether dask slices its source or what came of it


@pytest.mark.filterwarnings("ignore")  # of napari's own dependencies, when it is imported
def test_napari_evaluates_single_slices(lazy, blocks):
    layers = pytest.importorskip("napari.layers")
    image = layers.Image(lazy, contrast_limits=(0, 255), multiscale=False)
    labels = layers.Labels((lazy > 99).astype(np.uint64), multiscale=False)
    assert image.data is lazy
    made = layers.Layer.create(*lazy.to_napari())
    assert (made.name, tuple(made.scale), tuple(made.translate)) == ("lazy", (40, 4, 4), (20, 2, 2))
    assert isinstance(labels.data, ve.Array)
    assert blocks
    assert set(blocks) == {(1, 12, 10)}


def test_config_is_the_object_whatever_was_imported_first():
    code = "import volara_expr as ve, numpy as np; ve.from_numpy(np.zeros(3)).plan(); print(ve.config.preview_bytes)"
    assert int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) > 0
