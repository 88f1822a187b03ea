"""What a fused loop does to one voxel: typed scalar operations, free of any language they may be printed in.

Types are NumPy's own (`numpy.ufunc.resolve_dtypes`), and every conversion is spelled out, so that a printer has nothing to decide:
the operands of an operation have just the types that NumPy would compute in, its result the type that NumPy would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["TILE", "Scalars", "Value"]

TILE = 1 << 15
"""Voxels of 8 bytes between a printed loop and a call of NumPy, or more that are smaller: they stay in the second level cache."""
Dtype = np.dtype[Any]


@dataclass(frozen=True, eq=False, slots=True)
class Value:
    """A scalar of a loop.

    Attributes
    ----------
    op : str
        "operand", "constant", "cast", "where", "clip", or the name of a ufunc of NumPy.
    dtype : numpy.dtype
    args : tuple of Value
    data : object
        The number of an operand, a constant as a scalar of its type.
    """

    op: str
    dtype: Dtype
    args: tuple[Value, ...] = ()
    data: Any = None


class Scalars:
    """Makes values; equal ones are one object, so common subexpressions are computed once.

    Attributes
    ----------
    operands : int
        Operands made so far.
    """

    def __init__(self) -> None:
        self.operands = 0
        self._made: dict[Any, Value] = {}

    def operand(self, dtype: Dtype) -> Value:
        """Return the voxel of a new operand."""
        self.operands += 1
        return Value("operand", dtype, (), self.operands - 1)

    def constant(self, value: Any, dtype: Dtype) -> Value:
        """Return a number in a type.

        Raises
        ------
        OverflowError
            If an integer does not fit.
        """
        with np.errstate(all="ignore"):
            held = dtype.type(value)
        return self._value("constant", dtype, (), held, held.tobytes())

    def cast(self, value: Value, dtype: Dtype) -> Value:
        """Convert as `numpy.ndarray.astype`."""
        if value.dtype == dtype:
            return value
        if value.op == "constant" and dtype.kind != "b":
            with np.errstate(all="ignore"):
                return self.constant(value.data.astype(dtype), dtype)
        return self._value("cast", dtype, (value,))

    def call(self, op: str, dtype: Dtype, *args: Value) -> Value:
        """Apply an operation to operands that have its types."""
        return self._value(op, dtype, args)

    def ufunc(self, name: str, operands: Sequence[Value | Any]) -> Value:
        """Apply a ufunc of NumPy; Python scalars among the operands do not take part in promotion (NEP 50).

        Raises
        ------
        TypeError, OverflowError
            If NumPy has no such operation, or a scalar does not fit the type that it must take.
        """
        types = tuple(v.dtype if isinstance(v, Value) else self._type_of(v) for v in operands)
        *ins, out = getattr(np, name).resolve_dtypes((*types, None))
        return self.call(name, out, *(self.fit(v, t) for v, t in zip(operands, ins, strict=True)))

    def fit(self, value: Value | Any, dtype: Dtype) -> Value:
        """Return a value, or a Python or NumPy scalar, in a type."""
        return self.cast(value, dtype) if isinstance(value, Value) else self.constant(value, dtype)

    @staticmethod
    def _type_of(value: Any) -> Any:
        if type(value) in (int, float, complex):
            return type(value)
        return np.asarray(value).dtype

    def _value(self, op: str, dtype: Dtype, args: tuple[Value, ...], data: Any = None, key: Any = None) -> Value:
        identity = (op, dtype, tuple(map(id, args)), key)
        if identity not in self._made:
            self._made[identity] = Value(op, dtype, args, data)
        return self._made[identity]
