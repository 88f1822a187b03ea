"""Exact merging of the blocks' tables: few rows in memory, many with DuckDB."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from volara_expr.store.files import replacing
from volara_expr.store.tables import StrPath, check_groups, open_table, require_columns, to_numpy, write_table

__all__ = ["merge_tables"]

Parts = Sequence[tuple[StrPath, Sequence[int]]]
FEW_ROWS = 2**20
"""So many are merged in memory, some 100 MB at most; to start DuckDB for them takes longer."""
BATCH_ROWS = 2**17


def merge_tables(
    parts: Iterable[tuple[StrPath, Sequence[int]]],
    out_path: StrPath,
    *,
    keys: Sequence[str],
    sums: Sequence[str],
    memory_limit_bytes: int,
    tmp_dir: StrPath,
    threads: int | None = None,
    least: Sequence[str] = (),
    most: Sequence[str] = (),
) -> None:
    """Add up integer columns of many tables, by key; write one Parquet file sorted by the keys.

    The result is exact, so it is the same for any division of the rows into parts and any order.

    Parameters
    ----------
    parts : iterable of (path, row groups)
        Parquet files and those of their row groups that count.
    out_path : str or PathLike
        Columns: the keys (dtype as in the first part; uint64 where there is no part), then the sums as int64, then extremes.
    keys, sums : sequence of str
        Columns. Others are left out.
    memory_limit_bytes : int
        DuckDB goes to disk beyond this; the process and the rows being read take about 200 MB more. At least 128 MiB.
    tmp_dir : str or PathLike
        For that.
    threads : int, optional
        Default: as many as there are cores.
    least, most : sequence of str
        Columns of which the smallest or the largest entry is kept.

    Raises
    ------
    OSError
        If a part is missing or damaged, or a disk is full.
    KeyError
        If a column is missing.
    OverflowError
        If a sum does not fit in 64 bits.
    """
    listed = list(parts)
    tables = _few(listed, [*keys, *sums, *least, *most])
    merged = _merged(tables, keys, sums, least, most) if tables else None
    if merged is not None:
        write_table(out_path, merged)
        return
    settings: dict[str, Any] = {"memory_limit_bytes": memory_limit_bytes, "tmp_dir": tmp_dir, "threads": threads}
    _merge_many(listed, out_path, keys=keys, sums=sums, least=least, most=most, **settings)


def _few(parts: Parts, columns: Sequence[str]) -> list[pa.Table]:
    """Read the row groups; nothing if they are many."""
    tables, rows = [], 0
    for path, groups in parts:
        with open_table(path) as file:
            check_groups(path, file, groups)
            require_columns(path, file.schema_arrow.names, columns)
            rows += sum(file.metadata.row_group(g).num_rows for g in groups)
            if rows > FEW_ROWS:
                return []
            tables.append(file.read_row_groups(list(groups), columns=list(columns)))
    return tables


def _merged(
    tables: Sequence[pa.Table], keys: Sequence[str], sums: Sequence[str], least: Sequence[str], most: Sequence[str]
) -> dict[str, NDArray[Any]] | None:
    """Merge rows in memory; None if a sum might not fit in 64 bits."""
    rows = to_numpy(pa.concat_tables(tables))
    order = np.lexsort([rows[k] for k in reversed(keys)])
    n = len(order)
    rows = {name: values[order] for name, values in rows.items()}
    new = np.arange(n) == 0
    for k in keys:
        new[1:] |= rows[k][1:] != rows[k][:-1]
    starts = np.flatnonzero(new)
    merged = {k: rows[k][starts] for k in keys}
    longest = int(np.diff(starts, append=n).max(initial=0))
    for name in sums:
        values = rows[name]
        if values.dtype.kind not in "iu" or max(-int(values.min(initial=0)), int(values.max(initial=0))) * longest >= 2**63:
            return None
        merged[name] = _by_group(np.add, values.astype(np.int64), starts)
    for reduce, names in ((np.minimum, least), (np.maximum, most)):
        for name in names:
            merged[name] = _by_group(reduce, rows[name], starts)
    return merged


def _by_group(reduce: np.ufunc, values: NDArray[Any], starts: NDArray[Any]) -> NDArray[Any]:
    return reduce.reduceat(values, starts) if len(starts) else values  # NumPy cannot reduce no groups


def _merge_many(
    parts: Parts,
    out_path: StrPath,
    *,
    keys: Sequence[str],
    sums: Sequence[str],
    least: Sequence[str],
    most: Sequence[str],
    memory_limit_bytes: int,
    tmp_dir: StrPath,
    threads: int | None,
) -> None:
    import duckdb  # here, since most workers never need it

    from volara_expr.store.sql import identifier, literal, mebibytes, quiet

    wanted = [*keys, *sums, *least, *most]
    types = dict.fromkeys(keys, pa.uint64()) | dict.fromkeys(wanted[len(keys) :], pa.int64())
    if parts:
        with open_table(parts[0][0]) as file:
            require_columns(parts[0][0], file.schema_arrow.names, wanted)
            types = {name: file.schema_arrow.field(name).type for name in wanted}
    schema = pa.schema(list(types.items()))
    failures: list[Exception] = []

    def batches() -> Iterator[pa.RecordBatch]:
        try:
            for path, groups in parts:
                with open_table(path) as file:
                    check_groups(path, file, groups)
                    yield from file.iter_batches(BATCH_ROWS, row_groups=list(groups), columns=wanted)
        except Exception as error:  # DuckDB would turn it into a text of its own
            failures.append(error)
            raise

    key_list = ", ".join(map(identifier, keys))
    sum_list = "".join(f", CAST(SUM({identifier(s)}) AS BIGINT) AS {identifier(s)}" for s in sums)
    sum_list += "".join(
        f", {f}({identifier(c)}) AS {identifier(c)}" for f, columns in (("MIN", least), ("MAX", most)) for c in columns
    )
    settings: dict[str, Any] = {"memory_limit": mebibytes(memory_limit_bytes), "temp_directory": os.fspath(tmp_dir)}
    settings |= {"threads": threads} if threads is not None else {}
    with replacing(os.fspath(out_path)) as temporary, duckdb.connect(config=settings) as connection:
        quiet(connection)
        connection.register("rows_", pa.RecordBatchReader.from_batches(schema, batches()))
        try:
            connection.execute(
                f"COPY (SELECT {key_list}{sum_list} FROM rows_ GROUP BY {key_list} ORDER BY {key_list}) "
                f"TO {literal(temporary)} (FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL 1)"
            )
        except duckdb.Error as error:
            if failures:
                raise failures[0] from None
            if isinstance(error, duckdb.ConversionException | duckdb.OutOfRangeException):
                raise OverflowError(f"a sum in {os.fspath(out_path)} exceeds 64 bits: {error}; use a smaller scale") from error
            raise OSError(
                f"cannot merge {len(parts)} tables into {os.fspath(out_path)}: {error}; check the space left there and in "
                f"{os.fspath(tmp_dir)}, and the memory limit of {mebibytes(memory_limit_bytes)}"
            ) from error
