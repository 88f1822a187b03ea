"""What new nodes say of themselves is what zarr-python would have written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from volara_expr.store.metadata import array_files, group_files


def written(folder: Path) -> dict[str, Any]:
    return {p.name: json.loads(p.read_text()) for p in folder.iterdir()}


def same(one: Any, other: Any) -> bool:
    """Equal with the types of numbers: 0 is not 0.0 in a file."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


@pytest.mark.parametrize(
    ("dtype", "fill"),
    [
        ("?", 0),
        ("u1", 255),
        ("i2", -3),
        ("u4", 7),
        ("u8", 2**64 - 1),
        ("i8", -(2**63)),
        ("f2", 1.5),
        ("f4", float("nan")),
        ("f8", float("-inf")),
        ("f8", 0),
        ("c8", 0),
        ("c16", complex(1, float("inf"))),
        (">i4", 5),
    ],
)
@pytest.mark.parametrize(("zarr_format", "how"), [(2, "plain"), (2, "raw"), (3, "plain"), (3, "raw"), (3, "sharded")])
def test_an_arrays_metadata_is_that_of_zarr(tmp_path: Path, zarr_format: Any, dtype: str, fill: complex, how: str):
    shape, chunks, shards = (10, 21), (4, 5), (8, 10) if how == "sharded" else None
    level = None if how == "raw" else 3
    codec = {"id": "zstd", "level": 3}
    if zarr_format == 3:
        codec = {"name": "zstd", "configuration": {"level": 3, "checksum": False}}
    zarr.create_array(
        store=tmp_path / "a",
        shape=shape,
        dtype=np.dtype(dtype).newbyteorder("<"),
        chunks=chunks,
        shards=shards,
        compressors=None if level is None else codec,
        fill_value=np.array(fill, dtype)[()],
        attributes={"a": [1, 2]},
        dimension_names=("y", "x") if zarr_format == 3 else None,
        chunk_key_encoding={"name": "v2", "separator": "/"} if zarr_format == 2 else None,
        zarr_format=zarr_format,
    )
    made = array_files(
        zarr_format,
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        shards=shards,
        fill=fill,
        attributes={"a": [1, 2]},
        names=("y", "x"),
        zstd_level=level,
    )
    assert same(made, written(tmp_path / "a"))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_groups_metadata_is_that_of_zarr(tmp_path: Path, zarr_format: Any):
    zarr.create_group(store=tmp_path / "a", zarr_format=zarr_format, attributes={"b": {"c": None}})
    assert same(group_files(zarr_format, {"b": {"c": None}}), written(tmp_path / "a"))


def test_a_dtype_that_zarr_lacks_is_refused():
    with pytest.raises(TypeError, match=r"not <U3; convert with astype"):
        array_files(3, shape=(4,), dtype="U3", chunks=(4,), shards=None, fill=0, attributes={}, names="x", zstd_level=1)


def test_a_run_does_not_import_zarr(tmp_path: Path):
    line = f"import numpy as np, sys, volara_expr as ve; (ve.from_numpy(np.ones((4, 4))) + 1).write({str(tmp_path / 'o')!r})"
    subprocess.run([sys.executable, "-c", f"{line}; assert 'zarr' not in sys.modules"], check=True, capture_output=True)
