"""Arrays and groups of zarr v2, zarr v3 and N5 stores, as their metadata files tell."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from volara_expr.store.location import Location

__all__ = ["Driver", "Node", "list_nodes", "missing", "read_node"]

Driver = Literal["zarr", "zarr3", "n5"]
LISTED = 20
"""Nodes that an error message names."""
TIMEOUT_S = 60


@dataclass(frozen=True)
class Node:
    """An array or a group.

    Attributes
    ----------
    location : Location
    driver : {"zarr", "zarr3", "n5"}
        Name of the format, as tensorstore knows it.
    is_array : bool
    metadata : dict
        What describes the array's storage; without the attributes.
    attributes : dict
    """

    location: Location
    driver: Driver
    is_array: bool
    metadata: dict[str, Any]
    attributes: dict[str, Any]


def read_node(location: Location) -> Node | None:
    """Read the metadata of a node; None where there is none.

    Raises
    ------
    ValueError
        If a metadata file is broken; the message names it.
    OSError
        If a remote store does not answer.
    """
    found = _read_json(location, "zarr.json")
    if found is not None:
        attributes = found.pop("attributes", None) or {}
        return Node(location, "zarr3", found.get("node_type") == "array", found, attributes)
    for name, is_array in ((".zarray", True), (".zgroup", False)):
        found = _read_json(location, name)
        if found is not None:
            return Node(location, "zarr", is_array, found, _read_json(location, ".zattrs") or {})
    found = _read_json(location, "attributes.json")
    if found is not None:
        return Node(location, "n5", "dimensions" in found, found, found)
    return None


def list_nodes(location: Location) -> list[str]:
    """Return the paths, relative to `location`, of the arrays and empty groups below it: up to 20, local stores only."""
    out: list[str] = []
    if not location.local:
        return out
    for folder, names, _ in os.walk(location.url):
        names.sort()
        if folder == location.url:
            continue
        relative = os.path.relpath(folder, location.url)
        node = read_node(location / relative)
        if node is None:
            continue
        if node.is_array:
            names.clear()  # chunks
        if not names:
            out.append(relative)
        if len(out) == LISTED:
            break
    return out


def missing(location: Location) -> FileNotFoundError:
    """Say that there is nothing at `location`, and what the nearest existing group holds."""
    for parent in location.parents:
        if read_node(parent) is not None:
            held = ", ".join(list_nodes(parent)) or "no arrays that can be listed"
            return FileNotFoundError(f"no array or group at {location.url}; {parent.url} holds: {held}")
    if location.local:
        folder = os.path.dirname(location.root)
        while not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        held = ", ".join(sorted(n for n in os.listdir(folder) if not n.startswith("."))[:LISTED]) or "nothing"
        return FileNotFoundError(f"no array or group at {location.url}; the folder {folder} holds: {held}")
    return FileNotFoundError(
        f"no array or group at {location.url}; check the url, and that the server may be read without login"
    )


def _read_json(location: Location, name: str) -> dict[str, Any] | None:
    where = f"{location.url}/{name}"
    data = _read_file(where) if location.local else _read_remote(location.root, where)
    if data is None:
        return None
    try:
        found = json.loads(data)
    except ValueError as error:
        raise ValueError(
            f"{where} is broken: {error}; restore the file from a copy, or delete the array and write it again"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"{where} holds {type(found).__name__} where metadata is an object; restore the file from a copy")
    return found


def _read_file(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _read_remote(root: str, url: str) -> bytes | None:
    try:
        read = _remote_store(root).read(url.removeprefix(root + "/")).result(timeout=TIMEOUT_S)
    except (ValueError, RuntimeError, TimeoutError) as error:
        raise OSError(
            f"cannot read {url}: {error or f'no answer within {TIMEOUT_S} s'}; check the network and the url"
        ) from error
    return None if read.state == "missing" else bytes(read.value)


@cache
def _remote_store(root: str) -> Any:
    import tensorstore as ts  # 0.15 s that a local store is spared

    return ts.KvStore.open(root + "/", context=ts.Context({"http_request_retries": {"max_retries": 3}})).result()
