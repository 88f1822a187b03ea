"""Pointwise chains over 8- and 16-bit data as one look-up table.

Any chain of elementwise operations on a single uint8 or uint16 array is a function of 256 or 65,536 values: NumPy itself fills
the table, so the result is NumPy's by construction, and a voxel costs one look-up however long the chain is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt

__all__ = ["Coded", "coded", "plain"]


@dataclass(frozen=True, slots=True)
class Coded:
    """An array given as codes and the value of each code.

    Attributes
    ----------
    codes : ndarray of uint8 or uint16
    table : ndarray
        256 or 65,536 values; `table[codes]` is the array.
    """

    codes: npt.NDArray[Any]
    table: npt.NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self.codes.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self.table.dtype

    def __getitem__(self, index: Any) -> Coded:
        return Coded(self.codes[index], self.table)

    def transpose(self, axes: Sequence[int]) -> Coded:
        """Return the array with its axes in another order."""
        return Coded(self.codes.transpose(axes), self.table)


def coded(data: npt.NDArray[Any] | Coded) -> Coded | None:
    """Return the array as codes if a table pays for it: 8-bit data always, 16-bit data from a million voxels on."""
    if isinstance(data, Coded):
        return data
    if data.dtype == np.uint8 or (data.dtype == np.uint16 and data.size >= 1 << 20):
        return Coded(data, np.arange(1 << (8 * data.dtype.itemsize), dtype=data.dtype))
    return None


def plain(data: npt.NDArray[Any] | Coded) -> npt.NDArray[Any]:
    """Return the array itself, looked up where it is coded."""
    if not isinstance(data, Coded):
        return data
    codes = np.ascontiguousarray(data.codes)
    out = np.empty(codes.shape, data.table.dtype)
    if data.table.dtype.kind in "biuf" and data.table.dtype.itemsize <= 8 and data.table.dtype != np.float16:
        _look_up(codes.reshape(-1), data.table, out.reshape(-1))
    else:
        np.take(data.table, codes, out=out)
    return out


@nb.njit(cache=True, nogil=True)
def _look_up(codes, table, out):
    for i in range(codes.shape[0]):
        out[i] = table[codes[i]]
