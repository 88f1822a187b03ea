"""Labels through a look-up table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from volara_expr.expr.node import ArrayNode, ArraySpec, Patch, TableNode
from volara_expr.geometry import Box
from volara_expr.ops.cells import absolute_voxel
from volara_expr.ops.lut import LUT_COLUMNS

__all__ = ["Missing", "Relabel"]

Missing = Literal["keep", "zero", "error"]


@dataclass(frozen=True, eq=False, repr=False)
class Relabel(ArrayNode):
    """Labels replaced by their values in a table; 0 stays 0.

    Attributes
    ----------
    labels : ArrayNode
    lut : TableNode
        With the columns "id" and "value".
    missing : {"keep", "zero", "error"}
        What becomes of a label that the table does not hold.
    """

    kernel = "volara_expr.kernels.relabel:relabel"
    pointwise = True
    cost = 3.0

    labels: ArrayNode
    lut: TableNode
    missing: Missing = "keep"

    def make_spec(self) -> ArraySpec:
        spec = self.labels.spec
        if spec.dtype.kind not in "biu":
            raise TypeError(f"labels of dtype {spec.dtype} cannot be looked up; make integers of them with astype('uint64')")
        if self.missing not in ("keep", "zero", "error"):
            raise ValueError(f"missing is {self.missing!r}; it must be 'keep', 'zero' or 'error'")
        if self.lut.columns != LUT_COLUMNS:
            raise TypeError(f"{self.lut.label} has the columns {self.lut.columns}; a look-up table has {LUT_COLUMNS}")
        return spec.replace(dtype=np.dtype(np.uint64), neighborhood=None)

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        labels = patches[0].data
        rows = tables[0].read_ids("id", labels)
        with absolute_voxel(self.labels.label, patches[0].box.lo):
            return kernel(labels, rows["id"], rows["value"], missing=self.missing)
