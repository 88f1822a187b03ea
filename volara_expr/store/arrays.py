"""Blocks of voxels in and out of stores, through tensorstore."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from numpy.typing import NDArray

from volara_expr.geometry import Box
from volara_expr.store.files import sync
from volara_expr.store.open import ArrayInfo, open_array, open_handle, write_unit

__all__ = ["Arrays", "Pending"]

Where = ArrayInfo | str | os.PathLike[str]
SYNCS_AT_ONCE = 8
"""Syncs that run together share a commit of the file system's journal: 64 chunks take 0.02 s, one after the other 0.25 s."""


class Pending:
    """A read or a write under way."""

    __slots__ = ("_explain", "_future")

    def __init__(self, future: Any, explain: Callable[[Exception], OSError]) -> None:
        self._future = future
        self._explain = explain

    def done(self) -> bool:
        """Whether `result` returns at once."""
        return bool(self._future.done())

    def result(self) -> Any:
        """Wait; return the C-contiguous array of a read, None of a write.

        Raises
        ------
        OSError
            If a chunk cannot be read or written; the message names array, chunk and file. ENOSPC for a full disk.
        """
        try:
            return self._future.result()
        except Exception as error:
            raise self._explain(error) from error


class Arrays:
    """The open arrays of one process, with one cache of decoded chunks and one pool of threads.

    Parameters
    ----------
    cache_bytes : int
        For decoded chunks; neighbouring blocks share those in their halos.
    threads : int, optional
        Threads that decode, and files that are read at once. Default: as many as there are cores.

    Notes
    -----
    tensorstore aborts in a forked child: start workers by spawn. Writes reach the disk with `sync`, not before.
    """

    def __init__(self, cache_bytes: int = 64 * 2**20, threads: int | None = None) -> None:
        import tensorstore as ts  # 0.15 s that `import volara_expr` is spared

        limit = {"limit": threads} if threads is not None else {}
        self._context = ts.Context(
            {
                "cache_pool": {"total_bytes_limit": cache_bytes},
                "data_copy_concurrency": limit,
                "file_io_concurrency": limit,
                "file_io_sync": False,
            }
        )
        self._open: dict[str, tuple[ArrayInfo, Any]] = {}
        self._syncing = ThreadPoolExecutor(SYNCS_AT_ONCE, "sync")

    def __enter__(self) -> Arrays:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of all open arrays, the cache and the threads; no call may follow."""
        self._open.clear()
        self._syncing.shutdown()

    def info(self, where: Where) -> ArrayInfo:
        """Return what an array is; read from its store the first time only."""
        return self._get(where)[0]

    def read(self, where: Where, box: Box) -> Pending:
        """Start to read a box.

        Parameters
        ----------
        where : ArrayInfo, str or PathLike
        box : Box
            In the stored array's own voxel index, inside the array.

        Returns
        -------
        Pending
            Its `result()` is a C-contiguous ndarray of the box's shape, all axes in stored order (N5: reversed, x last).

        Raises
        ------
        ValueError
            If the box reaches beyond the array.
        """
        info, handle = self._get(where)
        _check_inside(info, box)
        return Pending(handle[box.slices((0,) * box.ndim)].read(), lambda error: self._read_error(info, handle, box, error))

    def write(self, where: Where, box: Box, array: NDArray[Any]) -> Pending:
        """Start to write a box; `array` may be changed once this returns.

        Parameters
        ----------
        where : ArrayInfo, str or PathLike
        box : Box
            In the stored array's own voxel index. Whole write units, or two writers lose voxels (`check_alignment`).
        array : ndarray
            Of the box's shape and the stored dtype, in any memory layout.

        Raises
        ------
        ValueError
            If shapes differ or the box reaches beyond the array.
        TypeError
            If the dtypes differ.
        """
        info, handle = self._get(where)
        _check_inside(info, box)
        if array.shape != box.shape:
            raise ValueError(f"an array of shape {array.shape} does not fill the box {box} of {box.shape} voxels in {info.url}")
        if array.dtype.newbyteorder("=") != info.dtype:
            raise TypeError(f"{info.url} holds {info.dtype}, the block {array.dtype}; convert with astype({str(info.dtype)!r})")
        if info.driver == "n5":
            raise ValueError(f"{info.url} is N5, which is read only here; write to a zarr array")
        _remove_damaged(info, handle, box)
        futures = handle[box.slices((0,) * box.ndim)].write(array)
        pending = Pending(futures.commit, lambda error: _write_error(info, box, error))
        Pending(futures.copy, lambda error: _write_error(info, box, error)).result()
        futures.commit.force()
        return pending

    def sync(self, where: Where, box: Box) -> None:
        """Force the chunk files of a box, whose write is complete, to the disk.

        After this a power cut does not lose them, so the ledger may say done. Chunks that hold only the fill value have no
        file. Only for local stores; a server has stored what it acknowledged.
        """
        info = self.info(where)
        if not info.local:
            return
        paths = set()
        for index in info.chunk_indices(box):
            path = f"{info.url}/{info.chunk_key(index)}"
            while path not in paths and len(path) >= len(info.url):
                paths.add(path)
                path = os.path.dirname(path)
        list(self._syncing.map(_sync_existing, paths))

    def _get(self, where: Where) -> tuple[ArrayInfo, Any]:
        key = where.url if isinstance(where, ArrayInfo) else os.fspath(where)
        held = self._open.get(key)
        if held is None or (isinstance(where, ArrayInfo) and where.metadata_digest != held[0].metadata_digest):
            info = where if isinstance(where, ArrayInfo) else open_array(where)
            held = self._open[key] = info, open_handle(info, self._context)
        return held

    def _read_error(self, info: ArrayInfo, handle: Any, box: Box, error: Exception) -> OSError:
        """Find the first chunk file in the box that cannot be read."""
        for index in info.chunk_indices(box):
            part = info.chunk_box(index).clip(box)
            try:
                handle[part.slices((0,) * part.ndim)].read().result()
            except Exception as cause:
                key = info.chunk_key(index)
                return OSError(
                    f"cannot read {info.url}: chunk {key} (voxels {info.chunk_box(index)}, file {info.url}/{key}) is damaged or "
                    f"unreadable: {cause}; restore it from a copy, or write these voxels again; deleting the file makes them "
                    "the fill value"
                )
        return OSError(f"cannot read {box} of {info.url}: {error}; all its chunks could be read just now, so try again")


def _sync_existing(path: str) -> None:
    with suppress(FileNotFoundError):  # a chunk of the fill value only; that an older file is gone is in its folder's entries
        sync(path)


def _remove_damaged(info: ArrayInfo, handle: Any, box: Box) -> None:
    """Remove the damaged chunk files that the box covers, so that they can be written anew.

    At the array's rim tensorstore reads a chunk before it writes it, and would fail on one that a power cut left half written.
    """
    if not info.local:
        return
    unit = write_unit(info)
    for index in info.chunk_indices(box):
        held = info.chunk_box(index)
        file = f"{info.url}/{info.chunk_key(index)}"
        if held.shape == unit or not box.contains(held) or not os.path.exists(file):
            continue
        try:
            handle[held.lo].read().result()
        except Exception as error:
            if "os_error_code" not in str(error):  # the content is wrong; the file system itself is well
                with suppress(FileNotFoundError):
                    os.unlink(file)


def _check_inside(info: ArrayInfo, box: Box) -> None:
    if box.ndim != len(info.shape) or not info.box.contains(box):
        raise ValueError(f"the box {box} reaches beyond {info.url}, which holds {info.box}; clip it first")


def _write_error(info: ArrayInfo, box: Box, error: Exception) -> OSError:
    text = str(error)
    for code in (errno.ENOSPC, errno.EDQUOT):
        if f"os_error_code='{code}'" in text or os.strerror(code) in text:
            return OSError(
                code,
                f"no space left to write {box} of {info.url}; free space (or raise the quota) and run the same line again, "
                "what is recorded is kept",
            )
    return OSError(f"cannot write {box} of {info.url}: {text}; check permissions and the file system")
