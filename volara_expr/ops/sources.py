"""Leaves: arrays in stores and arrays in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt

from volara_expr.expr.node import ArrayNode, ArraySpec, Patch
from volara_expr.geometry import Box

__all__ = ["Checkpoint", "InMemory", "StoredArray", "hold", "in_memory"]


@dataclass(frozen=True, eq=False, repr=False)
class StoredArray(ArrayNode):
    """An array in a store.

    Attributes
    ----------
    url : str
        Of the array itself, not of the group that holds it.
    content : str
        What the data was when it was opened: the digest of the expression that wrote it, or the store's fingerprint.
    chunks : tuple of int
        Shape of a chunk (of an inner chunk where the store is sharded): what a read decodes.
    known : ArraySpec
    windows : tuple of (float, float)
        Lowest and highest intensity to be shown, for each channel; none where the store does not say.
    """

    url: str
    content: str
    chunks: tuple[int, ...]
    known: ArraySpec = field(repr=False)
    windows: tuple[tuple[float, float], ...] = field(default=(), repr=False)

    def make_spec(self) -> ArraySpec:
        return self.known

    @property
    def label(self) -> str:
        return (
            self.url.rstrip("/").rpartition("/")[2]
            if self.url.count("/") < 2
            else "/".join(self.url.rstrip("/").split("/")[-2:])
        )


class _Held:
    """Keeps an array alive as long as a node refers to it."""

    __slots__ = ("__weakref__", "data")

    def __init__(self, data: npt.NDArray[Any]) -> None:
        self.data = data


_HELD: WeakValueDictionary[str, _Held] = WeakValueDictionary()


@dataclass(frozen=True, eq=False, repr=False)
class InMemory(ArrayNode):
    """A NumPy array. Its content travels beside the expression, not in it: through memory or through the workspace.

    Attributes
    ----------
    content : str
        Digest of dtype, shape and bytes.
    known : ArraySpec
    """

    content: str
    known: ArraySpec = field(repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.__dict__["held"] = _HELD.get(self.content)

    def make_spec(self) -> ArraySpec:
        return self.known

    @property
    def data(self) -> npt.NDArray[Any] | None:
        """The array, or None in a process that was not given it."""
        held: _Held | None = self.__dict__["held"] or _HELD.get(self.content)
        return None if held is None else held.data

    @property
    def label(self) -> str:
        return "numpy"

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        raise LookupError(f"the NumPy array {self.content[:8]} was not shipped to this process")


def in_memory(data: npt.NDArray[Any], spec: ArraySpec) -> InMemory:
    """Make the node of a NumPy array. The array is not copied: a read-only view is kept, and must not be changed through others."""
    if data.dtype.hasobject:
        raise TypeError("arrays of Python objects cannot be processed; convert to a number type first")
    h = blake2b(f"{data.dtype.str}{data.shape}".encode(), digest_size=16)
    h.update(np.ascontiguousarray(data).view(np.uint8).reshape(-1).data if data.size else b"")
    content = h.hexdigest()
    held = hold(content, data)
    node = InMemory(content, spec)
    node.__dict__["held"] = held
    return node


def hold(content: str, data: npt.NDArray[Any]) -> Any:
    """Keep a read-only view of an array for the nodes of this content, as long as the result or a node lives."""
    view = data.view()
    view.flags.writeable = False
    return _HELD.setdefault(content, _Held(view))


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint(ArrayNode):
    """The same array, stored on the way."""

    pointwise: ClassVar[bool] = True
    stored: ClassVar[bool] = True

    x: ArrayNode

    def make_spec(self) -> ArraySpec:
        return self.x.spec

    def apply(self, kernel: Callable[..., Any], out: Box, patches: Sequence[Patch], tables: Sequence[Any]) -> Any:
        return patches[0].data
