"""Mistakes of a user, answered: which line, and the name that was probably meant."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import update_wrapper
from typing import Any, NoReturn, TypeVar, cast

from volara_expr.array.vocabulary import ARGUMENTS, METHODS
from volara_expr.expr.origin import add_line, here

__all__ = ["no_attribute", "no_name", "teaching"]

F = TypeVar("F", bound=Callable[..., Any])


def teaching(function: F) -> F:
    """Return the function, with errors that name the user's line, and the right argument where one does not exist."""
    say = explain

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        try:
            return function(*args, **kwargs)
        except Exception as error:
            better = say(error, function, args, kwargs)
            if better is not error:
                raise better from None
            raise

    # With the original's globals, doctest still sees whose examples these are.
    own = types.FunctionType(wrapper.__code__, function.__globals__, function.__name__, None, wrapper.__closure__)
    return cast(F, update_wrapper(own, function))


def explain(error: Exception, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Exception:
    """Return what to tell instead of an error: the same with the user's line, or a better one for a call that does not fit."""
    if isinstance(error, TypeError) and not getattr(error, "__notes__", None):
        signature = inspect.signature(function)
        try:
            signature.bind(*args, **kwargs)
        except TypeError as misfit:
            error = TypeError(call_text(function.__name__, signature, kwargs, str(misfit)))
    if not isinstance(error, AttributeError):  # which libraries provoke on purpose, to ask what an object can do
        add_line(error, here())
    return error


def call_text(name: str, signature: inspect.Signature, kwargs: Iterable[str], misfit: str) -> str:
    """Say why a call does not fit, what was probably meant, and what the function takes."""
    taken = [p for p in signature.parameters if p != "self"]
    shown = ", ".join(str(p.replace(annotation=p.empty)) for n, p in signature.parameters.items() if n != "self")
    unknown = next((k for k in kwargs if k not in signature.parameters), None)
    if unknown is None:
        return f"{name}: {misfit}; it takes {name}({shown})"
    known = ARGUMENTS.get(unknown, "")
    near = get_close_matches(unknown, taken, 1, 0.6)
    if known in taken:
        hint = f": here it is {known}"
    elif near:
        hint = f" (did you mean {near[0]}?)"
    else:
        hint = f": {known}" if known else ""
    return f"{name} has no argument {unknown!r}{hint}; it takes {name}({shown})"


def no_attribute(kind: type, name: str) -> NoReturn:
    """Raise the AttributeError of an object without an attribute."""
    if name.startswith("_"):  # asked by libraries, thousands of times
        raise AttributeError(name)
    known = [n for n in dir(kind) if not n.startswith("_")]
    refuse(f"{kind.__name__} has no {name!r}{suggestion(name, known)}", name)


def no_name(name: str, known: Iterable[str]) -> NoReturn:
    """Raise the AttributeError of the package without a name."""
    from volara_expr.array.core import Array

    hint = f"; it is a method: array.{name}(...)" if hasattr(Array, name) else suggestion(name, known)
    refuse(f"module 'volara_expr' has no attribute {name!r}{hint}", name)


def refuse(text: str, name: str) -> NoReturn:
    """Raise an AttributeError that names the user's line."""
    error = AttributeError(text, name=name)
    add_line(error, here())
    raise error


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return "; use ..." for a name of another library, "; did you mean ...?" for one that is near, else nothing."""
    if name in METHODS:
        return f"; use {METHODS[name]}"
    near = get_close_matches(name, known, 2, 0.75) or [METHODS[n] for n in get_close_matches(name, METHODS, 1, 0.8)]
    return f"; did you mean {' or '.join(near)}?" if near else ""
