"""Look-up tables from ids to values: given ones, and those found by clustering a region graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from volara_expr.expr.node import GlobalTable, TableNode

__all__ = ["LUT_COLUMNS", "ConstantLut", "GraphComponentsLut", "MutexWatershedLut", "constant_lut", "write_lut"]

LUT_COLUMNS = ("id", "value")
Ids = npt.NDArray[np.uint64]


@dataclass(frozen=True, eq=False, repr=False)
class ConstantLut(TableNode):
    """A table that was given.

    Attributes
    ----------
    ids, values : ndarray of uint64
        Ids ascend strictly.
    """

    ids: Ids = field(repr=False)
    values: Ids = field(repr=False)

    @property
    def columns(self) -> tuple[str, ...]:
        return LUT_COLUMNS

    def describe(self) -> str:
        return f"{len(self.ids)} ids"


def constant_lut(ids: npt.ArrayLike | Mapping[int, int], values: npt.ArrayLike | None = None) -> ConstantLut:
    """Make the node of a given table.

    Raises
    ------
    ValueError
        If ids and values differ in number, an id occurs twice or is 0, or a number is negative.
    TypeError
        If they are not integers.
    """
    if isinstance(ids, Mapping):
        if values is not None:
            raise ValueError("give a mapping from ids to values, or ids and values; both were given")
        return constant_lut(list(ids), list(ids.values()))
    if values is None:
        raise ValueError("ids were given without values; give a mapping from ids to values, or both")
    a, b = _unsigned("ids", ids), _unsigned("values", values)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} ids but {len(b)} values; give one value for each id")
    order = np.argsort(a, kind="stable")
    a, b = a[order], b[order]
    twice = np.flatnonzero(a[1:] == a[:-1])
    if twice.size:
        raise ValueError(f"id {a[twice[0]]} occurs twice, with values {b[twice[0]]} and {b[twice[0] + 1]}; keep one")
    if a.size and a[0] == 0 and b[0] != 0:
        raise ValueError(f"id 0 is background and stays 0, but the table gives it {b[0]}; relabel the array without 0 instead")
    for array in (a, b):
        array.flags.writeable = False
    return ConstantLut(a, b)


def _unsigned(what: str, numbers: npt.ArrayLike) -> Ids:
    if isinstance(numbers, (list, tuple)) and all(type(n) is int for n in numbers):
        if min(numbers, default=0) < 0 or max(numbers, default=0) >= 1 << 64:
            raise ValueError(f"{what} run from {min(numbers)} to {max(numbers)}; they must lie in 0 to 2**64 - 1")
        return np.array(numbers, np.uint64)
    array = np.asarray(numbers)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{what} have dtype {array.dtype}; they must be integers")
    if array.ndim != 1:
        raise ValueError(f"{what} have {array.ndim} axes; give one list of numbers")
    if array.size and array.min() < 0:
        raise ValueError(f"{what} hold {array.min()}; they must lie in 0 to 2**64 - 1")
    return array.astype(np.uint64)


def write_lut(path: str, ids: Ids, values: Ids) -> None:
    """Write a table, ids ascending, to a Parquet file."""
    from volara_expr.store.tables import write_table

    write_table(path, dict(zip(LUT_COLUMNS, (ids, values), strict=True)))


def _number(ids: Ids, ends: Ids) -> npt.NDArray[np.uint32]:
    """Return the position of each end of an edge among the nodes."""
    at = np.searchsorted(ids, ends)
    known = ids[np.minimum(at, len(ids) - 1)] == ends if len(ids) else np.zeros(len(ends), bool)
    if not known.all():
        raise ValueError(
            f"an edge names fragment {ends[known.argmin()]}, which is not among the {len(ids)} nodes; rebuild the graph"
        )
    return at.astype(np.uint32)


def _read(
    tables: Sequence[Any], names: Sequence[str], scales: Sequence[int]
) -> tuple[Ids, Any, Any, Iterator[tuple[Any, Any]]]:
    """Return the node ids, the ends of the edges as positions among them, and per score where it is known and its mean."""
    ids = tables[0].read(["id"])["id"]
    edges = tables[1].read(["u", "v", *(f"{n}_{what}" for n in names for what in ("sum", "count"))])

    def means() -> Iterator[tuple[Any, Any]]:
        for name, scale in zip(names, scales, strict=True):
            count = edges[f"{name}_count"]
            yield count > 0, edges[f"{name}_sum"] / scale / np.maximum(count, 1)

    return ids, _number(ids, edges["u"]), _number(ids, edges["v"]), means()


@dataclass(frozen=True, eq=False, repr=False)
class MutexWatershedLut(GlobalTable):
    """Segments of a region graph by the mutex watershed (Wolf et al., ECCV 2018); a segment's id is its smallest fragment id.

    Edges enter in the order of (u, v), the scores of a pair in the order of `weights`; a score that no voxel pair has is no
    edge. Every fragment is in the table, also one without edges.

    Attributes
    ----------
    nodes, edges : TableNode
    weights : tuple of (str, float, float)
        Name of a score, factor w and bias b: an edge weighs w * mean + b.
    scales : tuple of int
        What one unit counts in the sums of each of these scores.
    combine : bool
        One edge per pair, the sum of its scores' weights, in place of one per score.
    """

    kernel = "volara_expr.kernels.graph:mutex_watershed"

    nodes: TableNode
    edges: TableNode
    weights: tuple[tuple[str, float, float], ...]
    scales: tuple[int, ...]
    combine: bool = False

    @property
    def label(self) -> str:
        return "segments by mutex watershed"

    @property
    def columns(self) -> tuple[str, ...]:
        return LUT_COLUMNS

    def run(self, kernel: Callable[..., Any], tables: Sequence[Any], out: str, memory_bytes: int) -> None:
        ids, u, v, means = _read(tables, [name for name, _, _ in self.weights], self.scales)
        known: npt.NDArray[np.bool_] = np.empty((len(u), len(self.weights)), bool)
        weight: npt.NDArray[np.float64] = np.empty(known.shape)
        for k, ((_, factor, bias), (has, mean)) in enumerate(zip(self.weights, means, strict=True)):
            known[:, k], weight[:, k] = has, factor * mean + bias
        if self.combine:
            weight = np.where(known, weight, 0).sum(axis=1, keepdims=True)
            known = np.asarray(known.any(axis=1, keepdims=True))
        each, known = weight.shape[1], known.reshape(-1)
        u, v = (np.repeat(ends, each)[known] for ends in (u, v))
        write_lut(out, ids, ids[kernel(u, v, weight.reshape(-1)[known], len(ids))])


@dataclass(frozen=True, eq=False, repr=False)
class GraphComponentsLut(GlobalTable):
    """Segments of a region graph by connected components; a segment's id is its smallest fragment id.

    Attributes
    ----------
    nodes, edges : TableNode
    thresholds : tuple of (str, float)
        Two fragments are joined where the mean of any of these scores is above its threshold.
    scales : tuple of int
        What one unit counts in the sums of each of these scores.
    """

    kernel = "volara_expr.kernels.graph:components"

    nodes: TableNode
    edges: TableNode
    thresholds: tuple[tuple[str, float], ...]
    scales: tuple[int, ...]

    @property
    def label(self) -> str:
        return "segments by components"

    @property
    def columns(self) -> tuple[str, ...]:
        return LUT_COLUMNS

    def run(self, kernel: Callable[..., Any], tables: Sequence[Any], out: str, memory_bytes: int) -> None:
        ids, u, v, means = _read(tables, [name for name, _ in self.thresholds], self.scales)
        joined = np.zeros(len(u), bool)
        for (_, threshold), (known, mean) in zip(self.thresholds, means, strict=True):
            joined |= known & (mean > threshold)
        write_lut(out, ids, ids[kernel(u[joined], v[joined], len(ids))])
