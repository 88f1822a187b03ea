"""Fused loops give the bits of NumPy: every printed operation and cast in every type, and random expressions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import volara_expr as ve
from volara_expr.expr import ArrayNode, Patch, topological
from volara_expr.geometry import Box
from volara_expr.kernels import loops, printer
from volara_expr.kernels.fused import plain
from volara_expr.kernels.printer import TEMPLATES, Phase, printable, source
from volara_expr.kernels.scalars import Scalars
from volara_expr.ops.sources import InMemory
from volara_expr.plan import fusion
from volara_expr.run.block import Program, resolve
from volara_expr.testing.check import assert_same

DTYPES = ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]


@pytest.fixture(autouse=True, scope="module")
def _loops(tmp_path_factory):
    """Compile into a folder of this run, and find everything worth compiling."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("loops")
        patch.setattr(loops, "cache_folder", lambda: folder)
        patch.setattr(fusion, "WORTH", 1)
        yield folder


def special(dtype: np.dtype) -> np.ndarray:
    """Numbers at which operations differ: limits, zeros of both signs, NaN, infinities, halves, what float32 rounds."""
    if dtype.kind == "b":
        return np.array([False, True])
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        numbers = [0, 1, 2, 3, 7, 8, 31, 33, 63, 64, 70, 100, 127, info.max, info.max - 1, info.min, info.min + 1, -1, -2, -7]
        numbers += [2**24 + 1, 2**53 + 1, 2**63 + 1, 2**64 - 5]
        return np.array([n for n in dict.fromkeys(numbers) if info.min <= n <= info.max], dtype)
    numbers = [
        0.0,
        -0.0,
        1,
        -1,
        0.5,
        -0.5,
        1.5,
        2.5,
        -2.5,
        3,
        7,
        1e-40,
        1e-310,
        0.1,
        1 / 3,
        255.5,
        300,
        -300,
        65536.7,
        3e9,
        -3e9,
    ]
    numbers += [2.0**31, 2.0**53, 1e19, -1e19, 1e30, np.nan, np.inf, -np.inf]
    with np.errstate(all="ignore"):
        return np.array(numbers, dtype)


def voxels(dtype: np.dtype, n: int, rng: np.random.Generator) -> np.ndarray:
    """Special and random values."""
    if dtype.kind == "b":
        random = rng.random(n) < 0.5
    elif dtype.kind in "iu":
        info = np.iinfo(dtype)
        random = rng.integers(info.min, info.max, n, dtype=dtype, endpoint=True)
    else:
        random = (rng.standard_normal(n) * 10.0 ** rng.integers(-4, 5, n)).astype(dtype)
    return np.where(rng.random(n) < 0.5, rng.choice(special(dtype), n), random)


@pytest.mark.parametrize("name", DTYPES)
def test_every_printed_operation_is_numpys(name):
    dtype = np.dtype(name)
    rng = np.random.default_rng(3)
    pairs = np.array(list(itertools.product(special(dtype), repeat=2)), dtype).T
    a, b = (np.concatenate([p, voxels(dtype, 3000, rng)]) for p in pairs)
    a, b = a.copy(), b.copy()
    code = Scalars()
    x, y = code.operand(dtype), code.operand(dtype)
    found, expected = [], []
    for op in sorted(TEMPLATES):
        ufunc = getattr(np, op)
        try:
            v = code.ufunc(op, [x, y][: ufunc.nin])
            with np.errstate(all="ignore"):
                result = ufunc(*[a, b][: ufunc.nin])
        except TypeError:
            continue
        if printable(v) and v.dtype != np.float16:
            found.append((op, v))
            expected.append(result)
    for other in map(np.dtype, DTYPES):
        v = code.cast(x, other)
        if other != dtype and printable(v):
            with np.errstate(all="ignore"):
                found.append((f"cast to {other}", v))
                expected.append(a.astype(other))
    if dtype.kind != "b":
        lo, hi = (code.constant(n, dtype) for n in (2, 7))
        found += [("clip", code.call("clip", dtype, x, lo, hi)), ("clip", code.call("clip", dtype, x, hi, lo))]
        expected += [np.clip(a, dtype.type(2), dtype.type(7)), np.clip(a, dtype.type(7), dtype.type(2))]
    assert len(found) >= 15
    order = printer._ordered(code.call("all", dtype, *(v for _, v in found)))[:-1]
    values = [v for v in order if v.op not in ("operand", "constant")]
    run = loops.load(source(Phase(True, values, [x, y], [v for _, v in found])))
    outs = [np.empty(a.shape, v.dtype) for _, v in found]
    run(a, b, *outs)
    for (op, _), got, want in zip(found, outs, expected, strict=True):
        assert_same(got, want, f"{op} of {dtype}")


UNARY = [
    "absolute",
    "negative",
    "square",
    "sqrt",
    "rint",
    "floor",
    "logical_not",
    "invert",
    "isnan",
    "exp",
    "sign",
    "reciprocal",
]
BINARY = [
    "add",
    "subtract",
    "multiply",
    "divide",
    "floor_divide",
    "remainder",
    "maximum",
    "minimum",
    "greater",
    "equal",
    "less_equal",
]
BINARY += ["logical_and", "bitwise_xor", "left_shift", "right_shift", "power", "hypot", "copysign"]
SCALARS = [0, 1, -1, 3, 200, 0.5, -2.5, True, np.float32(0.1), np.float64(1 / 3), np.uint8(9), np.int64(-4), np.uint64(2**63)]
SHAPE = (3, 5, 7)


