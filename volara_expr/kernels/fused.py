"""Pointwise chains over 8- and 16-bit data as one look-up table.

Any chain of elementwise operations on a single uint8 or uint16 array is a function of 256 or 65,536 values: NumPy itself fills
the table, so the result is NumPy's by construction, and a voxel costs one look-up however long the chain is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Coded", "compiled", "look_up", "plain"]

COMPILED_VOXELS = 1 << 16
COLD_VOXELS = 1 << 26
"""So many are worth to load the compiler for, which takes a quarter of a second; a quick look does without."""


@dataclass(frozen=True, slots=True)
class Coded:
    """An array given as codes and the value of each code.

    Attributes
    ----------
    codes : ndarray of uint8 or uint16
    table : ndarray
        256 or 65,536 values; `table[codes]` is the array.
    step : int, optional
        What `step_at` says of the table, where it was asked.
    """

    codes: npt.NDArray[Any]
    table: npt.NDArray[Any]
    step: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.codes.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self.table.dtype

    def __getitem__(self, index: Any) -> Coded:
        return Coded(self.codes[index], self.table, self.step)

    def transpose(self, axes: Sequence[int]) -> Coded:
        """Return the array with its axes in another order."""
        return Coded(self.codes.transpose(axes), self.table, self.step)


def plain(data: npt.NDArray[Any] | Coded) -> npt.NDArray[Any]:
    """Return the array itself, looked up where it is coded."""
    if not isinstance(data, Coded):
        return data
    if data.step is not None:
        return np.asarray(data.codes >= data.step).view(data.table.dtype)
    if not compiled(data.codes.size, data.table.dtype):
        return np.asarray(data.table[data.codes])
    codes = np.require(data.codes, None, ("C", "A"))
    out = np.empty(codes.shape, data.table.dtype)
    bits = np.dtype(f"u{out.itemsize}")
    look_up(codes.dtype, out.dtype)(codes.reshape(-1), data.table.view(bits), out.reshape(-1).view(bits))
    return out


def step_at(table: npt.NDArray[Any]) -> int | None:
    """Return the first code of value 1 in a table of a threshold, 0 below and 1 from there on; comparing is five times faster."""
    if table.dtype not in (np.bool_, np.uint8) or table[0] != 0 or table[-1] != 1:
        return None
    step = int(np.argmax(table))
    return step if table[step:].all() and not table[:step].any() and table.max() == 1 else None


def compiled(voxels: int, dtype: np.dtype[Any]) -> bool:
    """Whether looking up so many voxels is worth a compiled loop; NumPy takes 2 ns for each, the loop 0.3."""
    return voxels >= (COMPILED_VOXELS if "numba" in sys.modules else COLD_VOXELS) and dtype.itemsize <= 8


@cache
def look_up(codes: np.dtype[Any], values: np.dtype[Any]) -> Any:
    """Return the compiled loop over (codes, table, out), table and out as unsigned integers of the values' size."""
    from volara_expr.kernels.loops import load
    from volara_expr.kernels.printer import look_up_source

    return load(look_up_source(codes, np.dtype(f"u{values.itemsize}")))
