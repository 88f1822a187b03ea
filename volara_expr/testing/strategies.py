"""Random pipelines for hypothesis: an expression, built step by step, and beside it what NumPy and SciPy say of each step.

More than half of them chain three or more filters or split and meet again (a diamond), where wrong halos show. Needs `hypothesis`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from scipy import ndimage

from volara_expr.array.core import Array
from volara_expr.array.functions import align, concat, stack, where
from volara_expr.array.sources import from_numpy

__all__ = ["DTYPES", "Pipeline", "pipelines"]

DTYPES = ("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64")
MAX_VOXELS = 4000
Data = npt.NDArray[Any]
Draw = Callable[..., Any]
Step = Callable[[Draw, Array, Data], tuple[Array, Data]]


@dataclass(frozen=True)
class Pipeline:
    """A random expression.

    Attributes
    ----------
    array : Array
    reference : ndarray
        The whole result, by NumPy and SciPy.
    steps : tuple of str
        What was done, in order.
    seed : int
        For the grids that it is checked on.
    """

    array: Array
    reference: Data
    steps: tuple[str, ...]
    seed: int

    @property
    def deep(self) -> bool:
        """Whether it has a diamond, or three filters in a chain."""
        return "diamond" in self.steps or sum(step in {f.__name__ for f in FILTERS} for step in self.steps) >= 3

    def __repr__(self) -> str:
        return f"Pipeline({self.array!r}: {' -> '.join(self.steps)}; seed {self.seed})"


def _per_axis(a: Array, values: list[Any], other: Any) -> list[Any]:
    spatial = a.node.spec.space.spatial
    return [values[spatial.index(i)] if i in spatial else other for i in range(a.ndim)]


def _each(draw: Draw, a: Array, one: st.SearchStrategy[Any]) -> list[Any]:
    return [draw(one) for _ in a.node.spec.space.spatial]


def _usable(x: Data) -> Data:
    """SciPy's filters do not know float16."""
    return x.astype(np.float32) if x.dtype == np.float16 else x


def _smooth(x: Data) -> Any:
    return np.float64 if x.dtype == np.float64 else np.float32


modes = st.sampled_from(["reflect", "mirror", "nearest", "constant"])


def gaussian(draw: Draw, a: Array, x: Data) -> tuple[Array, Data]:
    sigma, mode = _each(draw, a, st.sampled_from([0, 0.4, 1, 1.7])), draw(modes)
    expected = ndimage.gaussian_filter(_usable(x), _per_axis(a, sigma, 0), output=_smooth(x), mode=mode, truncate=2)
    return a.gaussian(sigma, mode, truncate=2), expected


def median(draw: Draw, a: Array, x: Data) -> tuple[Array, Data]:
    if not np.isfinite(x).all():
        return a, x  # the median of NaNs is undefined
    size, mode = _each(draw, a, st.integers(1, 3)), draw(modes)
    expected = ndimage.median_filter(_usable(x), tuple(_per_axis(a, size, 1)), mode=mode)
    return a.median(size, mode), expected.astype(x.dtype)


def uniform(draw: Draw, a: Array, x: Data) -> tuple[Array, Data]:
    size, mode = _each(draw, a, st.integers(1, 4)), draw(modes)
    total = x.astype(np.float64)
    for axis, n in enumerate(_per_axis(a, size, 1)):
        total = ndimage.correlate1d(total, np.ones(n), axis, mode=mode)
    return a.uniform(size, mode), (total / np.prod(size)).astype(_smooth(x))


