"""Content addresses: equal expressions have equal digests, in every process and on every machine.

A value is encoded canonically, type tag first, and hashed with BLAKE2b. A user's function is encoded by what it does (code,
defaults, closure, the globals it names) and not by where it lives; one that cannot be encoded makes its node *opaque*.
"""

from __future__ import annotations

import dataclasses
import dis
import types
import uuid
from collections.abc import Callable, Iterator
from enum import Enum
from fractions import Fraction
from hashlib import blake2b
from typing import Any

import numpy as np

__all__ = ["Function", "NotCanonical", "digest_of"]

MODULE_SCALARS = (bool, int, float, complex, str, bytes, type(None))


class NotCanonical(TypeError):
    """A value without a canonical encoding; `what` names it as the user wrote it."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


def digest_of(*values: object) -> str:
    """Return 32 hexadecimal digits that stand for the values.

    Raises
    ------
    NotCanonical
        If a value, or something in it, has no canonical encoding.

    Examples
    --------
    >>> digest_of(1, "a") == digest_of(1, "a")
    True
    >>> digest_of(1) == digest_of(1.0)
    False
    """
    h = blake2b(digest_size=16)
    for piece in encode(values):
        h.update(piece)
    return h.hexdigest()


def encode(value: object) -> Iterator[bytes]:
    """Yield the canonical encoding of a value."""
    if isinstance(value, np.generic):
        yield from encode_array(np.asarray(value))
    elif isinstance(value, Enum):
        yield from tagged("enum", f"{type(value).__qualname__}.{value.name}")
    elif isinstance(value, MODULE_SCALARS):
        yield from tagged(type(value).__name__, repr(value))
    elif isinstance(value, Fraction):
        yield from tagged("fraction", str(value))
    elif isinstance(value, np.dtype):
        yield from tagged("dtype", value.str)
    elif isinstance(value, np.ndarray):
        yield from encode_array(value)
    elif isinstance(value, slice):
        yield from encode(("slice", value.start, value.stop, value.step))
    elif isinstance(value, (tuple, list)):
        yield f"{type(value).__name__}[{len(value)}]".encode()
        for item in value:
            yield from encode(item)
    elif isinstance(value, (dict, set, frozenset)):
        items: Any = value.items() if isinstance(value, dict) else value
        parts = sorted(b"".join(encode(item)) for item in items)
        yield f"{type(value).__name__}[{len(parts)}]".encode()
        yield from parts
    elif isinstance(value, np.ufunc):
        yield from tagged("ufunc", value.__name__)
    elif hasattr(value, "digest") and isinstance(value.digest, str):
        yield from tagged("digest", value.digest)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield type(value).__qualname__.encode()
        for f in dataclasses.fields(value):
            yield from encode(getattr(value, f.name))
    elif isinstance(value, (types.FunctionType, types.MethodType, types.BuiltinFunctionType, type, types.ModuleType)):
        yield from encode_callable(value, set())
    else:
        raise NotCanonical(f"a value of type {type(value).__qualname__}")


def tagged(tag: str, text: str) -> Iterator[bytes]:
    """Yield a tagged, length-prefixed text."""
    raw = text.encode()
    yield f"{tag}:{len(raw)}:".encode() + raw


def encode_array(a: np.ndarray[Any, Any]) -> Iterator[bytes]:
    """Yield the encoding of an array: dtype, shape and bytes in C order."""
    if a.dtype.hasobject:
        raise NotCanonical("an array of Python objects")
    yield f"array:{a.dtype.str}:{a.shape}:".encode()
    yield np.ascontiguousarray(a).tobytes()


def encode_callable(fn: object, seen: set[int]) -> Iterator[bytes]:
    """Yield the encoding of a function, method, builtin, class or module that a user's code refers to."""
    if isinstance(fn, types.ModuleType):
        yield from tagged("module", fn.__name__)
        return
    if isinstance(fn, types.MethodType):
        yield from encode_callable(fn.__func__, seen)
        yield from encode(fn.__self__)
        return
    module = getattr(fn, "__module__", None) or ""
    if not isinstance(fn, types.FunctionType):
        if module in ("__main__", ""):
            name = getattr(fn, "__qualname__", repr(type(fn)))
            if module == "" and isinstance(fn, types.BuiltinFunctionType):
                yield from tagged("builtin", name)
                return
            raise NotCanonical(f"the class {name!r} defined in the session")
        yield from tagged("name", f"{module}.{getattr(fn, '__qualname__', '')}")
        return
    if id(fn) in seen:  # a function that refers to itself
        yield from tagged("again", fn.__name__)
        return
    seen.add(id(fn))
    yield from encode_code(fn.__code__)
    yield from named(f"the default of {fn.__name__!r}", (fn.__defaults__, fn.__kwdefaults__), seen)
    for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True):
        yield from named(f"the captured variable {name!r}", cell.cell_contents, seen)
    for name in sorted(global_names(fn.__code__)):
        if name in fn.__globals__:
            yield from named(f"the global {name!r}", fn.__globals__[name], seen)
        else:
            yield from tagged("builtin", name)


