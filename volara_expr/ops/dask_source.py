"""A Dask array as a source, computed block by block where the blocks run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from volara_expr.expr.node import ArrayNode, ArraySpec, Exactness, Patch
from volara_expr.geometry import Box

if TYPE_CHECKING:
    import dask.array as da

__all__ = ["DaskArray", "DaskSource"]


class DaskArray:
    """A Dask array together with its identity.

    Attributes
    ----------
    array : dask.array.Array
    digest : str
    """

    __slots__ = ("array", "digest")

    def __init__(self, array: da.Array, digest: str) -> None:
        self.array = array
        self.digest = digest

    def __reduce__(self) -> tuple[Any, ...]:
        return (DaskArray, (self.array, self.digest))

    def __repr__(self) -> str:
        return str(self.array.name)


@dataclass(frozen=True, eq=False, repr=False)
class DaskSource(ArrayNode):
    """The voxels of a Dask array. Each block computes the Dask chunks that it touches, in its own thread.

    Attributes
    ----------
    source : DaskArray
    known : ArraySpec
    """

    exactness: ClassVar[Exactness] = "cpu-exact"
    cost: ClassVar[float] = 50.0
    thread_safe: ClassVar[bool] = False

    source: DaskArray
    known: ArraySpec = field(repr=False)

    def make_spec(self) -> ArraySpec:
        return self.known

    @property
    def label(self) -> str:
        return "dask"

    def temp_bytes(self, out: Box) -> int:
        largest = [max(sizes) for sizes in self.source.array.chunks]
        touched = out.grow(largest, largest).clip(self.spec.box)
        return 2 * touched.size * self.spec.dtype.itemsize

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        return self.source.array[out.slices(self.spec.box.lo)].compute(scheduler="synchronous")
