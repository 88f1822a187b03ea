"""Parquet files of integer and float columns: parts with one row group per block, and tables sorted by id.

A file is whole or absent (temporary name, sync, rename), and its pages carry checksums.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from volara_expr.store.files import replacing

__all__ = [
    "check_groups",
    "open_table",
    "read_groups",
    "read_metadata",
    "read_range",
    "read_table",
    "require_columns",
    "to_numpy",
    "write_part",
    "write_table",
]

Columns = Mapping[str, NDArray[Any]]
StrPath = str | os.PathLike[str]
ROW_GROUP_SIZE = 2**18


def write_part(path: StrPath, groups: Sequence[Columns], metadata: Mapping[str, str] | None = None) -> None:
    """Write a Parquet file with one row group per mapping.

    The file is whole or absent, but not forced to the disk: whoever records it does that, for many files at once.

    Parameters
    ----------
    path : str or PathLike
    groups : sequence of mappings
        One-dimensional columns of one length each; names and dtypes are those of the first group. A group may have no rows.
    metadata : mapping of str to str, optional
        Stored with the file.

    Raises
    ------
    ValueError
        If there is no group, or groups differ in their columns.
    """
    if not groups:
        raise ValueError(f"no groups to write to {os.fspath(path)}; a part needs at least one, which may have no rows")
    tables = [_to_arrow(g) for g in groups]
    for k, table in enumerate(tables):
        if table.schema != tables[0].schema:
            raise ValueError(
                f"row group {k} of {os.fspath(path)} has columns {_name(table.schema)}, the first {_name(tables[0].schema)}; "
                "give all groups the same columns"
            )
    _write(path, tables, metadata, max(t.num_rows for t in tables), durable=False)


def write_table(
    path: StrPath, columns: Columns, row_group_size: int = ROW_GROUP_SIZE, metadata: Mapping[str, str] | None = None
) -> None:
    """Write one table; sort it by the column that `read_range` will ask for."""
    _write(path, [_to_arrow(columns)], metadata, row_group_size)


def read_groups(path: StrPath, groups: Sequence[int]) -> list[dict[str, NDArray[Any]]]:
    """Read row groups, in the order asked for.

    Raises
    ------
    OSError
        If the file is missing, damaged, or has no such row group.
    """
    with open_table(path) as file:
        check_groups(path, file, groups)
        return [to_numpy(file.read_row_group(g)) for g in groups]


def read_table(path: StrPath, columns: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
    """Read whole columns.

    Raises
    ------
    OSError
        If the file is missing or damaged.
    KeyError
        If there is no such column.
    """
    with open_table(path) as file:
        _check_columns(path, file, columns or ())
        return to_numpy(file.read(columns=None if columns is None else list(columns)))


def read_range(path: StrPath, column: str, lo: int, hi: int) -> dict[str, NDArray[Any]]:
    """Read the rows with `lo <= column <= hi`, decoding only the row groups whose statistics allow any.

    Raises
    ------
    OSError
        If the file is missing or damaged.
    KeyError
        If there is no such column.
    """
    with open_table(path) as file:
        _check_columns(path, file, (column,))
        at = file.schema_arrow.names.index(column)
        groups = []
        for g in range(file.num_row_groups):
            statistics = file.metadata.row_group(g).column(at).statistics
            if statistics is None or not statistics.has_min_max or (statistics.min <= hi and lo <= statistics.max):
                groups.append(g)
        found = to_numpy(file.read_row_groups(groups))
    keep = (found[column] >= lo) & (found[column] <= hi)
    return {name: values[keep] for name, values in found.items()}


def read_metadata(path: StrPath) -> dict[str, str]:
    """Return the metadata that the file was written with."""
    with open_table(path) as file:
        held = file.schema_arrow.metadata or {}
        return {k.decode(): v.decode() for k, v in held.items()}


@contextmanager
def open_table(path: StrPath) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file; errors of its format become OSError with the file and the remedy."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the table {os.fspath(path)} is missing; delete the ledger that names it and run again, which writes it anew"
        ) from error
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and os.fspath(path) in str(error):
            raise
        raise OSError(
            f"the table {os.fspath(path)} is damaged: {error}; restore it from a copy, or delete it and the ledger that names it "
            "and run again, which writes it anew"
        ) from error


def check_groups(path: StrPath, file: pq.ParquetFile, groups: Sequence[int]) -> None:
    """Raise OSError unless the open file has all these row groups."""
    wrong = [g for g in groups if not 0 <= g < file.num_row_groups]
    if wrong:
        raise OSError(
            f"{os.fspath(path)} has {file.num_row_groups} row groups and row group {wrong[0]} was asked for; it is not the file "
            "that was recorded, so delete it and its ledger and run again"
        )


def _write(
    path: StrPath, tables: Sequence[pa.Table], metadata: Mapping[str, str] | None, row_group_size: int, durable: bool = True
) -> None:
    schema = tables[0].schema.with_metadata(metadata)
    settings = {"compression": "zstd", "compression_level": 1, "use_dictionary": False, "write_page_checksum": True}
    with replacing(os.fspath(path), durable) as temporary, pq.ParquetWriter(temporary, schema, **settings) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=max(1, row_group_size))


def _to_arrow(columns: Columns) -> pa.Table:
    """Wrap the columns without a copy; `pa.array` would import pandas."""
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1 or any(v.ndim != 1 for v in columns.values()):
        raise ValueError(f"columns need one dimension and one length, got { ({n: v.shape for n, v in columns.items()}) }")
    arrays = []
    for values in columns.values():
        if values.dtype.kind not in "iuf":
            raise ValueError(f"a column of {values.dtype} cannot be stored; use integers or floats")
        native = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
        arrays.append(pa.Array.from_buffers(pa.from_numpy_dtype(native.dtype), len(native), [None, pa.py_buffer(native)]))
    return pa.Table.from_arrays(arrays, names=list(columns))


def to_numpy(table: pa.Table) -> dict[str, NDArray[Any]]:
    """Copy the columns of a table; where there are nulls they become NaN.

    `to_numpy` of pyarrow imports pandas where that is installed, which takes 0.2 s; it is left to columns that need it.
    """
    found = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if column.null_count or not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            found[name] = column.to_numpy()
        else:
            none = np.empty(0, column.type.to_pandas_dtype())
            found[name] = np.concatenate([none, *map(np.from_dlpack, column.chunks)])
    return found


def _check_columns(path: StrPath, file: pq.ParquetFile, columns: Sequence[str]) -> None:
    held = file.schema_arrow.names
    for name in columns:
        if name not in held:
            raise KeyError(f"no column {name} in {os.fspath(path)}; it has {', '.join(held)}")


def _name(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def require_columns(path: StrPath, columns: Sequence[str], needed: Sequence[str]) -> None:
    """Raise KeyError unless a file, which has these columns, has the needed ones."""
    lacking = [c for c in needed if c not in columns]
    if lacking:
        raise KeyError(f"{os.fspath(path)} has no column {', '.join(lacking)}; it has {', '.join(columns)}")
