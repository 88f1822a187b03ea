"""Pictures of sections: images in grey or in colours, labels in colours of their own, a scale bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

__all__ = ["Panel", "Picture", "colours_of", "draw", "enlarged", "grey_of", "length_of_bar", "tinted"]

Pixels = npt.NDArray[np.floating[Any]]
INK, PAPER = "#f2f2f2", "#101014"
HUE, SHADE = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC13FA9A902A6328F)
"""Multiples of the golden ratio spread evenly over the circle; the second number does so in two dimensions (the plastic ratio)."""

MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
"""The mixing of bits of SplitMix64 (Steele, Lea, Flood, 2014); 0 stays 0."""


class Picture(Figure):
    """A matplotlib figure that notebooks show by itself; `savefig` stores it."""

    def _repr_png_(self) -> bytes:
        out = BytesIO()
        self.savefig(out, format="png", dpi=self.dpi)
        return out.getvalue()


@dataclass(frozen=True)
class Panel:
    """A section to be drawn.

    Attributes
    ----------
    pixels : ndarray, (rows, columns, 3)
        0 to 1; whole multiples of the section's voxels.
    title : str
    size : tuple of Fraction
        World length of the rows and of the columns, in voxels where the array has no place in the world.
    unit : str
    """

    pixels: Pixels
    title: str
    size: tuple[Fraction, Fraction]
    unit: str


def colours_of(labels: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return a colour for each label: the same for the same id in every picture, as different as can be for successive ids.

    Parameters
    ----------
    labels : ndarray of integers, any shape

    Returns
    -------
    ndarray of float32, shape (..., 3)
        0 to 1.
    """
    from matplotlib.colors import hsv_to_rgb

    ids = labels.astype(np.uint64)
    high = ids >> np.uint64(12)  # fragments of one block differ below, and those of different blocks perhaps only here
    for shift, factor in MIX:
        high = (high ^ (high >> np.uint64(shift))) * np.uint64(factor)
    ids = (ids & np.uint64(0xFFF)) + high
    hue, shade = ((ids * k >> np.uint64(40)) / 2.0**24 for k in (HUE, SHADE))  # products wrap, which is their fractional part
    return hsv_to_rgb(np.stack([hue, 0.5 + 0.35 * shade, 1 - 0.25 * shade], -1)).astype(np.float32)


def grey_of(image: npt.NDArray[Any], limits: tuple[float, float] | None = None) -> Pixels:
    """Return an image in grey, or in colours where it has three channels last.

    Parameters
    ----------
    image : ndarray, (rows, columns) or (rows, columns, 3)
    limits : (float, float), optional
        Values shown as black and white; by default those that 0.5 % of the voxels are below and above, for each channel.
    """
    values = image.astype(np.float64)
    finite = np.where(np.isfinite(values), values, 0)
    if image.dtype == np.bool_ or (limits is None and image.dtype.kind == "u" and finite.max(initial=0) <= 1):
        limits = (0, 1)  # a mask, also where all of it is black or white
    lo, hi = np.percentile(finite, (0.5, 99.5), axis=(0, 1)) if limits is None else limits
    grey = np.clip((finite - lo) / np.maximum(hi - lo, np.finfo(float).tiny), 0, 1)
    return grey if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=-1)


def enlarged(picture: npt.NDArray[Any], scale: int) -> npt.NDArray[Any]:
    """Show each voxel as a square of `scale` pixels."""
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def tinted(
    grey: Pixels, labels: npt.NDArray[Any], colours: Pixels, scale: int = 1, alpha: float = 0.5, outlines: bool = True
) -> Pixels:
    """Tint an image by labels, and draw a thin dark line between them.

    Parameters
    ----------
    grey, colours : ndarray, (rows, columns, 3)
    labels : ndarray of integers, (rows, columns)
        0 is not tinted, but darkened.
    scale : int
        Enlarges the picture; lines are a pixel wide.
    alpha : float
        1 shows colours only.
    """
    mixed = np.where(labels[..., None] > 0, (1 - alpha) * grey + alpha * colours, (1 - 0.8 * alpha) * grey)
    picture, large = enlarged(mixed, scale), enlarged(labels, scale)
    if outlines:
        line = np.zeros(large.shape, bool)
        line[1:] |= large[1:] != large[:-1]
        line[:, 1:] |= large[:, 1:] != large[:, :-1]
        picture[line] *= 0.35
    return picture


def length_of_bar(width: Fraction, unit: str) -> tuple[Fraction, str]:
    """Return a round length of at most a fifth of a width, in its unit, and its text.

    Examples
    --------
    >>> length_of_bar(Fraction(5200), "nm"), length_of_bar(Fraction(90), "voxels")
    ((Fraction(1000, 1), '1 µm'), (Fraction(10, 1), '10 voxels'))
    """
    length = Fraction(10) ** int(np.floor(np.log10(float(width / 5))))
    length *= max(k for k in (1, 2, 5) if k * length <= width / 5)
    shown, name = length, "µm" if unit == "um" else unit
    for fine, coarse in (("nm", "µm"), ("µm", "mm")):
        if name == fine and shown >= 1000:
            shown, name = shown / 1000, coarse
    return length, f"{float(shown):g} {name}"


def draw(panels: Sequence[Panel], columns: int | None = None) -> Picture:
    """Draw sections side by side, each with the scale of its own.

    Parameters
    ----------
    panels : sequence of Panel
    columns : int, optional
        By default up to four in a row.
    """
    n = min(columns or 4, len(panels))
    rows = -(-len(panels) // n)
    width = 3.6 if n > 2 else 4.4
    tallest = max(float(p.size[0] / p.size[1]) for p in panels)
    figure = Picture(figsize=(width * n, (width * tallest + 0.3) * rows), dpi=80, facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    for k, panel in enumerate(panels):
        axes = figure.add_subplot(rows, n, k + 1)
        height, across = map(float, panel.size)
        axes.imshow(panel.pixels, interpolation="auto", extent=(0, across, height, 0))
        axes.set_axis_off()
        axes.set_title(panel.title, color=INK, fontsize=10)
        length, text = length_of_bar(panel.size[1], panel.unit)
        left, foot = 0.04 * across, height - 0.04 * across
        rims = [[withStroke(linewidth=w, foreground=PAPER)] for w in (5, 3)]  # readable on white too
        bar = [left, left + float(length)]
        axes.plot(bar, [foot, foot], color=INK, lw=3, solid_capstyle="butt", path_effects=rims[0])
        axes.text(
            sum(bar) / 2, foot - 0.02 * across, text, color=INK, ha="center", va="bottom", fontsize=9, path_effects=rims[1]
        )
    return figure
