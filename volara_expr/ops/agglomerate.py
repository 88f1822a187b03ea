"""From fragments and affinities to a region graph, and from a region graph to segments: what the user says, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

from volara_expr.expr.node import ArrayNode, Neighborhood
from volara_expr.geometry.space import Length
from volara_expr.ops.cells import CELL, cell_shape, whole_voxels
from volara_expr.ops.graph_tables import (
    EdgeTable,
    Kind,
    MergedTable,
    NodeTable,
    RegionGraph,
    StoredGraph,
    fixed_point_scale,
)
from volara_expr.ops.lut import GraphComponentsLut, MutexWatershedLut
from volara_expr.ops.mask import Mask, carried_mask
from volara_expr.ops.matching import moved, on_voxels_of
from volara_expr.ops.regions import Watershed, neighborhood_of

__all__ = ["Channels", "cluster", "connect", "region_graph"]

Channels = slice | Sequence[int] | Sequence[Sequence[int]]


def region_graph(
    labels: ArrayNode,
    affs: ArrayNode,
    scores: Mapping[str, Channels],
    values: Mapping[str, ArrayNode],
    block_size: Length | Sequence[Length] | None,
) -> RegionGraph:
    """Compose the nodes of a region graph; see `Array.agglomerate`.

    Raises
    ------
    TypeError, ValueError, KeyError
        If the labels are no integers, the arrays do not cover the same voxels, or a score is not as it should be.
    """
    spec = labels.spec
    axis, neighborhood = neighborhood_of(affs.spec)
    if spec.dtype.kind not in "iu":
        raise TypeError(f"labels of dtype {spec.dtype} name no fragments; make integers of them with astype('uint64')")
    if affs.spec.dtype.kind not in "biuf":
        raise TypeError(f"affinities of dtype {affs.spec.dtype} have no sum; use integers or floats")
    inside = carried_mask(affs)
    given, affs = affs, on_voxels_of(spec, "the affinities", affs, axis)
    if inside is not None and not (isinstance(labels, Watershed) and labels.mask is inside):
        by = [b - a for a, b in zip(given.spec.box.lo, affs.spec.box.lo, strict=True)]
        labels = Mask(labels, moved(inside, [by[i] for i in affs.spec.space.spatial]))
    for name, value in values.items():
        if value.spec.dtype.kind not in "biuf":
            raise TypeError(f"mean_of {name!r} has dtype {value.spec.dtype}, which has no mean; use integers or floats")
    _check_names(("scores", tuple(scores), {"u", "v"}), ("mean_of", tuple(values), {"id", "size", *spec.space.names}))
    channels = tuple(_channels(name, which, neighborhood) for name, which in scores.items())
    if not channels:
        raise ValueError("scores is empty; name at least one, as in scores={'direct': slice(0, 3)}")

    own = labels.unit if block_size is None else None
    size = (CELL,) * len(spec.space.spatial) if block_size is None else whole_voxels(spec.space, block_size, "block_size", 1)
    cell = own or cell_shape(spec.space, size)
    # Labels with blocks of their own are at hand block by block, so their faces are read apart, as thin slabs.
    kinds: tuple[Kind, ...] = ("inner", "faces") if own else ("owned",)
    over = tuple(on_voxels_of(spec, f"mean_of {name!r}", value) for name, value in values.items())
    nodes = NodeTable(labels, over, tuple(values), cell)
    edges = tuple(EdgeTable(labels, affs, tuple(scores), channels, kind, cell) for kind in kinds)
    scales = [(name, fixed_point_scale(affs.spec.dtype)) for name in scores]
    scales += [(name, fixed_point_scale(value.spec.dtype)) for name, value in values.items()]
    return RegionGraph(
        MergedTable((nodes,), ("id",)),
        MergedTable(edges, ("u", "v")),
        tuple(scores),
        tuple(scales),
        spec.space,
    )


def _check_names(*families: tuple[str, tuple[str, ...], set[str]]) -> None:
    """Raise ValueError unless names can be columns: identifiers, distinct, none of the table's own."""
    taken: dict[str, str] = {}
    for what, names, reserved in families:
        for name in names:
            if not name.isidentifier():
                raise ValueError(f"{what} has the name {name!r}; use letters, digits and underscores, as columns have")
            if name in reserved or name.endswith(("_sum", "_count")):
                raise ValueError(f"{what} has the name {name!r}, which the table itself uses; choose another")
            if name in taken:
                raise ValueError(f"{name!r} is in {taken[name]} and in {what}; choose another name for one of them")
            taken[name] = what


