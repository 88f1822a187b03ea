"""Where stored nodes lie: the user's outputs, and the workspace beside the first of them.

out.zarr.volara_expr/
    seg/<digest>/           ledger of the output out.zarr/seg
    nodes/<digest>/         an intermediate: its ledger, and array.zarr, parts/*.parquet or result.parquet
    nodes/<digest>/where.json   or, for an output, where it and its ledger are
    jobs/                   job files and logs
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from volara_expr.expr import ArrayNode, BlockTable, GlobalTable, Node
from volara_expr.geometry import Box
from volara_expr.geometry.grid import BlockGrid
from volara_expr.plan.targets import Target
from volara_expr.run.ledger import Ledger
from volara_expr.store import create_array, locate, read_attributes, update_attributes
from volara_expr.store import delete as delete_array

__all__ = ["Place", "Workspace"]

ATTRIBUTE = "volara_expr"


@dataclass(frozen=True)
class Place:
    """A stored node: where its data and its ledger are.

    Attributes
    ----------
    kind : {"array", "rows", "file"}
        An array in a store; rows in parts that the ledger names; a single file.
    url : str
        Of the array or the file; the ledger's folder for rows.
    folder : str
        Of the ledger; empty for data of others.
    grid : BlockGrid
        Write units, in absolute voxels.
    lo : tuple of int
        Absolute coordinates of the stored array's voxel 0.
    """

    kind: Literal["array", "rows", "file"]
    url: str
    folder: str
    grid: BlockGrid
    lo: tuple[int, ...] = ()

    @property
    def ledger(self) -> Ledger:
        """The ledger."""
        return Ledger(self.folder, self.grid)

    def exists(self) -> bool:
        """Whether the data is that of the ledger: not deleted, not replaced."""
        about = self.ledger.describe()
        if about is None:
            return False
        if self.kind == "rows":
            return True
        if self.kind == "file":
            return os.path.exists(self.url)
        try:
            mark = read_attributes(self.url).get(ATTRIBUTE, {})
        except FileNotFoundError:
            return False
        return bool(mark.get("incarnation") == about["incarnation"])

    def complete(self) -> bool:
        """Whether everything is there and finished."""
        return self.exists() and self.ledger.complete()

    def remove(self) -> None:
        """Delete data and ledger."""
        if self.kind == "array":
            delete_array(self.url)
        elif self.kind == "file" and os.path.exists(self.url):
            os.unlink(self.url)
        self.ledger.discard()


ONE = BlockGrid(Box((0,), (1,)), (1,), (0,))


class Workspace:
    """The folder that holds everything about a run but the outputs themselves."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    @classmethod
    def beside(cls, url: str) -> Workspace:
        """Return the workspace that belongs to an output."""
        location = locate(url)
        if not location.local:
            raise ValueError(f"cannot write to {url}: outputs and their ledgers must lie on a file system, so far")
        return cls(location.workspace)

    @property
    def jobs(self) -> str:
        """Folder for job files and logs."""
        return os.path.join(self.folder, "jobs")

    def node_folder(self, node: Node) -> str:
        """Folder of an intermediate."""
        return os.path.join(self.folder, "nodes", node.digest)

    def place(self, target: Target) -> Place:
        """Return where a target goes."""
        node, url = target.node, target.url
        folder = self.node_folder(node)
        if isinstance(node, BlockTable):
            return Place("rows", folder, folder, node.cells)
        if isinstance(node, GlobalTable):
            file = os.path.join(folder, "result" + node.suffix) if url is None else locate(url).file(node.suffix)
            if url is not None:
                folder = self._ledger_of(file, node)
            return Place("file", file, folder, ONE)
        assert isinstance(node, ArrayNode)
        assert target.stored is not None
        grid = BlockGrid(node.spec.box, target.shards or target.chunks, target.stored.lo)
        if url is None:
            return Place("array", os.path.join(folder, "array.zarr"), folder, grid, target.stored.lo)
        options = dict(target.output.options) if target.output else {}
        place = locate(url)
        array = place.url + ("/0" if str(options.get("format", "ome-zarr")).startswith("ome-zarr") else "")
        return Place("array", array, self._ledger_of(url, node), grid, target.stored.lo)

    def _ledger_of(self, url: str, node: Node) -> str:
        location = locate(url)
        path = location.path or "_"
        own = location.workspace if location.path else os.path.join(self.folder, "files")
        if not location.path:
            path = os.path.basename(location.root)
        return os.path.join(own, *path.split("/"), node.digest)

    def found(self, node: Node) -> Place | None:
        """Return where a node is already stored, complete, by an earlier run; None where it is not."""
        folder = self.node_folder(node)
        pointer = os.path.join(folder, "where.json")
        if os.path.exists(pointer):
            with open(pointer) as f:
                at = json.load(f)
            grid = BlockGrid(Box(tuple(at["lo"]), tuple(at["hi"])), tuple(at["unit"]), tuple(at["origin"]))
            place = Place(at["kind"], at["url"], at["folder"], grid, tuple(at["origin"]) if at["kind"] == "array" else ())
            if place.complete():
                return place
        if not os.path.exists(os.path.join(folder, "node.json")):
            return None
        place = self.place(Target(node, "found"))
        return place if place.complete() else None

    def remember(self, node: Node, place: Place) -> None:
        """Note where an output is, so that later plans find it by its digest."""
        folder = self.node_folder(node)
        if place.folder == folder:
            return
        os.makedirs(folder, exist_ok=True)
        g = place.grid
        content = {
            "kind": place.kind,
            "url": place.url,
            "folder": place.folder,
            "lo": g.domain.lo,
            "hi": g.domain.hi,
            "unit": g.block,
            "origin": g.origin,
        }
        temporary = os.path.join(folder, f"where.{uuid.uuid4().hex[:8]}")
        Path(temporary).write_text(json.dumps(content))
        os.replace(temporary, os.path.join(folder, "where.json"))

    def forget(self, node: Node) -> None:
        """Delete an intermediate: data, ledger and all."""
        shutil.rmtree(self.node_folder(node), ignore_errors=False)


def make_array(target: Target, place: Place, incarnation: str) -> None:
    """Create the array of a target in its store, or find the one that another driver of the same run has created."""
    node = target.node
    assert isinstance(node, ArrayNode)
    assert target.stored is not None
    options = dict(target.output.options) if target.output else {}
    intermediate = target.url is None
    url = place.url if intermediate else str(target.url)
    create_array(
        url,
        shape=target.stored.shape,
        dtype=node.spec.dtype,
        chunks=target.chunks,
        shards=target.shards,
        space=node.spec.space,
        lo=target.stored.lo,
        neighborhood=node.spec.neighborhood,
        format="zarr" if intermediate else options.get("format", "ome-zarr"),
    )
    update_attributes(place.url, {ATTRIBUTE: {"digest": node.digest, "incarnation": incarnation}})
