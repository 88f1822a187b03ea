"""From Dask arrays to expressions, and back."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from volara_expr.array.base import Handle
from volara_expr.expr import ArrayNode, ArraySpec, topological
from volara_expr.ops.sources import InMemory, in_memory

if TYPE_CHECKING:
    import dask.array as da

    from volara_expr.array.core import Array

__all__ = ["ToDask", "from_dask"]


def from_dask(
    a: da.Array,
    *,
    voxel_size: float | str | Sequence[float | str | Fraction] | None = None,
    units: str | None = None,
    axes: Sequence[str] | None = None,
    offset: Sequence[float | str | Fraction] | None = None,
    neighborhood: Sequence[Sequence[int]] | None = None,
    name: str | None = None,
) -> Array:
    """Make an expression of a Dask array (``pip install volara_expr[dask]``).

    Nothing is computed now. Each block computes the Dask chunks that it touches, in its own thread, so chunks that several
    blocks touch are computed once for each: choose blocks of whole chunks.

    Parameters
    ----------
    a : dask.array.Array
        Of known shape. Its graph travels to the workers.
    voxel_size, units, axes, offset, neighborhood
        As those of `from_numpy`.
    name : str, optional
        Identity of the content. By default Dask's token, which is the same in each session only where Dask can tell (arrays from
        files and from NumPy yes, random ones and those from delayed functions no); with another, a run is not resumed.

    Raises
    ------
    ValueError
        If the shape is not known, or as `from_numpy`.
    TypeError
        If the array holds Python objects.

    Examples
    --------
    >>> import dask.array as da
    >>> import volara_expr as ve
    >>> ve.from_dask(da.arange(6, chunks=3) * 2, voxel_size=4, units="nm")[2:].compute()
    array([ 4,  6,  8, 10])
    """
    from dask.base import tokenize

    from volara_expr.array.core import Array
    from volara_expr.array.sources import spec_of
    from volara_expr.ops.dask_source import DaskArray, DaskSource

    if any(np.isnan(n) for n in a.shape):
        raise ValueError(f"the Dask array has shape {a.shape}; call its compute_chunk_sizes() first")
    if a.dtype.hasobject:
        raise TypeError("arrays of Python objects cannot be processed; convert to a number type first")
    spec = spec_of(a.shape, a.dtype, voxel_size, units, axes, offset, neighborhood)
    return Array(DaskSource(DaskArray(a, name or tokenize(a)), spec))


class Slices:
    """What Dask slices: an expression of which each slice is computed when it is asked for.

    NumPy arrays in the expression travel with it.
    """

    def __init__(self, node: ArrayNode) -> None:
        self.node = node
        self.shape = node.spec.shape
        self.ndim = node.spec.ndim
        self.dtype = node.spec.dtype

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        from volara_expr.array.core import Array

        return Array(self.node)[index].compute()

    def __reduce__(self) -> tuple[Any, ...]:
        held = [(n.data, n.spec) for n in topological([self.node]) if isinstance(n, InMemory)]
        return (_restore, (held, self.node))

    def __dask_tokenize__(self) -> str:
        return self.node.digest


def _restore(held: list[tuple[npt.NDArray[Any], ArraySpec]], node: ArrayNode) -> Slices:
    for data, spec in held:
        in_memory(data, spec)  # which gives it to the equal leaf of the expression
    return Slices(node)


class ToDask(Handle):
    """The way to Dask."""

    __slots__ = ()

    def to_dask(self, chunks: Sequence[int] | None = None) -> da.Array:
        """Return a Dask array of which each chunk computes its own region of the expression, and no more.

        Parameters
        ----------
        chunks : sequence of int, optional
            Voxels per axis; by default the chunks that `write` would choose.

        Notes
        -----
        Each chunk is planned by itself, so this suits a look at regions and hand-over to other libraries; `write` is faster for
        the whole. With clustering or components behind, every process runs those for the whole volume once: write them first.

        Examples
        --------
        >>> import numpy as np
        >>> import volara_expr as ve
        >>> image = ve.from_numpy(np.arange(6, dtype=np.uint8)).to_dask(chunks=(4,))
        >>> (image.sum() + 1).compute()
        np.uint64(16)
        """
        import dask.array as da

        from volara_expr.plan.targets import Target

        node = self.node
        sizes = tuple(chunks) if chunks is not None else Target(node, "").chunks
        sizes = tuple(max(1, min(c, n)) for c, n in zip(sizes, node.spec.shape, strict=True))
        meta = np.empty((0,) * node.spec.ndim, node.spec.dtype)
        made: da.Array = da.from_array(
            Slices(node), chunks=sizes, name=f"volara_expr-{node.digest}", asarray=True, fancy=False, meta=meta
        )
        return made
