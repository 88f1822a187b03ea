"""What users call their expressions."""

from __future__ import annotations

import os
import sys
from types import FrameType
from typing import Any

from volara_expr.array.base import Expression
from volara_expr.expr import Node

__all__ = ["variable_names"]

PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep


def variable_names() -> dict[Node, str]:
    """Return the names of the variables that hold expressions, by their nodes.

    They are looked up when an expression is shown, in the session and in the functions that lead there, and never kept: an
    expression is the same whatever it is called, and a name that was given to another one meanwhile is not repeated.
    """
    frame: FrameType | None = sys._getframe()
    scopes: list[dict[str, Any]] = []
    while frame is not None:
        ours = frame.f_code.co_filename.startswith(PACKAGE)
        # IPython holds what it shows in variables of its own.
        if not ours and not frame.f_globals.get("__name__", "").startswith("IPython."):
            scopes.append(frame.f_locals)
        frame = frame.f_back
    found: dict[Node, str] = {}
    for scope in [vars(sys.modules["__main__"]), *reversed(scopes)]:
        for name, value in list(scope.items()):
            if isinstance(value, Expression) and not name.startswith("_"):
                found.setdefault(value.node, name)
    return found
