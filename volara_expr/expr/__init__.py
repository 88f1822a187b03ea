"""Expressions as immutable data: nodes, their specs and their digests. No I/O, no configuration, nothing computes."""

from volara_expr.expr.digest import digest_of
from volara_expr.expr.node import (
    ArrayNode,
    ArraySpec,
    BlockTable,
    GlobalTable,
    Node,
    Patch,
    TableNode,
    pack,
    topological,
    unpack,
)

__all__ = [
    "ArrayNode",
    "ArraySpec",
    "BlockTable",
    "GlobalTable",
    "Node",
    "Patch",
    "TableNode",
    "digest_of",
    "pack",
    "topological",
    "unpack",
]
