"""A table of labels: size, box, centroid, and mean, smallest and largest value of images."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from volara_expr.expr.node import ArrayNode, BlockTable, Columns, GlobalTable, Patch
from volara_expr.geometry import BlockGrid, Box
from volara_expr.ops.cells import CELL, absolute_voxel, cell_shape, grid_of, label_ids, plain, space_index, spatial_part
from volara_expr.ops.graph_tables import fixed_point_scale
from volara_expr.ops.mask import Mask, carried_mask
from volara_expr.ops.matching import moved, on_voxels_of

__all__ = ["LabelRows", "LabelStatistics", "label_statistics"]


@dataclass(frozen=True, eq=False, repr=False)
class LabelRows(BlockTable):
    """Rows of the labels of each cell: size, sums of voxel numbers, box, and sum and extremes of each image.

    Attributes
    ----------
    labels : ArrayNode
    values : tuple of ArrayNode
        Cover the same voxels as the labels.
    block : tuple of int
        Shape of a cell, over the axes of the labels; does not change the merged table.
    """

    labels: ArrayNode
    values: tuple[ArrayNode, ...]
    block: tuple[int, ...]
    kernel: ClassVar[str] = "volara_expr.kernels.statistics:label_rows"

    @property
    def label(self) -> str:
        return "label rows"

    @property
    def sums(self) -> tuple[str, ...]:
        """Columns that are added up."""
        return ("size", *(f"{n}_sum" for n in self.labels.spec.space.names), *(f"{k}_sum" for k in range(len(self.values))))

    @property
    def least(self) -> tuple[str, ...]:
        """Columns of which the smallest entry counts."""
        return (*(f"{n}_lo" for n in self.labels.spec.space.names), *(f"{k}_min" for k in range(len(self.values))))

    @property
    def most(self) -> tuple[str, ...]:
        """Columns of which the largest entry counts."""
        return (*(f"{n}_hi" for n in self.labels.spec.space.names), *(f"{k}_max" for k in range(len(self.values))))

    @property
    def columns(self) -> tuple[str, ...]:
        return ("id", *self.sums, *self.least, *self.most)

    @property
    def cells(self) -> BlockGrid:
        return grid_of(self.labels.spec.box, self.block)

    def rows(self, kernel: Callable[..., Any], cell: Box, reads: Sequence[Sequence[Patch]], tables: Sequence[Any]) -> Columns:
        space = self.labels.spec.space
        at = space_index(space)
        labels, *values = (plain(p)[at] for p in reads[0])
        lo = spatial_part(cell, space).lo
        with absolute_voxel(f"cell {cell}", lo):
            ids, sums, boxes, extremes = kernel(label_ids(labels, lo), lo, values)
        found = {"id": ids, "size": sums[:, 0]}
        for i, name in enumerate(space.names):
            k = space.spatial.index(i) if i in space.spatial else None
            found[f"{name}_sum"] = sums[:, 0] * cell.lo[i] if k is None else sums[:, 1 + k]
            found[f"{name}_lo"] = np.full(ids.size, cell.lo[i]) if k is None else boxes[:, k, 0]
            found[f"{name}_hi"] = np.full(ids.size, cell.lo[i] + 1) if k is None else boxes[:, k, 1]
        for k, (low, high) in enumerate(extremes):
            found |= {f"{k}_sum": sums[:, 1 + len(space.spatial) + k], f"{k}_min": low, f"{k}_max": high}
        return {c: found[c] for c in self.columns}


@dataclass(frozen=True, eq=False, repr=False)
class LabelStatistics(GlobalTable):
    """One row per label, by label.

    Attributes
    ----------
    rows : LabelRows
    names : tuple of str
        Of the images; "" for one without a name.
    """

    rows: LabelRows
    names: tuple[str, ...]
    kernel: ClassVar[str] = "volara_expr.store.merge:merge_tables"

    @property
    def label(self) -> str:
        return "label statistics"

    @property
    def columns(self) -> tuple[str, ...]:
        space = self.rows.labels.spec.space
        boxes = (f"{n}_{end}" for n in space.names for end in ("lo", "hi"))
        centroid = (space.names[i] for i in space.spatial)
        values = (_column(n, what) for n in self.names for what in ("mean", "min", "max"))
        return ("label", "size", *boxes, *centroid, *values)

    def run(self, kernel: Callable[..., Any], tables: Sequence[Any], out: str, memory_bytes: int) -> None:
        from volara_expr.store.tables import read_table, write_table

        parts = self.rows
        with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(out))) as folder:
            merged = os.path.join(folder, "merged.parquet")
            kernel(
                tables[0].parts,
                merged,
                keys=("id",),
                sums=parts.sums,
                least=parts.least,
                most=parts.most,
                memory_limit_bytes=memory_bytes,
                tmp_dir=folder,
            )
            found = read_table(merged)
        spec, size = parts.labels.spec, found["size"]
        columns = {"label": found["id"], "size": size}
        for n, lo in zip(spec.space.names, spec.box.lo, strict=True):
            columns |= {f"{n}_{end}": found[f"{n}_{end}"] - lo for end in ("lo", "hi")}
        for i in spec.space.spatial:
            n, origin, voxel = spec.space.names[i], float(spec.space.origin[i]), float(spec.space.voxel_size[i])
            columns[n] = (found[f"{n}_sum"] / size + 0.5) * voxel + origin
        for k, (n, value) in enumerate(zip(self.names, parts.values, strict=True)):
            scale = fixed_point_scale(value.spec.dtype)
            columns[_column(n, "mean")] = found[f"{k}_sum"] / scale / size
            columns |= {_column(n, end): found[f"{k}_{end}"] for end in ("min", "max")}
        write_table(out, columns)


def _column(name: str, what: str) -> str:
    return f"{name}_{what}" if name else what


def label_statistics(labels: ArrayNode, images: Mapping[str, ArrayNode]) -> LabelStatistics:
    """Return the node of a table of labels; see `Array.table`.

    Raises
    ------
    TypeError
        If the labels are no integers, or an image has no mean.
    ValueError
        If there are no voxels, or the images do not cover the same.
    """
    spec = labels.spec
    if spec.dtype.kind not in "iu":
        raise TypeError(f"labels of dtype {spec.dtype} name nothing; use components(), or astype('uint64')")
    if spec.box.empty:
        raise ValueError(f"a table of no voxels: shape {spec.shape}; slice less")
    over = []
    for name, image in images.items():
        if image.spec.dtype.kind not in "biuf":
            raise TypeError(f"image {name!r} has dtype {image.spec.dtype}, which has no mean; use integers or floats")
        at_labels = on_voxels_of(spec, f"image {name!r}", image)
        inside = carried_mask(image)
        if inside is not None:
            by = [b - a for a, b in zip(image.spec.box.lo, at_labels.spec.box.lo, strict=True)]
            labels = Mask(labels, moved(inside, [by[i] for i in image.spec.space.spatial]))
        over.append(at_labels)
    cell = cell_shape(spec.space, (CELL,) * len(spec.space.spatial))
    return LabelStatistics(LabelRows(labels, tuple(over), labels.unit or cell), tuple(images))
