from __future__ import annotations

import functools
import json
import shutil
import threading
from collections.abc import Iterator
from fractions import Fraction
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr_models
import pytest
import tensorstore as ts
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from volara_expr import store
from volara_expr.geometry import Axis, Box, Space

NM = "nanometer"
FORMATS = ["ome-zarr", "ome-zarr-0.4", "zarr", "zarr2"]


def space(voxel_size: tuple[Any, ...], origin: tuple[Any, ...] | None = None, lead: str = "") -> Space:
    """z, y, x in nm behind leading axes "t" and "c"."""
    n = len(voxel_size)
    kinds = {"t": "time", "c": "channel"}
    axes = tuple(Axis(a, kinds[a]) for a in lead) + tuple(Axis(a, "space", NM) for a in "zyx"[3 - n :])
    ones, zeros = (Fraction(1),) * len(lead), (Fraction(0),) * len(lead)
    return Space(axes, ones + tuple(map(Fraction, voxel_size)), zeros + tuple(map(Fraction, origin or (0,) * n)))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    ("shape", "of"),
    [
        ((9, 8), space(("0.406", "0.1"), ("-1.5", 7))),
        ((5, 9, 8), space((40, 4, "3.24"), ("0.5", 0, -8))),
        ((3, 5, 9, 8), space((40, 4, 4), lead="c")),
        ((2, 3, 5, 9, 8), space((40, 4, 4), lead="tc")),
    ],
    ids=["2d", "3d", "4d", "5d"],
)
def test_every_format_round_trips(tmp_path: Path, format: Any, shape: tuple[int, ...], of: Space):
    url = tmp_path / "a.zarr" / "deep" / "seg"
    chunks = tuple(min(n, 4) for n in shape)
    info = store.create_array(url, shape=shape, dtype="uint64", chunks=chunks, space=of, format=format, fill=3)
    data = np.arange(np.prod(shape), dtype=np.uint64).reshape(shape) + np.uint64(2**63)
    with store.Arrays() as arrays:
        arrays.write(url, info.box, data).result()
        got = arrays.read(info, info.box).result()
    np.testing.assert_array_equal(got, data)
    np.testing.assert_array_equal(zarr.open_array(info.url, mode="r")[:], data)
    again = store.open_array(url)
    assert again == info
    assert (again.space, again.shape, again.dtype, again.chunks) == (of, shape, np.dtype("uint64"), chunks)
    assert again.driver == ("zarr3" if format in ("ome-zarr", "zarr") else "zarr")
    if format.startswith("ome"):
        group = zarr.open_group(tmp_path / "a.zarr" / "deep" / "seg", mode="r")
        model = ome_zarr_models.open_ome_zarr(group)
        assert model.ome_zarr_version == ("0.5" if format == "ome-zarr" else "0.4")
        assert store.open_array(info.url) == info  # by the url of the level


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.decimals("0.001", "1000", places=3), min_size=3, max_size=3),
    origins=st.lists(st.decimals("-1e6", "1e6", places=2), min_size=3, max_size=3),
    lo=st.lists(st.integers(-1000, 1000), min_size=3, max_size=3),
    factors=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    format=st.sampled_from(["ome-zarr", "ome-zarr-0.4"]),
)
def test_positions_of_all_levels_are_exact(tmp_path_factory: Any, sizes: Any, origins: Any, lo: Any, factors: Any, format: Any):
    of = space(tuple(sizes), tuple(origins))
    url = tmp_path_factory.mktemp("levels") / "a.zarr"
    store.create_array(
        url, shape=(9, 9, 9), dtype="u1", chunks=(4, 4, 4), space=of, lo=lo, levels=3, level_factors=factors, format=format
    )
    corner = tuple(o + n * s for o, n, s in zip(of.origin, lo, of.voxel_size, strict=True))
    for level in range(3):
        info = store.open_array(url, level)
        assert info.space.origin == corner
        assert info.space.voxel_size == tuple(s * f**level for s, f in zip(of.voxel_size, factors, strict=True))
        assert info.shape == store.level_shapes((9, 9, 9), of, 3, factors)[level]
    metadata = zarr.open_group(url, mode="r").attrs.asdict()
    datasets = metadata.get("ome", metadata)["multiscales"][0]["datasets"]
    shift = datasets[1]["coordinateTransformations"][1]["translation"]
    expected = [float(c + s * (f - 1) / 2) for c, s, f in zip(corner, of.voxel_size, factors, strict=True)]
    assert shift == expected  # centres: half the growth of the voxel


