"""Scalar operations as Python source that numba compiles, bit for bit what NumPy computes.

Rules that keep the bits: operands of one type, the result of every operation converted to its type (numba would go on in a wider
one), `error_model="numpy"`, no fastmath, constants as typed globals. What cannot be printed (exp, log, powers, casts whose result
the processor leaves open) is left to NumPy's own loops: the printed loop breaks there.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np

from volara_expr.kernels.scalars import Value

__all__ = ["Phase", "look_up_source", "phases", "printable", "source"]

# Kinds of operands -> expression over {0}, {1}, {2}; {zero}, {one}, {minus} are constants of the first operand's type, {bits} its
# width. Shifts by the width or more are undefined in C and defined in NumPy. Booleans are those of Python.
COMPARISONS = {"equal": "==", "not_equal": "!=", "less": "<", "less_equal": "<=", "greater": ">", "greater_equal": ">="}
TEMPLATES: dict[str, dict[str, str]] = {
    "absolute": {"b": "{0}", "u": "{0}", "i": "{0} if {0} >= {zero} else -{0}", "f": "abs({0})"},
    "add": {"b": "{0} | {1}", "iuf": "{0} + {1}"},
    "bitwise_and": {"biu": "{0} & {1}"},
    "bitwise_or": {"biu": "{0} | {1}"},
    "bitwise_xor": {"b": "{0} != {1}", "iu": "{0} ^ {1}"},
    "ceil": {"biu": "{0}", "f": "np.ceil({0})"},
    "divide": {"f": "{0} / {1}"},
    "fabs": {"f": "abs({0})"},
    "floor": {"biu": "{0}", "f": "np.floor({0})"},
    "floor_divide": {"i": "{0} // {1} if {1} != {minus} else -{0}", "uf": "{0} // {1}"},
    "invert": {"b": "not {0}", "iu": "~{0}"},
    "isfinite": {"f": "np.isfinite({0})"},
    "isinf": {"f": "np.isinf({0})"},
    "isnan": {"f": "{0} != {0}"},
    "left_shift": {"iu": "{0} << {1} if {zero} <= {1} < {bits} else {zero}"},
    "logical_and": {"b": "{0} & {1}", "iuf": "({0} != {zero}) & ({1} != {zero})"},
    "logical_not": {"b": "not {0}", "iuf": "{0} == {zero}"},
    "logical_or": {"b": "{0} | {1}", "iuf": "({0} != {zero}) | ({1} != {zero})"},
    "logical_xor": {"b": "{0} != {1}", "iuf": "({0} != {zero}) != ({1} != {zero})"},
    "maximum": {"b": "{0} | {1}", "iu": "{0} if {0} > {1} else {1}", "f": "{0} if {0} > {1} or {0} != {0} else {1}"},
    "minimum": {"b": "{0} & {1}", "iu": "{0} if {0} < {1} else {1}", "f": "{0} if {0} < {1} or {0} != {0} else {1}"},
    "multiply": {"b": "{0} & {1}", "iuf": "{0} * {1}"},
    "negative": {"iuf": "-{0}"},
    "positive": {"iuf": "{0}"},
    "reciprocal": {"f": "{one} / {0}"},
    "remainder": {"iuf": "{0} % {1}"},
    "right_shift": {
        "i": "{0} >> {1} if {zero} <= {1} < {bits} else ({minus} if {0} < {zero} else {zero})",
        "u": "{0} >> {1} if {1} < {bits} else {zero}",
    },
    "rint": {"f": "np.rint({0})"},
    "sign": {
        "i": "{one} if {0} > {zero} else ({minus} if {0} < {zero} else {zero})",
        "u": "{one} if {0} > {zero} else {zero}",
        "f": "{one} if {0} > {zero} else ({minus} if {0} < {zero} else ({zero} if {0} == {zero} else {0}))",
    },
    "sqrt": {"f": "np.sqrt({0})"},
    "square": {"b": "{0}", "iuf": "{0} * {0}"},
    "subtract": {"iuf": "{0} - {1}"},
    "trunc": {"biu": "{0}", "f": "np.trunc({0})"},
} | {name: {"iuf": f"{{0}} {sign} {{1}}"} for name, sign in COMPARISONS.items()}
TEMPLATES["equal"]["b"] = "{0} == {1}"
TEMPLATES["not_equal"]["b"] = "{0} != {1}"


def printable(value: Value) -> bool:
    """Whether a value can be printed; NumPy computes the others."""
    if value.op in ("operand", "constant"):
        return True
    if value.op == "cast":
        return _cast("x", value.args[0].dtype, value.dtype) is not None
    if value.op == "where":
        return True
    if value.op == "clip":
        # with bounds of one number each, NumPy keeps the sign of a zero that equals a bound; with arrays it does not
        bounds = value.args[1:]
        return value.dtype.kind in "iu" or all(b.op == "constant" and not np.isnan(b.data) for b in bounds)
    if len({a.dtype for a in value.args}) != 1 or _template(value) is None:
        return False
    return value.op not in ("maximum", "minimum") or value.dtype.kind != "f" or second_of_equals(value.op, value.dtype)


@cache
def second_of_equals(ufunc: str, dtype: np.dtype[Any]) -> bool:
    """Whether NumPy, on this machine, returns the second of two equal operands, 0.0 and -0.0, at every position."""
    zeros = np.zeros(67, dtype)
    f = getattr(np, ufunc)
    found = [
        (np.signbit(f(a[:n], b[:n])) == np.signbit(b[:n])).all() for a, b in ((zeros, -zeros), (-zeros, zeros)) for n in (1, 67)
    ]
    return bool(np.all(found))


@dataclass(frozen=True)
class Phase:
    """A printed loop, or calls of NumPy, over one tile.

    Attributes
    ----------
    printed : bool
    values : list of Value
        What it computes, in order.
    inputs, outputs : list of Value
        What it takes from operands and earlier phases, and what it leaves for the result or later phases.
    """

    printed: bool
    values: list[Value]
    inputs: list[Value]
    outputs: list[Value]


def phases(result: Value) -> list[Phase]:
    """Cut a computation into printed loops and calls of NumPy, in turn."""
    order = _ordered(result)
    at: dict[int, int] = {}
    for v in order:
        printed = printable(v)
        before = [at[id(a)] for a in v.args if a.op != "constant"]
        at[id(v)] = max([p if (p % 2 == 0) == printed else p + 1 for p in before], default=0 if printed else 1)
    users: dict[int, list[int]] = {}
    for v in reversed(order):  # as late as it may be: what only joins operands needs no buffer then
        if id(v) in users and printable(v) and sum(a.op not in ("operand", "constant") for a in v.args) <= 1:
            at[id(v)] = max(at[id(v)], min(p - p % 2 for p in users[id(v)]))
        for a in v.args:
            users.setdefault(id(a), []).append(at[id(v)])
    if result.op in ("operand", "constant"):  # nothing to do but to copy
        return [Phase(True, [result], [result] if result.op == "operand" else [], [result])]
    last: dict[int, int] = {id(result): len(order) + 2}
    for v in order:
        for a in v.args:
            last[id(a)] = max(last.get(id(a), 0), at[id(v)])
    made = []
    for number in range(max(at.values()) + 1):
        values = [v for v in order if at[id(v)] == number and v.op not in ("operand", "constant")]
        if values:
            own = {id(v) for v in values}
            inputs = {id(a): a for v in values for a in v.args if id(a) not in own and a.op != "constant"}
            outputs = [v for v in values if last[id(v)] > number]
            made.append(Phase(number % 2 == 0, values, list(inputs.values()), outputs))
    return made


def source(phase: Phase) -> str:
    """Return a module whose function `loop` runs a printed phase over one-dimensional arrays: inputs, then outputs."""
    constants: dict[tuple[Any, ...], tuple[str, str]] = {}
    names: dict[int, str] = {}
    lines: list[str] = []

    def constant(value: Any, dtype: np.dtype[Any]) -> str:
        with np.errstate(all="ignore"):
            held = dtype.type(value)
        number = f"float({str(float(held))!r})" if dtype.kind == "f" else str(int(held))
        text = str(bool(held)) if dtype.kind == "b" else f"np.{dtype.name}({number})"
        return constants.setdefault((dtype, held.tobytes()), (f"C{len(constants)}", text))[0]

    for k, v in enumerate(phase.inputs):
        names[id(v)] = f"x{k}"
        lines.append(f"x{k} = i{k}[n]")
    for k, v in enumerate(phase.values):
        for a in v.args:
            if a.op == "constant":
                names[id(a)] = constant(a.data, a.dtype)
        if v.op == "constant":
            names[id(v)] = constant(v.data, v.dtype)
        elif v.op != "operand":
            names[id(v)] = f"v{k}"
            lines.append(f"v{k} = {_expression(v, [names[id(a)] for a in v.args], constant)}")
    lines += [f"o{k}[n] = {names[id(v)]}" for k, v in enumerate(phase.outputs)]
    parameters = [f"i{k}" for k in range(len(phase.inputs))] + [f"o{k}" for k in range(len(phase.outputs))]
    types = [_array(v.dtype, True) for v in phase.inputs] + [_array(v.dtype, False) for v in phase.outputs]
    return _module(", ".join(types), parameters, lines, [f"{name} = {text}" for name, text in constants.values()])


def look_up_source(codes: np.dtype[Any], values: np.dtype[Any]) -> str:
    """Return a module whose function `loop` fills its third array from a table, its second, by the codes in its first."""
    types = ", ".join([_array(codes, True), _array(values, True), _array(values, False)])
    return _module(types, ["i0", "i1", "o0"], ["o0[n] = i1[i0[n]]"], [])


@cache
def numba_version() -> str:
    """Return numba's version without importing it."""
    return version("numba")


