"""What NumPy's functions do to lazy arrays: those that have a lazy form, and what to do instead of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from volara_expr.array.base import Handle
from volara_expr.array.functions import concat, stack, where

if TYPE_CHECKING:
    from volara_expr.array.core import Array

__all__ = ["lazy_form"]


def transpose(a: Array, axes: Sequence[int] | None = None) -> Array:
    """Do as `numpy.transpose`."""
    return a.transpose(*(axes or ()))


def moveaxis(a: Array, source: int | Sequence[int], destination: int | Sequence[int]) -> Array:
    """Do as `numpy.moveaxis`."""
    moved, places = ([i % a.ndim for i in np.atleast_1d(v).tolist()] for v in (source, destination))
    order = [i for i in range(a.ndim) if i not in moved]
    for place, axis in sorted(zip(places, moved, strict=True)):
        order.insert(place, axis)
    return a.transpose(*order)


def swapaxes(a: Array, axis1: int, axis2: int) -> Array:
    """Do as `numpy.swapaxes`."""
    order = list(range(a.ndim))
    order[axis1], order[axis2] = order[axis2], order[axis1]
    return a.transpose(*order)


def pad(array: Array, pad_width: Any, mode: Any = "constant", *, constant_values: Any = 0) -> Array:
    """Do as `numpy.pad`, along space axes."""
    widths = np.broadcast_to(np.asarray(pad_width), (array.ndim, 2)).tolist()
    spatial = array.node.spec.space.spatial
    for i, (name, width) in enumerate(zip(array.axes, widths, strict=True)):
        if i not in spatial and width != [0, 0]:
            raise ValueError(
                f"pad_width is {width} along {name!r}; only space axes can be padded, join others with np.concatenate"
            )
    return array.pad([tuple(widths[i]) for i in spatial], mode, constant_values)


def squeeze(a: Array, axis: int | Sequence[int] | None = None) -> Array:
    """Do as `numpy.squeeze`."""
    return a.squeeze([i for i, n in enumerate(a.shape) if n == 1] if axis is None else axis)


def rounded(a: Array, decimals: int = 0) -> Array:
    """Do as `numpy.round`, to whole numbers."""
    if decimals:
        raise TypeError(
            f"numpy.round to {decimals} decimals has no lazy form; use np.rint(a * {10**decimals}) / {10**decimals}"
        )
    whole: Array = a if a.dtype.kind in "iu" else np.rint(a)  # type: ignore[assignment]
    return whole


def take(a: Array, indices: Any, axis: int | None = None) -> Array:
    """Do as `numpy.take`, along an axis."""
    if axis is None:
        raise TypeError("numpy.take without an axis flattens the array, which has no lazy form; give axis=")
    return a[(slice(None),) * (axis % a.ndim) + (indices,)]


def count_nonzero(a: Array, axis: Any = None, *, keepdims: bool = False) -> Array:
    """Do as `numpy.count_nonzero`."""
    return (a != 0).sum(axis, keepdims)


def ptp(a: Array, axis: Any = None, *, keepdims: bool = False) -> Array:
    """Do as `numpy.ptp`."""
    return a.max(axis, keepdims) - a.min(axis, keepdims)


def dtype_of(value: Any) -> Any:
    """Return the type of an array, and other values as they are."""
    return value.node.spec.dtype if isinstance(value, Handle) else value


METHODS = ("argmax", "argmin", "astype", "clip", "expand_dims", "flip")
STATISTICS = ("all", "any", "histogram", "max", "mean", "min", "quantile", "sum")
FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.amax: lambda a, *args, **kwargs: a.max(*args, **kwargs),
    np.amin: lambda a, *args, **kwargs: a.min(*args, **kwargs),
    np.can_cast: lambda value, to, casting="safe": np.can_cast(dtype_of(value), dtype_of(to), casting),
    np.concatenate: concat,
    np.count_nonzero: count_nonzero,
    np.fliplr: lambda m: m.flip(1),
    np.flipud: lambda m: m.flip(0),
    np.imag: lambda val: val.imag,
    np.iscomplexobj: lambda x: x.dtype.kind == "c",
    np.isrealobj: lambda x: x.dtype.kind != "c",
    np.moveaxis: moveaxis,
    np.ndim: lambda a: a.ndim,
    np.pad: pad,
    np.ptp: ptp,
    np.real: lambda val: val.real,
    np.result_type: lambda *values: np.result_type(*map(dtype_of, values)),
    np.round: rounded,
    np.around: rounded,
    np.shape: lambda a: a.shape,
    np.size: lambda a, axis=None: a.size if axis is None else a.shape[axis],
    np.squeeze: squeeze,
    np.stack: stack,
    np.swapaxes: swapaxes,
    np.take: take,
    np.transpose: transpose,
    np.where: where,
}
INSTEAD = {
    "allclose": "abs(a - b).max().compute()",
    "array_equal": "(a == b).all().compute()",
    "array_equiv": "(a == b).all().compute()",
    "convolve": "gaussian, uniform or map_blocks(halo=)",
    "diff": "a[1:] - a[:-1].at(a[1:])",
    "dstack": "np.concatenate or np.stack with axis=",
    "gradient": "(a[2:] - a[:-2].at(a[2:])) / 2",
    "hstack": "np.concatenate with axis=",
    "median": "its quantile(0.5), or median(size), the filter",
    "percentile": "its quantile(q / 100)",
    "repeat": "resample_like(other)",
    "reshape": "downsample to bin; axes keep their meaning, so they are not folded",
    "std": "x = a.astype(float), then ((x * x).mean(axis) - x.mean(axis) ** 2) ** 0.5",
    "unique": "np.unique of a preview()",
    "var": "x = a.astype(float), then (x * x).mean(axis) - x.mean(axis) ** 2",
    "vstack": "np.concatenate with axis=",
}


def lazy_form(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return what a function of NumPy does to lazy arrays.

    Raises
    ------
    TypeError
        If it has no lazy form: it would compute the whole array without saying so. Names what does the same.
    """
    if function in FUNCTIONS:
        return FUNCTIONS[function]
    name = function.__name__
    if name in METHODS + STATISTICS and function is getattr(np, name):
        return lambda a, *args, **kwargs: getattr(a, name)(*args, **kwargs)
    instead = INSTEAD.get(name)
    if name.startswith("nan") and name[3:] in METHODS + STATISTICS:
        instead = f"{name[3:]}, which does not skip NaN (in xarray: skipna=False)"
    raise TypeError(
        f"{function.__module__}.{name} has no lazy form; compute() the array first, or use "
        f"{instead or 'its methods or map_blocks'}"
    )