def test_funlib_attributes_of_every_array(tmp_path: Path):
    axes = (Axis("offset", "offsets"), Axis("z", "space", "nm"), Axis("y", "space", "nm"), Axis("x", "space", "nm"))
    of = Space(
        axes, (Fraction(1), Fraction(40), Fraction(4), Fraction(7, 2)), (Fraction(0), Fraction(80), Fraction(0), Fraction(0))
    )
    offsets = [(1, 0, 0), (0, -3, 9)]
    for format in FORMATS:
        info = store.create_array(
            tmp_path / f"{format}.zarr",
            shape=(2, 4, 4, 4),
            dtype="u1",
            chunks=(2, 4, 4, 4),
            space=of,
            neighborhood=offsets,
            format=format,
        )
        assert info.attributes == {
            "axis_names": ["offset^", "z", "y", "x"],
            "types": ["channel", "space", "space", "space"],
            "units": [NM] * 3,
            "offset": [80, 0, 0],
            "voxel_size": [40, 4, 3.5],
            "neighborhood": [[1, 0, 0], [0, -3, 9]],
        }
        assert info.neighborhood == tuple(offsets)
        assert info.space.axes == (Axis("offset", "offsets"), *(Axis(a, "space", NM) for a in "zyx"))


def test_arrays_without_metadata_are_not_placed(tmp_path: Path):
    zarr.create_array(tmp_path / "a.zarr", shape=(2, 4, 4, 4), dtype="f4")
    info = store.open_array(tmp_path / "a.zarr")
    assert info.space == Space.plain(4)
    for format in FORMATS:  # nor are those written without a position, even at an offset
        url = tmp_path / f"{format}.zarr"
        made = store.create_array(
            url, shape=(4,) * 4, dtype="f4", chunks=(4,) * 4, space=info.space, lo=(0, 1, 2, 3), format=format
        )
        assert made.space == Space.plain(4)


def test_unit_voxels_at_the_origin_stay_placed(tmp_path: Path):
    of = Space((Axis("y"), Axis("x")), (Fraction(1),) * 2, (Fraction(0),) * 2, placed=True)
    for format in FORMATS:
        made = store.create_array(tmp_path / f"{format}.zarr", shape=(4, 4), dtype="f4", chunks=(4, 4), space=of, format=format)
        assert made.space == of


def foreign(path: Path, attributes: dict[str, Any], shape: tuple[int, ...] = (3, 4, 5, 6), **how: Any) -> Path:
    zarr.create_array(path, shape=shape, chunks=shape, dtype="u1", attributes=attributes, **how)
    return path


def test_foreign_attributes(tmp_path: Path):
    a = store.open_array(
        foreign(tmp_path / "a.zarr", {"resolution": [0.284, 0.127, 0.127], "offset": [1, 2, 3]}, zarr_format=2)
    )
    assert a.space.voxel_size == (1, Fraction("0.284"), Fraction("0.127"), Fraction("0.127"))
    assert a.space.origin == (0, 1, 2, 3)
    assert [x.type for x in a.space.axes] == ["channel", "space", "space", "space"]

    b = store.open_array(foreign(tmp_path / "b.zarr", {}, dimension_names=["channel", "z", "y", "x"]))
    assert (b.space.names, b.space.placed, b.space.find("channel")) == (("channel", "z", "y", "x"), False, 0)

    c = store.open_array(
        foreign(tmp_path / "c.zarr", {"axis_names": ["c^", "t", "y", "x"], "voxel_size": [5, 2, 1], "units": ["s", "um", "um"]})
    )
    assert c.space.axes == (
        Axis("c", "channel"),
        Axis("t", "time", "second"),
        Axis("y", "space", "micrometer"),
        Axis("x", "space", "micrometer"),
    )

    d = store.open_array(foreign(tmp_path / "d.zarr", {"neighborhood": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}))
    assert (d.space.axes[0].type, d.space.placed) == ("offsets", False)

    e = store.open_array(foreign(tmp_path / "e.zarr", {"voxel_size": [4, 4]}, (3, 6, 6)))
    assert [x.type for x in e.space.axes] == ["channel", "space", "space"]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"voxel_size": [1, 2], "axis_names": ["c^", "z", "y", "x"]}, r"voxel_size is \[1, 2\].*4 entries, or 3"),
        ({"voxel_size": [1, 2, 0]}, "positive"),
        ({"axis_names": ["z", "y", "x"]}, "list of 4"),
        ({"neighborhood": [[1, 0, 0]]}, "1 offsets.*c has 3"),
        ({"neighborhood": [[1, 0], [0, 1], [1, 1]]}, "3 whole numbers"),
    ],
)
def test_attributes_that_contradict_the_array(tmp_path: Path, attributes: dict[str, Any], message: str):
    url = foreign(tmp_path / "a.zarr", attributes)
    with pytest.raises(ValueError, match=message) as caught:
        store.open_array(url)
    assert str(url) in str(caught.value)


