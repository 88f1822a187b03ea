"""Axes, voxel sizes and units: where voxels lie in the world, in exact fractions.

Voxel `i` of an axis covers the world interval `origin + i * voxel_size` to `origin + (i + 1) * voxel_size`. All arithmetic is
on `fractions.Fraction`, so 0.406 um stays 0.406 um however often it is multiplied.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

from volara_expr.geometry.box import Box

if TYPE_CHECKING:
    from funlib.geometry import Roi as FunlibRoi

__all__ = ["Axis", "Length", "Roi", "Space", "canonical_unit", "exact", "show"]

AxisType = Literal["space", "time", "channel", "offsets"]
Number = int | float | str | Decimal | Fraction
Length = int | float | str | Fraction
"""Voxels as a number, or a physical length as a string with a unit: "20nm", "1.5 um"."""

METERS: dict[str, Fraction] = {
    "angstrom": Fraction(1, 10**10),
    "picometer": Fraction(1, 10**12),
    "nanometer": Fraction(1, 10**9),
    "micrometer": Fraction(1, 10**6),
    "millimeter": Fraction(1, 10**3),
    "centimeter": Fraction(1, 10**2),
    "meter": Fraction(1),
}
SYMBOLS = {
    "Å": "angstrom",
    "pm": "picometer",
    "nm": "nanometer",
    "um": "micrometer",
    "µm": "micrometer",
    "μm": "micrometer",
    "micron": "micrometer",
    "microns": "micrometer",
    "mm": "millimeter",
    "cm": "centimeter",
    "m": "meter",
    "s": "second",
    "ms": "millisecond",
    "min": "minute",
    "h": "hour",
}
SHORT = {v: k for k, v in reversed(list(SYMBOLS.items()))}
LENGTH = re.compile(r"\s*([-+]?[0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([^\s\d]+)\s*")


def canonical_unit(unit: str | None) -> str | None:
    """Return the OME name of a unit ("nm" and "nanometers" give "nanometer"); unknown names pass through.

    Examples
    --------
    >>> canonical_unit("um"), canonical_unit("nanometers"), canonical_unit("")
    ('micrometer', 'nanometer', None)
    """
    if not unit:
        return None
    name = SYMBOLS.get(unit, unit)
    if name.endswith("s") and name[:-1] in METERS:
        name = name[:-1]
    return name.replace("metre", "meter")


def exact(value: Number) -> Fraction:
    """Return the fraction that a person means: a float stands for its shortest decimal, so 0.1 is one tenth.

    Examples
    --------
    >>> exact(0.1), exact("1/3"), exact(4)
    (Fraction(1, 10), Fraction(1, 3), Fraction(4, 1))
    """
    if hasattr(value, "item"):  # NumPy scalars
        value = value.item()
    return Fraction(repr(value)) if isinstance(value, float) else Fraction(value)


def show(value: Fraction) -> str:
    """Return a short decimal where the fraction has one, else the fraction."""
    as_float = float(value)
    if Fraction(repr(as_float)) == value:
        return str(int(as_float)) if value.denominator == 1 else repr(as_float)
    return str(value)


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of an array.

    Attributes
    ----------
    name : str
    type : {"space", "time", "channel", "offsets"}
        An axis of type "offsets" carries the affinities of a neighborhood.
    unit : str or None
        Canonical name, for example "nanometer".
    """

    name: str
    type: AxisType = "space"
    unit: str | None = None


