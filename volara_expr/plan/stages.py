"""From expressions to stages: what is stored, in which order, and why.

Everything starts fused. A node is stored only for a recorded reason: it is an output, a table or a checkpoint; its user needs
the neighbours' outputs of a label grid; two stages use it and computing it twice costs more than storing it; or its recomputed
halo costs more than the work itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from volara_expr.expr import ArrayNode, BlockTable, GlobalTable, Node, TableNode, topological
from volara_expr.geometry import Box
from volara_expr.plan.region import Region
from volara_expr.plan.targets import Frame, Output, Target, common_grid

__all__ = ["MAX_REDUNDANCY", "Group", "group_targets", "totals"]

MAX_REDUNDANCY = 2.0
STORE_NS_PER_BYTE = 5.0
"""Encoding and writing a byte once and reading it back, measured with zstd level 1 on one core, in nanoseconds."""


@dataclass
class Group:
    """Targets that one stage stores, before blocks are chosen.

    Attributes
    ----------
    targets : list of Target
    depth : int
        Groups of lower depth are complete before this one starts.
    region : Region
        From what is read to what is stored; for a table made at once, empty.
    """

    targets: list[Target]
    depth: int
    region: Region
    needs: list[Target] = field(default_factory=list)

    @cached_property
    def fused(self) -> Region:
        """The region as it is computed: pointwise parts as tables and loops."""
        region = Region(self.region.roots, self.region.leaves.values())
        region.fuse(totals(self.targets, region))
        return region


class _Graph:
    """The nodes of one plan and the decisions about them."""

    def __init__(self, outputs: Sequence[Output], found: Callable[[Node], bool]) -> None:
        self.outputs = {id(o.node): o for o in outputs}
        asked = set(self.outputs)
        self.order = topological([o.node for o in outputs], stop=lambda n: id(n) not in asked and found(n))
        self.found = {id(n) for n in self.order if id(n) not in asked and found(n)}
        self.targets: dict[int, Target] = {}
        for node in self.order:
            if id(node) in self.outputs:
                output = self.outputs[id(node)]
                self.store(node, "output" if output.url else "result")
            elif id(node) not in self.found:
                if isinstance(node, TableNode) and node.inputs:
                    self.store(node, "table")
                elif getattr(node, "stored", False):
                    self.store(node, "checkpoint")

    def store(self, node: Node, reason: str) -> None:
        """Decide that a node is stored."""
        self.targets[id(node)] = Target(node, reason, self.outputs.get(id(node)))

    def leaves(self, fused: Iterable[Node] = ()) -> list[Node]:
        """Return the nodes that a stage reads: all that is stored but what it computes itself."""
        inside = {id(n) for n in fused}
        return [n for n in self.order if (id(n) in self.targets or id(n) in self.found) and id(n) not in inside]

    def region(self, nodes: Sequence[Node]) -> Region:
        """Return the region that computes the given stored nodes."""
        roots: list[ArrayNode] = []
        for n in nodes:
            roots += [n] if isinstance(n, ArrayNode) else n.arrays
        return Region(dict.fromkeys(roots), self.leaves(nodes))

    def depths(self) -> tuple[dict[int, int], dict[int, list[int]]]:
        """Return the depth of every target, and the targets that it can share a stage with."""
        depth: dict[int, int] = {}
        mates: dict[int, list[int]] = {}
        for node in self.order:
            target = self.targets.get(id(node))
            if target is None:
                continue
            d = 1
            mates[id(node)] = []
            region = self.region([node])
            tables = {id(t): t for n in [node, *region.computed] for t in n.tables}
            for t in tables.values():
                if id(t) in depth:
                    d = max(d, depth[id(t)] + 1)
            for leaf in region.leaves.values():
                if id(leaf) not in depth or leaf is node:
                    continue
                if isinstance(node, GlobalTable) or not self.aligned(target, self.targets[id(leaf)], region):
                    d = max(d, depth[id(leaf)] + 1)
                else:
                    d = max(d, depth[id(leaf)])
                    mates[id(node)].append(id(leaf))
            depth[id(node)] = d
        return depth, mates

    def aligned(self, user: Target, used: Target, region: Region) -> bool:
        """Whether a block of `user` takes exactly the same block of `used`, so that one stage can make both."""
        a, b = user.frame, used.frame
        if a is None or b is None or a.key != b.key or common_grid([user, used]) is None:
            return False
        probe = middle_block(a, (user, used))
        boxes = region.demand(asked(user, probe))
        box = boxes.get(used.node) if isinstance(used.node, ArrayNode) else None
        return box == b.full(probe)

    def groups(self) -> list[Group]:
        """Put targets of equal depth that share something into groups."""
        depth, mates = self.depths()
        groups: list[list[int]] = []
        for key, target in self.targets.items():
            home = None
            if target.frame is not None:
                mine = {id(n) for n in self.region([target.node]).order}
                for group in groups:
                    first = self.targets[group[0]]
                    if depth[group[0]] != depth[key] or first.frame is None or first.frame.key != target.frame.key:
                        continue
                    members = [self.targets[k] for k in group]
                    if common_grid([*members, target]) is None or any(m.in_memory for m in (*members, target)):
                        continue
                    theirs = {id(n) for m in members for n in self.region([m.node]).order} | set(group)
                    if set(mates[key]) & set(group) or mine & theirs:
                        home = group
                        break
            if home is None:
                groups.append([key])
            else:
                home.append(key)
        made = []
        for group in sorted(groups, key=lambda g: depth[g[0]]):
            members = [self.targets[k] for k in group]
            region = self.region([t.node for t in members])
            read = {id(n) for n in region.leaves.values()}
            read |= {id(t) for n in [*region.computed, *(m.node for m in members)] for t in n.inputs}
            needs = [t for k, t in self.targets.items() if k in read and k not in group]
            made.append(Group(members, depth[group[0]], region, needs))
        return made


def asked(target: Target, block: Box) -> dict[ArrayNode, Box]:
    """Return the boxes of the region's roots that a block of one target takes (the hull of all reads of a table)."""
    assert target.frame is not None
    if isinstance(target.node, ArrayNode):
        return {target.node: target.frame.full(block)}
    boxes: dict[ArrayNode, Box] = {}
    assert isinstance(target.node, BlockTable)
    for read in target.node.demands(target.frame.full(block)):
        for x, box in zip(target.node.arrays, read, strict=True):
            if box is not None:
                boxes[x] = boxes[x].hull(box) if x in boxes else box
    return boxes


