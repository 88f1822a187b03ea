"""What lies in a workspace: every stored node with what is finished of it; and how to be rid of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import escape, glob
from math import prod
from pathlib import Path

from volara_expr.geometry import BlockGrid, Box
from volara_expr.run.guard import alone
from volara_expr.run.ledger import Ledger
from volara_expr.run.places import ATTRIBUTE, ONE
from volara_expr.store import delete as delete_array
from volara_expr.store import locate, read_attributes
from volara_expr.store.nodes import list_nodes, read_node

__all__ = ["StoredNode", "drop", "stored_nodes"]


@dataclass(frozen=True)
class StoredNode:
    """A stored node.

    Attributes
    ----------
    name : str
        Of an output: its path in the store; of an intermediate: its operation.
    op : str
    named : bool
        Whether it is an output.
    done, total : int
        Write units: chunks, shards, or cells of a table.
    kind : str
        "array", "rows" or "file".
    url : str
        Where the data is.
    folder : str
        Of the ledger.
    """

    name: str
    op: str
    named: bool
    done: int
    total: int
    kind: str
    url: str
    folder: str


def stored_nodes(place: str) -> list[StoredNode]:
    """Return what is stored for a place: an output, or a store with all of its outputs and intermediates.

    Raises
    ------
    FileNotFoundError
        If no run has written there.
    LedgerError
        If a ledger cannot be trusted.
    """
    location = locate(place)
    nodes = list(_found(location.workspace))
    if location.path:
        nodes = [n for n in nodes if n.named and (n.name == location.path or n.name.startswith(location.path + "/"))]
    if not nodes:
        raise FileNotFoundError(f"no run has written to {location.url}: there are no ledgers of it in {location.workspace}")
    return nodes


def _found(workspace: str) -> Iterator[StoredNode]:
    """Yield outputs, then intermediates, each by name."""
    found = []
    for path in glob(os.path.join(escape(workspace), "**", "node.json"), recursive=True):
        folder = os.path.dirname(path)
        about = Ledger(folder, ONE).describe()
        if about is None or "url" not in about:
            continue
        grid = BlockGrid(Box(tuple(about["lo"]), tuple(about["hi"])), tuple(about["unit"]), tuple(about["origin"]))
        done = Ledger(folder, grid).done()
        name = os.path.relpath(os.path.dirname(folder), workspace) if about["named"] else about["op"]
        finished = 0 if done is None else int(done.sum())
        found.append(
            StoredNode(name, about["op"], about["named"], finished, prod(grid.shape), about["kind"], about["url"], folder)
        )
    yield from sorted(found, key=lambda n: (not n.named, n.name))


def drop(place: str, nodes: Sequence[StoredNode], outputs: bool = True, workspace: bool = True) -> list[str]:
    """Delete outputs, and the workspace with its ledgers and intermediates; returns what was deleted.

    Parameters
    ----------
    place : str
        An output or a store.
    nodes : sequence of StoredNode
        What `stored_nodes` found there.
    outputs : bool
        Delete data, of outputs that carry their ledger's mark.
    workspace : bool
        Of a store: delete its workspace. Outputs that stay are then complete for good, or cannot be continued.

    Raises
    ------
    executors.protocol.Cancelled
        If a run is writing there.
    ValueError
        If an output holds what no run of ours wrote.
    """
    location = locate(place)
    gone: list[str] = []
    with alone([location.workspace], should_stop=lambda: True):
        for node in [n for n in nodes if n.named and outputs]:
            url = location.root if node.name == "_" else f"{location.root}/{node.name}"
            Ledger(node.folder, ONE).discard()
            if node.kind == "file" and os.path.exists(node.url):
                os.unlink(node.url)
                gone.append(node.url)
            elif node.kind == "array" and read_node(locate(url)) is not None and ATTRIBUTE in read_attributes(url):
                delete_array(url)
                gone.append(url)
        root = locate(location.root)
        if outputs and not location.path and read_node(root) is not None and not list_nodes(root):
            delete_array(location.root)
            gone.append(location.root)
        if workspace and not location.path:
            for entry in Path(location.workspace).iterdir():
                if entry.name != "lock":
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            gone.append(location.workspace)
    if workspace and not location.path:
        shutil.rmtree(location.workspace)
    return gone
