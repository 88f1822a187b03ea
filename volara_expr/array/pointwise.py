"""Operators, ufuncs and other methods that work voxel by voxel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from volara_expr.array.base import Handle, operand_of
from volara_expr.ops.normalize import stretch_percentiles, stretch_stored
from volara_expr.ops.pointwise import Cast, Elementwise, Normalize, ScaleShift, Threshold, is_elementwise
from volara_expr.ops.saturate import saturating_cast

if TYPE_CHECKING:
    from volara_expr.array.core import Array

__all__ = ["Pointwise"]

OPERANDS = (Handle, np.ndarray, np.generic, bool, int, float, complex)
ALTERNATIVES = {
    "divmod": "a // b and a % b",
    "modf": "np.trunc(a) and a - np.trunc(a)",
    "frexp": "np.log2",
    "matmul": "map_blocks",
}
EXPONENTS = {2: "square", 0.5: "sqrt", 1: "positive", -1: "reciprocal"}
"""`x ** 2` is `np.square(x)`, as in NumPy; other exponents are `np.power`."""


class Pointwise(Handle):
    """What an array does voxel by voxel: all operators and ufuncs of NumPy, and the usual conversions of intensities.

    Operands need shapes that are equal or broadcast (trailing axes first, as in NumPy), and, unless stretched, equal voxel size
    and position in the world; NumPy arrays take the other's position. Types are promoted as in NumPy 2.
    """

    __slots__ = ()
    __array_priority__ = 1000

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if method != "__call__":
            raise TypeError(f"np.{ufunc.__name__}.{method} is not lazy; use sum, max, min, mean, any or all of the array")
        if not is_elementwise(ufunc):
            instead = ALTERNATIVES.get(ufunc.__name__, "map_blocks")
            raise TypeError(f"np.{ufunc.__name__} has no lazy form; use {instead}")
        if kwargs:
            raise TypeError(f"np.{ufunc.__name__} of an Array takes no {', '.join(kwargs)}; use astype or where on the result")
        if not all(isinstance(v, OPERANDS) for v in inputs):
            return NotImplemented
        return self._new(Elementwise(ufunc.__name__, tuple(operand_of(v) for v in inputs)))

    def _operator(self, ufunc: str, other: Any, swap: bool = False) -> Array:
        if not isinstance(other, OPERANDS):
            return NotImplemented  # type: ignore[no-any-return]
        operands = (self.node, operand_of(other))
        return self._new(Elementwise(ufunc, operands[::-1] if swap else operands))

    def __add__(self, other: Any) -> Array:
        return self._operator("add", other)

    def __radd__(self, other: Any) -> Array:
        return self._operator("add", other, swap=True)

    def __sub__(self, other: Any) -> Array:
        return self._operator("subtract", other)

    def __rsub__(self, other: Any) -> Array:
        return self._operator("subtract", other, swap=True)

    def __mul__(self, other: Any) -> Array:
        return self._operator("multiply", other)

    def __rmul__(self, other: Any) -> Array:
        return self._operator("multiply", other, swap=True)

    def __truediv__(self, other: Any) -> Array:
        return self._operator("divide", other)

    def __rtruediv__(self, other: Any) -> Array:
        return self._operator("divide", other, swap=True)

    def __floordiv__(self, other: Any) -> Array:
        return self._operator("floor_divide", other)

    def __rfloordiv__(self, other: Any) -> Array:
        return self._operator("floor_divide", other, swap=True)

    def __mod__(self, other: Any) -> Array:
        return self._operator("remainder", other)

    def __rmod__(self, other: Any) -> Array:
        return self._operator("remainder", other, swap=True)

    def __divmod__(self, other: Any) -> Array:
        raise TypeError("divmod has two results; use a // b and a % b")

    __rdivmod__ = __divmod__

    def __pow__(self, other: Any) -> Array:
        shortcut = EXPONENTS.get(other) if type(other) in (int, float) else None
        if shortcut and self.node.spec.dtype.kind in ("iufc" if type(other) is int and other == 2 else "fc"):
            return self._new(Elementwise(shortcut, (self.node,)))
        return self._operator("power", other)

    def __rpow__(self, other: Any) -> Array:
        return self._operator("power", other, swap=True)

    def __lshift__(self, other: Any) -> Array:
        return self._operator("left_shift", other)

    def __rlshift__(self, other: Any) -> Array:
        return self._operator("left_shift", other, swap=True)

    def __rshift__(self, other: Any) -> Array:
        return self._operator("right_shift", other)

    def __rrshift__(self, other: Any) -> Array:
        return self._operator("right_shift", other, swap=True)

    def __and__(self, other: Any) -> Array:
        return self._operator("bitwise_and", other)

    def __rand__(self, other: Any) -> Array:
        return self._operator("bitwise_and", other, swap=True)

    def __or__(self, other: Any) -> Array:
        return self._operator("bitwise_or", other)

    def __ror__(self, other: Any) -> Array:
        return self._operator("bitwise_or", other, swap=True)

    def __xor__(self, other: Any) -> Array:
        return self._operator("bitwise_xor", other)

    def __rxor__(self, other: Any) -> Array:
        return self._operator("bitwise_xor", other, swap=True)

    def __eq__(self, other: Any) -> Array:  # type: ignore[override]
        return self._operator("equal", other)

    def __ne__(self, other: Any) -> Array:  # type: ignore[override]
        return self._operator("not_equal", other)

    def __lt__(self, other: Any) -> Array:
        return self._operator("less", other)

    def __le__(self, other: Any) -> Array:
        return self._operator("less_equal", other)

    def __gt__(self, other: Any) -> Array:
        return self._operator("greater", other)

    def __ge__(self, other: Any) -> Array:
        return self._operator("greater_equal", other)

    def __neg__(self) -> Array:
        return self._new(Elementwise("negative", (self.node,)))

    def __pos__(self) -> Array:
        return self._new(Elementwise("positive", (self.node,)))

    def __abs__(self) -> Array:
        return self._new(Elementwise("absolute", (self.node,)))

    def __invert__(self) -> Array:
        return self._new(Elementwise("invert", (self.node,)))

    def __hash__(self) -> int:
        return hash(self.node)

    def astype(self, dtype: npt.DTypeLike, *, saturate: bool = False, copy: bool | None = None) -> Array:
        """Convert to another type, as `numpy.ndarray.astype`.

        Without `saturate`, integers wrap, and floats outside of the range of an integer type give what NumPy gives on this machine,
        the same for any block partition.

        Halo: none.

        Parameters
        ----------
        dtype : boolean, integer, float or complex type
        saturate : bool
            To an integer type, values beyond its range take the nearest end, and NaN becomes 0.
        copy : bool, optional
            Accepted from libraries that say so to NumPy arrays; a lazy array has nothing to copy.

        Raises
        ------
        TypeError
            For other types, and for complex to real.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([1.7, -1.7])).astype(np.int8).compute()
        array([ 1, -1], dtype=int8)
        >>> ve.from_numpy(np.array([-3, 300])).astype(np.uint8, saturate=True).compute()
        array([  0, 255], dtype=uint8)
        """
        new = np.dtype(dtype)
        return self._new(saturating_cast(self.node, new) if saturate else Cast(self.node, new))

    def clip(self, lo: Any = None, hi: Any = None) -> Array:
        """Limit the values to `lo` and `hi`, as `numpy.clip`; None for no limit.

        Halo: none.

        Parameters
        ----------
        lo, hi : scalar, Array or ndarray, optional

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.arange(5)).clip(1, 3).compute()
        array([1, 1, 2, 3, 3])
        """
        bounds = tuple(None if v is None else operand_of(v) for v in (lo, hi))
        return self._new(Elementwise("clip", (self.node, *bounds)))

    def where(self, condition: Any, other: Any = 0) -> Array:
        """Keep the values where the condition holds, and put `other` elsewhere.

        Halo: none.

        Parameters
        ----------
        condition, other : Array, ndarray or scalar
            Of shapes that broadcast, at the same place.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> a = ve.from_numpy(np.array([3, -1, 2]))
        >>> a.where(a > 0).compute()
        array([3, 0, 2])
        """
        return self._new(Elementwise("where", (operand_of(condition), self.node, operand_of(other))))

    def normalize(
        self,
        lo: float | Literal["omero"] | None = None,
        hi: float | None = None,
        *,
        percentiles: tuple[float, float] | None = None,
    ) -> Array:
        """Map `lo` to 0 and `hi` to 1: (x - lo) / (hi - lo), computed in float64, as float32. Values beyond are not clipped.

        Halo: none. With `percentiles`, a table of the whole volume.

        Parameters
        ----------
        lo, hi : float
            Intensities, different and finite. "omero" alone stands for the window stored with an OME-Zarr image, channel by channel.
        percentiles : (float, float), optional
            In place of them, two percentiles of all voxels, inside the carried mask.

        Raises
        ------
        TypeError
            If neither, or both, are given.
        ValueError
            If the numbers are equal or not finite, the percentiles do not ascend in 0 to 100, or no window is stored.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> a = ve.from_numpy(np.array([0, 51, 255], np.uint8))
        >>> a.normalize(0, 255).compute()
        array([0. , 0.2, 1. ], dtype=float32)
        >>> a.normalize(percentiles=(0, 50)).compute()
        array([0., 1., 5.], dtype=float32)
        """
        if lo == "omero" and hi is None and percentiles is None:
            return self._new(stretch_stored(self.node))
        if percentiles is not None and lo is None and hi is None:
            return self._new(stretch_percentiles(self.node, percentiles))
        if lo is None or hi is None or percentiles is not None:
            raise TypeError(
                "normalize takes two intensities (0, 255), or percentiles=(1, 99), or 'omero' for the stored window"
            )
        return self._new(Normalize(self.node, float(lo), float(hi)))

    def scale_shift(self, scale: float, shift: float) -> Array:
        """Compute x * scale + shift in float64, as float32.

        Halo: none.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([0, 10], np.uint8)).scale_shift(0.5, 1).compute()
        array([1., 6.], dtype=float32)
        """
        return self._new(ScaleShift(self.node, float(scale), float(shift)))

    def threshold(self, value: float) -> Array:
        """Return 1 where a voxel is strictly greater than `value`, else 0, as uint8; `x > value` gives booleans.

        Halo: none.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([0.4, 0.5, 0.6])).threshold(0.5).compute()
        array([0, 0, 1], dtype=uint8)
        """
        return self._new(Threshold(self.node, value))
