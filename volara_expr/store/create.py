"""Make and remove arrays; read and change their attributes. Local stores only."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from numpy.typing import DTypeLike

from volara_expr.geometry import Space
from volara_expr.store.files import replacing, sync, temporary_name
from volara_expr.store.funlib import WORLD, write_space
from volara_expr.store.location import Location, locate
from volara_expr.store.metadata import array_files, group_files
from volara_expr.store.nodes import Driver, list_nodes, missing, read_node
from volara_expr.store.ome import level_space, read_multiscale, write_multiscale
from volara_expr.store.open import ArrayInfo, find_array, open_array

__all__ = ["Format", "create_array", "delete", "level_shapes", "read_attributes", "update_attributes"]

Format = Literal["ome-zarr", "ome-zarr-0.4", "zarr", "zarr2"]
OmeVersion = Literal["0.4", "0.5"]
FORMATS: dict[Format, tuple[Literal[2, 3], OmeVersion | None]] = {
    "ome-zarr": (3, "0.5"),
    "ome-zarr-0.4": (2, "0.4"),
    "zarr": (3, None),
    "zarr2": (2, None),
}
DRIVERS: dict[Literal[2, 3], Driver] = {2: "zarr", 3: "zarr3"}


def level_shapes(shape: Sequence[int], space: Space, levels: int, factors: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the shape of each level of a pyramid: rounded up, so that no voxel of level 0 is left out.

    Parameters
    ----------
    shape : sequence of int
        Of level 0.
    space : Space
    levels : int
        Number of levels, level 0 included.
    factors : sequence of int
        From one level to the next, one per space axis; of more, the last count.
    """
    factors = _per_space_axis(factors, space) if levels > 1 else ()
    out = [tuple(shape)]
    for _ in range(levels - 1):
        next_shape = list(out[-1])
        for i, f in zip(space.spatial, factors, strict=True):
            next_shape[i] = -(-next_shape[i] // f)
        out.append(tuple(next_shape))
    return out


def create_array(
    url: str | os.PathLike[str],
    *,
    shape: Sequence[int],
    dtype: DTypeLike,
    chunks: Sequence[int],
    space: Space,
    shards: Sequence[int] | None = None,
    lo: Sequence[int] | None = None,
    neighborhood: Sequence[Sequence[int]] | None = None,
    attributes: Mapping[str, Any] | None = None,
    fill: float = 0,
    format: Format = "ome-zarr",
    levels: int = 1,
    level_factors: Sequence[int] = (2, 2, 2),
    delete: bool = False,
    compression: Literal["zstd"] | None = "zstd",
    compression_level: int = 1,
) -> ArrayInfo:
    """Make an array, or the arrays of an OME-Zarr image, whole or not at all.

    Asked again for the same, this changes nothing.

    Parameters
    ----------
    url : str or PathLike
        Local; groups above it are made. For the OME formats this becomes a group with arrays "0", "1", ...
    shape, chunks : sequence of int
    dtype : dtype
    space : Space
        Of the voxel grid; its lengths are stored as the nearest JSON numbers, exact for decimals of up to 15 digits.
    shards : sequence of int, optional
        A multiple of `chunks`; zarr v3 only.
    lo : sequence of int, optional
        Voxel of `space` that the array's first voxel is. Without meaning, and ignored, where the space is not placed.
    neighborhood : sequence of offsets, optional
        Of the axis of type "offsets".
    attributes : mapping, optional
        More attributes for the (level 0) array.
    fill : number
        Value of voxels never written.
    format : {"ome-zarr", "ome-zarr-0.4", "zarr", "zarr2"}
        OME-Zarr 0.5 (on zarr v3) and 0.4 (on v2), and plain arrays of v3 and v2.
    levels : int
        Of the pyramid; OME formats only.
    level_factors : sequence of int
        From one level to the next, one per space axis; of more, the last count.
    delete : bool
        Replace what is there.
    compression : "zstd" or None
    compression_level : int

    Returns
    -------
    ArrayInfo
        Of the array, of level 0 for an image.

    Raises
    ------
    FileExistsError
        If there is something else at `url` and `delete` is false; the message names the first difference.
    ValueError
        If the request contradicts itself or the store above it.
    """
    location = _local(locate(url))
    zarr_format, version = _format(format)
    if levels < 1 or (levels > 1 and version is None):
        raise ValueError(f"levels={levels} with format={format!r}; a pyramid needs format='ome-zarr', others levels=1")
    if shards is not None:
        if zarr_format == 2:
            raise ValueError(f"format={format!r} is zarr v2, which has no shards; use 'ome-zarr' or 'zarr', or shards=None")
        if len(shards) != len(chunks) or any(s % c for s, c in zip(shards, chunks, strict=True)):
            raise ValueError(f"shards {tuple(shards)} are no multiple of chunks {tuple(chunks)}; enlarge them to whole chunks")
    if compression not in ("zstd", None):
        raise ValueError(f"unknown compression {compression!r}; known are 'zstd' and None")
    if not len(shape) == len(chunks) == space.ndim:
        raise ValueError(f"shape {tuple(shape)}, chunks {tuple(chunks)} and {space.ndim} axes differ in length; give one each")
    if lo is not None and space.placed:
        origin = (
            o + n * s if a.type in WORLD else o
            for o, n, s, a in zip(space.origin, lo, space.voxel_size, space.axes, strict=True)
        )
        space = Space(space.axes, space.voxel_size, tuple(origin))
    spaces = [space]
    for _ in range(levels - 1):
        spaces.append(level_space(spaces[-1], _per_space_axis(level_factors, space)))
    shapes = level_shapes(shape, space, levels, level_factors)

    temporary = temporary_name(location.root)
    try:
        os.makedirs(temporary)
        if version is not None:
            name = location.url.rpartition("/")[2]
            _write_node(temporary, group_files(zarr_format, write_multiscale(spaces, version, name)))
        for k in range(levels):
            told = write_space(spaces[k])
            if neighborhood is not None:
                told["neighborhood"] = [list(map(int, o)) for o in neighborhood]
            if k == 0:
                told |= attributes or {}
            folder = f"{temporary}/{k}" if version is not None else temporary
            files = array_files(
                zarr_format,
                shape=shapes[k],
                dtype=dtype,
                chunks=chunks,
                shards=shards,
                fill=fill,
                attributes=told,
                names=space.names,
                zstd_level=compression_level if compression else None,
            )
            _write_node(folder, files)
        _make_parents(location, zarr_format)
        if delete and read_node(location) is not None:
            _delete(location)
        _install(temporary, location)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return open_array(location.url)


def delete(url: str | os.PathLike[str]) -> None:
    """Remove an array, or an image with its levels.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `url`.
    ValueError
        If `url` is a group that holds anything else; nothing is removed then.
    """
    _delete(_local(locate(url)))


def read_attributes(url: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the attributes of an array; of level 0 for an image."""
    return find_array(url).attributes


def update_attributes(url: str | os.PathLike[str], changes: Mapping[str, Any]) -> None:
    """Set attributes of an array (of level 0 for an image), all at once; others stay as they are."""
    node = find_array(url)
    _local(node.location)
    attributes = node.attributes | dict(changes)
    if node.driver == "zarr3":
        _write_json(f"{node.location.url}/zarr.json", node.metadata | {"attributes": attributes})
    elif node.driver == "zarr":
        _write_json(f"{node.location.url}/.zattrs", attributes)
    else:
        raise ValueError(f"{node.location.url} is N5, which is read only here")


def _format(format: Format) -> tuple[Literal[2, 3], OmeVersion | None]:
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; known are {', '.join(FORMATS)}")
    return FORMATS[format]


def _local(location: Location) -> Location:
    if not location.local:
        raise ValueError(f"{location.url} is on a server, which is read only here; write to a local path and copy it there")
    return location


def _per_space_axis(factors: Sequence[int], space: Space) -> tuple[int, ...]:
    n = len(space.spatial)
    if len(factors) < n or min(factors, default=1) < 1:
        raise ValueError(f"level_factors {tuple(factors)} for {n} space axes; give one positive number each")
    return tuple(factors)[len(factors) - n :]


def _write_json(path: str, content: Any) -> None:
    with replacing(path) as temporary, open(temporary, "w") as file:
        json.dump(content, file, indent=2)


def _write_node(folder: str, files: Mapping[str, Any]) -> None:
    os.makedirs(folder, exist_ok=True)
    for name, content in files.items():
        _write_json(f"{folder}/{name}", content)


def _make_parents(location: Location, zarr_format: Literal[2, 3]) -> None:
    """Make the groups that hold a node; refuse those that cannot."""
    for parent in reversed(location.parents):
        node = read_node(parent)
        if node is None:
            _write_node(parent.url, group_files(zarr_format, {}))
        elif node.is_array:
            raise ValueError(f"{parent.url} is an array and cannot hold {location.url}; write beside it")
        elif node.driver != DRIVERS[zarr_format]:
            fitting = " or ".join(repr(name) for name, (version, _) in FORMATS.items() if DRIVERS[version] == node.driver)
            remedy = f"use format={fitting}, or another store" if fitting else "use another store"
            raise ValueError(f"{parent.url} is {node.driver} and cannot hold an array of zarr v{zarr_format}; {remedy}")


def _install(temporary: str, location: Location) -> None:
    """Move a finished node to its place, unless the same is there already."""
    for folder, _, names in os.walk(temporary):
        for name in names:
            sync(f"{folder}/{name}")
        sync(folder)
    if read_node(location) is None:
        try:
            os.rename(temporary, location.url)
            sync(os.path.dirname(location.url))
            return
        except OSError as error:
            if read_node(location) is None:  # else another process made it just now
                raise FileExistsError(
                    f"{location.url} exists and is no zarr array or group ({error}); remove it or choose another place"
                ) from error
    different = _difference(_tree(Location(temporary, "")), _tree(location), "")
    if different:
        raise FileExistsError(
            f"{location.url} exists and is another array: {different.lstrip('/')}; choose another place, or replace it (delete=True)"
        )


def _tree(location: Location) -> dict[str, Any]:
    """Return what `create_array` decides about a node: the array's metadata and attributes, an image's metadata and its levels."""
    node = read_node(location)
    if node is None:
        return {}
    if node.is_array:
        return {"format": node.driver, "array": node.metadata, "attributes": node.attributes}
    image = read_multiscale(node.attributes)
    paths = image.paths if image else ()
    return {"format": node.driver, "image": node.attributes} | {path: _tree(location / path) for path in paths}


def _difference(asked: Any, there: Any, name: str) -> str | None:
    """Describe the first thing asked for that is not there; there may be more than was asked for."""
    if isinstance(asked, dict) and isinstance(there, dict):
        found = (_difference(value, there.get(key), f"{name}/{key}") for key, value in asked.items())
        return next((d for d in found if d), None)
    return None if asked == there else f"{name} is {there!r} there, {asked!r} asked for"


def _delete(location: Location) -> None:
    node = read_node(location)
    if node is None:
        raise missing(location)
    if not node.is_array:
        image = read_multiscale(node.attributes)
        others = sorted(set(list_nodes(location)) - set(image.paths if image else ()))
        if others:
            raise ValueError(
                f"{location.url} also holds {', '.join(others)}; remove those by hand first if they may go, or write elsewhere"
            )
    trash = temporary_name(location.root)
    os.rename(location.url, trash)  # so that nobody sees half an array
    shutil.rmtree(trash)