def _channels(name: str, which: Channels, neighborhood: Neighborhood) -> tuple[int, ...]:
    """Return the channels that a score names by slice, by number or by offset."""
    n = len(neighborhood)
    listed = ", ".join(map(str, neighborhood))
    if isinstance(which, slice):
        found = tuple(range(n)[which])
    else:
        found = tuple(_channel(name, c, neighborhood) for c in which)
    if not found:
        raise ValueError(f"score {name!r} takes {which} of {n} channels, which is none; the neighborhood is {listed}")
    if len(set(found)) < len(found):
        raise ValueError(f"score {name!r} takes a channel twice: {found}; name each once")
    return found


def _channel(name: str, which: int | Sequence[int], neighborhood: Neighborhood) -> int:
    n = len(neighborhood)
    if isinstance(which, Sequence):
        offset = tuple(int(k) for k in which)
        if offset not in neighborhood:
            raise KeyError(f"score {name!r} takes the offset {offset}, which is not in the neighborhood {neighborhood}")
        return neighborhood.index(offset)
    if not -n <= which < n:
        raise IndexError(f"score {name!r} takes channel {which} of {n}; the neighborhood is {neighborhood}")
    return int(which) % n


def cluster(graph: RegionGraph | StoredGraph, weights: Mapping[str, Sequence[float]], combine: bool) -> MutexWatershedLut:
    """Return the node of a mutex watershed of the graph; see `Graph.mutex_watershed`.

    Raises
    ------
    KeyError, ValueError
        If a score is unknown, or a weight is no pair of finite numbers.
    """
    checked = []
    for name, pair in weights.items():
        if not isinstance(pair, Sequence) or len(pair) != 2 or not all(map(isfinite, pair)):
            raise ValueError(f"the weight of {name!r} is {pair!r}; give (factor, bias), as in {{{name!r}: (1.0, -0.5)}}")
        checked.append((name, float(pair[0]), float(pair[1])))
    scales = _scales(graph, tuple(weights))
    return MutexWatershedLut(graph.nodes, graph.edges, tuple(checked), scales, combine)


def connect(graph: RegionGraph | StoredGraph, thresholds: Mapping[str, float]) -> GraphComponentsLut:
    """Return the node of the connected components of the graph; see `Graph.components`.

    Raises
    ------
    KeyError, ValueError
        If a score is unknown, or a threshold is not finite.
    """
    wrong = [name for name, t in thresholds.items() if not isfinite(t)]
    if wrong:
        raise ValueError(f"the threshold of {wrong[0]!r} is {thresholds[wrong[0]]}; give a finite number")
    scales = _scales(graph, tuple(thresholds))
    return GraphComponentsLut(graph.nodes, graph.edges, tuple((n, float(t)) for n, t in thresholds.items()), scales)


def _scales(graph: RegionGraph | StoredGraph, names: Sequence[str]) -> tuple[int, ...]:
    unknown = [n for n in names if n not in graph.scores]
    if unknown:
        raise KeyError(f"no score {', '.join(map(repr, unknown))}; the graph has {', '.join(map(repr, graph.scores))}")
    if not names:
        raise ValueError(f"no score is given; name at least one of {', '.join(map(repr, graph.scores))}")
    scales = dict(graph.scales)
    return tuple(scales[n] for n in names)
