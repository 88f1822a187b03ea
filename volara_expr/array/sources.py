"""Where expressions begin: stores and NumPy arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from volara_expr.array.core import Array
from volara_expr.expr.node import ArraySpec, Neighborhood
from volara_expr.geometry import Axis, Box, Space
from volara_expr.geometry.space import AxisType, canonical_unit, exact
from volara_expr.ops.sources import StoredArray, in_memory

__all__ = ["from_numpy", "open_array", "spec_of"]

Offsets = Sequence[Sequence[int]]
KINDS: dict[str, AxisType] = {
    "t": "time",
    "time": "time",
    "c": "channel",
    "channel": "channel",
    "offsets": "offsets",
    "offset": "offsets",
}


def open_array(url: str | os.PathLike[str], *, level: int = 0, neighborhood: Offsets | None = None) -> Array:
    """Open an array in a store; nothing but its metadata is read.

    Parameters
    ----------
    url : str or PathLike
        Of a zarr v2 or v3 array, an OME-Zarr 0.4 or 0.5 image, or an N5 dataset.
    level : int
        Of a multiscale image; 0 is the finest.
    neighborhood : sequence of offsets, optional
        For affinities whose store does not say: one offset over the space axes, in voxels, for each channel. Channel c at voxel x
        links x and x + offset.

    Returns
    -------
    Array

    Raises
    ------
    FileNotFoundError
        If nothing is there; names what the nearest existing group holds.
    ValueError
        If the metadata cannot be read, the level does not exist, or the neighborhood differs from the stored one.

    Examples
    --------
    >>> import tempfile, numpy as np, volara_expr as ve
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = ve.from_numpy(np.zeros((3, 4, 5, 6), np.uint8)).write(f"{folder}/sample.zarr/affs", progress=False)
    ...     affs = ve.open(f"{folder}/sample.zarr/affs", neighborhood=[(1, 0, 0), (0, 1, 0), (0, 0, 1)])
    >>> affs.neighborhood
    ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    """
    from volara_expr.run.guard import content_of
    from volara_expr.store import open_array as read_metadata

    info = read_metadata(url, level)
    spec = ArraySpec(Box.of_shape(info.shape), info.dtype, info.space, info.neighborhood)
    if neighborhood is not None:
        spec = with_neighborhood(spec, neighborhood, str(url))
    return Array(StoredArray(info.url, content_of(info.url), tuple(info.chunks), spec, windows_of(info.omero)))


def windows_of(omero: Mapping[str, Any] | None) -> tuple[tuple[float, float], ...]:
    """Return the intensity window of each channel in the rendering hints of an OME-Zarr image; none where one lacks it."""
    try:
        return tuple((float(c["window"]["start"]), float(c["window"]["end"])) for c in (omero or {}).get("channels", ()))
    except (KeyError, TypeError, ValueError):
        return ()


def from_numpy(
    a: npt.NDArray[Any],
    *,
    voxel_size: float | str | Sequence[float | str | Fraction] | None = None,
    units: str | None = None,
    axes: Sequence[str] | None = None,
    offset: Sequence[float | str | Fraction] | None = None,
    neighborhood: Offsets | None = None,
) -> Array:
    """Make an expression of a NumPy array.

    The array is not copied: a read-only view is kept, so do not change it through other names while the expression lives.

    Parameters
    ----------
    a : ndarray
    voxel_size : float or sequence of float, optional
        World units per voxel, one number or one per space axis. Floats stand for their shortest decimal.
    units : str, optional
        "nm", "um", ...
    axes : sequence of str, optional
        Names, one per axis: "t" is time, "c" a channel axis, "offsets" that of affinities; all others are of space. By default
        the last of t, c, z, y, x.
    offset : sequence of float, optional
        World position of the first voxel, one number per space axis.
    neighborhood : sequence of offsets, optional
        Makes the first axis that is not of space one of type "offsets".

    Returns
    -------
    Array
        Without voxel size and offset it has no position, and takes that of what it is combined with.

    Examples
    --------
    >>> import numpy as np
    >>> import volara_expr as ve
    >>> ve.from_numpy(np.zeros((4, 5, 6), np.uint8), voxel_size=(40, 4, 4), units="nm").shape
    (4, 5, 6)
    """
    data = np.asarray(a)
    return Array(in_memory(data, spec_of(data.shape, data.dtype, voxel_size, units, axes, offset, neighborhood)))


def spec_of(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    voxel_size: float | str | Sequence[float | str | Fraction] | None,
    units: str | None,
    axes: Sequence[str] | None,
    offset: Sequence[float | str | Fraction] | None,
    neighborhood: Offsets | None,
) -> ArraySpec:
    """Return the spec of an array without metadata of its own, from what the user says of it; see `from_numpy`."""
    ndim = len(shape)
    space = Space.plain(ndim)
    if axes is not None:
        if len(axes) != ndim:
            raise ValueError(f"{len(axes)} axes are named ({', '.join(axes)}) but the array has {ndim}")
        space = Space(tuple(Axis(n, KINDS.get(n, "space")) for n in axes), space.voxel_size, space.origin, placed=False)
    at = space.spatial
    if voxel_size is not None or offset is not None or units is not None:
        sizes = per_space_axis(1 if voxel_size is None else voxel_size, len(at), "voxel_size")
        starts = per_space_axis(0 if offset is None else offset, len(at), "offset")
        if min(sizes, default=Fraction(1)) <= 0:
            raise ValueError(f"voxel sizes must be positive, got {voxel_size}")
        size, origin = list(space.voxel_size), list(space.origin)
        named = list(space.axes)
        for i, s, o in zip(at, sizes, starts, strict=True):
            size[i], origin[i], named[i] = s, o, Axis(named[i].name, "space", canonical_unit(units))
        space = Space(tuple(named), tuple(size), tuple(origin), placed=True)
    spec = ArraySpec(Box.of_shape(shape), dtype, space)
    return spec if neighborhood is None else with_neighborhood(spec, neighborhood, "the array")


def per_space_axis(values: Any, n: int, what: str) -> tuple[Fraction, ...]:
    """Return one exact number per space axis."""
    if isinstance(values, (int, float, str, Fraction, np.generic)):
        return (exact(values),) * n  # type: ignore[arg-type]
    if len(values) != n:
        raise ValueError(f"{what} has {len(values)} entries but there are {n} space axes")
    return tuple(exact(v) for v in values)


def with_neighborhood(spec: ArraySpec, offsets: Offsets, what: str) -> ArraySpec:
    """Return a spec whose first axis that is not of space carries a neighborhood.

    Raises
    ------
    ValueError
        If it carries another one, or the numbers of offsets, channels or space axes do not match.
    """
    given: Neighborhood = tuple(tuple(int(v) for v in o) for o in offsets)
    if spec.neighborhood is not None and spec.neighborhood != given:
        raise ValueError(
            f"{what} carries the neighborhood {spec.neighborhood}, but {given} was given; leave it out, or correct the store"
        )
    at = spec.space.find("offsets")
    if at is None:
        at = spec.space.find("channel")
    n_space = len(spec.space.spatial)
    if at is None:
        raise ValueError(
            f"{what} has no axis for offsets: its axes are {', '.join(spec.space.names)}; affinities need a first axis beside those of space"
        )
    if len(given) != spec.shape[at]:
        raise ValueError(f"the neighborhood has {len(given)} offsets but {what} has {spec.shape[at]} channels")
    for o in given:
        if len(o) != n_space:
            raise ValueError(f"offset {o} has {len(o)} entries but {what} has {n_space} space axes")
        if not any(o):
            raise ValueError(f"offset {o} links a voxel with itself")
    axes = list(spec.space.axes)
    axes[at] = Axis(axes[at].name, "offsets")
    space = Space(tuple(axes), spec.space.voxel_size, spec.space.origin, spec.space.placed)
    return spec.replace(space=space, neighborhood=given)
