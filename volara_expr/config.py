"""Settings that change how work is done, never what comes out."""

from __future__ import annotations

import os
from dataclasses import dataclass

__all__ = ["Config", "config"]

MB = 1 << 20


@dataclass
class Config:
    """Settings of this process; assign to the attributes of `ve.config`.

    Attributes
    ----------
    memory_fraction : float
        Share of the memory that the machine (or its cgroup, or SLURM) allows, for all workers together.
    memory_bytes : int or None
        Replaces that estimate.
    reserved_bytes : int
        A worker without data: interpreter, imports, compiled kernels, and compiling them where that was not done before.
    cache_bytes : int
        Decoded chunks that a worker keeps, where its blocks follow each other closely enough to read the same ones.
    preview_bytes : int
        `compute()` and `numpy.asarray` refuse to make more than this, and to run stages over more than this, unasked.
    """

    memory_fraction: float = 0.7
    memory_bytes: int | None = None
    reserved_bytes: int = 640 * MB
    cache_bytes: int = 64 * MB
    preview_bytes: int = 2048 * MB

    def allowed_bytes(self) -> int:
        """Return the memory that all workers together may use."""
        return self.memory_bytes or int(self.memory_fraction * machine_bytes())


def machine_bytes() -> int:
    """Return the memory that this process may use: the least of the machine's, its cgroup's and SLURM's."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path) as f:
                text = f.read().strip()
        except OSError:
            continue  # no cgroup of this version
        if text.isdigit():
            limits.append(int(text))
    if node := os.environ.get("SLURM_MEM_PER_NODE"):
        limits.append(int(node) * MB)
    elif per_cpu := os.environ.get("SLURM_MEM_PER_CPU"):
        limits.append(int(per_cpu) * int(os.environ.get("SLURM_CPUS_ON_NODE", "1")) * MB)
    return min(limits)


config = Config()
