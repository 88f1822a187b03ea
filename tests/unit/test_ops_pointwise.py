"""Elementwise operations: NumPy's types and values, positions, tables."""

from __future__ import annotations

import operator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volara_expr.array.base import node_of
from volara_expr.array.core import Array
from volara_expr.array.functions import where
from volara_expr.expr.node import ArraySpec
from volara_expr.geometry import Axis, Box, Space
from volara_expr.kernels.fused import Coded
from volara_expr.ops.align import common_boxes
from volara_expr.ops.pointwise import Normalize, Threshold, is_elementwise
from volara_expr.ops.sources import in_memory
from volara_expr.run.block import Program
from volara_expr.testing.check import assert_blockwise_equal, assert_same, evaluate

DTYPES = ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", "c8"]
UFUNCS = sorted(u for u in dir(np) if u != "isnat" and isinstance(getattr(np, u), np.ufunc) and is_elementwise(getattr(np, u)))
rng = np.random.default_rng(5)


def lazy(data: np.ndarray) -> Array:
    return Array(node_of(data))


def placed(data, lo=None, voxel_size=1, origin=0, unit="nanometer", names="zyx") -> Array:
    n = data.ndim
    axes = tuple(Axis(name, "space", unit) for name in names[-n:])
    space = Space(axes, (Fraction(voxel_size),) * n, (Fraction(origin),) * n)
    return Array(in_memory(data, ArraySpec(Box.of_shape(data.shape, lo), data.dtype, space)))


def values(dtype: str, n: int = 300) -> np.ndarray:
    kind = np.dtype(dtype).kind
    if kind == "b":
        return rng.random(n) < 0.5
    if kind in "iu":
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, n, dtype=dtype, endpoint=True)
    x = rng.standard_normal(n) * 10.0 ** rng.integers(-3, 4, n)
    x[:8] = [0, -0.0, 1, -1, np.nan, np.inf, -np.inf, 0.5][:n]
    if kind == "c":
        x = np.nan_to_num(x, posinf=9, neginf=-9)
        x = x + 1j * x[::-1]
    with np.errstate(over="ignore"):  # float16
        return x.astype(dtype)


@pytest.mark.parametrize("name", UFUNCS)
def test_every_ufunc_is_numpys(name):
    ufunc = getattr(np, name)
    tried = 0
    for i, a in enumerate(DTYPES):
        b = DTYPES[(i * 5 + 3) % len(DTYPES)]
        args = [values(a), values(b)][: ufunc.nin]
        try:
            with np.errstate(all="ignore"):
                expected = ufunc(*args)
        except (TypeError, ValueError, OverflowError):
            continue
        tried += 1
        got = ufunc(*[lazy(x) for x in args])
        assert got.node.spec.dtype == expected.dtype
        assert_same(evaluate(got), expected, f"{name} {a} {b}")
    assert tried


@pytest.mark.parametrize("op", ["add", "sub", "mul", "truediv", "floordiv", "mod", "lt", "le", "gt", "ge", "eq", "ne"])
@pytest.mark.parametrize("scalar", [3, 2.5, np.float32(0.1), np.uint8(200), True])
def test_operators_promote_as_numpy(op, scalar):
    f = getattr(operator, op)
    for dtype in ("u1", "i2", "u8", "f2", "f4", "f8"):
        x = values(dtype)
        with np.errstate(all="ignore"):
            for expected, got in ((f(x, scalar), f(lazy(x), scalar)), (f(scalar, x), f(scalar, lazy(x)))):
                assert got.node.spec.dtype == expected.dtype
                assert_same(evaluate(got), expected, f"{op} {dtype} {scalar!r}")


@pytest.mark.parametrize("exponent", [2, 2.0, 0.5, 1, -1, 3, 1.5])
@pytest.mark.parametrize("dtype", ["u1", "i4", "f4", "f8"])
def test_power_takes_numpys_shortcuts(exponent, dtype):
    x = values(dtype)
    try:
        with np.errstate(all="ignore"):
            expected = x**exponent
    except (ValueError, OverflowError) as error:
        with pytest.raises(type(error)):
            evaluate(lazy(x) ** exponent)
        return
    got = lazy(x) ** exponent
    assert_same(evaluate(got), expected)
    assert (lazy(x) ** 2).node.exactness == "exact"


