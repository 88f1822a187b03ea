"""The metadata files of new zarr nodes, versions 2 and 3, as zarr-python writes them.

Importing zarr takes a tenth of a second, a part of every run that one can measure; what it would write is this much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike

__all__ = ["array_files", "group_files"]

LITTLE = {"name": "bytes", "configuration": {"endian": "little"}}


def group_files(zarr_format: Literal[2, 3], attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the content of each file of a group's metadata, by its name."""
    if zarr_format == 3:
        return {"zarr.json": {"attributes": attributes, "zarr_format": 3, "node_type": "group"}}
    return {".zgroup": {"zarr_format": 2}, ".zattrs": attributes}


def array_files(
    zarr_format: Literal[2, 3],
    *,
    shape: Sequence[int],
    dtype: DTypeLike,
    chunks: Sequence[int],
    shards: Sequence[int] | None,
    fill: complex,
    attributes: dict[str, Any],
    names: Sequence[str],
    zstd_level: int | None,
) -> dict[str, Any]:
    """Return the content of each file of an array's metadata, by its name.

    Parameters
    ----------
    zarr_format : {2, 3}
    shape, chunks : sequence of int
    dtype : dtype
        Boolean, integer, floating or complex.
    shards : sequence of int or None
        Multiples of `chunks`; version 3 only.
    fill : scalar
        Value of chunks without a file; converted to `dtype`.
    names : sequence of str
        Of the axes; version 2 does not keep them.
    zstd_level : int or None
        None stores bytes as they are.

    Raises
    ------
    TypeError
        If zarr has no such dtype.
    """
    kind = np.dtype(dtype).newbyteorder("<")
    if kind.kind not in "biufc" or kind.itemsize > (16 if kind.kind == "c" else 8):
        raise TypeError(f"zarr arrays here hold booleans, integers, floats or complex numbers, not {kind}; convert with astype")
    if zarr_format == 2:
        about = {
            "shape": list(shape),
            "chunks": list(chunks),
            "dtype": kind.str,
            "fill_value": _fill(fill, kind),
            "order": "C",
            "filters": None,
            "dimension_separator": "/",
            "compressor": None if zstd_level is None else {"id": "zstd", "level": zstd_level},
            "zarr_format": 2,
        }
        return {".zarray": about, ".zattrs": attributes}
    codecs: list[dict[str, Any]] = [{"name": "bytes"} if kind.itemsize == 1 else LITTLE]
    if zstd_level is not None:
        codecs.append({"name": "zstd", "configuration": {"level": zstd_level, "checksum": False}})
    if shards is not None:
        inner = {
            "chunk_shape": list(chunks),
            "codecs": codecs,
            "index_codecs": [LITTLE, {"name": "crc32c"}],
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": inner}]
    about = {
        "shape": list(shape),
        "data_type": kind.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shards or chunks)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": _fill(fill, kind),
        "codecs": codecs,
        "attributes": attributes,
        "dimension_names": list(names),
        "zarr_format": 3,
        "node_type": "array",
        "storage_transformers": [],
    }
    return {"zarr.json": about}


def _fill(value: complex, dtype: np.dtype[Any]) -> Any:
    """Return a value of the dtype as JSON."""
    if dtype.kind == "c":
        part = np.dtype(f"<f{dtype.itemsize // 2}")
        return [_fill(complex(value).real, part), _fill(complex(value).imag, part)]
    number = np.array(value, dtype).item()
    if not isinstance(number, float) or math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
