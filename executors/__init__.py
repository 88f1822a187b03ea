"""Where blocks run: this process, worker processes, clusters. Knows nothing of expressions."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from executors.dask_cluster import Dask
    from executors.processes import Multiprocessing
    from executors.serial import Serial
    from executors.slurm import Slurm

__all__ = ["Dask", "Multiprocessing", "Serial", "Slurm"]

_MODULES = {"Dask": "dask_cluster", "Multiprocessing": "processes", "Serial": "serial", "Slurm": "slurm"}


def __getattr__(name: str) -> Any:
    """Import an executor on first use: ``python -m executors.worker`` must find its module not yet imported."""
    if name not in _MODULES:
        raise AttributeError(f"module 'executors' has no attribute {name!r}; executors are {', '.join(__all__)}")
    return getattr(import_module(f"executors.{_MODULES[name]}"), name)
