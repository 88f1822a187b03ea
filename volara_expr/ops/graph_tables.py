"""Fragments to a region graph: integer sums of every cell of the volume, merged exactly, then a database."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from volara_expr.expr.node import ArrayNode, BlockTable, Columns, GlobalTable, Patch, TableNode
from volara_expr.geometry import BlockGrid, Box, Space
from volara_expr.ops.cells import absolute_voxel, grid_of, label_ids, plain, space_index, spatial_part
from volara_expr.ops.regions import neighborhood_of
from volara_expr.ops.shape import with_faces

__all__ = ["EdgeTable", "Kind", "MergedTable", "NodeTable", "RegionGraph", "StoredGraph", "StoredTable", "fixed_point_scale"]

Kind = Literal["inner", "faces", "owned"]
LARGEST = 1 << 15
"""Floats beyond this have no place in sums of 64 bits."""


def fixed_point_scale(dtype: np.dtype[Any]) -> int:
    """Return what one unit of a value counts in sums: integers are summed as they are, floats as rint(x * 2**24)."""
    return 1 << 24 if dtype.kind == "f" else 1


@dataclass(frozen=True, eq=False, repr=False)
class NodeTable(BlockTable):
    """Rows of labels: size, sum of the absolute voxel index along each axis, sum of each value.

    Attributes
    ----------
    labels : ArrayNode
    values : tuple of ArrayNode
        Cover the same voxels as the labels.
    names : tuple of str
        One per value.
    block : tuple of int
        Shape of a cell, over the axes of the labels; does not change the merged table.
    """

    kernel = "volara_expr.kernels.edges:node_sums"

    labels: ArrayNode
    values: tuple[ArrayNode, ...]
    names: tuple[str, ...]
    block: tuple[int, ...]

    @property
    def label(self) -> str:
        return "nodes"

    @property
    def columns(self) -> tuple[str, ...]:
        return ("id", "size", *(f"{n}_sum" for n in (*self.labels.spec.space.names, *self.names)))

    @property
    def cells(self) -> BlockGrid:
        return grid_of(self.labels.spec.box, self.block)

    def rows(self, kernel: Callable[..., Any], cell: Box, reads: Sequence[Sequence[Patch]], tables: Sequence[Any]) -> Columns:
        space = self.labels.spec.space
        at = space_index(space)
        labels, *values = (plain(p)[at] for p in reads[0])
        lo = spatial_part(cell, space).lo
        labels = label_ids(labels, lo)
        with absolute_voxel(f"cell {cell}", lo):
            ids, sums = kernel(labels, lo, values)
        size = sums[:, 0]
        found = {"id": ids, "size": size}
        found |= {f"{a.name}_sum": size * lo for a, lo in zip(space.axes, cell.lo, strict=True)}
        spatial = (space.axes[i].name for i in space.spatial)
        return found | {f"{n}_sum": sums[:, k] for k, n in enumerate((*spatial, *self.names), 1)}


@dataclass(frozen=True, eq=False, repr=False)
class EdgeTable(BlockTable):
    """Rows of pairs of labels: for each score, the sum of the affinities between them and their number.

    Attributes
    ----------
    labels, affs : ArrayNode
        `affs` has the axes of the labels and one of type "offsets", and covers the same voxels.
    names : tuple of str
        The scores.
    channels : tuple of tuples of int
        For each score, the channels pooled into it.
    kind : {"inner", "faces", "owned"}
        Voxel pairs (v, v + offset) within a cell; those that leave it, read as one thin slab per face; or all whose v lies in
        the cell. Inner pairs and those of the faces are the owned ones, each once.
    block : tuple of int
        Shape of a cell, over the axes of the labels; does not change the merged table.
    """

    kernel = "volara_expr.kernels.edges:edge_sums"
    takes_coded = True
    cost = 15.0

    labels: ArrayNode
    affs: ArrayNode
    names: tuple[str, ...]
    channels: tuple[tuple[int, ...], ...]
    kind: Kind
    block: tuple[int, ...]

    @property
    def label(self) -> str:
        return f"edges ({self.kind})"

    @property
    def columns(self) -> tuple[str, ...]:
        return ("u", "v", *(f"{n}_{what}" for n in self.names for what in ("sum", "count")))

    @property
    def cells(self) -> BlockGrid:
        return grid_of(self.labels.spec.box, self.block)

    @cached_property
    def used(self) -> tuple[int, ...]:
        """Channels in the order of the scores; one may serve several."""
        return tuple(c for channels in self.channels for c in channels)

    @cached_property
    def _offsets(self) -> tuple[tuple[int, ...], ...]:
        """Offset of each used channel over all axes of the labels."""
        space = self.labels.spec.space
        neighborhood = neighborhood_of(self.affs.spec)[1]
        full = []
        for c in self.used:
            offset = [0] * space.ndim
            for i, n in zip(space.spatial, neighborhood[c], strict=True):
                offset[i] = n
            full.append(tuple(offset))
        return tuple(full)

    def _reads(self, cell: Box) -> Iterator[tuple[dict[str, Any], Box, Box]]:
        """Yield, for each read of a cell, which pairs it is for, and the boxes of their first voxels and of both."""
        if self.kind == "inner":
            yield {"kind": "inner"}, cell, cell
        elif self.kind == "owned":
            yield {"kind": "owned"}, cell, _both(cell, self._offsets)
        else:
            domain = self.labels.spec.box
            spatial = self.labels.spec.space.spatial
            for axis, i in enumerate(spatial):
                for side in (-1, 1):
                    offsets = [o for o in self._offsets if o[i] * side > 0]
                    rim = min(max((abs(o[i]) for o in offsets), default=0), cell.shape[i])
                    outside = domain.hi[i] - cell.hi[i] if side > 0 else cell.lo[i] - domain.lo[i]
                    if not rim or not outside:
                        continue
                    start = cell.hi[i] - rim if side > 0 else cell.lo[i]
                    base = with_faces(cell, i, start, start + rim)
                    both = _both(base, offsets)
                    for j in spatial[:axis]:  # a pair that leaves the cell along an earlier axis belongs to that face
                        both = with_faces(both, j, cell.lo[j], cell.hi[j])
                    yield {"kind": "face", "axis": axis, "side": side}, base, both

    def demands(self, cell: Box) -> Sequence[tuple[Box | None, ...]]:
        axis = neighborhood_of(self.affs.spec)[0]
        lo, hi = min(self.used), max(self.used) + 1
        return [
            (both, Box((*base.lo[:axis], lo, *base.lo[axis:]), (*base.hi[:axis], hi, *base.hi[axis:])))
            for _, base, both in self._reads(cell)
        ]

    def rows(self, kernel: Callable[..., Any], cell: Box, reads: Sequence[Sequence[Patch]], tables: Sequence[Any]) -> Columns:
        space = self.labels.spec.space
        axis, neighborhood = neighborhood_of(self.affs.spec)
        used, lowest = self.used, min(self.used)
        scores = [k for k, channels in enumerate(self.channels) for _ in channels]
        own, at = spatial_part(cell, space), space_index(space)
        found = []
        for (pairs, base, _), (labels, affs) in zip(self._reads(cell), reads, strict=True):
            codes, table = _summable(affs)
            values = np.moveaxis(codes, axis, 0)[(slice(None), *at)]
            if used != tuple(range(lowest, lowest + len(values))):
                values = values[[c - lowest for c in used]]
            start, labels_lo = spatial_part(base, space).lo, spatial_part(labels.box, space).lo
            fragments = label_ids(plain(labels)[at], labels_lo)
            with absolute_voxel(f"the affinities, channel first; cell {cell}", start, used):
                found.append(
                    kernel(
                        fragments,
                        labels_lo,
                        values,
                        start,
                        [neighborhood[c] for c in used],
                        scores,
                        len(self.names),
                        own.lo,
                        own.hi,
                        table=table,
                        **pairs,
                    )
                )
        width = 2 * len(self.names)
        u = np.concatenate([f[0] for f in found] or [np.empty(0, np.uint64)])
        v = np.concatenate([f[1] for f in found] or [np.empty(0, np.uint64)])
        sums = np.concatenate([f[2] for f in found] or [np.empty((0, width), np.int64)])
        return {"u": u, "v": v} | {name: sums[:, k] for k, name in enumerate(self.columns[2:])}


def _summable(affs: Patch) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64] | None]:
    """Return affinities, or their codes and what the kernel adds up for each code."""
    if isinstance(affs.data, np.ndarray):
        return affs.data, None
    table = affs.data.table
    if table.dtype.kind != "f":
        return affs.data.codes, table.astype(np.int64)
    if not (np.abs(table) <= LARGEST).all():  # the kernel says which voxel has such a value, if any
        return plain(affs), None
    return affs.data.codes, np.rint(table.astype(np.float64) * fixed_point_scale(table.dtype)).astype(np.int64)


def _both(base: Box, offsets: Sequence[tuple[int, ...]]) -> Box:
    """Return the hull of a box and of the box moved by each offset."""
    hull = base
    for offset in offsets:
        hull = hull.hull(base.shift(offset))
    return hull


@dataclass(frozen=True, eq=False, repr=False)
class MergedTable(GlobalTable):
    """Rows of equal keys added up, ordered by key: the same table whatever the cells were, since integers add exactly.

    Attributes
    ----------
    parts : tuple of BlockTable
        With equal columns.
    keys : tuple of str
        All other columns are summed.
    """

    kernel = "volara_expr.store.merge:merge_tables"

    parts: tuple[BlockTable, ...]
    keys: tuple[str, ...]

    @property
    def label(self) -> str:
        return f"merged {self.parts[0].label.split()[0]}"

    @property
    def columns(self) -> tuple[str, ...]:
        return self.parts[0].columns

    def run(self, kernel: Callable[..., Any], tables: Sequence[Any], out: str, memory_bytes: int) -> None:
        kernel(
            [part for table in tables for part in table.parts],
            out,
            keys=self.keys,
            sums=[c for c in self.columns if c not in self.keys],
            memory_limit_bytes=memory_bytes,
            tmp_dir=os.path.dirname(os.path.abspath(out)),
        )


@dataclass(frozen=True, eq=False, repr=False)
class RegionGraph(GlobalTable):
    """A database of fragments and the scores between them.

    Attributes
    ----------
    nodes, edges : MergedTable
    scores : tuple of str
    scales : tuple of (str, int)
        What one unit counts in the sums of each score and of each mean.
    space : Space
        Of the fragments. The position of a fragment is the world position of the mean of its voxels' centres,
        ``origin + (mean index + 1/2) * voxel_size``, which lies in the world box of its voxels.
    """

    suffix = ".duckdb"
    kernel = "volara_expr.store.graph_db:build_graph_db"

    nodes: MergedTable
    edges: MergedTable
    scores: tuple[str, ...]
    scales: tuple[tuple[str, int], ...]
    space: Space = field(repr=False)

    @property
    def label(self) -> str:
        return "region graph"

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(c.removesuffix("_sum") for c in self.nodes.columns)

    def run(self, kernel: Callable[..., Any], tables: Sequence[Any], out: str, memory_bytes: int) -> None:
        space = self.space.keep(self.space.spatial)
        metadata = {
            "digest": self.digest,
            "axes": space.names,
            "voxel_size": [str(v) for v in space.voxel_size],
            "origin": [str(v) for v in space.origin],
            "units": [a.unit for a in space.axes],
            "scales": dict(self.scales),
        }
        kernel(out, tables[0].path, tables[1].path, metadata, memory_limit_bytes=memory_bytes)


@dataclass(frozen=True, eq=False, repr=False)
class StoredTable(TableNode):
    """A table in a file: Parquet, or a table of a DuckDB database.

    Attributes
    ----------
    path : str
    content : str
        What the file was when it was opened: the digest of the expression that wrote it, or a fingerprint.
    names : tuple of str
        The columns.
    table : str
        Of a database; empty for Parquet.
    """

    path: str
    content: str
    names: tuple[str, ...] = field(repr=False)
    table: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        return self.names


@dataclass(frozen=True, eq=False, repr=False)
class StoredGraph(TableNode):
    """A region graph that exists; `nodes` and `edges` are tables of its database, the rest is as in `RegionGraph`."""

    nodes: StoredTable
    edges: StoredTable
    scores: tuple[str, ...]
    scales: tuple[tuple[str, int], ...]

    @property
    def path(self) -> str:
        """Path of the database."""
        return self.nodes.path

    @property
    def columns(self) -> tuple[str, ...]:
        return self.nodes.columns
