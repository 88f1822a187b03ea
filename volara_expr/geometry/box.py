"""Frozen integer boxes: the algebra of what to read, compute and write.

The vocabulary is that of `funlib.geometry.Roi` (grow, intersect, contains, snap to a grid), on immutable, hashable values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from operator import ge

__all__ = ["Box", "Halo"]


@dataclass(frozen=True, slots=True)
class Halo:
    """Voxels that an operation needs beyond its output, per axis, below (`lo`) and above (`hi`)."""

    lo: tuple[int, ...]
    hi: tuple[int, ...]

    @classmethod
    def symmetric(cls, radius: Sequence[int]) -> Halo:
        """Make the halo that reaches equally far on both sides of every axis."""
        r = tuple(radius)
        return cls(r, r)

    def __str__(self) -> str:
        if self.lo == self.hi:
            return "(" + ", ".join(map(str, self.lo)) + ")"
        return "(" + ", ".join(f"-{a}+{b}" for a, b in zip(self.lo, self.hi, strict=True)) + ")"


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open box of voxels, `lo` inclusive to `hi` exclusive, in absolute coordinates.

    Coordinates may be negative. A box with `hi <= lo` on any axis is empty.

    Examples
    --------
    >>> a = Box((0, 0), (4, 6))
    >>> a.grow((1, 1), (1, 1)).clip(Box((0, 0), (9, 9)))
    Box(lo=(0, 0), hi=(5, 7))
    >>> a.slices(origin=(0, -2))
    (slice(0, 4, None), slice(2, 8, None))
    """

    lo: tuple[int, ...]
    hi: tuple[int, ...]

    @classmethod
    def of_shape(cls, shape: Sequence[int], lo: Sequence[int] | None = None) -> Box:
        """Make the box of `shape` voxels that starts at `lo` (default: the origin)."""
        start = tuple(lo) if lo is not None else (0,) * len(shape)
        return cls(start, tuple(a + n for a, n in zip(start, shape, strict=True)))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.lo)

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis; never negative."""
        return tuple([b - a if b > a else 0 for a, b in zip(self.lo, self.hi, strict=True)])

    @property
    def size(self) -> int:
        """Number of voxels."""
        return prod(self.shape)

    @property
    def empty(self) -> bool:
        """Whether the box holds no voxel."""
        return any(map(ge, self.lo, self.hi))

    def grow(self, lo: Sequence[int], hi: Sequence[int]) -> Box:
        """Move the lower faces out by `lo` and the upper faces by `hi`; negative numbers shrink."""
        return Box(
            tuple(a - n for a, n in zip(self.lo, lo, strict=True)), tuple(b + n for b, n in zip(self.hi, hi, strict=True))
        )

    def shift(self, by: Sequence[int]) -> Box:
        """Move the box."""
        return Box(
            tuple([a + n for a, n in zip(self.lo, by, strict=True)]), tuple([b + n for b, n in zip(self.hi, by, strict=True)])
        )

    def clip(self, other: Box) -> Box:
        """Return the intersection; empty where the boxes do not meet."""
        if len(self.lo) != len(other.lo):
            raise ValueError(f"boxes of {len(self.lo)} and {len(other.lo)} axes have no intersection")
        lo = tuple(map(max, self.lo, other.lo))
        return Box(lo, tuple(map(max, lo, map(min, self.hi, other.hi))))

    def hull(self, other: Box) -> Box:
        """Return the smallest box that holds both; an empty box adds nothing."""
        if self.empty:
            return other
        if other.empty:
            return self
        return Box(
            tuple(min(a, b) for a, b in zip(self.lo, other.lo, strict=True)),
            tuple(max(a, b) for a, b in zip(self.hi, other.hi, strict=True)),
        )

    def contains(self, other: Box) -> bool:
        """Whether every voxel of `other` lies in this box."""
        return other.empty or all(a <= c and d <= b for a, b, c, d in zip(self.lo, self.hi, other.lo, other.hi, strict=True))

    def snap(self, step: Sequence[int], origin: Sequence[int]) -> Box:
        """Grow to the smallest enclosing box whose faces lie on the grid of `step` through `origin`."""
        return Box(
            tuple(o + (a - o) // s * s for a, s, o in zip(self.lo, step, origin, strict=True)),
            tuple(o - (o - b) // s * s for b, s, o in zip(self.hi, step, origin, strict=True)),
        )

    def slices(self, origin: Sequence[int]) -> tuple[slice, ...]:
        """Return the index of this box in an array whose first voxel is at `origin`."""
        return tuple([slice(a - o, b - o) for a, b, o in zip(self.lo, self.hi, origin, strict=True)])

    def __str__(self) -> str:
        return "[" + ", ".join(f"{a}:{b}" for a, b in zip(self.lo, self.hi, strict=True)) + "]"
