"""A small real job for trying out executors: it writes one file per block and logs on disk what ran where."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from executors.protocol import Resources, job_file

__all__ = ["ToyJob"]


@dataclass
class ToyJob:
    """Block `i` gives the bytes of the text of ``body(i)``, in the file ``folder/result/i``.

    Attributes
    ----------
    folder : str
        A folder of its own; made by `setup`.
    n_blocks : int
    body : callable, optional
        Called in `compute` with the block's number; `str` where not given.
    opener, reader, writer : callable, optional
        Called in `setup` with the device and in `read` and `write` with the block's number; they may raise.
    files : bool
        False leaves the result files out, which measures an executor rather than a disk.
    """

    folder: str
    n_blocks: int
    body: Callable[[int], Any] = str
    key: str = "toy"
    needs: tuple[str, ...] = ()
    opener: Callable[[str], Any] = str
    reader: Callable[[int], Any] = int
    writer: Callable[[int], Any] = int
    files: bool = True
    resources: Resources = field(default_factory=Resources)

    def __post_init__(self) -> None:
        self.name = f"toy {self.key}"

    def pending(self) -> Iterator[range]:
        """Find the runs of blocks without a record."""
        done = self.done()
        if not done:
            yield range(self.n_blocks)
            return
        missing = (i for i in range(self.n_blocks) if i not in done)
        for _, run in groupby(enumerate(missing), key=lambda pair: pair[1] - pair[0]):
            blocks = [i for _, i in run]
            yield range(blocks[0], blocks[-1] + 1)

    def setup(self, device: str) -> None:
        """Make the folder of the results."""
        self.opener(device)
        (Path(self.folder) / "result").mkdir(parents=True, exist_ok=True)

    def read(self, i: int) -> int:
        """Hand on the number."""
        self.reader(i)
        return i

    def compute(self, work: int) -> tuple[int, bytes]:
        """Log the number and this process, then call the body."""
        if self.files:
            self._log("ran", f"{work} {os.getpid()}")
        return work, str(self.body(work)).encode()

    def write(self, result: tuple[int, bytes]) -> int:
        """Write the file, then the record; returns the number of bytes."""
        block, data = result
        self.writer(block)
        if self.files:
            (Path(self.folder) / "result" / str(block)).write_bytes(data)
            self._log("done", str(block))
        return len(data)

    def close(self) -> None:
        """Log that `setup` was undone."""
        self._log("closed", str(os.getpid()))

    def finish(self) -> None:
        """Log the call."""
        self._log("finished", str(len(self.done())))

    def describe(self, i: int) -> str:
        """Name the block and the command that runs it alone."""
        return f"toy block {i}; run it alone with: python -m executors.worker {job_file(self)} {i}"

    def done(self) -> set[int]:
        """Blocks on record."""
        return {int(line) for line in self.log("done")}

    def ran(self) -> Counter[int]:
        """How often the body of each block was entered."""
        return Counter(int(line.split()[0]) for line in self.log("ran"))

    def pids(self, block: int | None = None) -> list[int]:
        """Return the processes that entered the body (of one block), in order."""
        pairs = [line.split() for line in self.log("ran")]
        return [int(pid) for i, pid in pairs if block is None or int(i) == block]

    def results(self) -> dict[int, bytes]:
        """Bytes of every result file."""
        return {int(path.name): path.read_bytes() for path in (Path(self.folder) / "result").iterdir()}

    def log(self, name: str) -> list[str]:
        """Lines of a log, oldest first: "ran", "done", "closed" or "finished"."""
        path = Path(self.folder) / f"{name}.log"
        return path.read_text().splitlines() if path.exists() else []

    def _log(self, name: str, line: str) -> None:
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        log = os.open(Path(self.folder) / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(log, f"{line}\n".encode())
        finally:
            os.close(log)
