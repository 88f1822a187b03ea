"""`Table`: the handle of a lazy table; and the methods that make one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from volara_expr.array.base import Expression, Handle, node_of
from volara_expr.expr.node import TableNode
from volara_expr.ops.graph_tables import StoredTable
from volara_expr.ops.statistics import label_statistics

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Table", "Tables"]


class Table(Expression):
    """A table that is still to be computed, or lies in a file; `Array.table` makes one."""

    __slots__ = ("__weakref__", "node")
    node: TableNode

    def __init__(self, node: TableNode) -> None:
        self.node = node

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return self.node.columns

    def compute(self, executor: Any = None) -> pa.Table:
        """Return the table as an Arrow table; runs what it needs, once in a session."""
        import pyarrow.parquet as pq

        from volara_expr.array.writing import compute_table

        return pq.read_table(self.node.path if isinstance(self.node, StoredTable) else compute_table(self, executor))

    def write(self, url: str | os.PathLike[str], **options: Any) -> Table:
        """Compute the table and store it as Parquet; "out.zarr/cells" becomes the file out.cells.parquet. Options as those of `write`."""
        from volara_expr.array.writing import write

        table: Table = write({url: self}, **options)[os.fspath(url)]
        return table

    def __repr__(self) -> str:
        return f"Table({', '.join(self.columns)})"

    def _repr_html_(self) -> str:
        from volara_expr.array.names import variable_names
        from volara_expr.view.summary import table_html

        return table_html("table", self.node, [("columns", ", ".join(self.columns))], variable_names())


class Tables(Handle):
    """Statistics of labels."""

    __slots__ = ()

    def table(self, images: Any = None) -> Table:
        """Make a table of these labels: size, box, centroid, and mean, smallest and largest value of images.

        One row for each label but 0, by label. The sums behind it are integers (floats count as ``rint(x * 2**24)``), so it
        depends on no blocks. Voxels outside of a mask that an image carries do not count.

        Halo: none; a table of the whole volume. Exact.

        Parameters
        ----------
        images : Array or numpy.ndarray, or dict of str to those, optional
            Over the same voxels.

        Returns
        -------
        Table
            `label`, `size` in voxels; for each axis `<axis>_lo` and `<axis>_hi`, the box in voxels counted from this array's
            first (``a[z_lo:z_hi]``); for each space axis `<axis>`, the world position of the centroid, a voxel's position being its
            centre; `mean`, `min` and `max`, of named images `<name>_mean` and so on.

        Raises
        ------
        TypeError
            If the labels are no integers.
        ValueError
            If there are no voxels, or an image does not cover the same.
        BadVoxel
            When blocks run: a float that is not finite, or beyond 2**15.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> seg = ve.from_numpy(np.array([[1, 1, 0], [0, 0, 4]]))
        >>> seg.table(np.array([[2, 5, 9], [9, 9, 7]])).compute().to_pylist()[0]
        {'label': 1, 'size': 2, 'y_lo': 0, 'y_hi': 1, 'x_lo': 0, 'x_hi': 2, 'y': 0.5, 'x': 1.0, 'mean': 3.5, 'min': 2, 'max': 5}
        """
        named = images if isinstance(images, Mapping) else {} if images is None else {"": images}
        return Table(label_statistics(self.node, {name: node_of(image) for name, image in named.items()}))
