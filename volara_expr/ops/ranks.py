"""Quantiles of a whole volume: a radix search for ranks, one pass of 16 bits after another, exact for any type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from volara_expr.expr.node import ArrayNode, Columns, GlobalTable, Patch
from volara_expr.geometry import Box
from volara_expr.ops.values import Value, _Statistic, checked, write

__all__ = ["KeyCounts", "Quantiles", "quantile"]


@dataclass(frozen=True, eq=False, repr=False)
class KeyCounts(_Statistic):
    """How many values share the leading bits of their sort key: one pass of a radix search for ranks.

    Attributes
    ----------
    before : tuple of Quantiles
        The pass before, whose keys are looked into; none for the first.
    """

    kernel: ClassVar[str] = "volara_expr.kernels.values:key_counts"

    before: tuple[Quantiles, ...]
    level: int

    @property
    def label(self) -> str:
        return f"ranks ({self.level + 1})"

    @property
    def columns(self) -> tuple[str, ...]:
        return ("key", "count")

    def rows(self, kernel: Callable[..., Any], cell: Box, reads: Sequence[Sequence[Patch]], tables: Sequence[Any]) -> Columns:
        prefixes = np.unique(tables[0].column("key")) if tables else None
        return dict(zip(self.columns, kernel(self.voxels(reads), self.level, prefixes), strict=True))


@dataclass(frozen=True, eq=False, repr=False)
class Quantiles(GlobalTable):
    """Sort keys of the two values on both sides of each quantile, and after the last pass the quantiles themselves.

    Attributes
    ----------
    counts : KeyCounts
    q : tuple of float
    """

    kernel: ClassVar[str] = "volara_expr.kernels.values:from_key"

    counts: KeyCounts
    before: tuple[Quantiles, ...]
    q: tuple[float, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return ("quantile",) if self.last else ("key", "rank", "weight")

    @property
    def last(self) -> bool:
        """Whether all bits of the keys are known."""
        return 2 * (self.counts.level + 1) >= self.counts.array.spec.dtype.itemsize

    def run(self, kernel: Callable[..., Any], tables: Sequence[Any], out: str, memory_bytes: int) -> None:
        dtype, level = self.counts.array.spec.dtype, self.counts.level
        found = tables[0].read()
        key, inverse = np.unique(found["key"].astype(np.uint64), return_inverse=True)
        count = np.zeros(key.size, np.int64)
        np.add.at(count, inverse, found["count"].astype(np.int64))
        if self.before:
            prefix, rank, weight = tables[1].read().values()
        else:
            prefix, rank, weight = self._ranks(int(count.sum()), holds_nan(key, dtype))
        above = np.cumsum(count)
        # The rank counts from the first value of its prefix.
        start = np.searchsorted(key >> np.uint64(16), prefix, "left") if level else np.zeros(rank.size, np.int64)
        base = np.append(0, above)[start]
        at = np.searchsorted(above, base + rank, "right")
        rank = base + rank - np.append(0, above)[at]
        if not self.last:
            write(out, {"key": key[at], "rank": rank, "weight": weight})
            return
        pairs = kernel(key[at], dtype).astype(np.float64).reshape(-1, 2)
        with np.errstate(all="ignore"):
            # NumPy interpolates between two values as it does in a longer list.
            write(out, {"quantile": np.array([np.quantile(pair, t) for pair, t in zip(pairs, weight[::2], strict=True)])})

    def _ranks(self, n: int, nan: bool) -> tuple[Any, Any, Any]:
        """Return prefix, rank and weight of the values below and above each quantile, of `n` values."""
        if not n:
            raise ValueError(f"quantiles of {self.counts.array.label}: its mask leaves none of its voxels; give another mask")
        place = np.array(self.q) * (n - 1)
        lower = np.floor(place).astype(np.int64)
        both = np.stack([lower, np.minimum(lower + 1, n - 1)], 1).reshape(-1)
        if nan:  # which sorts last
            both[:] = n - 1
        return np.zeros(both.size, np.uint64), both, np.repeat(place - lower, 2)


def holds_nan(keys: npt.NDArray[np.uint64], dtype: np.dtype[Any]) -> bool:
    """Whether the last of the leading 16 bits of sorted keys are those of NaN."""
    if dtype.kind != "f":
        return False
    nan = np.array([np.nan], dtype).view(f"u{dtype.itemsize}")[0]
    return int(keys[-1]) == (int(nan) >> (8 * dtype.itemsize - 16) | 1 << 15)


def quantile(array: ArrayNode, q: float | Sequence[float]) -> Value:
    """Return the node of quantiles of all voxels; see `Array.quantile`."""
    asked = tuple(map(float, q)) if isinstance(q, Sequence) else (float(q),)
    if not asked or not all(0 <= p <= 1 for p in asked):
        raise ValueError(f"q={q}; quantiles lie in 0 to 1, for percentiles divide by 100")
    source = checked(array, "quantile")
    found: tuple[Quantiles, ...] = ()
    for level in range((max(2, array.spec.dtype.itemsize)) // 2):
        found = (Quantiles(KeyCounts(*source, found, level), found, asked),)
    dtype = array.spec.dtype if array.spec.dtype.kind == "f" else np.dtype(np.float64)
    return Value(found[0], "quantile", dtype, len(asked) if isinstance(q, Sequence) else None, "quantile")
