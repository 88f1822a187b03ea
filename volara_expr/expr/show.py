"""Expressions as text and HTML. Nothing computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from volara_expr.expr.node import ArrayNode, Node, TableNode, topological

__all__ = ["html_outline", "html_table", "one_line", "outline", "tree"]

TABLE = "border-collapse:collapse;font-size:13px;margin:4px 0"
CELL = "border:1px solid rgba(128,128,128,0.4);padding:3px 8px;text-align:left;vertical-align:top"
PRE = "font-family:monospace;font-size:12px;line-height:1.35;margin:6px 0;overflow-x:auto;white-space:pre"


def one_line(node: Node) -> str:
    """Return a node without its inputs: name, parameters, and what comes out."""
    return f"{node.label}({node.describe()}){result(node)}"


def result(node: Node) -> str:
    """Return what comes out of a node, as text after its name."""
    if isinstance(node, ArrayNode):
        shape = ", ".join(f"{a.name}: {n}" for a, n in zip(node.spec.space.axes, node.spec.shape, strict=True))
        return f" -> ({shape}) {node.spec.dtype}"
    if isinstance(node, TableNode):
        return f" -> table ({', '.join(node.columns)})"
    return ""


def tree(roots: Sequence[Node]) -> str:
    """Return expressions as a numbered list, inputs before users; each line names its inputs by number."""
    order = topological(roots)
    at = {id(n): i for i, n in enumerate(order)}
    width = len(str(len(order)))
    lines = []
    for i, n in enumerate(order):
        inputs = ", ".join(f"#{at[id(x)]}" for x in n.inputs)
        lines.append(f"#{i:<{width}} {one_line(n)}" + (f"  of {inputs}" if inputs else ""))
    return "\n".join(lines)


def tree_lines(root: Node, names: Mapping[Node, str], limit: int = 60) -> list[tuple[str, str, str]]:
    """Return an expression as a tree, the result first: for each line its indentation, the node's name or "", and its text.

    A node with one input stands right above it; several are set off by branches. What several use is told once.
    """
    out: list[tuple[str, str, str]] = []
    told: set[Node] = set()
    stack = [(root, "", "")]
    while stack and len(out) < limit:
        node, here, below = stack.pop()
        name = names.get(node, "")
        if node in told:
            out.append((here, name, f"{'' if name else node.label} (see above)"))
            continue
        told.add(node)
        halo = node.halo() if isinstance(node, ArrayNode) else None
        reach = f"  [halo {halo}]" if halo is not None and any((*halo.lo, *halo.hi)) else ""
        parameters = node.describe() if node.inputs or halo is None else ""  # what identifies a source tells a reader nothing
        text = f"{node.label}({parameters})" if parameters else node.label
        out.append((here, name, text + result(node) + reach))
        if len(node.inputs) == 1:
            stack.append((node.inputs[0], below, below))
        else:
            branches = [(x, below + "├─ ", below + "│  ") for x in node.inputs[:-1]]
            branches += [(x, below + "└─ ", below + "   ") for x in node.inputs[-1:]]
            stack += reversed(branches)
    if stack:
        out.append((stack[-1][1], "", f"... {len(topological([root])) - len(told):,} more nodes"))
    return out


def outline(root: Node, names: Mapping[Node, str]) -> str:
    """Return an expression as a tree of text, the result first."""
    return "\n".join(
        f"{at}{name}{' = ' if name and text[0] != ' ' else ''}{text}" for at, name, text in tree_lines(root, names)
    )


def html_outline(root: Node, names: Mapping[Node, str]) -> str:
    """Return an expression as a tree in HTML, the result first."""
    rows = [
        f"{at}<b>{escape(name)}</b>{' = ' if name and text[0] != ' ' else ''}{escape(text)}"
        for at, name, text in tree_lines(root, names)
    ]
    return f"<pre style='{PRE}'>{chr(10).join(rows)}</pre>"


def html_table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Return a table of cells that are HTML already; without a head, the first column is one.

    Styles are set cell by cell and name no colour but grey, so that the table reads on dark and on light, and where style sheets
    are stripped.
    """
    body = [f"<tr>{''.join(f'<th style={CELL!r}>{h}</th>' for h in head)}</tr>"] if head else []
    for row in rows:
        tags = ["td" if head or i else "th" for i in range(len(row))]
        body.append(f"<tr>{''.join(f'<{t} style={CELL!r}>{cell}</{t}>' for t, cell in zip(tags, row, strict=True))}</tr>")
    return f"<table style='{TABLE}'>{''.join(body)}</table>"
