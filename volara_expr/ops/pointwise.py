"""Elementwise operations: each voxel of the result depends on the same voxel of the operands and on nothing else.

NumPy itself does the work, type promotion included, so results are NumPy's. Its warnings (division by zero, overflow, invalid
value) are not raised: a look-up table is filled for every code, also for those that no voxel has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from volara_expr.expr.node import ArrayNode, ArraySpec, Exactness, Patch
from volara_expr.geometry import Box
from volara_expr.kernels.scalars import Scalars, Value
from volara_expr.ops.align import Alignment, broadcast

__all__ = ["Cast", "Elementwise", "Normalize", "Operand", "ScaleShift", "Threshold", "is_elementwise"]

Operand = ArrayNode | bool | int | float | complex | np.generic | None

NOT_UFUNCS = frozenset({"clip", "where"})
# fmt: off
EXACT = frozenset({
    "absolute", "add", "bitwise_and", "bitwise_count", "bitwise_or", "bitwise_xor", "ceil", "clip", "copysign", "deg2rad",
    "degrees", "divide", "equal", "fabs", "floor", "floor_divide", "fmod", "gcd", "greater", "greater_equal", "heaviside",
    "invert", "isfinite", "isinf", "isnan", "lcm", "ldexp", "left_shift", "less", "less_equal", "logical_and",
    "logical_not", "logical_or", "logical_xor", "maximum", "minimum", "multiply", "negative", "nextafter", "not_equal",
    "positive", "rad2deg", "radians", "reciprocal", "remainder", "right_shift", "rint", "sign", "signbit", "spacing",
    "sqrt", "square", "subtract", "trunc", "where",
})
# fmt: on
"""One correctly rounded operation, or none. All others (exp, log, power, trigonometry) differ between libraries."""


def is_elementwise(ufunc: np.ufunc) -> bool:
    """Whether a ufunc is one of NumPy's own, with one output, that works voxel by voxel."""
    return ufunc.nout == 1 and ufunc.signature is None and getattr(np, ufunc.__name__, None) is ufunc


@dataclass(frozen=True, eq=False, repr=False)
class Elementwise(ArrayNode):
    """A NumPy ufunc, `where` or `clip` of arrays and scalars.

    Attributes
    ----------
    ufunc : str
        Name in the namespace of NumPy.
    operands : tuple
        Arrays and scalars; Python scalars do not take part in type promotion (NEP 50). `clip` takes None for no bound.
    """

    ufunc: str
    operands: tuple[Operand, ...]

    @cached_property
    def alignment(self) -> Alignment:
        """How the voxels of the array operands meet."""
        return broadcast([n.spec for n in self.arrays])

    def make_spec(self) -> ArraySpec:
        if not self.arrays:
            raise TypeError(f"{self.ufunc} of scalars alone is no array; call numpy.{self.ufunc}")
        function = getattr(np, self.ufunc, None)
        if self.ufunc not in NOT_UFUNCS and not (isinstance(function, np.ufunc) and is_elementwise(function)):
            raise TypeError(f"{self.ufunc!r} is no elementwise function of NumPy with one output; use map_blocks")
        # NumPy decides on types and on scalars that do not fit them, on one voxel.
        dtype = self._call([np.ones(1, n.spec.dtype) for n in self.arrays]).dtype
        if dtype.kind not in "biufc":
            raise TypeError(f"{self.ufunc} gives {dtype}; arrays hold booleans, integers, floats or complex numbers")
        for value in self.operands if self.ufunc == "where" else ():
            if type(value) is int:
                np.full(1, value, dtype)  # an OverflowError if it does not fit, where NumPy would wrap silently
        return self.alignment.spec.replace(dtype=dtype)

    def _call(self, arrays: Sequence[Any]) -> np.ndarray[Any, Any]:
        left = iter(arrays)
        values = [next(left) if isinstance(v, ArrayNode) else v for v in self.operands]
        with np.errstate(all="ignore"):
            return np.asarray(getattr(np, self.ufunc)(*values))

    @property
    def pointwise(self) -> bool:  # type: ignore[override]
        """Whether no operand is stretched."""
        return all(n.spec.shape == self.spec.shape for n in self.arrays)

    @property
    def exactness(self) -> Exactness:  # type: ignore[override]
        """Exact where one operation is correctly rounded; of NumPy's own loops, those of fmax and fmin are not even invariant."""
        kinds = {n.spec.dtype.kind for n in self.arrays} | {self.spec.dtype.kind}
        if self.ufunc in ("fmax", "fmin") and kinds & set("fc"):
            return "inexact"  # which of 0.0 and -0.0 is taken depends on the position in a vector register
        return "exact" if self.ufunc in EXACT and "c" not in kinds else "cpu-exact"

    @property
    def label(self) -> str:
        return self.ufunc

    def describe(self) -> str:
        return ", ".join(repr(v) for v in self.operands if not isinstance(v, ArrayNode))

    def need(self, box: Box) -> tuple[Box | None, ...]:
        return self.alignment.need(box)

    def temp_bytes(self, out: Box) -> int:
        return out.size * sum(n.spec.dtype.itemsize for n in self.arrays)  # contiguous copies

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        data = [p.data for p in patches]
        if self.exactness == "cpu-exact":  # NumPy's vector loops for these round differently along negative strides
            data = [np.ascontiguousarray(d) for d in data]
        return self._call(data)

    def scalars(self, code: Scalars, inputs: Sequence[Sequence[Value]]) -> list[Value] | None:
        left = iter(inputs)
        planes: list[Sequence[Any]] = [next(left) if isinstance(v, ArrayNode) else (v,) for v in self.operands]
        return [self._scalar(code, [p[k if len(p) > 1 else 0] for p in planes]) for k in range(max(len(p) for p in planes))]

    def _scalar(self, code: Scalars, operands: list[Any]) -> Value:
        """Return one voxel of the result."""
        dtype = self.spec.dtype
        if self.ufunc == "where":
            condition, a, b = operands
            return code.call("where", dtype, code.fit(condition, np.dtype(bool)), code.fit(a, dtype), code.fit(b, dtype))
        if self.ufunc != "clip":
            return code.ufunc(self.ufunc, operands)
        x, lo, hi = operands
        if x.dtype.kind in "iu":  # Python integers beyond the type do not limit anything
            lo = None if type(lo) is int and lo <= np.iinfo(x.dtype).min else lo
            hi = None if type(hi) is int and hi >= np.iinfo(x.dtype).max else hi
        if lo is None and hi is None:
            return code.ufunc("positive", [x])
        if lo is None or hi is None:
            return code.ufunc("maximum", [x, lo]) if hi is None else code.ufunc("minimum", [x, hi])
        return code.call("clip", dtype, *(code.fit(v, dtype) for v in operands))