def image(path: Path, metadata: dict[str, Any], n_levels: int = 2) -> Path:
    group = zarr.create_group(path, attributes=metadata)
    for k in range(n_levels):
        group.create_array(str(k), shape=(8 >> k, 8 >> k), dtype="u1", attributes={"voxel_size": [99, 99]})
    return path


def scale(*values: float) -> dict[str, Any]:
    return {"type": "scale", "scale": list(values)}


def translation(*values: float) -> dict[str, Any]:
    return {"type": "translation", "translation": list(values)}


def test_foreign_images(tmp_path: Path):
    axes = [{"name": "y", "type": "space", "unit": "um"}, {"name": "x", "type": "space", "unit": "um"}]
    datasets = [
        {"path": "0", "coordinateTransformations": [scale(0.5, 1), translation(10, 0)]},
        {"path": "1", "coordinateTransformations": [scale(1, 2), translation(10.25, 0.5)]},
    ]
    whole = [scale(2, 2), translation(100, 200)]
    url = image(
        tmp_path / "a.zarr",
        {
            "ome": {
                "omero": {"channels": []},
                "multiscales": [{"axes": axes, "datasets": datasets, "coordinateTransformations": whole}],
            }
        },
    )
    for level in range(2):
        info = store.open_array(url, level)  # OME wins over funlib
        assert info.space.voxel_size == (2**level, 2 * 2**level)
        assert info.space.origin == (120, 200)
        assert info.omero == {"channels": []}
        assert {a.unit for a in info.space.axes} == {"micrometer"}

    bare = [{"path": str(k), "coordinateTransformations": [scale(2**k, 2**k)]} for k in range(2)]
    url = image(tmp_path / "b.zarr", {"multiscales": [{"axes": ["y", "x"], "datasets": bare}]})
    assert store.open_array(url, 1).space.origin == (0, 0)  # no translation: the corner of level 0

    old = image(tmp_path / "c.zarr", {"multiscales": [{"version": "0.1", "datasets": [{"path": "0"}, {"path": "1"}]}]})
    assert store.open_array(old).space.voxel_size == (99, 99)  # it says nothing, so the array's own attributes count


@pytest.mark.parametrize(
    ("multiscale", "message"),
    [
        ({"axes": ["y", "x"], "datasets": [{}]}, "malformed"),
        (
            {
                "axes": ["y", "x"],
                "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 2, 3]}]}],
            },
            "a scale of 3",
        ),
        ({"axes": ["z", "y", "x"], "datasets": [{"path": "0"}]}, r"3 axes, a scale of 2.*2 axes"),
        (
            {"axes": ["y", "x"], "datasets": [{"path": "0", "coordinateTransformations": [{"type": "affine"}]}]},
            "affine.*not supported",
        ),
    ],
)
def test_images_that_cannot_be_understood(tmp_path: Path, multiscale: dict[str, Any], message: str):
    url = image(tmp_path / "a.zarr", {"multiscales": [multiscale]})
    with pytest.raises(ValueError, match=message):
        store.open_array(url)