def test_scalars_that_do_not_fit_fail_where_they_are_written():
    with pytest.raises(OverflowError, match="300"):
        lazy(values("u1")) + 300
    with pytest.raises(OverflowError, match="300"):
        where(lazy(values("?")), lazy(values("u1")), 300)
    with pytest.raises(TypeError, match="boolean"):
        lazy(values("?")) - lazy(values("?"))


def test_scalars_alone_are_no_array():
    with pytest.raises(TypeError, match="scalars alone"):
        where(True, 1, 2)


def test_functions_without_a_lazy_form_name_alternatives():
    a = lazy(values("f4"))
    with pytest.raises(TypeError, match="a // b and a % b"):
        divmod(a, 2)
    with pytest.raises(TypeError, match=r"np\.trunc"):
        np.modf(a)
    with pytest.raises(TypeError, match="sum, max"):
        np.add.reduce(a)
    with pytest.raises(TypeError, match="out"):
        np.add(a, 1, out=np.zeros(300, "f4"))
    with pytest.raises(TypeError):
        a + "text"
    with pytest.raises(TypeError, match="imaginary"):
        lazy(values("c8")).astype("f4")


def test_numpy_scalars_and_arrays_on_the_left_stay_lazy():
    x = values("f4")
    assert_same(evaluate(np.float32(2) * lazy(x)), np.float32(2) * x)
    assert_same(evaluate(x + lazy(x)), x + x)
    assert_same(evaluate(np.float64(2) - lazy(x)), np.float64(2) - x)


def test_clip_and_where():
    x, m = values("i2"), values("?")
    assert_same(evaluate(lazy(x).clip(-5, 100_000)), np.clip(x, -5, 100_000))
    assert_same(evaluate(lazy(x).clip(hi=7)), np.clip(x, None, 7))
    assert_same(evaluate(where(lazy(m), lazy(x), 0.5)), np.where(m, x, 0.5))