def totals(targets: Sequence[Target], region: Region) -> dict[ArrayNode, Box]:
    """Return what all blocks of some targets together take of each node of their region; at most that, where tables look at faces."""
    roots = [x for t in targets for x in ([t.node] if isinstance(t.node, ArrayNode) else t.node.arrays)]
    return region.demand({x: x.spec.box for x in roots})


def middle_block(frame: Frame, targets: Sequence[Target], least: int = 1) -> Box:
    """Return a block of whole write units in the middle of the frame; halos show there."""
    grid = common_grid(list(targets))
    unit, origin = grid if grid else (targets[0].unit, targets[0].origin)
    unit = tuple(u * -(-least // u) for u in unit)
    lo = tuple(o + (a + (b - a) // 2 - o) // u * u for a, b, o, u in zip(frame.box.lo, frame.box.hi, origin, unit, strict=True))
    return Box.of_shape(unit, lo).clip(frame.box)


def group_targets(outputs: Sequence[Output], found: Callable[[Node], bool] = lambda _: False) -> list[Group]:
    """Decide what is stored and group it into stages.

    Parameters
    ----------
    outputs : sequence of Output
    found : callable
        Whether a node is already stored, complete, by an earlier run.

    Returns
    -------
    list of Group
        In the order in which they run.
    """
    graph = _Graph(outputs, found)
    while True:
        groups = graph.groups()
        decision = labels_to_store(graph, groups) or shared_to_store(groups) or halo_to_store(groups)
        if decision is None:
            return groups
        graph.store(*decision)


def labels_to_store(graph: _Graph, groups: Sequence[Group]) -> tuple[Node, str] | None:
    """Find a label grid that two stages use or that a user needs beyond the block: labels are never computed twice."""
    for node in graph.order:
        if not isinstance(node, ArrayNode) or node.unit is None:
            continue
        users = [g for g in groups if node in g.region.computed and id(node) not in graph.targets]
        if len(users) > 1:
            return node, f"labels that {len(users)} stages use are stored, never computed twice"
        for g in users:
            t = g.targets[0]
            if t.frame is None or t.in_memory:
                continue
            box = g.region.demand(asked(t, middle_block(t.frame, g.targets, least=min(64, max(t.frame.box.shape))))).get(node)
            whole = box is None or box.clip(node.spec.box) == box.snap(node.unit, (0,) * box.ndim).clip(node.spec.box)
            if not whole:
                return node, f"write blocks of {g.targets[0].name} cut through its blocks of {node.unit}"
    return None


def shared_to_store(groups: Sequence[Group]) -> tuple[Node, str] | None:
    """Find a node that several stages compute although storing it once is cheaper."""
    seen: dict[int, list[Group]] = {}
    nodes: dict[int, ArrayNode] = {}
    for g in groups:
        for n in g.region.computed:
            seen.setdefault(id(n), []).append(g)
            nodes[id(n)] = n
    best: tuple[float, Node, str] | None = None
    for key, users in seen.items():
        node = nodes[key]
        if len(users) < 2 or any(t.node is node for g in users for t in g.targets):
            continue
        again = sum(work(g, node) for g in users[1:])
        store = node.spec.nbytes * STORE_NS_PER_BYTE
        if again > store and (best is None or again - store > best[0]):
            best = (again - store, node, f"{len(users)} stages use it and computing it again costs more than storing it")
    return None if best is None else best[1:]


def upstream(node: ArrayNode, region: Region) -> list[ArrayNode]:
    """Return the node and all that is computed for it in the region."""
    nodes = topological([node], stop=lambda n: id(n) in region.leaves)
    return [n for n in nodes if isinstance(n, ArrayNode) and id(n) not in region.leaves]


def work(group: Group, node: ArrayNode) -> float:
    """Estimate the nanoseconds that a stage spends on a node and on what only leads to it."""
    t = group.targets[0]
    if t.frame is None:
        return 0.0
    probe = middle_block(t.frame, group.targets, least=64)
    boxes: dict[ArrayNode, Box] = {}
    for target in group.targets:
        for root, box in asked(target, probe).items():
            boxes[root] = boxes[root].hull(box) if root in boxes else box
    boxes = group.region.demand(boxes)
    ns = sum(n.cost * boxes[n].size for n in upstream(node, group.region) if n in boxes)
    return ns * t.frame.box.size / max(1, probe.size)


def halo_to_store(groups: Sequence[Group]) -> tuple[Node, str] | None:
    """Find the node to store where recomputed halos cost more than `MAX_REDUNDANCY` times the work."""
    for g in groups:
        t = g.targets[0]
        if t.frame is None or t.in_memory:
            continue
        probe = middle_block(t.frame, g.targets, least=128 if len(t.frame.box.shape) > 2 else 1024)
        boxes: dict[ArrayNode, Box] = {}
        for target in g.targets:
            for root, box in asked(target, probe).items():
                boxes[root] = boxes[root].hull(box) if root in boxes else box
        boxes = g.region.demand(boxes)
        stored = {id(x.node) for x in g.targets}
        share = probe.size / max(1, t.frame.box.size)
        done = {n: n.cost * boxes[n].size for n in g.region.computed if n in boxes}
        once = {n: n.cost * n.spec.box.size * share for n in done}
        total = sum(once.values())
        if not total or sum(done.values()) <= MAX_REDUNDANCY * total:
            continue
        best: tuple[float, Node] | None = None
        for node in done:
            if id(node) in stored or node.spec.box.size * share >= boxes[node].size:
                continue
            behind = [n for n in upstream(node, g.region) if n in done]
            saved = sum(done[n] - once[n] for n in behind) - node.spec.nbytes * share * STORE_NS_PER_BYTE
            if saved > 0 and (best is None or saved > best[0]):
                best = (saved, node)
        if best is not None:
            return best[
                1
            ], f"its recomputed halo would make {sum(done.values()) / total:.1f}x the work (limit {MAX_REDUNDANCY:g}x)"
    return None
