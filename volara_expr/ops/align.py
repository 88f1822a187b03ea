"""Where the voxels of arrays lie: the axes of a spec one by one, and how those of several arrays meet."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from volara_expr.expr.node import ArraySpec, Neighborhood
from volara_expr.geometry import Axis, Box, Space
from volara_expr.geometry.space import METERS

__all__ = [
    "Alignment",
    "Line",
    "assemble",
    "axis_number",
    "broadcast",
    "common_boxes",
    "lines",
    "place",
    "spatial_lines",
    "where_is",
]

REMEDY = (
    "crop them to their common world box with ve.align(a, b), or give b's voxels a's position with b.at(a) if they belong there"
)


class Line(NamedTuple):
    """One axis of a spec: its name, and where its voxels lie. `frame` is the extent of the source that numbers blocks."""

    axis: Axis
    voxel_size: Fraction
    origin: Fraction
    lo: int
    hi: int
    frame: tuple[int, int]

    @property
    def n(self) -> int:
        """Number of voxels."""
        return max(0, self.hi - self.lo)

    @property
    def located(self) -> bool:
        """Whether voxels along this axis have a position in the world."""
        return self.axis.type in ("space", "time")

    @property
    def start(self) -> Fraction:
        """World position of the lower face of the first voxel."""
        return self.origin + self.lo * self.voxel_size

    def fresh(self, n: int, voxel_size: Fraction | None = None, start: Fraction | None = None) -> Line:
        """Return the line of a new voxel grid: `n` voxels counted from 0, the first one at world position `start`."""
        if not self.located:
            return Line(self.axis, Fraction(1), Fraction(0), 0, n, (0, n))
        size = self.voxel_size if voxel_size is None else voxel_size
        return Line(self.axis, size, self.start if start is None else start, 0, n, (0, n))

    def as_channel(self, n: int) -> Line:
        """Return the line of `n` entries that have no place in space."""
        return Line(Axis(self.axis.name, "channel"), Fraction(1), Fraction(0), 0, n, (0, n))


def lines(spec: ArraySpec) -> list[Line]:
    """Return the axes of a spec one by one."""
    frame = spec.frame or spec.box
    s = spec.space
    faces = zip(spec.box.lo, spec.box.hi, zip(frame.lo, frame.hi, strict=True), strict=True)
    return [Line(a, v, o, *f) for a, v, o, f in zip(s.axes, s.voxel_size, s.origin, faces, strict=True)]


def spatial_lines(spec: ArraySpec) -> list[Line]:
    """Return the space axes of a spec one by one."""
    every = lines(spec)
    return [every[i] for i in spec.space.spatial]


def assemble(parts: Sequence[Line], dtype: np.dtype, placed: bool, neighborhood: Neighborhood | None = None) -> ArraySpec:
    """Make a spec from its axes. Without a neighborhood, an axis of type "offsets" becomes a channel axis."""
    axes = [Axis(p.axis.name, "channel") if p.axis.type == "offsets" and neighborhood is None else p.axis for p in parts]
    space = Space(tuple(axes), tuple(p.voxel_size for p in parts), tuple(p.origin for p in parts), placed)
    box = Box(tuple(p.lo for p in parts), tuple(p.hi for p in parts))
    frame = Box(tuple(p.frame[0] for p in parts), tuple(p.frame[1] for p in parts))
    return ArraySpec(box, dtype, space, neighborhood, frame)


def axis_number(axis: int | str, ndim: int, names: Sequence[str] = ()) -> int:
    """Return the position of an axis given by number (negative from the end) or name.

    Raises
    ------
    ValueError
        If there is no such axis.
    """
    if isinstance(axis, str) and axis in names:
        return list(names).index(axis)
    if isinstance(axis, str) or not -ndim <= operator.index(axis) < ndim:
        raise ValueError(f"no axis {axis!r} among {ndim}" + (f" ({', '.join(names)})" if names else ""))
    return operator.index(axis) % ndim


def where_is(spec: ArraySpec) -> str:
    """Return shape and position of an array as text for messages."""
    return f"shape {spec.shape} at {spec.space.roi(spec.box)} in voxels of {spec.space.describe_voxel()}"


def place(a: Line, b: Line) -> tuple[Fraction, Fraction]:
    """Return voxel size and start of `b` in the unit of `a`; a missing unit stands for any.

    Raises
    ------
    ValueError
        If the units cannot be converted.
    """
    unit, other = a.axis.unit, b.axis.unit
    if unit == other or unit is None or other is None:
        return b.voxel_size, b.start
    if unit not in METERS or other not in METERS:
        raise ValueError(f"axis {a.axis.name!r} is in {unit!r} and {b.axis.name!r} in {other!r}; give both units of length")
    k = METERS[other] / METERS[unit]
    return b.voxel_size * k, b.start * k


def _check(a: ArraySpec, i: int, b: ArraySpec, j: int) -> None:
    """Raise ValueError unless axis `i` of `a` and axis `j` of `b`, of equal extent and both placed, are the same voxels."""
    p, q = lines(a)[i], lines(b)[j]
    kinds = {"channel" if x.axis.type == "offsets" else x.axis.type for x in (p, q)}
    if len(kinds) > 1 or (p.axis.name != q.axis.name and p.axis.name in b.space.names):
        raise ValueError(
            f"axes ({', '.join(a.space.names)}) meet axes ({', '.join(b.space.names)}): {p.axis.name!r} ({p.axis.type}) lies on "
            f"{q.axis.name!r} ({q.axis.type}); bring them into one order with transpose, or add an axis with expand_dims"
        )
    if not p.located:
        return
    size, start = place(p, q)
    if size != p.voxel_size:
        raise ValueError(
            f"the arrays differ in voxel size along {p.axis.name!r}: {where_is(a)}, and {where_is(b)}; "
            "bring one to the other's voxels first: b.resample_like(a, order=0)"
        )
    if start != p.start:
        raise ValueError(f"the arrays lie apart along {p.axis.name!r}: {where_is(a)}, and {where_is(b)}; {REMEDY}")


@dataclass(frozen=True, slots=True)
class Alignment:
    """The common voxels of several arrays.

    Attributes
    ----------
    spec : ArraySpec
        Of the result; its dtype is that of the first array.
    boxes : tuple of Box
        Of the arrays.
    """

    spec: ArraySpec
    boxes: tuple[Box, ...]

    def need(self, box: Box) -> tuple[Box, ...]:
        """Return the voxels of every array that meet in `box` of the result; unclipped where the array is not stretched."""
        out = []
        for own in self.boxes:
            first = box.ndim - own.ndim
            lo, hi = list(own.lo), list(own.hi)
            for k in range(own.ndim):
                i = first + k
                if own.shape[k] == self.spec.shape[i]:
                    shift = own.lo[k] - self.spec.box.lo[i]
                    lo[k], hi[k] = box.lo[i] + shift, box.hi[i] + shift
            out.append(Box(tuple(lo), tuple(hi)))
        return tuple(out)


def broadcast(specs: Sequence[ArraySpec], skip: int | None = None) -> Alignment:
    """Match arrays as NumPy does, trailing axes first, and check that matched voxels lie at the same place.

    Every axis of the result is that of the first array that is not stretched along it, placed arrays first.

    Parameters
    ----------
    specs : sequence of ArraySpec
    skip : int, optional
        An axis (counted from the first, all arrays of equal rank) whose extents and positions may differ: that of a
        concatenation. The result has there what the first array has.

    Raises
    ------
    ValueError
        If shapes do not broadcast, or matched axes differ in kind, voxel size or position. Arrays without a position (NumPy
        arrays, stores without metadata) take that of the others.
    """
    ndim = max(s.ndim for s in specs)
    parts: list[Line] = []
    hoods: set[tuple[int, Neighborhood | None]] = set()
    for i in range(ndim):
        members = [(s, i - ndim + s.ndim) for s in specs if i - ndim + s.ndim >= 0]
        extents = {s.shape[k] for s, k in members}
        if i == skip:
            extents, members = {members[0][0].shape[i]}, members[:1]
        if len(extents - {1}) > 1:
            shapes = " and ".join(str(s.shape) for s in specs)
            both = len({s.ndim for s in specs}) == 1 and all(s.space.placed for s in specs)
            raise ValueError(f"shapes {shapes} do not match along axis {i}" + (f"; {REMEDY}" if both else ""))
        n = max(extents, key=lambda e: e != 1)
        full = sorted(((s, k) for s, k in members if s.shape[k] == n), key=lambda m: not m[0].space.placed)
        lead, at = full[0]
        for s, k in full[1:]:
            if s.space.placed:
                _check(lead, at, s, k)
        line = lines(lead)[at]
        for s, k in full:
            if s.space.axes[k].type == "offsets":
                hoods.add((i, s.neighborhood))
                line = line._replace(axis=s.space.axes[k])
        if any(line.axis.name == p.axis.name for p in parts):  # only arrays without metadata bring a name twice
            line = line._replace(axis=Axis(f"d{i}", line.axis.type, line.axis.unit))
        parts.append(line)
    neighborhood = next(iter(hoods))[1] if len(hoods) == 1 else None
    spec = assemble(parts, specs[0].dtype, any(s.space.placed for s in specs), neighborhood)
    return Alignment(spec, tuple(s.box for s in specs))


def common_boxes(specs: Sequence[ArraySpec]) -> list[Box]:
    """Return for every array the box of the voxels that all of them cover in the world, over the space axes.

    Arrays of which none has a position are taken to count their voxels from the same one.

    Raises
    ------
    ValueError
        If the space axes differ in number, voxel size or grid, if only some arrays have a position, or if nothing is common.
    """
    if len({s.space.placed for s in specs}) > 1:
        raise ValueError("some of these arrays have a position and others have none; give them one with b.at(a)")
    if len({len(s.space.spatial) for s in specs}) > 1:
        raise ValueError(f"arrays of {' and '.join(str(len(s.space.spatial)) for s in specs)} space axes have no common box")
    first = specs[0]
    spans: list[list[tuple[int, int]]] = [[] for _ in specs]
    for k, line in enumerate(spatial_lines(first)):
        shifts: list[int] = []
        lo, hi = line.lo, line.hi
        for s in specs:
            other = spatial_lines(s)[k]
            size, start = place(line, other)
            shift = (start - line.start) / line.voxel_size + line.lo - other.lo  # from voxel numbers of s to those of the first
            if size != line.voxel_size or shift.denominator != 1:
                raise ValueError(
                    f"voxels do not coincide along {line.axis.name!r}: {where_is(first)}, and {where_is(s)}; "
                    "bring one to the other's voxels first: b.resample_like(a, order=0)"
                )
            shifts.append(int(shift))
            lo, hi = max(lo, other.lo + int(shift)), min(hi, other.hi + int(shift))
        if lo >= hi:
            raise ValueError(f"the arrays do not overlap along {line.axis.name!r}: {', and '.join(map(where_is, specs))}")
        for span, moved in zip(spans, shifts, strict=True):
            span.append((lo - moved, hi - moved))
    boxes = []
    for s, span in zip(specs, spans, strict=True):
        own = dict(zip(s.space.spatial, span, strict=True))
        faces = [own.get(i, (s.box.lo[i], s.box.hi[i])) for i in range(s.ndim)]
        boxes.append(Box(tuple(a for a, _ in faces), tuple(b for _, b in faces)))
    return boxes
