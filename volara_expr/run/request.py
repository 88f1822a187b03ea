"""What was asked of a run that may outlive the process which asked: enough for another process to end it in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dill

from volara_expr.expr import digest_of, pack, unpack
from volara_expr.expr.node import Packed
from volara_expr.plan.targets import Output

__all__ = ["Request", "requests", "save_request"]


@dataclass(frozen=True)
class Request:
    """What was asked.

    Attributes
    ----------
    packed : list
        The outputs' nodes, flat.
    asked : list
        Of each output: digest of its node, and the other fields of `Output`.
    keep : {"tables", "all"}
    keys : tuple of str
        Of the jobs that were still to run.
    """

    packed: Packed
    asked: list[tuple[str, Any, Any, Any, Any]]
    keep: Any
    keys: tuple[str, ...]

    def outputs(self) -> list[Output]:
        """Rebuild the outputs."""
        nodes = {n.digest: n for n in unpack(self.packed)}
        return [Output(nodes[digest], *rest) for digest, *rest in self.asked]


def save_request(folder: str, outputs: Sequence[Output], keep: Any, keys: Sequence[str]) -> None:
    """Write a request into the folder of its jobs; that of the same outputs is replaced."""
    asked = [(o.node.digest, o.url, o.chunks, o.shards, o.options) for o in outputs]
    path = Path(folder, f"{digest_of([str(a) for a in asked])}.request")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(dill.dumps(Request(pack([o.node for o in outputs]), asked, keep, tuple(keys)), recurse=True))
    temporary.replace(path)


def requests(folder: str | Path) -> list[Request]:
    """Return the requests in a folder. Unpickling runs code: use only folders that you trust."""
    return [dill.loads(path.read_bytes()) for path in sorted(Path(folder).glob("*.request"))]