def named(what: str, value: object, seen: set[int]) -> Iterator[bytes]:
    """Encode a value; where that fails, say what the user calls it."""
    try:
        if isinstance(value, (types.FunctionType, types.MethodType, types.BuiltinFunctionType, type, types.ModuleType)):
            pieces = list(encode_callable(value, seen))
        else:
            pieces = list(encode(value))
    except NotCanonical as e:
        raise NotCanonical(f"{what} ({e.what})") from None
    yield from tagged("named", what)
    yield from pieces


def encode_code(code: types.CodeType) -> Iterator[bytes]:
    """Yield the encoding of a code object and of those nested in it; line numbers and file names do not count."""
    yield from tagged("code", code.co_name)
    yield code.co_code
    yield repr((code.co_names, code.co_varnames, code.co_freevars, code.co_argcount, code.co_flags)).encode()
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from encode_code(const)
        else:
            yield from tagged(type(const).__name__, repr(const))


def global_names(code: types.CodeType) -> set[str]:
    """Return the names of the globals that a code object, or one nested in it, reads."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names |= global_names(const)
    return names


class Function:
    """A user's function together with its identity.

    Parameters
    ----------
    call : callable
    name : str, optional
        Identity given by the user; replaces the digest of the code.

    Attributes
    ----------
    digest : str
        Covers code, defaults, closure and named globals; fresh for an opaque function.
    opaque : str or None
        Names what kept the function from having a digest.
    """

    __slots__ = ("call", "digest", "name", "opaque")

    def __init__(self, call: Callable[..., Any], name: str | None = None) -> None:
        self.call = call
        self.name = name
        self.opaque: str | None = None
        if name is not None:
            self.digest = digest_of("named function", name)
            return
        try:
            h = blake2b(digest_size=16)
            target = call if isinstance(call, (types.FunctionType, types.MethodType, types.BuiltinFunctionType, type)) else None
            for piece in encode_callable(target, set()) if target is not None else encode(call):
                h.update(piece)
            self.digest = h.hexdigest()
        except NotCanonical as e:
            self.opaque = e.what
            self.digest = digest_of("opaque", uuid.uuid4().hex)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_restore_function, (self.call, self.name, self.digest, self.opaque))

    def __repr__(self) -> str:
        return self.name or str(getattr(self.call, "__qualname__", repr(self.call)))


def _restore_function(call: Callable[..., Any], name: str | None, digest: str, opaque: str | None) -> Function:
    """Rebuild a shipped function with the identity that it had at home; its globals may be pruned here."""
    f = Function.__new__(Function)
    f.call, f.name, f.digest, f.opaque = call, name, digest, opaque
    return f
