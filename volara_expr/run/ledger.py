"""The record of what is finished: append-only, one file per worker, beside the data.

A ledger belongs to one stored node. Its folder holds `node.json` (what is stored, and the *incarnation* that the store must
also carry, so that a deleted or replaced output never counts as done) and `done/<worker>.log`: a header, then records of fixed
size in **write units**, so that a run with another grid, executor or memory budget continues it.

A record is appended after the data it speaks of was handed to the file system. Every few seconds, and when the worker closes
the log, everything is forced to disk and a *sync mark* appended. Records behind the last mark count as long as the machine that
wrote them has not been restarted since; so killing processes loses nothing, and a power cut loses a few seconds. What a power
cut may leave behind the last mark, zeros or half a record, counts as nothing; the same before a mark is damage, and an error.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import socket
import struct
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from volara_expr.geometry import Box
from volara_expr.geometry.grid import BlockGrid

__all__ = ["Entry", "Ledger", "LedgerError", "LedgerWriter"]

MAGIC = b"VXLEDGR1"
HEADER = struct.Struct("<8sHH16s36s")  # magic, axes, record size, incarnation, boot id
SYNC_SECONDS = 5.0
SYNC_MARK = 0xFFFFFFFF
PART_NONE = 0xFFFFFFFE


class LedgerError(RuntimeError):
    """A ledger that cannot be trusted. Never read as "done", never as "nothing done"."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A finished box of write units.

    Attributes
    ----------
    units : Box
        In units of the ledger's grid.
    part : str
        File that holds the rows, for tables; empty for arrays.
    group : int
        Row group in that file.
    """

    units: Box
    part: str = ""
    group: int = 0


def record_struct(ndim: int) -> struct.Struct:
    """Return the layout of a record: lower and upper unit index per axis, part number, row group, checksum."""
    return struct.Struct(f"<{2 * ndim}qIII")


@cache
def record_dtype(ndim: int) -> np.dtype[Any]:
    """Return the layout of `record_struct` for NumPy."""
    return np.dtype([("lo", "<i8", (ndim,)), ("hi", "<i8", (ndim,)), ("part", "<u4"), ("group", "<u4"), ("sum", "<u4")])


@cache
def boot_id() -> str:
    """Return an identity of this machine since its last start."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{socket.gethostname()}-unknown"


def boot_field() -> bytes:
    """Return the boot id as a ledger's header holds it."""
    return boot_id().encode()[:36].ljust(36)