def _module(types: str, parameters: Sequence[str], body: Sequence[str], constants: Sequence[str]) -> str:
    return "\n".join(
        [
            f'"""Generated by volara_expr for NumPy {np.__version__}, numba {numba_version()}."""',
            "import numpy as np",
            "from numba import njit, types",
            *constants,
            f'@njit([types.void({types})], cache=True, nogil=True, error_model="numpy")',
            f"def loop({', '.join(parameters)}):",
            "    for n in range(o0.shape[0]):",
            *(f"        {line}" for line in body),
            "",
        ]
    )


def _array(dtype: np.dtype[Any], readonly: bool) -> str:
    name = "boolean" if dtype.kind == "b" else dtype.name
    return f'types.Array(types.{name}, 1, "C", readonly={readonly})'


def _ordered(result: Value) -> list[Value]:
    """Values that the result needs, arguments first, without recursion."""
    order: list[Value] = []
    seen: set[int] = set()
    stack = [(result, False)]
    while stack:
        v, done = stack.pop()
        if done:
            order.append(v)
        elif id(v) not in seen:
            seen.add(id(v))
            stack.append((v, True))
            stack += [(a, False) for a in reversed(v.args)]
    return order


def _template(value: Value) -> str | None:
    kinds = TEMPLATES.get(value.op, {})
    return next((text for kind, text in kinds.items() if value.args[0].dtype.kind in kind), None)


