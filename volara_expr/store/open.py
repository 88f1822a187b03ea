"""What an array in a store is: shape, chunks, where it lies, and a fingerprint of what it holds."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import product
from math import prod
from typing import Any

import numpy as np

from volara_expr.geometry import Box, Space
from volara_expr.store.funlib import read_space
from volara_expr.store.location import Location, locate
from volara_expr.store.nodes import Driver, Node, list_nodes, missing, read_node
from volara_expr.store.ome import Multiscale, read_multiscale

__all__ = ["ArrayInfo", "check_alignment", "find_array", "fingerprint", "open_array", "open_handle", "write_unit"]

Neighborhood = tuple[tuple[int, ...], ...]
SAMPLED_CHUNKS = 1000
OWN_KEY = "volara_expr"
"""The attribute that holds our own notes; it may change without the data changing."""


@dataclass(frozen=True)
class ArrayInfo:
    """An array in a store, as its metadata describes it.

    Attributes
    ----------
    root, path : str
        The store and the array's path inside it; for a multiscale image that of the level.
    url : str
        Both joined.
    driver : {"zarr", "zarr3", "n5"}
        "zarr" is version 2.
    shape : tuple of int
        In C order; that of N5 is reversed, so that x comes last.
    dtype : numpy.dtype
        In native byte order.
    chunks : tuple of int
        What a read decodes.
    shards : tuple of int or None
        What a write must cover whole, where chunks are grouped into shards.
    space : Space
    neighborhood : tuple of tuple of int, or None
        Offsets, in voxels of the space axes, of the affinities along the axis of type "offsets".
    omero : dict or None
        Rendering hints of an OME-Zarr image.
    attributes : dict
        Of the array.
    metadata_digest : str
        Of all that decides what the voxels mean; `attributes["volara_expr"]` is left out.
    chunk_prefix, chunk_separator : str
        How chunk files are named.
    """

    root: str
    path: str
    url: str
    driver: Driver
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    space: Space
    neighborhood: Neighborhood | None
    omero: dict[str, Any] | None = field(hash=False)
    attributes: dict[str, Any] = field(hash=False)
    metadata_digest: str
    chunk_prefix: str
    chunk_separator: str

    @property
    def local(self) -> bool:
        """Whether the chunks are files of this machine."""
        return "://" not in self.root

    @property
    def box(self) -> Box:
        """All voxels."""
        return Box.of_shape(self.shape)

    @property
    def grid(self) -> tuple[int, ...]:
        """Chunk files (shards where there are any) along each axis."""
        return tuple(-(-n // u) for n, u in zip(self.shape, write_unit(self), strict=True))

    def chunk_indices(self, box: Box) -> Iterator[tuple[int, ...]]:
        """Yield the grid indices of the chunk files that meet `box`."""
        b = box.clip(self.box)
        if not b.empty:
            ranges = (range(lo // u, -(-hi // u)) for lo, hi, u in zip(b.lo, b.hi, write_unit(self), strict=True))
            yield from product(*ranges)

    def chunk_box(self, index: Sequence[int]) -> Box:
        """Return the voxels of the chunk file at a grid index."""
        unit = write_unit(self)
        return Box.of_shape(unit, [k * u for k, u in zip(index, unit, strict=True)]).clip(self.box)

    def chunk_key(self, index: Sequence[int]) -> str:
        """Return the name of a chunk file, relative to the array."""
        numbers = [str(k) for k in (reversed(index) if self.driver == "n5" else index)]
        return self.chunk_separator.join([self.chunk_prefix, *numbers] if self.chunk_prefix else numbers) or "0"


def write_unit(info: ArrayInfo) -> tuple[int, ...]:
    """Return what a writer must cover whole: the shard of a sharded array, else the chunk."""
    return info.shards or info.chunks


def check_alignment(block: Sequence[int], unit: Sequence[int], shape: Sequence[int] | None = None) -> None:
    """Check that blocks of shape `block` from voxel 0 on are unions of whole write units.

    Two workers that write parts of one chunk lose voxels silently.

    Parameters
    ----------
    block, unit : sequence of int
        In voxels, one per axis of the array.
    shape : sequence of int, optional
        Of the array; an axis that one block spans needs no alignment.

    Raises
    ------
    ValueError
        With both numbers and the block that would do.
    """
    if len(block) != len(unit):
        raise ValueError(f"a block of {len(block)} axes, a write unit of {len(unit)}; give one number per axis of the array")
    spans = [shape is not None and b >= shape[i] for i, b in enumerate(block)]
    wrong = [i for i, (b, u) in enumerate(zip(block, unit, strict=True)) if b % u and not spans[i]]
    if wrong:
        fitting = tuple(-(-b // u) * u if i in wrong else b for i, (b, u) in enumerate(zip(block, unit, strict=True)))
        numbers = ", ".join(f"axis {i}: {block[i]} is not a multiple of {unit[i]}" for i in wrong)
        raise ValueError(
            f"blocks of {tuple(block)} would share write units of {tuple(unit)} ({numbers}), and parallel writers would lose "
            f"voxels; use blocks of {fitting}, or chunks (shards) that divide the block"
        )


def open_array(url: str | os.PathLike[str], level: int = 0) -> ArrayInfo:
    """Read the metadata of an array: zarr v2 or v3, OME-Zarr 0.4 or 0.5, or N5.

    OME metadata wins over the attributes of funlib where both place the array. An array that neither places is not placed.

    Parameters
    ----------
    url : str or PathLike
        Of an array, or of the group of a multiscale image. Local, http(s), s3 or gs.
    level : int
        Of a multiscale image; 0 is the finest.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `url`; the message lists what the nearest existing group holds.
    ValueError
        If `url` is a group that is no image, if the level does not exist, or if the metadata cannot be understood.
    """
    node, image, image_level, group_attributes = _resolve(url, level)
    handle = open_handle(node)
    shape, layout = tuple(handle.shape), handle.chunk_layout
    chunks, unit = (tuple(c.shape or ()) for c in (layout.read_chunk, layout.write_chunk))  # None of an array without axes
    try:
        attributes = _n5_attributes(node.attributes) if node.driver == "n5" else node.attributes
        space = image.space(image_level, len(shape)) if image is not None else None
        if space is None or not space.placed:
            own = read_space(attributes, shape, node.metadata.get("dimension_names"))
            space = own if space is None or own.placed else space
        offsets = node.attributes.get("neighborhood", group_attributes.get("neighborhood"))
        neighborhood, space = _neighborhood(offsets, space, shape)
    except ValueError as error:
        raise ValueError(f"{node.location.url}: {error}") from error
    told = {k: v for k, v in node.attributes.items() if k != OWN_KEY}
    digest = blake2b(
        json.dumps([node.metadata, told, str(space), neighborhood], sort_keys=True, default=str).encode(), digest_size=16
    )
    prefix, separator = _key_format(node)
    return ArrayInfo(
        root=node.location.root,
        path=node.location.path,
        url=node.location.url,
        driver=node.driver,
        shape=shape,
        dtype=np.dtype(handle.dtype.numpy_dtype),
        chunks=chunks,
        shards=unit if unit != chunks else None,
        space=space,
        neighborhood=neighborhood,
        omero=image.omero if image else None,
        attributes=node.attributes,
        metadata_digest=digest.hexdigest(),
        chunk_prefix=prefix,
        chunk_separator=separator,
    )


def fingerprint(info: ArrayInfo) -> str:
    """Return a digest that changes when the array's data does.

    Of the metadata, and of size and modification time of up to 1,000 chunk files, evenly spread over the array. Of an array on
    a server only of the metadata: not every server gives a stable tag for a chunk.
    """
    digest = blake2b(info.metadata_digest.encode(), digest_size=16)
    if info.local:
        total = prod(info.grid)
        sampled = min(total, SAMPLED_CHUNKS)
        for k in range(sampled):
            index = np.unravel_index(k * total // sampled, info.grid) if info.grid else ()
            try:
                state = os.stat(f"{info.url}/{info.chunk_key([int(i) for i in index])}")
            except FileNotFoundError:
                digest.update(b"absent;")
            else:
                digest.update(f"{state.st_size},{state.st_mtime_ns};".encode())
    return digest.hexdigest()


def find_array(url: str | os.PathLike[str], level: int = 0) -> Node:
    """Return the array node at `url`, or that of a level where `url` is a multiscale image; errors as `open_array`."""
    return _resolve(url, level)[0]


def open_handle(node: Node | ArrayInfo, context: Any = None) -> Any:
    """Open an array with tensorstore, axes in C order.

    Raises
    ------
    ValueError
        If tensorstore cannot read this array; the message says why.
    """
    import tensorstore as ts  # 0.15 s that `import volara_expr` is spared

    url = node.url if isinstance(node, ArrayInfo) else node.location.url
    kvstore = url + "/" if "://" in url else {"driver": "file", "path": url + "/"}
    try:
        handle = ts.open({"driver": node.driver, "kvstore": kvstore}, open=True, context=context).result()
    except (ValueError, NotImplementedError) as error:
        raise ValueError(f"cannot read the array {url}: {error}; check its metadata, or convert it") from error
    return handle.T if node.driver == "n5" else handle


def _resolve(url: str | os.PathLike[str], level: int) -> tuple[Node, Multiscale | None, int, dict[str, Any]]:
    """Find the array node, the image that it is a level of, which level, and the attributes of the image's group."""
    location = locate(url)
    node = read_node(location)
    if node is None:
        raise missing(location)
    if not node.is_array:
        image = _image(node)
        if image is None:
            held = ", ".join(list_nodes(location)) or "none"
            raise ValueError(f"{location.url} is a group without multiscales metadata, not an array; its arrays: {held}")
        if not 0 <= level < len(image.paths):
            raise ValueError(f"{location.url} has no level {level}; its levels are {_levels(location, image)}")
        array = read_node(location / image.paths[level])
        if array is None:
            raise missing(location / image.paths[level])
        return array, image, level, node.attributes
    if level != 0:
        raise ValueError(
            f"level {level} of {location.url}, which is an array and has no levels; give the url of the image's group"
        )
    for parent in location.parents:
        group = read_node(parent)
        image = _image(group) if group is not None else None
        inside = location.path.removeprefix(parent.path).strip("/")
        if group is not None and image is not None and inside in image.paths:
            return node, image, image.paths.index(inside), group.attributes
    return node, None, 0, {}