def force_to_disk(folder: str) -> None:
    """Force everything written to the file system of `folder` to disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if not hasattr(libc, "syncfs"):
            os.sync()
        elif libc.syncfs(fd):
            code = ctypes.get_errno()
            raise OSError(code, f"data could not be forced to disk: {os.strerror(code)}", folder)
    finally:
        os.close(fd)


class Ledger:
    """The ledger of one stored node.

    Parameters
    ----------
    folder : path
    grid : BlockGrid
        The grid of write units. For a node without blocks, a grid of one block.
    """

    def __init__(self, folder: str | os.PathLike[str], grid: BlockGrid) -> None:
        self.folder = Path(folder)
        self.grid = grid

    @property
    def ndim(self) -> int:
        """Axes of the unit grid."""
        return len(self.grid.block)

    # --- identity -------------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any] | None:
        """Return the content of node.json, or None where there is no ledger yet."""
        path = self.folder / "node.json"
        try:
            text = path.read_text()
        except FileNotFoundError:
            return None
        try:
            content: dict[str, Any] = json.loads(text)
            _ = content["incarnation"]
        except (ValueError, KeyError) as e:
            raise LedgerError(
                f"the ledger {path} cannot be read ({e}); it neither proves nor disproves that work is done. "
                f"Delete the folder {self.folder} and run the same line with overwrite=True, to compute this again"
            ) from e
        return content

    def create(self, about: Mapping[str, Any]) -> str:
        """Start a ledger, or join the one that another driver has just started; returns the incarnation."""
        (self.folder / "done").mkdir(parents=True, exist_ok=True)
        content = {**about, "incarnation": uuid.uuid4().hex, "unit": list(self.grid.block), "origin": list(self.grid.origin)}
        temporary = self.folder / f"node.json.{uuid.uuid4().hex[:8]}"
        temporary.write_text(json.dumps(content, indent=1, default=str))
        try:
            os.link(temporary, self.folder / "node.json")  # fails where a rename would replace another driver's
        except FileExistsError:
            found = self.describe()
            assert found is not None
            return str(found["incarnation"])
        finally:
            temporary.unlink()
        return str(content["incarnation"])

    def discard(self) -> None:
        """Forget everything."""
        if self.folder.exists():
            trash = self.folder.with_name(f"{self.folder.name}.{uuid.uuid4().hex[:8]}.trash")
            self.folder.rename(trash)
            shutil.rmtree(trash)

    # --- reading --------------------------------------------------------------------------------------------------------

    def entries(self) -> Iterator[Entry]:
        """Yield every trusted record, file by file in order of their names.

        Raises
        ------
        LedgerError
            For a file that is damaged anywhere but in a record that was cut short at its end.
        """
        for worker, records in self._logs():
            for r in records:
                part = "" if r["part"] == PART_NONE else part_name(worker, int(r["part"]))
                yield Entry(Box(tuple(r["lo"].tolist()), tuple(r["hi"].tolist())), part, int(r["group"]))

    def _logs(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Yield the writer and the trusted records of every log, in order of their names."""
        about = self.describe()
        if about is None:
            return
        for path in sorted((self.folder / "done").glob("*.log")):
            yield path.stem, self._read(path, str(about["incarnation"]))

    def _read(self, path: Path, incarnation: str) -> npt.NDArray[Any]:
        raw = path.read_bytes()
        dtype = record_dtype(self.ndim)
        none = np.empty(0, dtype)
        if not any(raw[: HEADER.size]) or len(raw) < HEADER.size:  # the worker, or the machine, stopped while the file was made
            return none
        magic, ndim, size, made, boot = HEADER.unpack_from(raw)
        if magic != MAGIC or ndim != self.ndim or size != dtype.itemsize:
            raise LedgerError(self._damaged(path, "its header is not that of a ledger"))
        if made.hex() != incarnation:
            return none  # written for an output that has been replaced since
        body = memoryview(raw)[HEADER.size :]
        whole = len(body) // size
        records = np.frombuffer(body, dtype, whole)
        sums = np.fromiter((zlib.crc32(body[k : k + size - 4]) for k in range(0, whole * size, size)), np.uint32, whole)
        good = sums == records["sum"]
        marks = good & (records["part"] == SYNC_MARK)
        synced = int(np.flatnonzero(marks)[-1]) + 1 if marks.any() else 0
        kept = whole if boot == boot_field() else synced
        if not good[:kept].all():
            raise LedgerError(self._damaged(path, f"record {int(good.argmin())} of {whole} fails its checksum"))
        trusted: npt.NDArray[Any] = records[:kept][~marks[:kept]]
        return trusted

    def _damaged(self, path: Path, what: str) -> str:
        return (
            f"the ledger {path} is damaged: {what}. It neither proves nor disproves that work is done. "
            f"Delete the folder {self.folder} and run the same line with overwrite=True, to compute this again"
        )

    def done(self) -> npt.NDArray[np.bool_] | None:
        """Return which units are finished, over the unit grid; None where nothing is."""
        done: npt.NDArray[np.bool_] | None = None
        for worker, records in self._logs():
            there = records[self._has_rows(worker, records)]
            if not len(there):
                continue
            if done is None:
                done = np.zeros(self.grid.shape, bool)
            extents = there["hi"] - there["lo"]
            for extent in np.unique(extents, axis=0):  # of whole blocks and of those at the rim
                lo = there["lo"][(extents == extent).all(axis=1)]
                for offset in np.ndindex(*extent):
                    done[tuple((lo + np.array(offset)).T)] = True
        return done

    def _has_rows(self, worker: str, records: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Return for each record whether the part that it names is there, as it is for one that names none."""
        numbers, which = np.unique(records["part"], return_inverse=True)
        there = [n == PART_NONE or (self.folder / part_name(worker, int(n))).exists() for n in numbers]
        return np.array(there, bool)[which]

    def complete(self) -> bool:
        """Whether every unit is finished."""
        done = self.done()
        return done is not None and bool(done.all())

    def forced(self) -> bool:
        """Whether all that is recorded has been forced to disk: every log ends in the mark that says so."""
        size = record_dtype(self.ndim).itemsize
        for path in (self.folder / "done").glob("*.log"):
            with path.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(0, end - size))
                last = log.read()
            if end < HEADER.size + size or np.frombuffer(last, record_dtype(self.ndim))["part"] != SYNC_MARK:
                return False
        return True

    def groups(self) -> list[tuple[str, list[int]]]:
        """Return the row groups that count, as (file, groups), each cell once, in the order of the cells' index."""
        named = [(w, r) for w, all_ in self._logs() if len(r := all_[(all_["part"] != PART_NONE) & self._has_rows(w, all_)])]
        if not named:
            return []
        records = np.concatenate([r for _, r in named])
        writer = np.repeat(np.arange(len(named)), [len(r) for _, r in named])
        order = np.lexsort(records["lo"].T[::-1])  # stable: of several records of a cell, the first stays first
        lo = records["lo"][order]
        order = order[np.append(True, (lo[1:] != lo[:-1]).any(axis=1))]
        out: list[tuple[str, list[int]]] = []
        last = None
        for w, part, group in zip(
            writer[order].tolist(), records["part"][order].tolist(), records["group"][order].tolist(), strict=True
        ):
            if last == (w, part):
                out[-1][1].append(group)
            else:
                last = w, part
                out.append((str(self.folder / part_name(named[w][0], part)), [group]))
        return out

    def writer(self, worker: str, data: str = "") -> LedgerWriter:
        """Open this process's own log; `data` is the file or folder that holds what it will record, if not the ledger's."""
        about = self.describe()
        if about is None:
            raise LedgerError(f"there is no ledger at {self.folder}; was the output deleted while the run was going on?")
        return LedgerWriter(self, worker, str(about["incarnation"]), data)


def part_name(worker: str, number: int) -> str:
    """Return the file, within the ledger's folder, of a worker's part of a table."""
    return f"parts/{worker}-{number}.parquet"


class LedgerWriter:
    """Appends to the log of one worker.

    The file is made with the first record, so that a worker that finishes nothing leaves nothing.
    """

    def __init__(self, ledger: Ledger, worker: str, incarnation: str, data: str = "") -> None:
        self.ledger = ledger
        self.worker = f"{worker}-{uuid.uuid4().hex[:6]}"
        self.incarnation = incarnation
        self.data = data
        self.parts = 0
        self.record = record_struct(ledger.ndim)
        self.synced = time.monotonic()
        self.fd: int | None = None
        self.size = 0

    def next_part(self) -> tuple[int, str]:
        """Return number and path of a new part of the table; its rows do not exist until `append` names it."""
        number, self.parts = self.parts, self.parts + 1
        path = self.ledger.folder / part_name(self.worker, number)
        path.parent.mkdir(exist_ok=True)
        return number, str(path)

    def append(self, entries: Iterable[tuple[Box, int]], part: int | None = None) -> None:
        """Record finished boxes of units, each with its row group, in one write; `part` numbers the file, newest last."""
        self._write(b"".join(self._pack(units, PART_NONE if part is None else part, group) for units, group in entries))
        if time.monotonic() - self.synced > SYNC_SECONDS:
            self.sync()

    def _write(self, raw: bytes) -> None:
        """Append whole records or nothing: after half a record, all that follow would be out of step."""
        if self.fd is None:
            path = self.ledger.folder / "done" / f"{self.worker}.log"
            self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        if not self.size:
            head = HEADER.pack(MAGIC, self.ledger.ndim, self.record.size, bytes.fromhex(self.incarnation), boot_field())
            raw = head + raw
        written = os.write(self.fd, raw)
        if written != len(raw):
            os.ftruncate(self.fd, self.size)
            raise OSError(
                errno.ENOSPC,
                f"the ledger took {written} of {len(raw)} bytes; free space and run the same line again, what is recorded is kept",
                str(self.ledger.folder),
            )
        self.size += written

    def _pack(self, units: Box, part: int, group: int) -> bytes:
        body = self.record.pack(*units.lo, *units.hi, part, group, 0)[:-4]
        return body + struct.pack("<I", zlib.crc32(body))

    def sync(self) -> None:
        """Force all data to disk, then say so."""
        if self.fd is None:
            return
        folders = [str(self.ledger.folder), *([self.data] if self.data else [])]
        for folder in {os.stat(f).st_dev: f for f in folders}.values():  # a store may be a link to another file system
            force_to_disk(folder)
        zero = (0,) * self.ledger.ndim
        self._write(self._pack(Box(zero, zero), SYNC_MARK, 0))
        os.fsync(self.fd)
        self.synced = time.monotonic()

    def close(self) -> None:
        """Sync and close."""
        if self.fd is not None:
            try:
                self.sync()
            finally:
                os.close(self.fd)
                self.fd = None
