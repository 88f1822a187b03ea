"""Finer voxels of the same values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from volara_expr.expr.node import ArrayNode, ArraySpec, Patch
from volara_expr.geometry import Box
from volara_expr.ops.align import assemble, lines

__all__ = ["Upsample"]


@dataclass(frozen=True, eq=False, repr=False)
class Upsample(ArrayNode):
    """Every voxel repeated along the axes; the array keeps its place in the world, and absolute voxel 0 its corner.

    Attributes
    ----------
    factors : tuple of int
        Per axis; 1 leaves an axis alone.
    """

    array: ArrayNode
    factors: tuple[int, ...]
    takes_coded: ClassVar[bool] = True

    def make_spec(self) -> ArraySpec:
        spec = self.array.spec
        if min(self.factors, default=1) < 1:
            raise ValueError(f"factors={self.factors}; a voxel becomes 1 or more along each axis")
        parts = [
            p._replace(voxel_size=p.voxel_size / f, lo=p.lo * f, hi=p.hi * f, frame=(p.frame[0] * f, p.frame[1] * f))
            for p, f in zip(lines(spec), self.factors, strict=True)
        ]
        return assemble(parts, spec.dtype, spec.space.placed, None if max(self.factors, default=1) > 1 else spec.neighborhood)

    def need(self, box: Box) -> tuple[Box | None, ...]:
        lo = tuple(a // f for a, f in zip(box.lo, self.factors, strict=True))
        return (Box(lo, tuple(-(-b // f) for b, f in zip(box.hi, self.factors, strict=True))),)

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        data = patches[0].data
        for i, f in enumerate(self.factors):
            if f > 1:
                at = np.arange(out.lo[i], out.hi[i]) // f - patches[0].box.lo[i]
                data = data[(slice(None),) * i + (at,)]
        return data
