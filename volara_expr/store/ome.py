"""OME-Zarr multiscale images, versions 0.4 and 0.5.

Position of a level: OME places the centre of voxel 0, relative to which a pyramid of means shifts by half the growth of the
voxel: `translation_k = origin + (scale_k - scale_0) / 2`, with `origin` the corner that all levels share. That is what is
written here and undone in reading. A level that states no translation was written without thought of centres, and shares
the corner of level 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from operator import add, mul
from typing import Any, Literal

from volara_expr.geometry import Axis, Space
from volara_expr.geometry.space import canonical_unit, exact
from volara_expr.store.funlib import WORLD, axis_type

__all__ = ["Multiscale", "level_space", "read_multiscale", "write_multiscale"]

Vector = tuple[Fraction, ...]


@dataclass(frozen=True)
class Multiscale:
    """The levels of an image.

    Attributes
    ----------
    paths : tuple of str
        Of the level arrays, relative to the group, finest first.
    axes : tuple of Axis or None
        None in versions that do not name them.
    scales, origins : tuple of (tuple of Fraction or None)
        Voxel size and position of the corner of each level; None for versions without transformations.
    omero : dict or None
        Rendering hints.
    """

    paths: tuple[str, ...]
    axes: tuple[Axis, ...] | None
    scales: tuple[Vector | None, ...]
    origins: tuple[Vector | None, ...]
    omero: dict[str, Any] | None

    def space(self, level: int, ndim: int) -> Space:
        """Return where the voxels of a level lie.

        An image of scale 1 without translation or units says nothing of its place, so its space is not placed.

        Raises
        ------
        ValueError
            If the metadata and the array differ in the number of axes.
        """
        axes = self.axes or Space.plain(ndim).axes
        scale = self.scales[level] or (Fraction(1),) * ndim
        origin = self.origins[level] or (Fraction(0),) * ndim
        if not len(axes) == len(scale) == len(origin) == ndim:
            raise ValueError(
                f"the multiscales metadata has {len(axes)} axes, a scale of {len(scale)} and a translation of {len(origin)} entries, "
                f"the array of level {level} has {ndim} axes; correct the metadata"
            )
        world = [a.type in WORLD for a in axes]
        return Space(
            axes,
            tuple(s if w else Fraction(1) for s, w in zip(scale, world, strict=True)),
            tuple(o if w else Fraction(0) for o, w in zip(origin, world, strict=True)),
            placed=any(origin) or set(scale) != {1} or any(a.unit is not None for a in axes),
        )


def read_multiscale(attributes: Mapping[str, Any]) -> Multiscale | None:
    """Read the first image of a group's attributes; None where there is none.

    Raises
    ------
    ValueError
        If the metadata is malformed.
    """
    attributes = attributes.get("ome") or attributes
    images = attributes.get("multiscales")
    if not images:
        return None
    try:
        image = images[0]
        axes = tuple(_axis(a) for a in image["axes"]) if image.get("axes") else None
        outer_scale, outer_shift = _transform(image)
        first, _ = _transform(image["datasets"][0])
        scales, origins = [], []
        for dataset in image["datasets"]:
            scale, shift = _transform(dataset)
            if shift and scale and first:
                shift = tuple(t - (s - f) / 2 for t, s, f in zip(shift, scale, first, strict=False))  # lengths: see `space`
            if outer_scale:
                scale = _combine(mul, scale, outer_scale)
                shift = shift and _combine(mul, shift, outer_scale)
            if outer_shift:
                shift = _combine(add, shift, outer_shift)
            scales.append(scale)
            origins.append(shift)
        paths = tuple(str(d["path"]).strip("/") for d in image["datasets"])
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"the multiscales metadata is malformed ({type(error).__name__}: {error}); correct it") from error
    return Multiscale(paths, axes, tuple(scales), tuple(origins), attributes.get("omero"))


def level_space(space: Space, factors: Sequence[int]) -> Space:
    """Return the space of a level that means (or modes) over `factors` voxels per space axis make; it keeps the corner."""
    size = list(space.voxel_size)
    for i, f in zip(space.spatial, factors, strict=True):
        size[i] *= f
    return replace(space, voxel_size=tuple(size))


def write_multiscale(levels: Sequence[Space], version: Literal["0.4", "0.5"], name: str) -> dict[str, Any]:
    """Return the attributes of an image's group; level k is the array "k".

    What ome-zarr-models would refuse is refused here, without its import, which takes longer than many a first write; the tests
    hold both against each other.

    Parameters
    ----------
    levels : sequence of Space
        One per level, finest first, with the corner they share as origin.
    version : {"0.4", "0.5"}
    name : str

    Raises
    ------
    ValueError
        If OME-Zarr cannot hold these axes.
    """
    reason = _refusal(levels[0].axes)
    if reason is not None:
        names = ", ".join(f"{a.name} ({a.type})" for a in levels[0].axes)
        raise ValueError(f"OME-Zarr cannot hold the axes {names}: {reason}; write with format='zarr', or transpose first")
    axes: list[dict[str, Any]] = [
        {"name": a.name, "type": a.type if a.type in WORLD else "channel"}
        | ({"unit": canonical_unit(a.unit)} if a.unit else {})
        for a in levels[0].axes
    ]
    datasets = []
    for k, space in enumerate(levels):
        growth = zip(space.origin, space.voxel_size, levels[0].voxel_size, strict=True)
        transforms = [
            {"type": "scale", "scale": [float(v) for v in space.voxel_size]},
            {"type": "translation", "translation": [float(o + (s - f) / 2) for o, s, f in growth]},
        ]
        datasets.append({"path": str(k), "coordinateTransformations": transforms})
    image: dict[str, Any] = {"name": name, "axes": axes, "datasets": datasets}
    if version == "0.4":
        return {"multiscales": [image | {"version": "0.4"}]}
    return {"ome": {"version": "0.5", "multiscales": [image]}}


def _refusal(axes: Sequence[Axis]) -> str | None:
    """Say what in the order or number of axes OME-Zarr does not allow: [time], [channel], then two or three of space."""
    types = [a.type if a.type in WORLD else "channel" for a in axes]
    n = types.count("space")
    if n not in (2, 3):
        return f"Length of space axes ({n}) not valid, only lengths [2, 3] allowed"
    for kind in ("time", "channel"):
        if types.count(kind) > 1:
            return f"Length of {kind} axes ({types.count(kind)}) not valid, only lengths [0, 1] allowed"
    if types[-n:] != ["space"] * n:
        return f"All space axes must be at the end of the axes list, but the order is {types}"
    return "Time axis must be at the beginning of axis list" if "time" in types[1:] else None


def _axis(axis: Any) -> Axis:
    if isinstance(axis, str):  # version 0.3
        return Axis(axis, axis_type(axis))
    kind = axis_type(axis["name"], axis.get("type"))
    return Axis(axis["name"], kind, canonical_unit(axis.get("unit")) if kind in WORLD else None)


def _transform(holder: Mapping[str, Any]) -> tuple[Vector | None, Vector | None]:
    """Read scale and translation of an image or a level."""
    found: dict[str, Vector] = {}
    for step in holder.get("coordinateTransformations") or ():
        kind = step["type"]
        if kind in ("scale", "translation") and kind in step:
            found[kind] = tuple(exact(v) for v in step[kind])
        elif kind != "identity":
            raise ValueError(f"coordinate transformation {step!r} is not supported; scale and translation in place are")
    return found.get("scale"), found.get("translation")


def _combine(operation: Callable[[Fraction, Fraction], Fraction], a: Vector | None, b: Vector) -> Vector:
    return tuple(map(operation, a, b)) if a else b
