"""Where things lie: a url split into the zarr store and the path inside it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

__all__ = ["Location", "locate"]

STORE_SUFFIXES = (".zarr", ".n5")
TABLE_SUFFIXES = (".duckdb", ".parquet")
MARKERS = ("zarr.json", ".zgroup", ".zarray", "attributes.json")


@dataclass(frozen=True, slots=True)
class Location:
    """A node in a zarr or N5 store, or the name that a table derives from.

    Attributes
    ----------
    root : str
        The store: an absolute local path, or a url with a scheme.
    path : str
        Inside the store, without slashes at its ends; "" is the store itself.
    """

    root: str
    path: str

    @property
    def url(self) -> str:
        """The node's absolute path or url."""
        return f"{self.root}/{self.path}" if self.path else self.root

    @property
    def local(self) -> bool:
        """Whether the store is a folder of this machine's file system."""
        return "://" not in self.root

    @property
    def workspace(self) -> str:
        """The folder beside the store that holds ledgers and unnamed results; inside, it would disturb readers of zarr."""
        return self.root + ".volara_expr"

    def file(self, suffix: str) -> str:
        """Return the name of a table that belongs to this location.

        A location that names a table file keeps its stem; a path inside a store becomes a file beside the store.

        Examples
        --------
        >>> Location("/data/out.zarr", "graph").file(".duckdb")
        '/data/out.graph.duckdb'
        >>> Location("/data/graph.duckdb", "").file(".duckdb")
        '/data/graph.duckdb'
        """
        for table in TABLE_SUFFIXES:
            if self.url.endswith(table):
                return self.url.removesuffix(table) + suffix
        stem = self.root
        for store in (".ome.zarr", *STORE_SUFFIXES):
            stem = stem.removesuffix(store)
        return ".".join([stem, *self.path.split("/")] if self.path else [stem]) + suffix

    def __truediv__(self, child: str) -> Location:
        return Location(self.root, f"{self.path}/{child}" if self.path else child)

    @property
    def parents(self) -> tuple[Location, ...]:
        """The groups that hold this node, nearest first, up to the store itself."""
        parts = self.path.split("/") if self.path else []
        return tuple(Location(self.root, "/".join(parts[:k])) for k in reversed(range(len(parts))))


def locate(url: str | os.PathLike[str]) -> Location:
    """Split a url into its zarr store and the path inside it.

    The store is the first component that ends in .zarr (so also .ome.zarr) or .n5; else the outermost of the existing zarr
    groups that hold the path; else the url itself.

    Parameters
    ----------
    url : str or PathLike
        A path, relative to the working directory or absolute, or a url (file, http, https, s3, gs).

    Raises
    ------
    ValueError
        For an empty url.

    Examples
    --------
    >>> locate("/data/out.zarr/graph/nodes")
    Location(root='/data/out.zarr', path='graph/nodes')
    >>> locate("s3://bucket/em.zarr/raw").workspace
    's3://bucket/em.zarr.volara_expr'
    """
    text = os.fspath(url)
    if not text:
        raise ValueError("the url is empty; give the path of an array, as in 'sample.zarr/raw'")
    if text.startswith("file:"):
        text = unquote(urlsplit(text).path)
    scheme, separator, rest = text.rpartition("://")
    if not separator:
        rest = os.path.abspath(os.path.expanduser(rest))
    parts = rest.rstrip("/").split("/")
    at = next((k for k, part in enumerate(parts) if part.endswith(STORE_SUFFIXES)), None)
    if at is None:
        at = len(parts) - 1
        if not separator:
            at -= _depth_in_store(rest)
    return Location(scheme + separator + "/".join(parts[: at + 1]), "/".join(parts[at + 1 :]))


def _depth_in_store(path: str) -> int:
    """How many levels of existing zarr groups lie above `path`."""
    depth = 0
    for k, parent in enumerate(PurePosixPath(path).parents, 1):
        if any(os.path.exists(parent / marker) for marker in MARKERS):
            depth = k
        elif depth or os.path.isdir(parent):
            break
    return depth
