"""Where stored nodes lie: the user's outputs, and the workspace beside the first of them.

out.zarr.volara_expr/
    seg/<digest>/           ledger of the output out.zarr/seg; of out.zarr itself in _/<digest>/
    nodes/<digest>/         an intermediate: its ledger, and array.zarr, parts/*.parquet or result.parquet
    nodes/<digest>/where.json   or, for an output, where it and its ledger are
    nodes/<digest>/keep     keep="all" was asked for
    jobs/                   job files and logs, while a run goes on or after it failed
    lock                    held by the process that drives a run
"""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from volara_expr.expr import ArrayNode, BlockTable, GlobalTable, Node
from volara_expr.geometry import Box
from volara_expr.geometry.grid import BlockGrid
from volara_expr.ops.sources import InMemory
from volara_expr.plan.targets import Target
from volara_expr.run.ledger import Ledger
from volara_expr.store import Arrays, create_array, locate, read_attributes, update_attributes

__all__ = ["Place", "Workspace", "ship"]

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
        """Whether the data is that of the ledger, in the same write units: not deleted, not replaced."""
        about = self.ledger.describe()
        if about is None or tuple(about["unit"]) != self.grid.block or tuple(about["origin"]) != self.grid.origin:
            return False
        if self.kind == "rows":
            return True
        if self.kind == "file":
            stamp = os.path.join(self.folder, "stamp.json")
            return os.path.exists(self.url) and (not os.path.exists(stamp) or read_json(stamp) == state_of(self.url))
        try:
            mark = read_attributes(self.url).get(ATTRIBUTE, {})
        except FileNotFoundError:
            return False
        return bool(mark.get("incarnation") == about["incarnation"])

    def stamp(self) -> None:
        """Note the state of a finished file, so that another one that takes its place is not mistaken for it."""
        write_json(os.path.join(self.folder, "stamp.json"), state_of(self.url))

    def complete(self) -> bool:
        """Whether everything is there and finished."""
        return self.exists() and self.ledger.complete()


ONE = BlockGrid(Box((0,), (1,)), (1,), (0,))


def state_of(path: str) -> list[int]:
    """Return size and time of a file, which change when it is written again."""
    state = os.stat(path)
    return [state.st_size, state.st_mtime_ns]


def read_json(path: str) -> Any:
    """Read a small file."""
    with open(path) as f:
        return json.load(f)


def write_json(path: str, content: Any) -> None:
    """Write a small file, whole or not at all."""
    temporary = f"{path}.{uuid.uuid4().hex[:8]}"
    Path(temporary).write_text(json.dumps(content))
    os.replace(temporary, path)


class Workspace:
    """The folder that holds everything about a run but the outputs themselves."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    @property
    def jobs(self) -> str:
        """Folder for job files and logs."""
        return os.path.join(self.folder, "jobs")

    def node_folder(self, node: Node) -> str:
        """Folder of an intermediate."""
        return os.path.join(self.folder, "nodes", node.digest)

    def memory_folder(self, node: InMemory) -> str:
        """Folder of a NumPy array that other processes need."""
        return os.path.join(self.folder, "nodes", node.content)

    def place(self, target: Target) -> Place:
        """Return where a target goes."""
        node, url = target.node, target.url
        folder = self.node_folder(node)
        if isinstance(node, BlockTable):
            return Place("rows", folder, folder, node.cells)
        if isinstance(node, GlobalTable):
            file = os.path.join(folder, "result" + node.suffix) if url is None else locate(url).file(node.suffix)
            if url is not None:
                folder = ledger_folder(url, node)
            return Place("file", file, folder, ONE)
        assert isinstance(node, ArrayNode)
        assert target.stored is not None
        grid = BlockGrid(node.spec.box, target.shards or target.chunks, target.stored.lo)
        if url is None:
            return Place("array", os.path.join(folder, "array.zarr"), folder, grid, target.stored.lo)
        options = dict(target.output.options) if target.output else {}
        place = locate(url)
        array = place.url + ("/0" if str(options.get("format", "ome-zarr")).startswith("ome-zarr") else "")
        return Place("array", array, ledger_folder(url, node), grid, target.stored.lo)

    def found(self, node: Node) -> Place | None:
        """Return where a node is already stored, complete, by an earlier run; None where it is not."""
        folder = self.node_folder(node)
        pointer = os.path.join(folder, "where.json")
        if os.path.exists(pointer):
            at = read_json(pointer)
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
        write_json(os.path.join(folder, "where.json"), content)

    def forget(self, node: Node) -> None:
        """Delete an intermediate: data, ledger and all; at once, so that half of it is never taken for the whole."""
        Ledger(self.node_folder(node), ONE).discard()


def ledger_folder(url: str, node: Node) -> str:
    """Return the folder of an output's ledger, beside the store that holds the output.

    Raises
    ------
    ValueError
        The output is not on a file system.
    """
    location = locate(url)
    if not location.local:
        raise ValueError(
            f"cannot write to {url}: outputs and their ledgers lie on a file system; write there and copy the result"
        )
    return os.path.join(location.workspace, *(location.path or "_").split("/"), node.digest)


def make_array(target: Target, place: Place, incarnation: str) -> None:
    """Create the array of a target in its store, or find the one that another driver of the same run has created."""
    node = target.node
    assert isinstance(node, ArrayNode)
    assert target.stored is not None
    options = dict(target.output.options) if target.output else {}
    mark = {ATTRIBUTE: {"digest": node.digest, "incarnation": incarnation}}
    if options.get("format") == "level":  # made together with the finest level of its image
        update_attributes(place.url, mark)
        return
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
        attributes=mark,  # in one step: never an array without
        format="zarr" if intermediate else options.get("format", "ome-zarr"),
        levels=options.get("levels", 1),
        level_factors=(2,) * len(node.spec.space.spatial),
    )


def ship(node: InMemory, workspace: Workspace) -> Place:
    """Write a NumPy array to the workspace for processes that cannot see this one's memory."""
    folder = workspace.memory_folder(node)
    url = os.path.join(folder, "array.zarr")
    spec = node.spec
    chunks = tuple(min(max(1, n), 64 if spec.ndim > 2 else 1024) for n in spec.shape)
    place = Place("array", url, folder, BlockGrid(spec.box, chunks, spec.box.lo), spec.box.lo)
    try:
        if read_attributes(url).get(ATTRIBUTE, {}).get("shipped"):
            return place
    except FileNotFoundError:
        pass  # the first time
    data = node.data
    if data is None:
        raise LookupError(f"the NumPy array {node.content[:8]} is not in this process, so it cannot be handed on")
    create_array(url, shape=spec.shape, dtype=spec.dtype, chunks=chunks, space=spec.space, format="zarr")
    with Arrays(cache_bytes=0) as arrays:
        arrays.write(url, spec.box.shift(tuple(-v for v in spec.box.lo)), np.asarray(data)).result()
    update_attributes(url, {ATTRIBUTE: {"shipped": True}})
    return place