def test_n5_is_read_with_x_last(tmp_path: Path):
    url = tmp_path / "a.n5" / "raw"
    metadata = {
        "dimensions": [5, 4, 3],
        "blockSize": [4, 4, 2],
        "dataType": "uint16",
        "compression": {"type": "gzip"},
        "axes": ["x", "y", "z"],
        "units": ["nm"] * 3,
        "resolution": [4, 4, 40],
    }
    kvstore = {"driver": "file", "path": f"{url}/"}
    data = np.arange(60, dtype=np.uint16).reshape(3, 4, 5)
    handle = ts.open({"driver": "n5", "kvstore": kvstore, "metadata": metadata}, create=True).result()
    handle.T.write(data).result()
    info = store.open_array(url)
    assert (info.driver, info.shape, info.chunks, info.space) == ("n5", (3, 4, 5), (2, 4, 4), space((40, 4, 4)))
    with store.Arrays() as arrays:
        got = arrays.read(info, Box((1, 0, 2), (3, 4, 5))).result()
        assert got.flags.c_contiguous
        np.testing.assert_array_equal(got, data[1:, :, 2:])
        with pytest.raises(ValueError, match="read only"):
            arrays.write(info, info.box, data)
    before = store.fingerprint(info)
    (url / info.chunk_key((1, 0, 1))).unlink()
    assert store.fingerprint(info) != before


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_image_on_a_web_server(served: tuple[Path, str]):
    folder, url = served
    local = store.create_array(folder / "a.zarr/raw", shape=(8, 8), dtype="u2", chunks=(4, 4), space=space((4, 4)))
    data = np.arange(64, dtype=np.uint16).reshape(8, 8)
    with store.Arrays() as arrays:
        arrays.write(local, local.box, data).result()
        info = store.open_array(f"{url}/a.zarr/raw")
        np.testing.assert_array_equal(arrays.read(info, info.box).result(), data)
        arrays.sync(info, info.box)
    assert (info.space, info.metadata_digest) == (local.space, local.metadata_digest)
    assert store.fingerprint(info)
    with pytest.raises(FileNotFoundError, match="no array or group at"):
        store.open_array(f"{url}/a.zarr/none")
    with pytest.raises(ValueError, match="read only here"):
        store.create_array(f"{url}/b.zarr", shape=(8, 8), dtype="u2", chunks=(4, 4), space=space((4, 4)))


def test_errors_tell_what_is_there(tmp_path: Path):
    of = space((4, 4))
    store.create_array(tmp_path / "a.zarr/raw", shape=(8, 6), dtype="u2", chunks=(4, 4), space=of, levels=2)
    store.create_array(tmp_path / "a.zarr/deep/mask", shape=(8, 6), dtype="u2", chunks=(4, 4), space=of, format="zarr")
    with pytest.raises(FileNotFoundError, match=r"no array or group at .*rwa; .*a\.zarr holds: deep/mask, raw/0, raw/1"):
        store.open_array(tmp_path / "a.zarr/rwa")
    with pytest.raises(FileNotFoundError, match=r"holds: a\.zarr"):
        store.open_array(tmp_path / "b.zarr/raw")
    with pytest.raises(ValueError, match=r"without multiscales.*deep/mask, raw/0, raw/1"):
        store.open_array(tmp_path / "a.zarr")
    with pytest.raises(ValueError, match=r"no level 2; its levels are 0: \(8, 6\), 1: \(4, 3\)"):
        store.open_array(tmp_path / "a.zarr/raw", 2)
    with pytest.raises(ValueError, match="is an array and has no levels"):
        store.open_array(tmp_path / "a.zarr/raw/0", 1)
    shutil.rmtree(tmp_path / "a.zarr/raw/1")
    with pytest.raises(FileNotFoundError, match="raw/1"):
        store.open_array(tmp_path / "a.zarr/raw", 1)


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_broken_metadata_is_named(tmp_path: Path, text: str):
    url = foreign(tmp_path / "a.zarr", {})
    (url / "zarr.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.zarr/zarr\.json.*restore"):
        store.open_array(url)


def test_metadata_that_tensorstore_refuses(tmp_path: Path):
    url = foreign(tmp_path / "a.zarr", {})
    metadata = json.loads((url / "zarr.json").read_text())
    metadata["codecs"] = [{"name": "of the future"}]
    (url / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=r"cannot read the array .*of the future"):
        store.open_array(url)


def test_fingerprint_follows_data_and_metadata(tmp_path: Path):
    info = store.create_array(tmp_path / "a.zarr", shape=(8, 8), dtype="u2", chunks=(1, 1), space=space((4, 4)))
    prints = [store.fingerprint(info)]
    with store.Arrays() as arrays:
        for value in (1, 2):
            arrays.write(info, Box((3, 3), (4, 4)), np.full((1, 1), value, np.uint16)).result()
            prints.append(store.fingerprint(info))
    store.update_attributes(info.url, {"volara_expr": {"digest": "0"}})
    assert store.fingerprint(store.open_array(info.url)) == prints[-1]  # our own notes do not count
    store.update_attributes(info.url, {"note": 1})
    prints.append(store.fingerprint(store.open_array(info.url)))
    assert len(set(prints)) == len(prints)


def test_fingerprint_samples_a_large_array(tmp_path: Path):
    info = store.create_array(tmp_path / "a.zarr", shape=(10**5, 10**5), dtype="u1", chunks=(1, 1), space=space((4, 4)))
    before = store.fingerprint(info)
    with store.Arrays() as arrays:
        arrays.write(info, Box((0, 0), (1, 1)), np.ones((1, 1), np.uint8)).result()
    assert store.fingerprint(info) != before  # the first chunk is always among them
