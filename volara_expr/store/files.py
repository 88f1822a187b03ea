"""Files that are either whole or absent: write under a temporary name, sync, rename."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["replacing", "sync", "temporary_name"]


def temporary_name(path: str) -> str:
    """Return a fresh name beside `path`; random, since workers on several machines may write the same file at once."""
    return f"{path}.{secrets.token_hex(6)}.tmp"


def sync(path: str) -> None:
    """Force a file's content, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: str, durable: bool = True) -> Iterator[str]:
    """Yield a temporary name; when the block ends well, that file takes the place of `path`.

    A reader sees the old file or the new one and nothing between. After an error nothing is left behind. Where the caller syncs
    many files at once, `durable` is false.
    """
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    if durable:
        sync(folder)