@given(st.sampled_from(DTYPES[:-1]), st.sampled_from(DTYPES[:-1]), st.integers(1, 40), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_casts_do_not_depend_on_the_block(source, target, n, seed):
    x = values(source, 40)
    got = lazy(x).astype(target)
    with np.errstate(all="ignore"):
        reference = None if np.dtype(source).kind == "f" else x.astype(target)
    assert_blockwise_equal(got, reference, seed=seed)


def test_intensities():
    x = values("u1")
    expected = ((x.astype("f8") - 10) / (300.0 - 10)).astype("f4")
    assert_same(evaluate(lazy(x).normalize(10, 300)), expected)
    assert_same(evaluate(lazy(x).scale_shift(0.1, -3)), (x.astype("f8") * 0.1 - 3).astype("f4"))
    y = np.array([0.1, 0.5, np.nextafter(0.5, 1), np.nan])
    assert_same(evaluate(lazy(y).threshold(0.5)), np.array([0, 0, 1, 0], "u1"))
    with pytest.raises(ValueError, match=r"lo=1\.0 and hi=1\.0"):
        lazy(x).normalize(1, 1)


def test_chains_over_bytes_become_one_table():
    x = rng.integers(0, 256, (7, 9), dtype="u1")
    a = lazy(x)
    single = a.normalize(0, 255).threshold(0.5).node
    program = Program([single], [])
    patch = program.evaluate(program.demand({single: single.spec.box}), lambda leaf, box: leaf.data, lambda t: None, [single])
    assert isinstance(patch[single].data, Coded)
    both = np.exp(a.normalize(0, 255)) + a.astype("f4") > 1.5
    assert_blockwise_equal(both, np.exp((x / 255.0).astype("f4")) + x.astype("f4") > 1.5)
    assert_blockwise_equal(single, ((x / 255.0).astype("f4") > 0.5).astype("u1"))


def test_functions_of_numpy_stay_lazy_or_refuse():
    x = rng.random((3, 4))
    a = lazy(x)
    for got, expected in (
        (np.where(a > 0.5, a, 0), np.where(x > 0.5, x, 0)),
        (a.where(x > 0.5, -1), np.where(x > 0.5, x, -1)),
        (np.concatenate([a, x]), np.concatenate([x, x])),
        (np.stack([x, a], axis=1), np.stack([x, x], axis=1)),
        (np.max(a, axis=0), x.max(0)),
        (np.clip(a, 0.2, 0.4), np.clip(x, 0.2, 0.4)),
        (np.flip(a, 1), x[:, ::-1]),
        (a.T, x.T),
    ):
        assert isinstance(got, Array)
        assert_same(evaluate(got), expected)
    assert (np.ndim(a), np.shape(a), np.size(a)) == (2, (3, 4), 12)
    with pytest.raises(TypeError, match=r"numpy\.percentile has no lazy form; compute\(\)"):
        np.percentile(a, 5)


def test_equal_expressions_are_one_object():
    x = lazy(values("f4"))
    assert (x + 1).node is (x + 1).node
    assert (x + 1).node is not (x + 1.0).node
    assert Normalize(x.node, 0.0, 1.0) is x.normalize(0, 1).node
    assert Threshold(x.node, 1) is x.threshold(1).node


def test_stretched_operands():
    affs, mask = rng.random((9, 2, 3, 4)), values("?", 24).reshape(2, 3, 4)
    assert_blockwise_equal(lazy(affs) * lazy(mask), affs * mask)
    thin = values("f4", 3).reshape(3, 1)
    assert_blockwise_equal(lazy(mask) * lazy(thin), mask * thin)
    assert not (lazy(mask) * lazy(thin)).node.pointwise
    assert (lazy(mask) * lazy(mask)).node.pointwise
    with pytest.raises(ValueError, match=r"\(2, 3, 4\) and \(3, 3\) do not match"):
        lazy(mask) + lazy(np.ones((3, 3)))


def test_positions_must_agree():
    x = np.arange(12.0).reshape(3, 4)
    a, b = placed(x, lo=(5, 5)), placed(x, lo=(2, 2), origin=3)
    total = a + b  # one place, counted from two origins
    assert total.node.spec.box == a.node.spec.box
    assert_blockwise_equal(total, x + x)
    with pytest.raises(ValueError, match=r"Roi\[5:8, 5:9\] nm.*Roi\[6:9, 6:10\] nm.*ve\.align\(a, b\).*b\.at\(a\)"):
        a + placed(x, lo=(6, 6))
    with pytest.raises(ValueError, match="resample_like"):
        a + placed(x, lo=(5, 5), voxel_size=2)
    assert_blockwise_equal(placed(x, voxel_size=1000) * placed(x, voxel_size=1, unit="micrometer"), x * x)
    assert_blockwise_equal(a - lazy(x), x - x)
    assert (lazy(x) - a).node.spec.space == a.node.spec.space
    square = np.ones((3, 3))
    with pytest.raises(ValueError, match="transpose"):
        placed(square, names="yx") + placed(square, names="xy")


def test_neighborhoods_are_kept_where_they_agree():
    space = Space((Axis("c", "offsets"), Axis("y"), Axis("x")), (Fraction(1),) * 3, (Fraction(0),) * 3)
    x = values("f4", 24).reshape(2, 3, 4)
    affs = Array(in_memory(x, ArraySpec(Box.of_shape(x.shape), x.dtype, space, ((1, 0), (0, 1)))))
    other = Array(in_memory(x, ArraySpec(Box.of_shape(x.shape), x.dtype, space, ((2, 0), (0, 2)))))
    assert ((affs > 0.5) & (affs < 1)).node.spec.neighborhood == ((1, 0), (0, 1))
    assert (x + affs).node.spec.neighborhood == ((1, 0), (0, 1))
    mixed = (affs + other).node.spec
    assert mixed.neighborhood is None
    assert mixed.space.axes[0].type == "channel"


def test_common_boxes():
    x = np.zeros((8, 8))
    a, b = placed(x, lo=(0, 0)).node.spec, placed(x, lo=(1, 2), origin=4).node.spec
    assert common_boxes([a, b]) == [Box((5, 6), (8, 8)), Box((1, 2), (4, 4))]
    with pytest.raises(ValueError, match="do not overlap"):
        common_boxes([a, placed(x, origin=20).node.spec])
    with pytest.raises(ValueError, match="do not coincide"):
        common_boxes([a, placed(x, origin="1/2").node.spec])
    with pytest.raises(ValueError, match="others have none"):
        common_boxes([a, lazy(x).node.spec])
