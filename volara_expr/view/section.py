"""Sections of arrays: which voxels they are, and how they become panels of a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from volara_expr.config import config
from volara_expr.expr import ArrayNode
from volara_expr.geometry import Box
from volara_expr.geometry.space import SHORT
from volara_expr.plan.blocks import gb

if TYPE_CHECKING:
    from volara_expr.view.picture import Picture

__all__ = ["draw_sections", "is_labels", "previews", "region_box", "section"]

Region = Mapping[str, slice | int]
SHOWN_EDGE, SCALE_MOST = 1000, 8
"""Sections are enlarged to about so many pixels, by this much at most, so that outlines can be thinner than a voxel."""


def draw_sections(
    titled: Sequence[tuple[str, ArrayNode]],
    region: Region,
    overlay: ArrayNode | None = None,
    limits: tuple[float, float] | None = None,
    alpha: float = 0.5,
    outlines: bool = True,
    columns: int | None = None,
) -> Picture:
    """Draw a section of each array; see `volara_expr.show`."""
    from volara_expr.view.picture import Panel, colours_of, draw, enlarged, grey_of, tinted

    if not titled:
        raise TypeError("nothing to show; give at least one array")
    nodes = [node for _, node in titled] + ([] if overlay is None else [overlay])
    unknown = set(region) - {name for node in nodes for name in node.spec.space.names}
    if unknown:
        raise TypeError(
            f"no array has an axis {', '.join(sorted(unknown))}; the first has {', '.join(nodes[0].spec.space.names)}"
        )
    cuts = {node: section(node, region) for node in nodes}
    values = previews({node: box for node, (box, _) in cuts.items()})
    flat = {node: arranged(v, axes) for v, (node, (_, axes)) in zip(values, cuts.items(), strict=True)}
    panels = []
    for title, node in titled:
        shape = flat[node].shape[:2]
        scale = max(1, min(SCALE_MOST, SHOWN_EDGE // max(shape)))
        labels = flat[node] if is_labels(node.spec.dtype) else None if overlay is None else flat[overlay]
        if labels is None:
            pixels = enlarged(grey_of(flat[node], limits), scale)
        elif labels.shape[:2] != shape:
            raise ValueError(
                f"the overlay has a section of {labels.shape[:2]} voxels, {title!r} one of {shape}; ve.align() them first"
            )
        else:
            alone = is_labels(node.spec.dtype)
            image = np.zeros((*shape, 3)) if alone else grey_of(flat[node], limits)
            ids = labels.reshape(*shape, -1)[..., 0]
            pixels = tinted(image, ids, colours_of(ids), scale, 1.0 if alone else alpha, outlines)
        space, (i, j) = node.spec.space, cuts[node][1][:2]
        unit = space.axes[j].unit
        size = shape[0] * space.voxel_size[i], shape[1] * space.voxel_size[j]
        panels.append(Panel(pixels, title, size, SHORT.get(unit, unit) if unit else "voxels"))
    return draw(panels, columns)


def is_labels(dtype: np.dtype[Any]) -> bool:
    """Whether an array is taken for labels."""
    return dtype.kind in "iu" and dtype.itemsize >= 4


def section(node: ArrayNode, region: Region) -> tuple[Box, tuple[int, ...]]:
    """Return the box of a section, and its axes: rows, columns and, where there is one, channels."""
    space, shape = node.spec.space, node.spec.shape
    if not node.spec.box.size:
        raise IndexError(f"an array of shape {shape} has nothing to show; give a slice that is not empty")
    given: dict[str, slice | int] = {name: item for name, item in region.items() if name in space.names}
    free = [i for i in space.spatial if not isinstance(given.get(space.names[i]), (int, np.integer))]
    if len(free) < 2:
        raise TypeError(
            f"a section needs two space axes without a number, and of {', '.join(space.names)} only {len(free)} is left"
        )
    channel: tuple[int, ...] = ()
    for i, axis in enumerate(space.axes):
        if i in free[:-2]:
            given[axis.name] = shape[i] // 2
        elif axis.type != "space" and not isinstance(given.get(axis.name), (int, np.integer)):
            if axis.type == "time" or channel:
                given[axis.name] = 0
            else:
                channel = (i,)
                given.setdefault(axis.name, slice(0, 3))
    return region_box(node, given), (*free[-2:], *channel)


def arranged(values: npt.NDArray[Any], axes: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return a section with rows and columns first, and none or three channels last."""
    order = axes + tuple(i for i in range(values.ndim) if i not in axes)
    flat = values.transpose(order).reshape([values.shape[i] for i in axes])
    if flat.ndim == 2:
        return flat
    if flat.shape[2] >= 3:
        return flat[..., :3]
    if flat.shape[2] == 1:
        return flat[..., 0]
    return np.concatenate([flat, np.zeros_like(flat[..., :1])], axis=-1)


def region_box(node: ArrayNode, region: Region) -> Box:
    """Return the box that is asked for by numbers and slices along named axes.

    Raises
    ------
    TypeError, ValueError, IndexError
        If there is no such axis, a slice has a step, or nothing is selected.
    """
    names, box = node.spec.space.names, node.spec.box
    unknown = set(region) - set(names)
    if unknown:
        raise TypeError(f"the array has no axis {', '.join(sorted(unknown))}; its axes are {', '.join(names)}")
    lo, hi = list(box.lo), list(box.hi)
    for i, name in enumerate(names):
        if (item := region.get(name)) is None:
            continue
        n = box.shape[i]
        if isinstance(item, slice):
            start, stop, step = item.indices(n)
            if step != 1:
                raise ValueError(f"preview({name}={item}) has a step; slice the array instead")
        else:
            start = int(item) + (n if item < 0 else 0)
            stop = start + 1
        if not 0 <= start < stop <= n:
            raise IndexError(f"{name}={item} selects nothing of {n} voxels")
        lo[i], hi[i] = box.lo[i] + start, box.lo[i] + stop
    return Box(tuple(lo), tuple(hi))


def previews(asked: Mapping[ArrayNode, Box]) -> list[npt.NDArray[Any]]:
    """Return boxes of arrays, unless they have too much."""
    from volara_expr.run.preview import preview

    nbytes = sum(box.size * node.spec.dtype.itemsize for node, box in asked.items())
    if nbytes > config.preview_bytes:
        raise MemoryError(f"that region has {gb(nbytes)}; a preview makes at most {gb(config.preview_bytes)}")
    return preview(dict(asked))
