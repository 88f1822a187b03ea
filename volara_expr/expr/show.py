"""Expressions as text. Nothing computes."""

from __future__ import annotations

from collections.abc import Sequence

from volara_expr.expr.node import ArrayNode, Node, TableNode, topological

__all__ = ["one_line", "tree"]


def one_line(node: Node) -> str:
    """Return a node without its inputs: name, parameters, and what comes out."""
    text = f"{node.label}({node.describe()})"
    if isinstance(node, ArrayNode):
        shape = ", ".join(f"{a.name}: {n}" for a, n in zip(node.spec.space.axes, node.spec.shape, strict=True))
        return f"{text} -> ({shape}) {node.spec.dtype}"
    if isinstance(node, TableNode):
        return f"{text} -> table ({', '.join(node.columns)})"
    return text


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