@dataclass(frozen=True, slots=True)
class Space:
    """Axes, voxel size and position of an array's voxel grid.

    Attributes
    ----------
    axes : tuple of Axis
    voxel_size : tuple of Fraction
        World units per voxel, per axis; 1 for axes that are not of space or time.
    origin : tuple of Fraction
        World position of voxel 0, per axis; 0 for axes that are not of space or time.
    placed : bool
        False for arrays without metadata; those take the position and voxel size of what they are combined with.
    """

    axes: tuple[Axis, ...]
    voxel_size: tuple[Fraction, ...]
    origin: tuple[Fraction, ...]
    placed: bool = True

    @classmethod
    def plain(cls, ndim: int, names: Sequence[str] | None = None) -> Space:
        """Make the space of an array without metadata: unit voxels, no position; four axes and more are c (then t) first."""
        if names is None:
            names = ("t", "c", "z", "y", "x")[-ndim:] if ndim <= 5 else tuple(f"d{i}" for i in range(ndim))
        kinds: dict[str, AxisType] = {"c": "channel", "t": "time"}
        axes = tuple(Axis(n, kinds.get(n, "space")) for n in names)
        return cls(axes, (Fraction(1),) * ndim, (Fraction(0),) * ndim, placed=False)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.axes)

    @property
    def spatial(self) -> tuple[int, ...]:
        """Positions of the space axes."""
        return tuple(i for i, a in enumerate(self.axes) if a.type == "space")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the axes."""
        return tuple(a.name for a in self.axes)

    def find(self, kind: AxisType) -> int | None:
        """Return the position of the first axis of a type, or None."""
        return next((i for i, a in enumerate(self.axes) if a.type == kind), None)

    def keep(self, which: Sequence[int]) -> Space:
        """Return the space of the axes at the given positions, in that order."""
        return Space(
            tuple(self.axes[i] for i in which),
            tuple(self.voxel_size[i] for i in which),
            tuple(self.origin[i] for i in which),
            self.placed,
        )

    def voxels(self, length: Length, axis: int) -> Fraction:
        """Convert a length along an axis to voxels: numbers are voxels, strings carry a unit.

        Raises
        ------
        ValueError
            For a string without a unit, of an unknown unit, or where the axis has none.
        """
        if not isinstance(length, str):
            return exact(length)
        match = LENGTH.fullmatch(length)
        if match is None:
            raise ValueError(
                f"{length!r} is no length: write a number and a unit, as in '20nm' or '1.5 um', or voxels as a number"
            )
        unit, of_axis = canonical_unit(match[2]), self.axes[axis].unit
        if unit not in METERS:
            raise ValueError(f"unknown unit {match[2]!r} in {length!r}; known are {', '.join(SYMBOLS)}")
        if of_axis not in METERS:
            raise ValueError(
                f"{length!r} needs a unit on axis {self.axes[axis].name!r}, which has {of_axis!r}; give voxels instead"
            )
        return Fraction(match[1]) * METERS[unit] / METERS[of_axis] / self.voxel_size[axis]

    def spatial_voxels(self, lengths: Length | Sequence[Length], what: str) -> tuple[Fraction, ...]:
        """Convert one length, or one per space axis, to voxels along each space axis."""
        axes = self.spatial
        if isinstance(lengths, str) or not isinstance(lengths, Sequence):
            values: tuple[Length, ...] = (lengths,) * len(axes)
        else:
            values = tuple(lengths)
        if len(values) != len(axes):
            names = ", ".join(self.axes[i].name for i in axes)
            raise ValueError(
                f"{what} has {len(values)} entries but there are {len(axes)} space axes ({names}); give one number or one each"
            )
        return tuple(self.voxels(v, i) for v, i in zip(values, axes, strict=True))

    def describe_voxel(self) -> str:
        """Return the voxel size as text, for example "(40, 4, 4) nm"."""
        at = self.spatial
        units = {self.axes[i].unit for i in at}
        sizes = ", ".join(show(self.voxel_size[i]) for i in at)
        unit = units.pop() if len(units) == 1 else None
        return f"({sizes})" + (f" {SHORT.get(unit, unit)}" if unit else "")

    def roi(self, box: Box) -> Roi:
        """Return the world box of a voxel box, over the space axes."""
        at = self.spatial
        return Roi(
            tuple(self.origin[i] + box.lo[i] * self.voxel_size[i] for i in at),
            tuple(box.shape[i] * self.voxel_size[i] for i in at),
            next((self.axes[i].unit for i in at), None),
        )


class Roi:
    """A box in world coordinates, over the space axes, in exact decimals.

    Parameters
    ----------
    offset, shape : sequence of int, float, str, Decimal or Fraction
        In world units, one per space axis, in the array's axis order. Floats stand for their shortest decimal.
    unit : str, optional
        "nm", "um", ...; None means the unit of whatever array the box is used with.

    Examples
    --------
    >>> roi = Roi((400, 0, 0), (40, 4096, 4096), "nm")
    >>> roi.to("um").shape
    (Fraction(1, 25), Fraction(512, 125), Fraction(512, 125))
    >>> Roi((0,), (8,)).to_funlib()
    [0:8] (8)
    """

    __slots__ = ("offset", "shape", "unit")

    def __init__(self, offset: Sequence[Number], shape: Sequence[Number], unit: str | None = None) -> None:
        if len(offset) != len(shape):
            raise ValueError(f"offset has {len(offset)} entries, shape has {len(shape)}; give one of each per space axis")
        self.offset = tuple(exact(v) for v in offset)
        self.shape = tuple(exact(v) for v in shape)
        self.unit = canonical_unit(unit)
        if min(self.shape, default=Fraction(0)) < 0:
            raise ValueError(f"the shape of a Roi cannot be negative, got {tuple(map(show, self.shape))}")

    @classmethod
    def from_funlib(cls, roi: FunlibRoi, unit: str | None = None) -> Roi:
        """Make the same box from a `funlib.geometry.Roi`."""
        return cls(tuple(roi.offset), tuple(roi.shape), unit)

    def to_funlib(self) -> FunlibRoi:
        """Return a `funlib.geometry.Roi`, which holds integers only.

        Raises
        ------
        ValueError
            If an edge is not an integer.
        """
        from funlib.geometry import Roi as FunlibRoi

        for v in (*self.offset, *self.shape):
            if v.denominator != 1:
                raise ValueError(
                    f"funlib.geometry.Roi holds integers only and {self} has {show(v)}; use roi.to('nm') or finer first"
                )
        return FunlibRoi(tuple(map(int, self.offset)), tuple(map(int, self.shape)))

    def to(self, unit: str) -> Roi:
        """Return the same box in another unit of length."""
        target = canonical_unit(unit)
        if target not in METERS or self.unit not in METERS:
            raise ValueError(f"cannot convert {self.unit!r} to {unit!r}; units of length are {', '.join(METERS)}")
        k = METERS[self.unit] / METERS[target]
        return Roi(tuple(v * k for v in self.offset), tuple(v * k for v in self.shape), target)

    @property
    def end(self) -> tuple[Fraction, ...]:
        """Upper corner."""
        return tuple(a + b for a, b in zip(self.offset, self.shape, strict=True))

    def in_voxels(self, space: Space) -> Mapping[int, tuple[int, int]]:
        """Return the voxel range per space axis of all voxels that the box touches."""
        at = space.spatial
        if len(at) != len(self.offset):
            raise ValueError(f"the Roi has {len(self.offset)} axes, the array has {len(at)} space axes")
        out = {}
        for k, i in enumerate(at):
            unit = space.axes[i].unit
            if self.unit is None or unit is None or self.unit == unit:
                scale = Fraction(1)
            elif self.unit in METERS and unit in METERS:
                scale = METERS[self.unit] / METERS[unit]
            else:
                raise ValueError(f"cannot convert the Roi's {self.unit!r} to {unit!r} of axis {space.axes[i].name!r}")
            lo = (self.offset[k] * scale - space.origin[i]) / space.voxel_size[i]
            hi = (self.end[k] * scale - space.origin[i]) / space.voxel_size[i]
            out[i] = (lo.__floor__(), hi.__ceil__())
        return out

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Roi) and (self.offset, self.shape, self.unit) == (other.offset, other.shape, other.unit)

    def __hash__(self) -> int:
        return hash((self.offset, self.shape, self.unit))

    def __repr__(self) -> str:
        spans = ", ".join(f"{show(a)}:{show(b)}" for a, b in zip(self.offset, self.end, strict=True))
        return f"Roi[{spans}]" + (f" {SHORT.get(self.unit, self.unit)}" if self.unit else "")
