"""The job of a stage that makes one table from whole tables."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

from volara_expr.expr import GlobalTable, Node
from volara_expr.expr.origin import explained
from volara_expr.run.block import resolve
from volara_expr.run.compiler import Call, Compiler, by_text, calls_of
from volara_expr.run.job import Record, StageJob, open_table, unit_box

__all__ = ["TableJob"]


@dataclass
class TableJob(StageJob):
    """A stage that makes one table at once from whole tables.

    Attributes
    ----------
    memory_bytes : int
        What the step may use.
    """

    memory_bytes: int = 0

    def pending(self) -> Iterator[range]:
        """Yield the one block, unless the table is there."""
        if not self.places[self.stored[0]].complete():
            yield range(1)

    def calls(self) -> list[Call]:
        """Return the calls that compile the kernel of the step."""
        return calls_of([self.nodes()[self.stored[0]]])

    def setup(self, device: str) -> None:
        """Compile what the step runs."""
        self._compiler = Compiler(by_text(self.calls()), by_text(self.later))

    def close(self) -> None:
        """Release the compiler."""
        if hasattr(self, "_compiler"):
            self._compiler.close()
            del self._compiler

    def read(self, i: int) -> None:
        """Tables are read by the step itself."""

    def compute(self, work: None) -> tuple[float, Node]:
        """Make the table."""
        started = time.perf_counter()
        self._compiler.wait()
        node = self.nodes()[self.stored[0]]
        assert isinstance(node, GlobalTable)
        place = self.places[node.digest]
        os.makedirs(os.path.dirname(place.url), exist_ok=True)
        tables = [open_table(t, self.places.get(t.digest)) for t in node.tables]
        with explained(node.label, node.origin):
            node.run(resolve(node.kernel), tables, place.url, self.memory_bytes)
        return time.perf_counter() - started, node

    def write(self, result: tuple[float, Node]) -> Record:
        """Record the table."""
        place = self.places[self.stored[0]]
        place.stamp()
        log = place.ledger.writer(f"{socket.gethostname()}-{os.getpid()}", place.url)
        try:
            log.append([(unit_box((0,)), 0)])
        finally:
            log.close()
        return Record(0, 0.0, result[0], 0.0)
