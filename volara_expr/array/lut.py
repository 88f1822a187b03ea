"""`Lut`: the handle of a look-up table from ids to values."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from volara_expr.array.base import Expression
from volara_expr.expr.node import TableNode
from volara_expr.ops.lut import constant_lut

__all__ = ["Lut", "lut_of"]


class Lut(Expression):
    """A look-up table from ids to values, given or still to be computed; `Array.relabel` takes it.

    Parameters
    ----------
    ids : mapping of int to int, or array_like of int
        The table, or its ids.
    values : array_like of int, optional
        One for each id.

    Raises
    ------
    ValueError
        If ids and values differ in number, an id occurs twice, a number is negative, or 0 is given another value.

    Examples
    --------
    >>> Lut({1: 7, 2: 7})
    Lut(2 ids)
    >>> Lut([1, 2], [7, 7]).node is Lut({2: 7, 1: 7}).node
    True
    """

    __slots__ = ("__weakref__", "node")
    node: TableNode

    def __init__(self, ids: Mapping[int, int] | npt.ArrayLike, values: npt.ArrayLike | None = None) -> None:
        self.node = constant_lut(ids, values)

    @classmethod
    def of(cls, node: TableNode) -> Lut:
        """Make the handle of a node."""
        lut = cls.__new__(cls)
        lut.node = node
        return lut

    def compute(self, executor: Any = None) -> dict[int, int]:
        """Return the table as a dict; runs what it needs, once in a session."""
        from volara_expr.array.writing import compute_table
        from volara_expr.run.tables import TableFiles, leaf_table

        table = leaf_table(self.node) or TableFiles(path=compute_table(self, executor), columns=self.node.columns)
        rows = table.read()
        return dict(zip(rows["id"].tolist(), rows["value"].tolist(), strict=True))

    def write(self, url: str | os.PathLike[str], **options: Any) -> Lut:
        """Compute the table and store it as Parquet; "out.zarr/lut" becomes the file out.lut.parquet. Options as those of `write`."""
        from volara_expr.array.writing import write

        lut: Lut = write({url: self}, **options)[os.fspath(url)]
        return lut

    def __repr__(self) -> str:
        return f"Lut({self.node.describe()})"

    def _repr_html_(self) -> str:
        from volara_expr.array.names import variable_names
        from volara_expr.view.summary import table_html

        return table_html("look-up table", self.node, [("from", self.node.describe())], variable_names())


def lut_of(table: Lut | Mapping[int, int]) -> TableNode:
    """Return the node of a table or of a mapping.

    Raises
    ------
    TypeError
        If it is neither.
    """
    if isinstance(table, Lut):
        return table.node
    if isinstance(table, Mapping):
        return constant_lut(table)
    raise TypeError(
        f"expected a Lut or a mapping from ids to values, got {type(table).__name__}; ve.Lut(ids, values) makes one"
    )
