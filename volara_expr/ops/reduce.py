"""Reductions along whole axes: channels in the main, where they are exact; any axis on request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log2, prod
from typing import Any, ClassVar

import numpy as np

from volara_expr.expr.node import ArrayNode, ArraySpec, Exactness, Patch
from volara_expr.geometry import Box
from volara_expr.kernels.scalars import Scalars, Value
from volara_expr.ops.align import assemble, lines

__all__ = ["FUNCTIONS", "Reduction"]

FUNCTIONS = ("sum", "mean", "max", "min", "any", "all", "argmax", "argmin")
MOST_PLANES = 32
"""A reduction over more is not unrolled into a fused loop."""


@dataclass(frozen=True, eq=False, repr=False)
class Reduction(ArrayNode):
    """A NumPy reduction. Every block takes the reduced axes whole.

    Attributes
    ----------
    function : str
        Name in the namespace of NumPy.
    axes : tuple of int, or None
        None for all; argmax and argmin take one axis or all.
    keepdims : bool
        Keep reduced axes with one entry; along a space axis, that is one voxel as long as the axis.
    """

    function: str
    array: ArrayNode
    axes: tuple[int, ...] | None
    keepdims: bool = False
    kernel: ClassVar[str] = "volara_expr.kernels.reduce:reduce"

    @property
    def reduced(self) -> tuple[int, ...]:
        """The axes that are reduced."""
        return tuple(range(self.array.spec.ndim)) if self.axes is None else self.axes

    def make_spec(self) -> ArraySpec:
        spec = self.array.spec
        if self.function not in FUNCTIONS:
            raise ValueError(f"{self.function!r} is none of {', '.join(FUNCTIONS)}")
        if self.function.startswith("arg") and self.axes is not None and len(self.axes) != 1:
            raise TypeError(f"{self.function} takes one axis, or None for all; got {self.axes}")
        n = prod(spec.shape[i] for i in self.reduced)
        if n == 0 and self.function in ("max", "min", "mean", "argmax", "argmin"):
            raise ValueError(f"{self.function} of no voxels: shape {spec.shape} along axes {self.reduced}")
        kinds = {spec.space.axes[i].type for i in self.reduced}
        hood = None if kinds & {"space", "offsets"} else spec.neighborhood
        parts = []
        for i, line in enumerate(lines(spec)):
            if i not in self.reduced:
                parts.append(line)
            elif self.keepdims:
                parts.append(line.fresh(1, line.voxel_size * max(line.n, 1)))
        dtype = getattr(np, self.function)(np.ones(1, spec.dtype)).dtype
        return assemble(parts, dtype, spec.space.placed, hood)

    @property
    def ordered(self) -> bool:
        """Whether sums run in index order: along axes that are not of space, which are short."""
        return all(self.array.spec.space.axes[i].type != "space" for i in self.reduced)

    @property
    def exactness(self) -> Exactness:  # type: ignore[override]
        """Only sums of floats along space axes, and sums of integers beyond 53 bits as floats, depend on an order."""
        spec = self.array.spec
        if self.function not in ("sum", "mean") or self.ordered:
            return "exact"
        n = prod(spec.shape[i] for i in self.reduced)
        fits = self.function == "sum" or 8 * spec.dtype.itemsize + log2(max(n, 1)) <= 53
        return "exact" if spec.dtype.kind in "biu" and fits else "inexact"

    @property
    def label(self) -> str:
        return self.function

    def need(self, box: Box) -> tuple[Box | None, ...]:
        own = self.array.spec.box
        kept = iter(zip(box.lo, box.hi, strict=True))
        faces = []
        for i in range(own.ndim):
            if i not in self.reduced:
                faces.append(next(kept))
                continue
            if self.keepdims:
                next(kept)
            faces.append((own.lo[i], own.hi[i]))
        return (Box(tuple(a for a, _ in faces), tuple(b for _, b in faces)),)

    def temp_bytes(self, out: Box) -> int:
        needed = self.need(out)[0]
        return 8 * out.size + (0 if needed is None else needed.size * self.array.spec.dtype.itemsize)

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        with np.errstate(all="ignore"):
            return kernel(patches[0].data, self.function, self.axes, self.keepdims, self.ordered)

    def scalars(self, code: Scalars, inputs: Sequence[Sequence[Value]]) -> list[Value] | None:
        n = self.array.spec.shape[0] if self.axes == (0,) else 0
        name, dtype, boolean = self.function, self.spec.dtype, np.dtype(bool)
        if not 1 <= n <= MOST_PLANES or self.keepdims or (name in ("sum", "mean") and not self.ordered):
            return None
        planes = [inputs[0][k % len(inputs[0])] for k in range(n)]
        if name in ("argmax", "argmin"):
            best, at = planes[0], code.constant(0, dtype)
            for k, x in enumerate(planes[1:], 1):
                better = code.ufunc("greater" if name == "argmax" else "less", [x, best])
                if x.dtype.kind == "f":  # the first NaN wins
                    nan = code.ufunc("logical_and", [code.ufunc("isnan", [x]), code.ufunc("equal", [best, best])])
                    better = code.ufunc("logical_or", [better, nan])
                best = code.call("where", x.dtype, better, x, best)
                at = code.call("where", dtype, better, code.constant(k, dtype), at)
            return [at]
        step = {"sum": "add", "mean": "add", "max": "maximum", "min": "minimum", "any": "logical_or", "all": "logical_and"}[
            name
        ]
        kind = boolean if name in ("any", "all") else dtype
        total = code.cast(planes[0], kind)
        for x in planes[1:]:
            total = code.ufunc(step, [total, code.cast(x, kind)])
        return [code.ufunc("divide", [total, dtype.type(n)]) if name == "mean" else total]