@dataclass(frozen=True, eq=False, repr=False)
class _OfOne(ArrayNode):
    """An elementwise operation on one array."""

    array: ArrayNode
    pointwise: ClassVar[bool] = True

    def make_spec(self) -> ArraySpec:
        if self.array.spec.dtype.kind not in "biuf":
            raise TypeError(f"{self.label} takes real numbers, the array holds {self.array.spec.dtype}")
        return self.array.spec.replace(dtype=self.out_dtype())

    def out_dtype(self) -> np.dtype[Any]:
        """Type of the result."""
        return np.dtype(np.float32)

    def temp_bytes(self, out: Box) -> int:
        return out.size * 8


@dataclass(frozen=True, eq=False, repr=False)
class Cast(ArrayNode):
    """Conversion to another type, as `numpy.ndarray.astype`."""

    array: ArrayNode
    dtype: np.dtype[Any]
    pointwise: ClassVar[bool] = True

    def make_spec(self) -> ArraySpec:
        old = self.array.spec.dtype
        if self.dtype.kind not in "biufc":
            raise TypeError(f"cannot hold {self.dtype}; arrays hold booleans, integers, floats or complex numbers")
        if old.kind == "c" and self.dtype.kind != "c":
            raise TypeError(f"{old} to {self.dtype} would drop the imaginary part; take numpy.absolute first")
        return self.array.spec.replace(dtype=self.dtype)

    def temp_bytes(self, out: Box) -> int:
        return out.size * 8

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        data = patches[0].data
        with np.errstate(all="ignore"):
            if self.dtype == np.uint32 and data.dtype.kind == "f":
                # Out of range, NumPy's own loop gives values that depend on the position in a vector register.
                data = data.astype(np.int64)
            return data.astype(self.dtype)

    def scalars(self, code: Scalars, inputs: Sequence[Sequence[Value]]) -> list[Value] | None:
        through = np.dtype(np.int64) if self.dtype == np.uint32 and self.array.spec.dtype.kind == "f" else self.dtype
        return [code.cast(code.cast(x, through), self.dtype) for x in inputs[0]]


@dataclass(frozen=True, eq=False, repr=False)
class Normalize(_OfOne):
    """(x - lo) / (hi - lo), computed in float64, as float32."""

    lo: float
    hi: float

    def make_spec(self) -> ArraySpec:
        if not (np.isfinite(self.lo) and np.isfinite(self.hi) and self.lo != self.hi):
            raise ValueError(f"normalize takes two different finite numbers, got lo={self.lo} and hi={self.hi}")
        return super().make_spec()

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        with np.errstate(all="ignore"):
            x = patches[0].data.astype(np.float64)
            x -= self.lo
            x /= self.hi - self.lo
            return x.astype(np.float32)

    def scalars(self, code: Scalars, inputs: Sequence[Sequence[Value]]) -> list[Value] | None:
        wide = [code.ufunc("subtract", [code.cast(x, np.dtype(np.float64)), self.lo]) for x in inputs[0]]
        return [code.cast(code.ufunc("divide", [x, self.hi - self.lo]), self.spec.dtype) for x in wide]


@dataclass(frozen=True, eq=False, repr=False)
class ScaleShift(_OfOne):
    """x * scale + shift, computed in float64, as float32."""

    scale: float
    shift: float

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        with np.errstate(all="ignore"):
            x = patches[0].data.astype(np.float64)
            x *= self.scale
            x += self.shift
            return x.astype(np.float32)

    def scalars(self, code: Scalars, inputs: Sequence[Sequence[Value]]) -> list[Value] | None:
        wide = [code.ufunc("multiply", [code.cast(x, np.dtype(np.float64)), self.scale]) for x in inputs[0]]
        return [code.cast(code.ufunc("add", [x, self.shift]), self.spec.dtype) for x in wide]


@dataclass(frozen=True, eq=False, repr=False)
class Threshold(_OfOne):
    """1 where a voxel is strictly greater than the value, else 0; compared as NumPy compares."""

    value: bool | int | float | np.generic

    def out_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8)

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        return np.asarray(patches[0].data > self.value).view(np.uint8)

    def scalars(self, code: Scalars, inputs: Sequence[Sequence[Value]]) -> list[Value] | None:
        return [code.cast(code.ufunc("greater", [x, self.value]), self.spec.dtype) for x in inputs[0]]
