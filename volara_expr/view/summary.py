"""What notebooks show of an expression: facts and its tree, from metadata alone. Nothing is read or computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from volara_expr.expr import ArrayNode, Node, topological
from volara_expr.expr.show import html_outline, html_table
from volara_expr.geometry import Box
from volara_expr.ops.graph_tables import StoredGraph, StoredTable
from volara_expr.ops.sources import Checkpoint, InMemory, StoredArray
from volara_expr.plan.blocks import gb
from volara_expr.plan.plan import by, make_plan
from volara_expr.plan.targets import Output

__all__ = ["array_html", "inferred_halo", "table_html"]

Names = Mapping[Node, str]


def array_html(node: ArrayNode, names: Names) -> str:
    """Return a summary of an array."""
    spec, space = node.spec, node.spec.space
    rows = [
        ("array", f"<b>{escape(names.get(node, node.label))}</b>"),
        ("shape", escape(", ".join(f"{a}: {n:,}" for a, n in zip(space.names, spec.shape, strict=True)))),
        ("type", f"{spec.dtype}, {gb(spec.nbytes)}"),
    ]
    if space.placed:
        rows += [("voxel", escape(space.describe_voxel())), ("position", escape(str(space.roi(spec.box))))]
    if spec.neighborhood is not None:
        shown = ", ".join(str(o) for o in spec.neighborhood[:12])
        rows.append(("neighborhood", f"{len(spec.neighborhood)} offsets: {shown}{', ...' * (len(spec.neighborhood) > 12)}"))
    halo = inferred_halo(node)
    if halo:
        reach = ", ".join(f"{name}: {lo}" if lo == hi else f"{name}: -{lo}+{hi}" for name, (lo, hi) in halo.items())
        rows.append(("inferred halo", escape(f"{reach} voxels of the sources")))
    return html_table(rows + costs(node, names)) + html_outline(node, names)


def table_html(kind: str, node: Node, facts: Sequence[tuple[str, str]], names: Names) -> str:
    """Return a summary of a region graph or of a look-up table."""
    rows = [(kind, f"<b>{escape(names.get(node, node.label))}</b>"), *((what, escape(value)) for what, value in facts)]
    stored = isinstance(node, (StoredGraph, StoredTable)) or not node.inputs
    return html_table(rows) if stored else html_table(rows + costs(node, names)) + html_outline(node, names)


def costs(node: Node, names: Names) -> list[tuple[str, str]]:
    """Return rows on what an expression reads and what it would take to write it."""
    rows = []
    for n in topological([node]):
        if isinstance(n, StoredArray):
            rows.append(("reads", f"{escape(names.get(n, n.label))}: {gb(n.spec.nbytes)} in chunks of {by(n.chunks)}"))
        elif isinstance(n, InMemory):
            rows.append(
                ("reads", f"{escape(names.get(n, n.label))}: {by(n.spec.shape)} {n.spec.dtype}, {gb(n.spec.nbytes)} in memory")
            )
    root = Checkpoint(node) if isinstance(node, ArrayNode) and not node.inputs else node
    try:
        plan = make_plan([Output(root, "plan.zarr")])
    except (MemoryError, ValueError) as e:  # a repr says what write() would say
        return [*rows, ("to write it", escape(str(e)))]
    n_blocks = sum(s.n_blocks for s in plan.stages)
    stages = f"{len(plan.stages)} stage{'s' * (len(plan.stages) != 1)}, {n_blocks:,} block{'s' * (n_blocks != 1)}"
    rows.append(("to write it", f"{stages}, projected memory {gb(plan.peak_bytes)} per worker"))
    return rows


def inferred_halo(node: ArrayNode) -> dict[str, tuple[int, int]]:
    """Return how far beyond a block the sources are read, below and above, for each space axis on which they share its voxels.

    The block is a whole one of the semantic grid where there is one (`watershed`), else a voxel. Axes along which nothing is read
    beyond it are left out.
    """
    order = [n for n in topological([node]) if isinstance(n, ArrayNode)]
    spec = node.spec
    unit = next((n.unit for n in order if n.unit is not None and n.spec.ndim == spec.ndim), (1,) * spec.ndim)
    lo, hi = list(spec.box.lo), list(spec.box.hi)  # channels are taken whole
    for i in spec.space.spatial:
        lo[i] = (lo[i] + hi[i]) // 2 // unit[i] * unit[i]
        hi[i] = lo[i] + unit[i]
    block = Box(tuple(lo), tuple(hi))
    boxes = {node: block}
    halo: dict[str, tuple[int, int]] = {}
    for n in reversed(order):
        if n not in boxes:
            continue
        for x, need in zip(n.arrays, n.need(boxes[n]), strict=True):
            if need is not None:
                boxes[x] = boxes[x].hull(need) if x in boxes else need
        own = n.spec.space
        for i in () if n.inputs else spec.space.spatial:
            name = spec.space.names[i]
            if name in own.names and own.voxel_size[j := own.names.index(name)] == spec.space.voxel_size[i]:
                below, above = block.lo[i] - boxes[n].lo[j], boxes[n].hi[j] - block.hi[i]
                if below > 0 or above > 0:
                    old = halo.get(name, (0, 0))
                    halo[name] = max(old[0], below), max(old[1], above)
    return halo