def extreme(draw: Draw, a: Array, x: Data) -> tuple[Array, Data]:
    """Window by window, because SciPy's own are not exact for 64-bit integers."""
    if x.dtype.kind == "f":
        a, x = a + 0.0, x + 0.0  # no -0.0: which zero is the larger one, NumPy leaves open
    size = _each(draw, a, st.integers(1, 4))
    every = _per_axis(a, size, 1)
    low = draw(st.booleans())
    padded = np.pad(x, [(n // 2, (n - 1) // 2) for n in every], "edge")
    views = np.lib.stride_tricks.sliding_window_view(padded, every)
    axes = tuple(range(x.ndim, 2 * x.ndim))
    with np.errstate(all="ignore"):
        expected = views.min(axes) if low else views.max(axes)
    return (a.minimum_filter if low else a.maximum_filter)(size, "nearest"), expected


def derivative(draw: Draw, a: Array, x: Data) -> tuple[Array, Data]:
    mode, axis = draw(modes), draw(st.sampled_from(a.node.spec.space.spatial))
    weights = draw(st.sampled_from([(-1, 0, 1), (1, -2, 1), (1, 2, 3, 4), (1, 1)]))
    expected = ndimage.correlate1d(_usable(x), weights, axis, output=_smooth(x), mode=mode)
    return a.correlate1d(weights, axis, mode), expected


def morphology(draw: Draw, a: Array, x: Data) -> tuple[Array, Data]:
    """Take a window that is no box, entry by entry."""
    sides = _each(draw, a, st.integers(1, 3))
    inside = np.ones(sides, bool)
    inside[(0,) * (inside.ndim - 1)][: draw(st.integers(0, inside.shape[-1]))] = False
    if not inside.any():
        return a, x
    at = [_per_axis(a, list(o), 0) for o in np.argwhere(inside) - [n // 2 for n in sides]]
    erode = draw(st.booleans())
    padded = np.pad(x, 2, "symmetric")
    views = [
        padded[tuple(slice(2 + (k if erode else -k), 2 + (k if erode else -k) + n) for k, n in zip(o, x.shape, strict=True))]
        for o in at
    ]
    with np.errstate(all="ignore"):
        expected = reduce(np.minimum if erode else np.maximum, views)
    return (a.grey_erosion if erode else a.grey_dilation)(footprint=inside), expected


def distance(draw: Draw, a: Array, x: Data) -> tuple[Array, Data]:
    """Compare with the definition, over all shifts within reach."""
    cap = draw(st.sampled_from([1, 2, 2.5]))
    padded = np.pad(x != 0, [(3, 3) if i in a.node.spec.space.spatial else (0, 0) for i in range(x.ndim)], constant_values=True)
    expected = np.full(x.shape, float(cap))
    for shift in np.ndindex(*_per_axis(a, [7] * len(a.node.spec.space.spatial), 1)):
        near = padded[tuple(slice(s, s + n) for s, n in zip(shift, x.shape, strict=True))]
        far = np.sqrt(sum((shift[i] - 3) ** 2 for i in a.node.spec.space.spatial))
        expected = np.where(near, expected, np.minimum(expected, far))
    return a.distance_transform(cap), expected


def finer(draw: Draw, a: Array, x: Data) -> tuple[Array, Data]:
    factors = _each(draw, a, st.integers(1, 2))
    expected = x
    for axis, f in enumerate(_per_axis(a, factors, 1)):
        expected = expected.repeat(f, axis)
    return (a.upsample(factors), expected) if expected.size <= MAX_VOXELS else (a, x)


def _cross(block: Data) -> Data:
    """Sum of a voxel and its neighbours along the last axis, whatever lies beyond being nothing."""
    total = block.copy()
    total[..., 1:] += block[..., :-1]
    total[..., :-1] += block[..., 1:]
    return total


def own_function(draw: Draw, a: Array, x: Data) -> tuple[Array, Data]:
    if a.node.spec.space.axes[-1].type != "space":
        return a, x
    with np.errstate(all="ignore"):
        return a.map_blocks(_quiet_cross, halo=1), _cross(x)


def _quiet_cross(block: Data) -> Data:
    with np.errstate(all="ignore"):
        return _cross(block)


def arithmetic(draw: Draw, a: Array, x: Data) -> tuple[Array, Data]:
    name = draw(st.sampled_from(["add", "multiply", "maximum", "less", "logical_xor", "divide", "floor_divide", "remainder"]))
    scalar: Any = draw(st.sampled_from([3, 0.5, np.float32(0.1), np.uint8(7), True]))
    if x.dtype == np.bool_ and type(scalar) is bool:
        scalar = 2
    ufunc = getattr(np, name)
    with np.errstate(all="ignore"):
        return ufunc(a, scalar), ufunc(x, scalar)


def transcendental(draw: Draw, a: Array, x: Data) -> tuple[Array, Data]:
    ufunc = draw(st.sampled_from([np.sqrt, np.tanh, np.arctan, np.rint, np.square, np.isfinite]))
    if ufunc is np.square and x.dtype == np.bool_:
        return a, x
    with np.errstate(all="ignore"):
        return ufunc(a), ufunc(np.ascontiguousarray(x))


def intensity(draw: Draw, a: Array, x: Data) -> tuple[Array, Data]:
    kind = draw(st.sampled_from(["normalize", "scale_shift", "threshold", "clip", "where"]))
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64)
        if kind == "normalize":
            return a.normalize(10, 200), ((wide - 10) / 190).astype(np.float32)
        if kind == "scale_shift":
            return a.scale_shift(0.3, -2), (wide * 0.3 + -2).astype(np.float32)
        if kind == "threshold":
            return a.threshold(20), (x > 20).astype(np.uint8)
        if kind == "clip":
            return a.clip(1, 90.5), np.clip(x, 1, 90.5)
        return where(a > 5, a, 0.5), np.where(x > 5, x, 0.5)


def cast(draw: Draw, a: Array, x: Data) -> tuple[Array, Data]:
    dtype = draw(st.sampled_from(DTYPES))
    if x.dtype.kind == "f" and np.dtype(dtype).kind in "iu":  # what lies out of range is undefined
        a, x = a.clip(0, 100), np.clip(x, 0, 100)
        if not np.isfinite(x).all():
            return a, x
    with np.errstate(all="ignore"):
        return a.astype(dtype), x.astype(dtype)


def crop(draw: Draw, a: Array, x: Data) -> tuple[Array, Data]:
    key = []
    for n in x.shape:
        start = draw(st.integers(0, max(0, n // 3)))
        key.append(slice(start, draw(st.integers(max(start + 1, n - n // 3), n))))
    return a[tuple(key)], x[tuple(key)]


def stride(draw: Draw, a: Array, x: Data) -> tuple[Array, Data]:
    key: list[Any] = [slice(None, None, draw(st.sampled_from([1, 1, 2, -1, -2]))) for _ in x.shape]
    if x.ndim > 2 and len(a.node.spec.space.spatial) == x.ndim and draw(st.booleans()):
        at = draw(st.integers(0, x.ndim - 1))
        key[at] = draw(st.integers(-x.shape[at], x.shape[at] - 1))
    return a[tuple(key)], x[tuple(key)]


def turn(draw: Draw, a: Array, x: Data) -> tuple[Array, Data]:
    axes = draw(st.permutations(range(x.ndim)))
    return a.transpose(*axes), x.transpose(axes)


def flip(draw: Draw, a: Array, x: Data) -> tuple[Array, Data]:
    axis = draw(st.integers(0, x.ndim - 1))
    return a.flip(axis), np.flip(x, axis)


def take(draw: Draw, a: Array, x: Data) -> tuple[Array, Data]:
    channel = a.node.spec.space.find("channel")
    if channel is None:
        return a, x
    n = x.shape[channel]
    key = (slice(None),) * channel + (draw(st.lists(st.integers(-n, n - 1), min_size=1, max_size=4)),)
    return a[key], x[key]


def pad(draw: Draw, a: Array, x: Data) -> tuple[Array, Data]:
    width = _each(draw, a, st.tuples(st.integers(0, 3), st.integers(0, 3)))
    mode = draw(st.sampled_from(["constant", "edge", "reflect"]))
    expected = np.pad(x, _per_axis(a, width, (0, 0)), mode)
    return (a.pad(width, mode), expected) if expected.size <= MAX_VOXELS else (a, x)


def join(draw: Draw, a: Array, x: Data) -> tuple[Array, Data]:
    if 2 * x.size > MAX_VOXELS:
        return a, x
    with np.errstate(all="ignore"):
        if draw(st.booleans()):
            axis = draw(st.integers(0, x.ndim - 1))
            return concat([a, a.flip(axis).at(a)], axis), np.concatenate([x, np.flip(x, axis)], axis)
        if "channel" in (axis.type for axis in a.node.spec.space.axes) or x.ndim > 3:
            return a, x
        return stack([a, a * 2, a]), np.stack([x, x * 2, x])


def reduction(draw: Draw, a: Array, x: Data) -> tuple[Array, Data]:
    channel = a.node.spec.space.find("channel")
    if channel is None or x.ndim < 2:
        return a, x
    name = draw(st.sampled_from(["max", "min", "sum", "any", "argmax"]))
    keepdims = draw(st.booleans()) and name != "sum"
    with np.errstate(all="ignore"):
        if name == "sum" and x.dtype.kind == "f":
            expected = reduce(np.add, list(np.moveaxis(x, channel, 0)))
        else:
            kwargs = {"keepdims": True} if keepdims else {}
            expected = getattr(np, name)(x, axis=channel, **kwargs)
    return getattr(a, name)(channel, keepdims=keepdims), np.asarray(expected)


def bins(draw: Draw, a: Array, x: Data) -> tuple[Array, Data]:
    """Bins count from absolute voxel 0, so the reference is padded down to it with what cannot win."""
    method = draw(st.sampled_from(["min", "max", "stride"]))
    factors = _each(draw, a, st.integers(1, 3))
    every, lo = _per_axis(a, factors, 1), a.node.spec.box.lo
    expected = x
    for axis, (f, first) in enumerate(zip(every, lo, strict=True)):
        n = expected.shape[axis]
        if method == "stride":
            expected = expected[(slice(None),) * axis + (slice(-first % f, None, f),)]
        else:
            starts = [max(j * f - first, 0) for j in range(first // f, -(-(first + n) // f))]
            expected = (np.minimum if method == "min" else np.maximum).reduceat(expected, starts, axis)
    return (a.downsample(factors, method), expected) if expected.size else (a, x)


FILTERS: tuple[Step, ...] = (gaussian, median, uniform, extreme, own_function, derivative, morphology)
OTHERS: tuple[Step, ...] = (
    *(arithmetic, transcendental, intensity, cast, arithmetic, intensity),
    *(crop, crop, stride, turn, flip, take, pad, join, reduction, reduction, bins, finer, distance),
)


def diamond(draw: Draw, a: Array, x: Data) -> tuple[Array, Data]:
    """Two filtered ways that meet again, or a difference of neighbours."""
    ufunc = draw(st.sampled_from([np.add, np.maximum, np.multiply]))
    with np.errstate(all="ignore"):
        if draw(st.booleans()):
            left, p = draw(st.sampled_from(FILTERS))(draw, a, x)
            right, q = draw(st.sampled_from((*FILTERS, arithmetic)))(draw, a, x)
            return ufunc(left, right), ufunc(p, q)
        axis = a.node.spec.space.spatial[-1]
        if x.shape[axis] < 2:
            return ufunc(a, a), ufunc(x, x)
        up = (slice(None),) * axis + (slice(1, None),)
        down = (slice(None),) * axis + (slice(None, -1),)
        if x.shape[axis] > 2 and draw(st.booleans()):
            mid = (slice(None),) * axis + (slice(1, -1),)
            first, second = align(a[up], a[down])
            return ufunc(first, second), ufunc(x[mid], x[mid])
        return ufunc(a[up], a[down].at(a[up])), ufunc(x[up], x[down])


@st.composite
def pipelines(draw: Draw) -> Pipeline:
    """Return random pipelines over arrays of two or three space axes, with or without a channel axis, of any type."""
    channels = draw(st.sampled_from([0, 0, 1, 2, 4]))
    sides = draw(st.one_of(st.tuples(*[st.integers(1, 21)] * 2), st.tuples(*[st.integers(1, 10)] * 3)))
    shape = (channels, *sides) if channels else sides
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    if dtype.kind == "f":
        x = (rng.standard_normal(shape) * 30).astype(dtype)
    else:
        x = rng.integers(-100 if dtype.kind == "i" else 0, 2 if dtype.kind == "b" else 100, shape).astype(dtype)
    axes = (["c"] if channels else []) + ["z", "y", "x"][-len(sides) :]
    offset = [draw(st.integers(-5, 5)) for _ in sides] if draw(st.booleans()) else None
    a = from_numpy(x, axes=axes, voxel_size=(4,) * len(sides), units="nm", offset=offset)
    plan: list[Step] = draw(st.lists(st.sampled_from((*FILTERS, *OTHERS, diamond)), min_size=1, max_size=5))
    if draw(st.sampled_from([False, True, True, True, True])):
        deep: list[Step] = [diamond] if draw(st.booleans()) else [draw(st.sampled_from(FILTERS)) for _ in range(3)]
        for step in deep:
            plan.insert(draw(st.integers(0, len(plan))), step)
    done: list[str] = []
    for step in plan:
        before = a
        if a.node.spec.space.spatial:
            a, x = step(draw, a, x)
        if a is not before:  # not every step is possible on every array
            done.append(step.__name__)
    return Pipeline(a, x, tuple(done), seed)
