"""Tables as blocks and global steps see them: columns read from wherever they lie."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from volara_expr.expr import TableNode, digest_of
from volara_expr.ops.graph_tables import StoredTable
from volara_expr.ops.lut import ConstantLut
from volara_expr.store.tables import open_table, read_groups, read_table, to_numpy

if TYPE_CHECKING:
    from volara_expr.store.graph_db import GraphDB

__all__ = ["TableFiles", "graph_content", "leaf_table"]

Rows = dict[str, npt.NDArray[Any]]
HELD_ROWS = 1 << 22
"""A table up to this long is read once and kept; of a longer one, each block reads the row groups of its ids."""
_READING = threading.Lock()


@dataclass(frozen=True)
class TableFiles:
    """An opened table. One thread at a time reads what is kept, for all of them.

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
            from volara_expr.store.graph_db import GraphDB  # which loads DuckDB

            names = ", ".join(f'"{c}"' for c in columns or self.columns) or "*"
            return to_numpy(GraphDB(self.path).sql(f"SELECT {names} FROM {self.table}"))
        if self.path:
            return read_table(self.path, columns)
        groups = [rows for path, numbers in self.parts for rows in read_groups(path, numbers)]
        wanted = self.columns if columns is None else columns
        # A table of no cells at all has columns, but no file that could tell their types.
        return {c: np.concatenate([g[c] for g in groups]) if groups else np.empty(0, np.uint64) for c in wanted}

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return one column, read once and kept: for short tables that every block looks at."""
        with _READING:
            if name not in self._columns:
                self._columns[name] = self.read([name])[name]
            return self._columns[name]

    @cached_property
    def _columns(self) -> Rows:
        return {}

    def read_ids(self, column: str, ids: npt.NDArray[Any]) -> Rows:
        """Return rows by a column, among them all those whose entry is one of the given ids.

        Parameters
        ----------
        column : str
        ids : ndarray of integers, any shape
            Repetitions cost little where they follow each other.
        """
        if self._long:
            return self._groups_of(column, ids.reshape(-1))
        hi = int(ids.max(initial=0))
        lo = int(ids.min(initial=hi, where=ids > 0))
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

    def _groups_of(self, column: str, ids: npt.NDArray[Any]) -> Rows:
        """Return the row groups, of a file sorted by the column, that can hold one of the ids."""
        wanted = np.unique(ids[np.append(True, ids[1:] != ids[:-1])[: len(ids)]]).astype(np.uint64)
        with open_table(self.path) as file:
            at = file.schema_arrow.names.index(column)
            ranges = [file.metadata.row_group(g).column(at).statistics for g in range(file.num_row_groups)]
            first = np.searchsorted(wanted, np.array([r.min for r in ranges], np.uint64), "left")
            last = np.searchsorted(wanted, np.array([r.max for r in ranges], np.uint64), "right")
            found = file.read_row_groups(np.flatnonzero(first < last).tolist())
        return to_numpy(found)

    @cached_property
    def _sorted(self) -> dict[str, Rows]:
        return {}

    def _whole(self, column: str) -> Rows:
        """Return the whole table, sorted by a column; read once."""
        with _READING:
            if column not in self._sorted:
                rows = self.read()
                order = np.argsort(rows[column], kind="stable")
                self._sorted[column] = {c: np.ascontiguousarray(values[order]) for c, values in rows.items()}
            return self._sorted[column]


def graph_content(db: GraphDB) -> str:
    """Return what a region graph is known by: the expression that wrote it, and size and time of its file."""
    state = os.stat(db.path)
    return digest_of(db.metadata.get("digest"), state.st_size, state.st_mtime_ns)


def leaf_table(node: TableNode) -> TableFiles | None:
    """Open a table that no stage makes: a given one, or one in a file of its own; None for any other node."""
    if isinstance(node, ConstantLut):
        return TableFiles(held={"id": node.ids, "value": node.values}, columns=node.columns)
    if isinstance(node, StoredTable):
        return TableFiles(path=node.path, table=node.table, columns=node.columns)
    return None
