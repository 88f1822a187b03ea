"""What an array looks like: in a notebook, as a picture, in napari."""

from __future__ import annotations

from volara_expr.array.base import Handle
from volara_expr.array.names import variable_names

__all__ = ["Viewing"]


class Viewing(Handle):
    """Views of an array."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        from volara_expr.view.summary import array_html

        return array_html(self.node, variable_names())
