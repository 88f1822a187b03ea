"""What an array looks like: a region of values, a picture, a summary in a notebook, a layer of napari."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from volara_expr.array.base import Handle
from volara_expr.array.names import variable_names
from volara_expr.view.section import draw_sections, is_labels, previews, region_box, section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Viewing", "show"]


class Viewing(Handle):
    """Looks at an array that store nothing."""

    __slots__ = ()

    def preview(self, **region: slice | int) -> npt.NDArray[Any]:
        """Return a quick look at a region: arrays exact, tables made of that region alone. Nothing is stored.

        A segmentation depends on the whole volume through its tables. Here they are made of the cells that the region touches, so
        that biases can be played with in seconds.

        Parameters
        ----------
        **region : slice or int
            By the names of the axes, in voxels of this array counted from its first; an int keeps the axis with one voxel.

        Examples
        --------
        >>> import numpy as np
        >>> import volara_expr as ve
        >>> image = ve.from_numpy(np.arange(60, dtype=np.uint8).reshape(3, 4, 5))
        >>> (image > 30).preview(z=1, x=slice(0, 2)).shape
        (1, 4, 2)
        """
        return previews({self.node: region_box(self.node, region)})[0]

    def show(
        self,
        *,
        overlay: Handle | None = None,
        limits: tuple[float, float] | None = None,
        alpha: float = 0.5,
        outlines: bool = True,
        **region: slice | int,
    ) -> Figure:
        """Draw a section; parameters as those of `volara_expr.show`.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> raw = ve.from_numpy(np.arange(60, dtype=np.uint8).reshape(3, 4, 5), voxel_size=(40, 4, 4), units="nm")
        >>> figure = raw.show(z=1, overlay=(raw > 30).components())
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['2 nm']
        """
        return show(self, overlay=overlay, limits=limits, alpha=alpha, outlines=outlines, columns=None, **region)

    def to_napari(
        self, name: str | None = None, contrast_limits: tuple[float, float] | None = None
    ) -> tuple[Any, dict[str, Any], str]:
        """Return a layer of napari that computes the slices that are looked at, and only those.

        Parameters
        ----------
        name : str, optional
            By default that of the variable that holds the array.
        contrast_limits : (float, float), optional
            By default the range of 8-bit types, and for others that of the middle section, which is computed for it.

        Returns
        -------
        (Array, dict, str)
            For ``napari.layers.Layer.create(*layer)``; "labels" for integers of 4 bytes and more, else "image". A segmentation
            of which tables of the whole volume are a part computes those at the first look; write it first.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> raw = ve.from_numpy(np.zeros((3, 4, 5), np.uint8), voxel_size=(40, 4, 4), units="nm")
        >>> raw.to_napari()[1]
        {'name': 'raw', 'multiscale': False, 'scale': (40.0, 4.0, 4.0), 'translate': (20.0, 2.0, 2.0), 'contrast_limits': (0, 255)}
        """
        spec, space = self.node.spec, self.node.spec.space
        half = [Fraction(axis.type == "space", 2) for axis in space.axes]  # napari counts from the centre of a voxel
        first = [(lo + h) * s + o for lo, h, s, o in zip(spec.box.lo, half, space.voxel_size, space.origin, strict=True)]
        about: dict[str, Any] = {
            "name": name or variable_names().get(self.node, self.node.label),
            "multiscale": False,
            "scale": tuple(map(float, space.voxel_size)),
            "translate": tuple(map(float, first)),
        }
        if is_labels(spec.dtype):
            return self._new(self.node), about, "labels"
        if contrast_limits is None and spec.dtype.kind in "iu" and spec.dtype.itemsize == 1:
            contrast_limits = np.iinfo(spec.dtype).min, np.iinfo(spec.dtype).max
        elif contrast_limits is None:
            values = previews({self.node: section(self.node, {})[0]})[0]
            contrast_limits = float(np.nanmin(values)), float(np.nanmax(values))
        return self._new(self.node), {**about, "contrast_limits": contrast_limits}, "image"

    def _repr_html_(self) -> str:
        from volara_expr.view.summary import array_html

        return array_html(self.node, variable_names())


def show(
    arrays: Handle | Sequence[Handle] | Mapping[str, Handle],
    *,
    overlay: Handle | None = None,
    limits: tuple[float, float] | None = None,
    alpha: float = 0.5,
    outlines: bool = True,
    columns: int | None = None,
    **region: slice | int,
) -> Figure:
    """Draw a section of each of several arrays, side by side. What they share is computed once; nothing is stored.

    Integers of 4 bytes and more are labels: each has a colour of its own, the same in every picture. Others are images: grey, or
    the first three entries of a channel axis as red, green and blue. The numbers are those of `Array.preview`.

    Parameters
    ----------
    arrays : Array, sequence of Array, or mapping of title to Array
        Titles are by default the names of the variables that hold the arrays.
    overlay : Array, optional
        Labels to tint the images with.
    limits : (float, float), optional
        Values of images that are black and white; by default those that 0.5 % of the voxels of a section are below and above.
    alpha : float
        Strength of the tint.
    outlines : bool
        Draw a line between labels.
    columns : int, optional
        Panels in a row.
    **region : slice or int
        By the names of the axes, in voxels of each array counted from its first; arrays that lack an axis disregard it. Of
        several space axes that are given no number, the last two are shown and the others cut in the middle.

    Returns
    -------
    matplotlib.figure.Figure
        With a scale bar in each panel. A notebook shows it; elsewhere ``figure.savefig("look.png")``.

    Raises
    ------
    TypeError
        If no array has an axis of that name, or fewer than two space axes are left.
    MemoryError
        If the sections have more than `ve.config.preview_bytes`.

    Examples
    --------
    >>> import numpy as np, volara_expr as ve
    >>> raw = ve.from_numpy(np.arange(60, dtype=np.uint8).reshape(3, 4, 5), voxel_size=(40, 4, 4), units="nm")
    >>> mask = raw > 30
    >>> [axes.get_title() for axes in ve.show([raw, mask], z=1).axes]
    ['raw', 'mask']
    """
    names = variable_names()
    if isinstance(arrays, Handle):
        arrays = [arrays]
    if not isinstance(arrays, Mapping):
        titled = [(names.get(a.node, a.node.label), a.node) for a in arrays]
    else:
        titled = [(title, a.node) for title, a in arrays.items()]
    return draw_sections(titled, region, None if overlay is None else overlay.node, limits, alpha, outlines, columns)
