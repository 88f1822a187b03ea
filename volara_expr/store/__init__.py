"""Stores: arrays in zarr, OME-Zarr and N5, tables in Parquet and DuckDB. A leaf: knows boxes and space, no expressions.

`volara_expr.store.tables` and `volara_expr.store.graph_db` are imported by those who need them: they load pyarrow.
"""

from volara_expr.store.arrays import Arrays, Pending
from volara_expr.store.create import create_array, delete, level_shapes, read_attributes, update_attributes
from volara_expr.store.location import Location, locate
from volara_expr.store.open import ArrayInfo, check_alignment, fingerprint, open_array, write_unit

__all__ = [
    "ArrayInfo",
    "Arrays",
    "Location",
    "Pending",
    "check_alignment",
    "create_array",
    "delete",
    "fingerprint",
    "level_shapes",
    "locate",
    "open_array",
    "read_attributes",
    "update_attributes",
    "write_unit",
]
