"""How a process that runs blocks treats its heap."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

__all__ = ["keep_freed_memory"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Of mallopt(3)."""


@cache
def keep_freed_memory() -> None:
    """Let glibc keep the memory of a block for the next one; else the kernel clears the same pages again for every block.

    All threads share what is kept: with a heap of its own, each thread that decodes would keep as much.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and sys.platform == "linux":
        for option, size in ((M_ARENA_MAX, 1), (M_TRIM_THRESHOLD, 128 << 20), (M_MMAP_THRESHOLD, 32 << 20)):
            mallopt(option, size)