def _expression(value: Value, args: Sequence[str], constant: Any) -> str:
    dtype = value.dtype
    if value.op == "cast":
        text = _cast(args[0], value.args[0].dtype, dtype)
        assert text is not None
        return text.replace("ZERO", constant(0, value.args[0].dtype)) if "ZERO" in text else text
    if value.op == "where":
        return f"{args[1]} if {args[0]} else {args[2]}"
    if value.op == "clip":
        x, lo, hi = args
        if dtype.kind in "iu":
            return f"{hi} if {hi} < ({lo} if {x} < {lo} else {x}) else ({lo} if {x} < {lo} else {x})"
        return f"({hi} if {lo} > {hi} else {lo}) if {x} < {lo} else ({hi} if {x} > {hi} else {x})"
    first = value.args[0].dtype
    template = _template(value)
    assert template is not None
    used = {
        name: constant(number, first)
        for name, number in (("zero", 0), ("one", 1), ("minus", -1), ("bits", 8 * first.itemsize))
        if "{" + name + "}" in template
    }
    text = template.format(*args, **used)
    return text if dtype.kind == "b" else f"np.{dtype.name}({text})"


def _cast(x: str, old: np.dtype[Any], new: np.dtype[Any]) -> str | None:
    """Return the conversion of `x`; None where its result depends on the compiler. ZERO stands for a zero of the old type."""
    if new.kind == "b":
        return f"{x} != ZERO" if old.kind != "b" else x
    name = f"np.{new.name}"
    if old.kind == "b":
        return f"{name}(1) if {x} else {name}(0)"
    if old.kind == "f" and new.kind in "iu":
        # Out of range: x86 has one answer for 32 and 64 bits, of which NumPy keeps the low ones; other processors saturate.
        if platform.machine() not in ("x86_64", "AMD64") or new == np.uint64 or new == np.uint32:
            return None
        return f"{name}(np.int32({x}))" if new.itemsize < 4 else f"{name}({x})"
    return f"{name}({x})"
