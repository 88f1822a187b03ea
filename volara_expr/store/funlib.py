"""Attributes of an array in the convention of funlib.persistence: offset, voxel_size, axis_names, units, types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from volara_expr.geometry import Axis, Space
from volara_expr.geometry.space import AxisType, canonical_unit, exact

__all__ = ["axis_type", "number", "read_space", "write_space"]

WORLD = ("space", "time")
"""Axes that have a position; the others count from 0 in steps of 1."""
BY_NAME: dict[str, AxisType] = {"c": "channel", "channel": "channel", "t": "time", "time": "time", "offset": "offsets"}
BY_TYPE: dict[str, AxisType] = {"space": "space", "time": "time", "channel": "channel", "offsets": "offsets"}


def axis_type(name: str, stated: object = None) -> AxisType:
    """Return the type of an axis: as stated, else by its name; "^" marks what is not of space or time."""
    if isinstance(stated, str):
        return BY_TYPE.get(stated, "channel")
    bare = name.removesuffix("^").lower()
    return BY_NAME.get(bare, "channel" if name.endswith("^") else "space")


def number(value: Fraction) -> int | float:
    """Return the JSON number for a fraction: whole numbers as int, so that funlib.persistence takes them as they are."""
    return int(value) if value.denominator == 1 else float(value)


def read_space(attributes: Mapping[str, Any], shape: Sequence[int], dimension_names: Sequence[str | None] | None) -> Space:
    """Make the space that an array's attributes describe.

    Parameters
    ----------
    attributes : mapping
        `offset`, `voxel_size` (or `resolution`) and `units` have one entry per axis, or one per axis of space or time;
        `axis_names` one per axis, "c^" marking a channel; `types` one per axis.
    shape : sequence of int
    dimension_names : sequence of str, optional
        Of zarr v3; used where `axis_names` is absent.

    Raises
    ------
    ValueError
        If an attribute has the wrong number of entries or is no list of numbers.
    """
    ndim = len(shape)
    offset, size = attributes.get("offset"), attributes.get("voxel_size", attributes.get("resolution"))
    names = attributes.get("axis_names")
    if names is None and dimension_names is not None and None not in dimension_names:
        names = dimension_names
    types = attributes.get("types") or [None] * ndim
    if names is None:
        plain = Space.plain(ndim).axes
        entries = size if size is not None else offset
        lead = ndim - len(entries) if isinstance(entries, list) else 0  # axes without an entry are channels, and come first
        names = [a.name if i >= lead else ("c", "c0", "c1", "c2")[lead - 1 - i] for i, a in enumerate(plain)]
        kinds = [axis_type(a.name) if i >= lead else axis_type("c") for i, a in enumerate(plain)]
    else:
        _check("axis_names", names, ndim)
        _check("types", types, ndim)
        kinds = [axis_type(n, t) for n, t in zip(names, types, strict=True)]
    world = [i for i, kind in enumerate(kinds) if kind in WORLD]

    def spread(key: str, values: Any, default: Any) -> list[Any]:
        """One entry per axis, from one per axis or one per axis of space or time."""
        out = [default] * ndim
        if values is None:
            return out
        if not isinstance(values, list | tuple) or len(values) not in (ndim, len(world)):
            raise ValueError(
                f"attribute {key} is {values!r}; an array of {ndim} axes ({', '.join(names)}) needs {ndim} entries, "
                f"or {len(world)}, one per axis of space or time"
            )
        at = range(ndim) if len(values) == ndim else world
        for i, value in zip(at, values, strict=True):
            if i in world:
                out[i] = value
        return out

    units = spread("units", attributes.get("units"), None)
    axes = tuple(
        Axis(n.removesuffix("^"), kind, canonical_unit(unit)) for n, kind, unit in zip(names, kinds, units, strict=True)
    )
    voxel_size = tuple(exact(v) for v in spread("voxel_size", size, 1))
    if min(voxel_size, default=Fraction(1)) <= 0:
        raise ValueError(f"attribute voxel_size is {size!r}; voxels need a positive size")
    origin = tuple(exact(v) for v in spread("offset", offset, 0))
    return Space(axes, voxel_size, origin, placed=offset is not None or size is not None)


def write_space(space: Space) -> dict[str, Any]:
    """Return the attributes from which `read_space` makes the same space; no position for one that has none."""
    world = [i for i, a in enumerate(space.axes) if a.type in WORLD]
    out: dict[str, Any] = {
        "axis_names": [a.name if i in world else a.name + "^" for i, a in enumerate(space.axes)],
        "types": [a.type if i in world else "channel" for i, a in enumerate(space.axes)],
        "units": [canonical_unit(space.axes[i].unit) or "" for i in world],
    }
    if space.placed:
        out["offset"] = [number(space.origin[i]) for i in world]
        out["voxel_size"] = [number(space.voxel_size[i]) for i in world]
    return out


def _check(key: str, values: Any, ndim: int) -> None:
    if not isinstance(values, list | tuple) or len(values) != ndim:
        raise ValueError(f"attribute {key} is {values!r}; an array of {ndim} axes needs a list of {ndim} entries")
