"""Which line of the user's made a node: for messages alone, never part of a node's identity."""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["Origin", "add_line", "explained", "from_line", "here", "line_of"]

Origin = tuple[str, int] | str | None
"""File and line, or text where only that is left; None where nobody knows."""

OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_given: ContextVar[Origin] = ContextVar("origin", default=None)


def here() -> Origin:
    """Return the line that is being run: the nearest one outside of this package."""
    given = _given.get()
    if given is not None:
        return given
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(OURS):
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


@contextmanager
def from_line(origin: Origin) -> Iterator[None]:
    """Give a line to all nodes that are made within: that of a pipeline file, or that of the process that sent them."""
    token = _given.set(origin or "")
    try:
        yield
    finally:
        _given.reset(token)


def line_of(origin: Origin) -> str:
    """Return a line as text for messages, as in ``segment.py:12: frags = affs.watershed(-0.5)``; empty if unknown.

    Files in the working directory go by their relative name, notebook cells by their number.
    """
    if not isinstance(origin, tuple):
        return origin or ""
    file, line = origin
    linecache.checkcache(file)
    code = linecache.getline(file, line).strip()
    where = f"{_shown(file)}:{line}"
    return f"{where}: {code}" if code else where


def _shown(file: str) -> str:
    interactive = sys.modules.get("IPython")
    shell = interactive.get_ipython() if interactive is not None else None
    cell = shell.compile.format_code_name(file) if shell is not None else None
    if cell:
        return " ".join(cell)
    try:
        return file.removeprefix(os.getcwd() + os.sep)
    except OSError:  # the working directory is gone
        return file


@contextmanager
def explained(what: str, origin: Origin) -> Iterator[None]:
    """Note on any exception that passes what failed and which line made it."""
    try:
        yield
    except Exception as e:
        add_line(e, origin, f"{what}, made in ")
        raise


def add_line(error: BaseException, origin: Origin, what: str = "") -> None:
    """Note a line on an exception, unless one is noted already."""
    line = line_of(origin)
    if line and not any(n.startswith("in ") for n in getattr(error, "__notes__", ())):
        error.add_note(f"in {what}{line}")
