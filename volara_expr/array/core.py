"""`Array`: the handle a user holds."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from volara_expr.array.dask import ToDask
from volara_expr.array.filters import Filters
from volara_expr.array.interop import Interop
from volara_expr.array.labels import Labels
from volara_expr.array.morphology import Morphology
from volara_expr.array.pointwise import Pointwise
from volara_expr.array.reduce import Reduce
from volara_expr.array.regions import Regions
from volara_expr.array.shape import Shape
from volara_expr.array.stencil import Stencil
from volara_expr.array.tables import Tables
from volara_expr.array.values import Values
from volara_expr.array.viewing import Viewing
from volara_expr.array.writing import Evaluation
from volara_expr.expr.node import ArrayNode, Neighborhood
from volara_expr.geometry import Roi

__all__ = ["Array"]


class Array(
    Pointwise,
    Shape,
    Reduce,
    Values,
    Stencil,
    Filters,
    Morphology,
    Regions,
    Labels,
    Tables,
    Evaluation,
    Interop,
    Viewing,
    ToDask,
):
    """A lazy array: NumPy's language, evaluated block by block when it is written.

    Made by `volara_expr.open` and `volara_expr.from_numpy`, and by operations on other arrays. Nothing is read or computed
    before `compute`, `preview`, `write` or `submit`.
    """

    __slots__ = ("__weakref__",)

    def __init__(self, node: ArrayNode) -> None:
        self.node = node

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels along each axis."""
        return self.node.spec.shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.node.spec.ndim

    @property
    def size(self) -> int:
        """Number of voxels."""
        return self.node.spec.box.size

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return self.node.spec.nbytes

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self.node.spec.dtype

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes."""
        return self.node.spec.space.names

    @property
    def voxel_size(self) -> tuple[Fraction, ...]:
        """World units per voxel along the space axes, exact."""
        space = self.node.spec.space
        return tuple(space.voxel_size[i] for i in space.spatial)

    @property
    def units(self) -> tuple[str | None, ...]:
        """Unit of each space axis."""
        space = self.node.spec.space
        return tuple(space.axes[i].unit for i in space.spatial)

    @property
    def neighborhood(self) -> Neighborhood | None:
        """Offsets of the affinities, in voxels over the space axes; None for other arrays."""
        return self.node.spec.neighborhood

    @property
    def roi(self) -> Roi:
        """World box over the space axes."""
        return self.node.spec.space.roi(self.node.spec.box)

    @property
    def key(self) -> str:
        """Digest of the expression: equal for equal expressions over equal data."""
        return self.node.digest

    def pipe(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return ``function(self, *args, **kwargs)``, so that functions of others read like methods.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> def brighten(image, by):
        ...     return image + by
        >>> ve.from_numpy(np.array([1, 2])).pipe(brighten, by=3).compute()
        array([4, 5])
        """
        return function(self, *args, **kwargs)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("an array without axes has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        spec = self.node.spec
        shape = ", ".join(f"{a.name}: {n}" for a, n in zip(spec.space.axes, spec.shape, strict=True))
        placed = f", voxel {spec.space.describe_voxel()}" if spec.space.placed else ""
        return f"Array({shape}; {spec.dtype}{placed}; {self.node.label})"
