"""Other voxel sizes: bins of whole voxels, and the nearest voxel of another grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, ClassVar

from volara_expr.expr.node import ArrayNode, ArraySpec, Patch
from volara_expr.geometry import Box
from volara_expr.ops.align import assemble, lines, place, spatial_lines, where_is
from volara_expr.ops.stencil import over_all_axes

__all__ = ["METHODS", "Downsample", "NearestLike", "downsample"]

METHODS = ("mean", "mode", "min", "max", "stride")


@dataclass(frozen=True, eq=False, repr=False)
class Downsample(ArrayNode):
    """Bins of whole voxels. Bin j holds the absolute voxels j * factor to (j + 1) * factor - 1, so crops have the same bins.

    Bins that reach beyond the array use the voxels that are there; "stride", which takes the first voxel of every bin, leaves
    out a bin without it. The corner of absolute voxel 0 stays where it is, except for "stride": its voxels are centred on those
    that they show.

    Attributes
    ----------
    factors : tuple of int
        Per axis; 1 leaves an axis alone.
    method : {"mean", "mode", "min", "max", "stride"}
    """

    array: ArrayNode
    factors: tuple[int, ...]
    method: str = "mean"
    kernel: ClassVar[str] = "volara_expr.kernels.resample:downsample"
    cost: ClassVar[float] = 8.0

    def make_spec(self) -> ArraySpec:
        spec = self.array.spec
        if self.method not in METHODS:
            raise ValueError(f"method={self.method!r} is none of {', '.join(map(repr, METHODS))}")
        if min(self.factors, default=1) < 1:
            raise ValueError(f"factors={self.factors}; bins have 1 voxel or more along each axis")
        if self.method in ("mean", "mode") and sum(f > 1 for f in self.factors) > 3:
            raise ValueError(f"factors={self.factors} bin more than three axes; downsample twice")
        if spec.dtype.kind not in ("biu" if self.method == "mode" else "biuf"):
            wanted = "labels (integers or booleans)" if self.method == "mode" else "real numbers"
            raise TypeError(f"method={self.method!r} takes {wanted}, the array holds {spec.dtype}")
        parts = []
        for p, f in zip(lines(spec), self.factors, strict=True):
            if f == 1:
                parts.append(p)
                continue
            shift = (1 - f) * p.voxel_size / 2 if self.method == "stride" else Fraction(0)
            first = -(-p.lo // f) if self.method == "stride" else p.lo // f
            parts.append(
                p._replace(
                    voxel_size=p.voxel_size * f,
                    origin=p.origin + shift,
                    lo=first,
                    hi=-(-p.hi // f),
                    frame=(min(first, p.frame[0] // f), -(-p.frame[1] // f)),
                )
            )
        return assemble(parts, spec.dtype, spec.space.placed, None if max(self.factors, default=1) > 1 else spec.neighborhood)

    def need(self, box: Box) -> tuple[Box | None, ...]:
        last = 1 if self.method == "stride" else None
        lo = tuple(a * f for a, f in zip(box.lo, self.factors, strict=True))
        hi = tuple((b - 1) * f + (last or f) for b, f in zip(box.hi, self.factors, strict=True))
        return (Box(lo, hi),)

    def temp_bytes(self, out: Box) -> int:
        needed = self.need(out)[0]
        return 0 if needed is None else needed.size * self.spec.dtype.itemsize

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        phase = tuple(a - b * f for a, b, f in zip(patches[0].box.lo, out.lo, self.factors, strict=True))
        return kernel(patches[0].data, self.factors, phase, out.shape, self.method)


@dataclass(frozen=True, eq=False, repr=False)
class NearestLike(ArrayNode):
    """An array on another's voxels along the space axes: each takes the value of the voxel that its centre lies in.

    A centre on a face belongs to the upper voxel. Centres up to one voxel beyond the array take its last voxel.

    Attributes
    ----------
    like : ArraySpec
        The other array, of which only the space axes count.
    """

    array: ArrayNode
    like: ArraySpec
    takes_coded: ClassVar[bool] = True

    def make_spec(self) -> ArraySpec:
        spec = self.array.spec
        target = spatial_lines(self.like)
        if len(target) != len(spec.space.spatial):
            raise ValueError(f"{len(spec.space.spatial)} space axes cannot be put on {len(target)}; crop or index first")
        if spec.space.placed != self.like.space.placed:
            raise ValueError("one of the arrays has no voxel size; give it one with with_voxel_size(...)")
        if spec.box.empty or self.like.box.empty:
            raise ValueError(f"nothing to resample: {where_is(spec)}, and {where_is(self.like)}")
        new = iter(target)
        parts = [next(new) if p.axis.type == "space" else p for p in lines(spec)]
        return assemble(parts, spec.dtype, spec.space.placed)

    def __post_init__(self) -> None:
        super().__post_init__()
        spec = self.array.spec
        for i in spec.space.spatial:
            lo, hi = spec.box.lo[i], spec.box.hi[i]
            first, last = self._voxel(i, self.spec.box.lo[i]), self._voxel(i, self.spec.box.hi[i] - 1)
            if first < lo - 1 or last > hi:
                raise ValueError(
                    f"the array does not cover the other along {spec.space.names[i]!r}: {where_is(spec)}, and "
                    f"{where_is(self.like)}; crop the other to it first: a.world[b.roi]"
                )

    @cached_property
    def _maps(self) -> dict[int, tuple[int, int, int]]:
        """Per space axis (a, b, c): voxel t of the result lies in voxel (a * t + b) // c of the input."""
        maps = {}
        for i, (new, old) in enumerate(zip(lines(self.spec), lines(self.array.spec), strict=True)):
            if new.axis.type == "space":
                size, start = place(new, old)
                slope = new.voxel_size / size
                base = (new.origin + new.voxel_size / 2 - start) / size + old.lo
                c = slope.denominator * base.denominator
                maps[i] = int(slope * c), int(base * c), c
        return maps

    def _voxel(self, axis: int, t: int) -> int:
        """Return the voxel of the input that the centre of voxel `t` lies in, which may lie beyond the array."""
        if axis not in self._maps:
            return t
        a, b, c = self._maps[axis]
        return (a * t + b) // c

    def _sources(self, axis: int, lo: int, hi: int) -> list[int]:
        first, last = self.array.spec.box.lo[axis], self.array.spec.box.hi[axis] - 1
        return [min(max(self._voxel(axis, t), first), last) for t in range(lo, hi)]

    def describe(self) -> str:
        return where_is(self.spec)

    def need(self, box: Box) -> tuple[Box | None, ...]:
        ends = [
            self._sources(i, a, a + 1) + self._sources(i, b - 1, b) for i, (a, b) in enumerate(zip(box.lo, box.hi, strict=True))
        ]
        return (Box(tuple(e[0] for e in ends), tuple(e[1] + 1 for e in ends)),)

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        data = patches[0].data
        for i in self._maps:
            at = [v - patches[0].box.lo[i] for v in self._sources(i, out.lo[i], out.hi[i])]
            data = data[(slice(None),) * i + (at,)]
        return data


def downsample(node: ArrayNode, factors: Sequence[int], method: str = "mean") -> Downsample:
    """Return the array binned by one factor per space axis."""
    return Downsample(node, over_all_axes(node.spec.space, factors, 1), method)
