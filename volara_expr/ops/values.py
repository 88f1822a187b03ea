"""Statistics of a whole volume as lazy values: partial tables of cells, merged exactly, and a value that reads the result.

The partial tables hold integers, or extremes, so the values do not depend on the cells, let alone on the execution grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from volara_expr.expr.node import ArrayNode, ArraySpec, BlockTable, Columns, GlobalTable, Patch, TableNode
from volara_expr.geometry import Axis, BlockGrid, Box, Space
from volara_expr.ops.cells import cell_shape, grid_of, plain, spatial_part
from volara_expr.ops.mask import carried_mask

__all__ = ["BinCounts", "BinEdges", "ExactSums", "Extremes", "Histogram", "Range", "Total", "Value"]
__all__ += ["checked", "extreme", "histogram", "total", "write"]

CELL_EDGE = {1: 1 << 18, 2: 512, 3: 64}
"""Edge of a cell by the number of space axes: some 260,000 voxels."""


@dataclass(frozen=True, eq=False, repr=False)
class Value(ArrayNode):
    """A column of a table as an array: a value without axes, or a list along an axis of its own.

    Attributes
    ----------
    table : TableNode
    column : str
    dtype : numpy.dtype
    length : int or None
        Number of entries of a list; None for one value.
    axis : str
        Name of the list's axis, which is of type "channel".
    """

    table: TableNode
    column: str
    dtype: np.dtype[Any]
    length: int | None = None
    axis: str = "value"

    def make_spec(self) -> ArraySpec:
        shape = () if self.length is None else (self.length,)
        n = len(shape)
        space = Space((Axis(self.axis, "channel"),) * n, (Fraction(1),) * n, (Fraction(0),) * n, placed=False)
        return ArraySpec(Box.of_shape(shape), self.dtype, space)

    @property
    def label(self) -> str:
        return self.column

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        with np.errstate(over="ignore"):
            column = tables[0].column(self.column).astype(self.dtype)
        return column.reshape(self.spec.shape)[out.slices(self.spec.box.lo)]


@dataclass(frozen=True, eq=False, repr=False)
class _Statistic(BlockTable):
    """Rows of each cell of an array, without the voxels outside of a mask.

    Attributes
    ----------
    array : ArrayNode
    mask : tuple of ArrayNode
        One over the space axes, or none.
    """

    array: ArrayNode
    mask: tuple[ArrayNode, ...]

    @property
    def cells(self) -> BlockGrid:
        space = self.array.spec.space
        edge = CELL_EDGE.get(len(space.spatial), 16)
        return grid_of(self.array.spec.box, cell_shape(space, (edge,) * len(space.spatial)))

    def demands(self, cell: Box) -> Sequence[tuple[Box | None, ...]]:
        return [(cell, *(spatial_part(cell, self.array.spec.space) for _ in self.mask))]

    def voxels(self, reads: Sequence[Sequence[Patch]]) -> npt.NDArray[Any]:
        """Return the values of a cell that count."""
        data, *mask = map(plain, reads[0])
        if not mask:
            return data
        at = self.array.spec.space.spatial
        inside = mask[0][tuple(slice(None) if i in at else None for i in range(data.ndim))]
        found: npt.NDArray[Any] = data[np.broadcast_to(inside != 0, data.shape)]
        return found


@dataclass(frozen=True, eq=False, repr=False)
class ExactSums(_Statistic):
    """Sums without rounding, as limbs in fixed point."""

    kernel: ClassVar[str] = "volara_expr.kernels.values:exact_limbs"

    @property
    def label(self) -> str:
        return "sums"

    @property
    def columns(self) -> tuple[str, ...]:
        return ("limb", "sum")

    def rows(self, kernel: Callable[..., Any], cell: Box, reads: Sequence[Sequence[Patch]], tables: Sequence[Any]) -> Columns:
        return dict(zip(self.columns, kernel(self.voxels(reads)), strict=True))


@dataclass(frozen=True, eq=False, repr=False)
class Total(GlobalTable):
    """Sum and mean, each rounded once from the exact sum; the sum of integers wraps at 64 bits, as NumPy's does."""

    kernel: ClassVar[str] = "volara_expr.kernels.values:limbs_value"

    sums: ExactSums

    @property
    def columns(self) -> tuple[str, ...]:
        return ("sum", "mean")

    def run(self, kernel: Callable[..., Any], tables: Sequence[Any], out: str, memory_bytes: int) -> None:
        from volara_expr.kernels.values import COUNT, UNIT, exact_integer

        limb, sums = tables[0].read().values()
        n = int(sums[limb == COUNT].sum())
        kind = sum_type(self.sums.array.spec.dtype).kind
        if kind == "f":
            total: Any = np.float64(kernel(limb, sums))
        else:
            wrapped = (exact_integer(limb, sums) >> UNIT) & (2**64 - 1)
            total = np.uint64(wrapped).astype(np.uint64 if kind == "u" else np.int64)
        write(out, {"sum": total, "mean": np.float64(kernel(limb, sums, n) if n else np.nan)})


@dataclass(frozen=True, eq=False, repr=False)
class Extremes(_Statistic):
    """The smallest and the largest value of each cell."""

    kernel: ClassVar[str] = "volara_expr.kernels.values:extremes"

    @property
    def columns(self) -> tuple[str, ...]:
        return ("min", "max")

    def rows(self, kernel: Callable[..., Any], cell: Box, reads: Sequence[Sequence[Patch]], tables: Sequence[Any]) -> Columns:
        return dict(zip(self.columns, kernel(self.voxels(reads)), strict=True))


