"""Functions on arrays that know nothing of nodes, blocks or stores."""

from __future__ import annotations

from typing import Any

__all__ = ["BadVoxel"]


class BadVoxel(ValueError):
    """A voxel that a kernel cannot use.

    Parameters
    ----------
    message : str
        What is wrong with the voxel, and the remedy.
    voxel : tuple of int
        Its index in the kernel's input, channel axis included where there is one; the caller adds where the block lies.
    """

    def __init__(self, message: str, voxel: tuple[int, ...]) -> None:
        super().__init__(message)
        self.voxel = voxel

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (str(self), self.voxel))
