"""A user's function on blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from volara_expr.expr.digest import Function
from volara_expr.expr.node import ArrayNode, ArraySpec, Exactness, Patch
from volara_expr.geometry import Box

__all__ = ["MapBlocks"]


@dataclass(frozen=True, eq=False, repr=False)
class MapBlocks(ArrayNode):
    """A function of a user, given each block together with its halo. It is taken at its word that the halo suffices.

    Attributes
    ----------
    function : Function
        From an ndarray to an ndarray of the same shape; `function.opaque` says why it has no lasting identity, if it has none.
    reach : tuple of int
        Voxels that the function needs on both sides, per axis; fewer at the faces of the volume.
    dtype : numpy.dtype
        Of the result.
    """

    array: ArrayNode
    function: Function
    reach: tuple[int, ...]
    dtype: np.dtype[Any]
    exactness: ClassVar[Exactness] = "cpu-exact"
    cost: ClassVar[float] = 50.0
    thread_safe: ClassVar[bool] = False

    def make_spec(self) -> ArraySpec:
        if min(self.reach, default=0) < 0:
            raise ValueError(f"halo={self.reach} has a negative entry; give how many voxels around each the function looks at")
        if self.dtype.kind not in "biufc":
            raise TypeError(f"cannot hold {self.dtype}; arrays hold booleans, integers, floats or complex numbers")
        return self.array.spec.replace(dtype=self.dtype)

    @property
    def label(self) -> str:
        return f"map_blocks({self.function!r})"

    def need(self, box: Box) -> tuple[Box | None, ...]:
        return (box.grow(self.reach, self.reach),)

    def temp_bytes(self, out: Box) -> int:
        each = self.array.spec.dtype.itemsize + 2 * self.dtype.itemsize
        return out.grow(self.reach, self.reach).size * each

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        patch = patches[0]
        result = np.asarray(self.function.call(np.array(patch.data, order="C")))  # a copy: the function may write into it
        if result.shape != patch.box.shape:
            raise ValueError(
                f"{self.function!r} returned shape {result.shape} for a block of shape {patch.box.shape}; it must keep the shape"
            )
        if result.dtype != self.dtype:
            raise TypeError(
                f"{self.function!r} returned {result.dtype}, expected {self.dtype}; say map_blocks(..., dtype='{result.dtype}')"
            )
        return result[out.slices(patch.box.lo)]
