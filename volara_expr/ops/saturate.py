"""Conversions that keep to the range of the type, and channels that are summed before they are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from volara_expr.expr.node import ArrayNode, ArraySpec, Patch
from volara_expr.geometry import Box
from volara_expr.ops.join import stack
from volara_expr.ops.pointwise import Cast
from volara_expr.ops.reduce import Reduction
from volara_expr.ops.shape import Take

__all__ = ["SaturatingCast", "argmax_of_sums", "saturating_cast"]


@dataclass(frozen=True, eq=False, repr=False)
class SaturatingCast(ArrayNode):
    """Conversion to an integer type: what lies beyond its range takes the nearest end, NaN becomes 0."""

    array: ArrayNode
    dtype: np.dtype[Any]
    pointwise: ClassVar[bool] = True

    def make_spec(self) -> ArraySpec:
        old = self.array.spec.dtype
        if old.kind not in "biuf" or self.dtype.kind not in "iu":
            raise TypeError(f"{old} to {self.dtype} has no range to keep to; saturate=True is for real numbers to integers")
        return self.array.spec.replace(dtype=self.dtype)

    def temp_bytes(self, out: Box) -> int:
        return out.size * 17

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        data, new = patches[0].data, np.iinfo(self.dtype)
        if data.dtype.kind == "f":
            wide = data.astype(np.float64)
            # The upper end of 64-bit types is no float, so the end is put where a float reaches it.
            inside = (wide >= new.min) & (wide < float(new.max + 1))
            whole = np.where(inside, wide, 0).astype(self.dtype)
            whole[wide >= float(new.max + 1)] = new.max
            whole[wide < new.min] = new.min
            return whole
        if data.dtype.kind == "b":
            return data.astype(self.dtype)
        old = np.iinfo(data.dtype)
        return data.clip(max(old.min, new.min), min(old.max, new.max)).astype(self.dtype)


def saturating_cast(array: ArrayNode, dtype: np.dtype[Any]) -> ArrayNode:
    """Return the conversion that keeps to the range; to floats and booleans, that of NumPy."""
    return SaturatingCast(array, dtype) if dtype.kind in "iu" else Cast(array, dtype)


def argmax_of_sums(array: ArrayNode, axis: int, combine: Sequence[Sequence[int]], keepdims: bool) -> ArrayNode:
    """Return which group of channels has the largest sum; see `Array.argmax`."""
    spec = array.spec
    n = spec.shape[axis]
    groups = [tuple(i + n if i < 0 else i for i in group) for group in combine]
    if not groups or not all(groups):
        raise ValueError(f"combine={combine} has an empty group; name the channels of each")
    if any(not 0 <= i < n for group in groups for i in group):
        raise IndexError(f"combine={combine} names a channel beyond the {n} of axis {spec.space.names[axis]!r}")
    if spec.dtype.kind in "iu" and spec.dtype.itemsize == 8 and max(map(len, groups)) > 1:
        raise TypeError(f"sums of {spec.dtype} can wrap in any integer type; astype('float64') or a smaller type first")
    wide = {"b": np.dtype(np.int64), "i": np.dtype(np.int64), "u": np.dtype(np.uint64)}.get(
        spec.dtype.kind, np.dtype(np.float64)
    )
    source = Cast(array, wide)
    sums = [Reduction("sum", Take(source, axis, group), (axis,)) for group in groups]
    return Reduction("argmax", stack(sums, axis, None), (axis,), keepdims)