@dataclass(frozen=True, eq=False, repr=False)
class Range(GlobalTable):
    """The smallest and the largest value."""

    extremes: Extremes

    @property
    def columns(self) -> tuple[str, ...]:
        return ("min", "max")

    def run(self, kernel: Callable[..., Any], tables: Sequence[Any], out: str, memory_bytes: int) -> None:
        found = tables[0].read()
        if not found["min"].size:
            raise ValueError(
                f"min and max of {self.extremes.array.label}: its mask leaves none of its voxels; give another mask"
            )
        write(out, {"min": found["min"].min(), "max": found["max"].max()})


@dataclass(frozen=True, eq=False, repr=False)
class BinEdges(GlobalTable):
    """Edges of bins of equal width from the smallest to the largest value, as `numpy.histogram_bin_edges`."""

    range: Range
    bins: int

    @property
    def label(self) -> str:
        return "bin edges"

    @property
    def columns(self) -> tuple[str, ...]:
        return ("edge",)

    def run(self, kernel: Callable[..., Any], tables: Sequence[Any], out: str, memory_bytes: int) -> None:
        ends = tables[0].read()
        lo, hi = ends["min"][0], ends["max"][0]
        if not (np.isfinite(lo) and np.isfinite(hi)):
            raise ValueError(
                f"values run from {lo} to {hi}, so bins between them have no width; give histogram(..., range=(lo, hi))"
            )
        write(out, {"edge": np.histogram_bin_edges(np.array([lo, hi], np.float64), self.bins)})


@dataclass(frozen=True, eq=False, repr=False)
class BinCounts(_Statistic):
    """How many values lie in each bin.

    Attributes
    ----------
    bins : int
    range : tuple of float, or BinEdges
    """

    kernel: ClassVar[str] = "volara_expr.kernels.values:bin_counts"

    bins: int
    range: tuple[float, float] | BinEdges

    @property
    def label(self) -> str:
        return "bins"

    @property
    def columns(self) -> tuple[str, ...]:
        return ("bin", "count")

    def rows(self, kernel: Callable[..., Any], cell: Box, reads: Sequence[Sequence[Patch]], tables: Sequence[Any]) -> Columns:
        lo, hi = self.range if isinstance(self.range, tuple) else tables[0].column("edge")[[0, -1]]
        return dict(zip(self.columns, kernel(self.voxels(reads), self.bins, float(lo), float(hi)), strict=True))


@dataclass(frozen=True, eq=False, repr=False)
class Histogram(GlobalTable):
    """How many values lie in each bin, as `numpy.histogram`."""

    counts: BinCounts

    @property
    def columns(self) -> tuple[str, ...]:
        return ("count",)

    def run(self, kernel: Callable[..., Any], tables: Sequence[Any], out: str, memory_bytes: int) -> None:
        found = tables[0].read()
        total = np.zeros(self.counts.bins, np.int64)
        np.add.at(total, found["bin"].astype(np.int64), found["count"].astype(np.int64))
        write(out, {"count": total})


def write(path: str, columns: dict[str, Any]) -> None:
    """Write a short table; single values become columns of one row."""
    from volara_expr.store.tables import write_table

    write_table(path, {name: np.atleast_1d(v) for name, v in columns.items()})


def sum_type(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type in which NumPy adds."""
    kind: np.dtype[Any] = np.sum(np.empty(0, dtype)).dtype
    return kind


def checked(array: ArrayNode, what: str) -> tuple[ArrayNode, tuple[ArrayNode, ...]]:
    """Return an array of real numbers that has voxels, and the mask that it carries, if any."""
    spec = array.spec
    if spec.dtype.kind not in "biuf":
        raise TypeError(f"{what} takes real numbers, the array holds {spec.dtype}; take numpy.absolute first")
    if spec.box.empty:
        raise ValueError(f"{what} of no voxels: shape {spec.shape}; slice less")
    mask = carried_mask(array)
    return array, () if mask is None else (mask,)


def total(array: ArrayNode, which: str) -> Value:
    """Return the node of the sum or the mean of all voxels; see `Array.sum`."""
    parts = ExactSums(*checked(array, which))
    dtype = array.spec.dtype
    kind = sum_type(dtype) if which == "sum" else np.dtype(np.float64) if dtype.kind in "biu" else dtype
    return Value(Total(parts), which, kind)


def extreme(array: ArrayNode, which: str) -> Value:
    """Return the node of the smallest or largest of all voxels; see `Array.min`."""
    return Value(Range(Extremes(*checked(array, which))), which, array.spec.dtype)


def histogram(array: ArrayNode, bins: int, range: Sequence[float] | None) -> tuple[Value, Value | npt.NDArray[np.float64]]:
    """Return the counts of bins of equal width and their edges; see `Array.histogram`."""
    if bins < 1:
        raise ValueError(f"bins={bins}; a histogram has at least 1 bin")
    source = checked(array, "histogram")
    edges: Value | npt.NDArray[np.float64]
    if range is not None:
        if len(range) != 2 or not all(map(isfinite, range)) or range[0] > range[1]:
            raise ValueError(f"range={tuple(range)}; give two finite numbers, the lower first")
        between: tuple[float, float] | BinEdges = (float(range[0]), float(range[1]))
        edges = np.histogram_bin_edges(np.empty(0), bins, (float(range[0]), float(range[1])))
    else:
        between = BinEdges(Range(Extremes(*source)), bins)
        edges = Value(between, "edge", np.dtype(np.float64), bins + 1, "bin")
    return Value(Histogram(BinCounts(*source, bins, between)), "count", np.dtype(np.int64), bins, "bin"), edges
