"""A quick look at a region: arrays exact, tables made of that region alone. Nothing is stored.

A segmentation of a whole volume depends on all of it. To play with parameters, the tables behind it (nodes, edges, look-up
tables) are made of just the cells that the region touches; voxel pairs that leave those cells do not count.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from volara_expr.config import config
from volara_expr.expr import ArrayNode, BlockTable, GlobalTable, Node, Patch, TableNode, topological
from volara_expr.geometry import Box
from volara_expr.kernels.fused import plain
from volara_expr.ops.sources import InMemory, StoredArray
from volara_expr.run.block import Program, resolve

if TYPE_CHECKING:  # a look at an image waits for no table library
    from volara_expr.run.tables import TableFiles
    from volara_expr.store import Arrays

__all__ = ["Look", "preview"]


class Look:
    """One look: what was evaluated and which tables were made, so that nothing is done twice."""

    def __init__(self, folder: str, regions: dict[ArrayNode, Box]) -> None:
        self.folder = folder
        self.regions = regions
        self.known: dict[ArrayNode, Patch] = {}
        self.tables: dict[int, TableFiles] = {}
        self.stores = ExitStack()

    @cached_property
    def arrays(self) -> Arrays:
        """Open what the stores are read by, once one is read."""
        from volara_expr.store import Arrays

        return self.stores.enter_context(Arrays(config.cache_bytes))

    def evaluate(self, asked: dict[ArrayNode, Box]) -> dict[ArrayNode, Patch]:
        """Evaluate roots, reading what an earlier evaluation of this look has left."""
        region = Program(list(asked), [n for n in self.known if n not in asked])
        boxes = region.demand(asked)
        known = [n for n in self.known if n in boxes and self.known[n].box.contains(boxes[n])]
        program = Program(list(asked), known)
        return program.evaluate(program.demand(asked), self.read, self.table, list(asked))

    def read(self, node: ArrayNode, box: Box) -> Any:
        """Give the voxels of a leaf."""
        if node in self.known:
            return self.known[node].cut(box).data
        if isinstance(node, InMemory):
            assert node.data is not None
            return node.data[box.slices(node.spec.box.lo)]
        if not isinstance(node, StoredArray):
            return None
        return self.arrays.read(node.url, box.shift(tuple(-v for v in node.spec.box.lo))).result()

    def table(self, node: Node) -> TableFiles:
        """Make a table of the region's cells."""
        if id(node) not in self.tables:
            assert isinstance(node, TableNode)
            self.tables[id(node)] = self.make(node)
        return self.tables[id(node)]

    def make(self, node: TableNode) -> TableFiles:
        """Make a table from its inputs."""
        from volara_expr.run.tables import TableFiles, leaf_table

        given = leaf_table(node)
        if given is not None:
            return given
        inputs = [self.table(t) for t in node.tables]
        path = os.path.join(self.folder, f"{node.digest}.parquet")
        if isinstance(node, GlobalTable):
            node.run(resolve(node.kernel), inputs, path, 1 << 30)
            return TableFiles(path=path, columns=node.columns)
        assert isinstance(node, BlockTable)
        from volara_expr.store.tables import write_part

        around = self.regions.get(node.frame, node.frame.spec.box)
        cells = [cell for _, cell in node.cells.blocks(around)]
        whole = cells[0]
        for cell in cells[1:]:
            whole = whole.hull(cell)
        reads = {
            cell: [
                [clip(b, x, whole, node.frame) for x, b in zip(node.arrays, read, strict=True)] for read in node.demands(cell)
            ]
            for cell in cells
        }
        asked: dict[ArrayNode, Box] = {}
        for lists in reads.values():
            for boxes in lists:
                for x, box in zip(node.arrays, boxes, strict=True):
                    asked[x] = asked[x].hull(box) if x in asked else box
        self.known |= self.evaluate({x: b for x, b in asked.items() if not (x in self.known and self.known[x].box.contains(b))})
        rows = []
        for cell, lists in reads.items():
            patches = [[self.known[x].cut(b) for x, b in zip(node.arrays, boxes, strict=True)] for boxes in lists]
            if not node.takes_coded:
                patches = [[Patch(p.box, plain(p.data)) for p in group] for group in patches]
            rows.append(node.rows(resolve(node.kernel), cell, patches, inputs))
        write_part(path, rows)
        return TableFiles(parts=[(path, list(range(len(rows))))], columns=node.columns)


def clip(box: Box | None, x: ArrayNode, whole: Box, frame: ArrayNode) -> Box:
    """Clip the box that a cell takes of an input to the cells at hand, along the axes that the input shares with the cells."""
    assert box is not None
    box = box.clip(x.spec.box)
    lo, hi = list(box.lo), list(box.hi)
    names = x.spec.space.names
    for k, name in enumerate(frame.spec.space.names):
        if name in names:
            i = names.index(name)
            lo[i], hi[i] = max(lo[i], whole.lo[k]), min(hi[i], whole.hi[k])
    return Box(tuple(lo), tuple(hi))


def preview(asked: dict[ArrayNode, Box]) -> list[npt.NDArray[Any]]:
    """Return boxes of arrays, with tables made of the cells that the boxes touch.

    Parameters
    ----------
    asked : dict
        A box within each array; what several arrays need is evaluated once.
    """
    everything = [n for n in topological(asked) if isinstance(n, ArrayNode)]
    regions = Program(asked, []).demand(asked)
    with tempfile.TemporaryDirectory(prefix="volara_expr-") as folder:
        look = Look(folder, regions)
        with look.stores:
            for table in tables_behind(everything, regions):
                look.table(table)
            patches = look.evaluate(asked)
    return [np.asarray(plain(patches[n].cut(box).data), n.spec.dtype, order="C") for n, box in asked.items()]


def tables_behind(nodes: Sequence[ArrayNode], regions: dict[ArrayNode, Box]) -> list[TableNode]:
    """Return the tables that arrays of the region look into."""
    return list(dict.fromkeys(t for n in nodes if n in regions for t in n.tables))