def _image(group: Node) -> Multiscale | None:
    try:
        return read_multiscale(group.attributes)
    except ValueError as error:
        raise ValueError(f"{group.location.url}: {error}") from error


def _levels(location: Location, image: Multiscale) -> str:
    out = []
    for k, path in enumerate(image.paths):
        node = read_node(location / path)
        out.append(f"{k}: {tuple(open_handle(node).shape) if node else 'missing'}")
    return ", ".join(out)


def _neighborhood(offsets: Any, space: Space, shape: Sequence[int]) -> tuple[Neighborhood | None, Space]:
    """Check the offsets, and give their axis its type."""
    if offsets is None:
        return None, space
    n_space = len(space.spatial)
    if not isinstance(offsets, list) or not all(
        isinstance(o, list) and len(o) == n_space and all(isinstance(v, int) for v in o) for o in offsets
    ):
        raise ValueError(f"attribute neighborhood is {offsets!r}; it needs a list of offsets with {n_space} whole numbers each")
    other = [i for i, a in enumerate(space.axes) if a.type != "space"]
    at = next((i for i in other if shape[i] == len(offsets)), None)
    if at is None:
        held = ", ".join(f"{space.axes[i].name} has {shape[i]}" for i in other) or "there is none"
        raise ValueError(
            f"attribute neighborhood has {len(offsets)} offsets, but no axis beside those of space has as many entries ({held})"
        )
    axes = tuple(replace(a, type="offsets") if i == at else a for i, a in enumerate(space.axes))
    return tuple(tuple(o) for o in offsets), replace(space, axes=axes)


def _key_format(node: Node) -> tuple[str, str]:
    """Return what stands before the first number of a chunk's name, and what stands between."""
    if node.driver == "zarr":
        return "", node.metadata.get("dimension_separator", ".")
    if node.driver == "n5":
        return "", "/"
    encoding = node.metadata["chunk_key_encoding"]
    settings = encoding.get("configuration", {})
    if encoding["name"] == "default":
        return "c", settings.get("separator", "/")
    return "", settings.get("separator", ".")


def _n5_attributes(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes of N5, x first, in the convention of funlib, x last."""
    out: dict[str, Any] = {}
    size, unit = attributes.get("resolution"), None
    pixel = attributes.get("pixelResolution")
    if size is None and pixel is not None:
        size, unit = (pixel["dimensions"], pixel.get("unit")) if isinstance(pixel, dict) else (pixel, None)
    if isinstance(size, list):
        out["voxel_size"] = size[::-1]
        out["units"] = attributes.get("units", [unit] * len(size))[::-1]
    if "axes" in attributes:
        out["axis_names"] = attributes["axes"][::-1]
    return out