@st.composite
def expressions(draw):
    """An expression of up to a dozen operations over operands of all shapes that broadcast, with or without a reduction."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))

    def operand(shape):
        dtype = np.dtype(draw(st.sampled_from(DTYPES)))
        data = voxels(dtype, int(np.prod(shape)), rng).reshape(shape)
        return ve.from_numpy(data[..., ::-1] if draw(st.booleans()) else data)

    channels = draw(st.sampled_from([0, 1, 4]))
    full = ((channels,) if channels else ()) + SHAPE
    pool = [operand(full)]
    for _ in range(draw(st.integers(1, 8))):
        pool.append(draw(operations(pool, lambda: operand(draw(st.sampled_from([full, SHAPE, (1, 7), (5, 1)]))))))
    wide = [a for a in pool if a.node.spec.shape == full]
    result = wide[-1]
    if channels:
        name = draw(st.sampled_from(["sum", "mean", "max", "min", "any", "all", "argmax", "argmin"]))
        result = getattr(result, name)(0)
        pool = [result]
        for _ in range(draw(st.integers(0, 3))):
            pool.append(draw(operations(pool, lambda: operand(draw(st.sampled_from([SHAPE, (7,)]))))))
        result = pool[-1]
    return result


@st.composite
def operations(draw, pool, operand):
    """Apply one operation to what there is; the last one where NumPy has no such operation."""
    a = pool[-1] if draw(st.booleans()) else draw(st.sampled_from(pool))
    kind = draw(st.sampled_from(["unary", "binary", "binary", "scalar", "cast", "clip", "where", "intensity"]))
    try:
        if kind == "unary":
            return getattr(np, draw(st.sampled_from(UNARY)))(a)
        if kind == "binary":
            b = draw(st.sampled_from(pool)) if draw(st.booleans()) else operand()
            return getattr(np, draw(st.sampled_from(BINARY)))(*((a, b) if draw(st.booleans()) else (b, a)))
        if kind == "scalar":
            pair = (a, draw(st.sampled_from(SCALARS)))
            return getattr(np, draw(st.sampled_from(BINARY)))(*(pair if draw(st.booleans()) else pair[::-1]))
        if kind == "cast":
            return a.astype(draw(st.sampled_from(DTYPES)))
        if kind == "clip":
            return a.clip(draw(st.sampled_from([None, -5, 2])), draw(st.sampled_from([None, 100, 300])))
        if kind == "where":
            return ve.where(a > 1, a, draw(st.sampled_from([0, 1.5, pool[0]])))
        step = draw(st.sampled_from(["normalize", "scale_shift", "threshold"]))
        return {
            "normalize": lambda: a.normalize(1, 4),
            "scale_shift": lambda: a.scale_shift(0.1, 3),
            "threshold": lambda: a.threshold(2),
        }[step]()
    except (TypeError, OverflowError, ValueError):
        return a


def one_by_one(node: ArrayNode) -> np.ndarray:
    """Every node on whole arrays, by its own NumPy code."""
    made: dict[int, Patch] = {}
    for n in topological([node]):
        if isinstance(n, InMemory):
            made[id(n)] = Patch(n.spec.box, np.array(n.data, order="C"))
        else:
            patches = [made[id(x)].cut(b) for x, b in zip(n.arrays, n.need(n.spec.box), strict=True)]
            made[id(n)] = Patch(n.spec.box, n.apply(resolve(n.kernel), n.spec.box, patches, ()))
    return made[id(node)].data


def fused(node: ArrayNode, box=None) -> tuple[np.ndarray, Program]:
    box = box or node.spec.box
    whole = Program([node], []).demand({node: node.spec.box})
    program = Program([node], [], {n: n.spec.box for n in topological([node])} | whole)
    patches = program.evaluate(program.demand({node: box}), lambda n, b: n.data[b.slices(n.spec.box.lo)], None, [node])
    return plain(patches[node].data), program


@given(expressions(), st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_random_expressions_are_numpys(expression, data):
    node = expression.node
    try:
        expected = one_by_one(node)
    except ValueError:  # an integer to a negative power
        with pytest.raises(ValueError, match="negative integer powers"):
            fused(node)
        return
    got, program = fused(node)
    what = program.steps and next(iter(program.steps.values()))
    assert_same(got, expected, f"{[n.label for n in program.order]} {what and what.path}")
    lo = [data.draw(st.integers(0, n - 1)) for n in node.spec.shape]
    hi = [data.draw(st.integers(a + 1, n)) for a, n in zip(lo, node.spec.shape, strict=True)]
    box = Box(tuple(lo), tuple(hi)).shift(node.spec.box.lo)
    part, _ = fused(node, box)
    assert_same(part, expected[box.slices(node.spec.box.lo)], f"{box}")
