"""Tables as blocks and global steps see them: columns read from wherever they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from volara_expr.expr import TableNode
from volara_expr.ops.graph_tables import StoredTable
from volara_expr.ops.lut import ConstantLut
from volara_expr.store.graph_db import GraphDB
from volara_expr.store.tables import open_table, read_groups, read_range, read_table

__all__ = ["TableFiles", "leaf_table"]

Rows = dict[str, npt.NDArray[Any]]
HELD_ROWS = 1 << 22
"""A table up to this long is read once and kept; of a longer one, each block reads its ids' range."""


@dataclass(frozen=True)
class TableFiles:
    """An opened table; not to be shared between threads.

    Attributes
    ----------
    parts : sequence of (path, row groups)
        For a table made block by block: what the ledger names, in the order of the cells.
    path : str
        Else its one file, Parquet or DuckDB.
    table : str
        Name of the table in a DuckDB file.
    columns : sequence of str
        Names of the columns, so that a table without rows has them too.
    held : dict or None
        The rows of a table that lies in memory.
    """

    parts: Sequence[tuple[str, Sequence[int]]] = ()
    path: str = ""
    table: str = ""
    columns: Sequence[str] = ()
    held: Rows | None = field(default=None, repr=False)

    def read(self, columns: Sequence[str] | None = None) -> Rows:
        """Return all rows, of all columns or of some; rows of a block table in the order of the cells."""
        if self.held is not None:
            return {c: self.held[c] for c in (self.held if columns is None else columns)}
        if self.path.endswith(".duckdb"):
            names = ", ".join(f'"{c}"' for c in columns or self.columns) or "*"
            found = GraphDB(self.path).sql(f"SELECT {names} FROM {self.table}")
            return {c: found.column(c).to_numpy() for c in found.column_names}
        if self.path:
            return read_table(self.path, columns)
        groups = [rows for path, numbers in self.parts for rows in read_groups(path, numbers)]
        wanted = self.columns if columns is None else columns
        # A table of no cells at all has columns, but no file that could tell their types.
        return {c: np.concatenate([g[c] for g in groups]) if groups else np.empty(0, np.uint64) for c in wanted}

    def read_range(self, column: str, lo: int, hi: int) -> Rows:
        """Return the rows with ``lo <= column <= hi``, by that column."""
        if self._long:
            rows = read_range(self.path, column, lo, hi)
            order = np.argsort(rows[column], kind="stable")
            return {c: values[order] for c, values in rows.items()}
        rows = self._whole(column)
        sought = rows[column]
        begin = np.searchsorted(sought, sought.dtype.type(lo), "left")
        end = np.searchsorted(sought, sought.dtype.type(hi), "right")
        return {c: values[begin:end] for c, values in rows.items()}

    @cached_property
    def _long(self) -> bool:
        """Whether the table is too long to be kept."""
        if not self.path.endswith(".parquet"):
            return False
        with open_table(self.path) as file:
            return int(file.metadata.num_rows) > HELD_ROWS

    @cached_property
    def _sorted(self) -> dict[str, Rows]:
        return {}

    def _whole(self, column: str) -> Rows:
        """Return the whole table, sorted by a column; read once."""
        if column not in self._sorted:
            rows = self.read()
            order = np.argsort(rows[column], kind="stable")
            self._sorted[column] = {c: np.ascontiguousarray(values[order]) for c, values in rows.items()}
        return self._sorted[column]


def leaf_table(node: TableNode) -> TableFiles | None:
    """Open a table that no stage makes: a given one, or one in a file of its own; None for any other node."""
    if isinstance(node, ConstantLut):
        return TableFiles(held={"id": node.ids, "value": node.values}, columns=node.columns)
    if isinstance(node, StoredTable):
        return TableFiles(path=node.path, table=node.table, columns=node.columns)
    return None
