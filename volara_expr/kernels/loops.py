"""Fused loops: printed, compiled once per machine, and run over arrays of any shape.

Numba caches what comes from a file, so the printed source goes to one, named by its content: `$VOLARA_EXPR_CACHE`, or
`volara_expr` in the user's cache folder. Whatever process asks first compiles; all others, also later ones, load.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from functools import cache
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from volara_expr.kernels.printer import Phase, phases, source
from volara_expr.kernels.scalars import TILE, Value

__all__ = ["LoopKernel", "cache_folder", "load"]


@cache
def cache_folder() -> Path:
    """Return the folder of printed and compiled loops; a temporary one where the user's cannot be written."""
    given = os.environ.get("VOLARA_EXPR_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(given or os.path.join(home, "volara_expr"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        if given:
            raise
    return Path(tempfile.mkdtemp(prefix="volara_expr-loops-"))


_LOADED: dict[str, ModuleType] = {}
_LOADING = threading.Lock()


def load(text: str) -> Any:
    """Return the function `loop` of a printed module, compiled; from the cache where it is there."""
    name = f"volara_expr_loop_{blake2b(text.encode(), digest_size=12).hexdigest()}"
    with _LOADING:
        if name not in _LOADED:
            path = cache_folder() / f"{name}.py"
            if not path.exists():
                handle, temporary = tempfile.mkstemp(".tmp", f"{name}.", path.parent)
                with os.fdopen(handle, "w") as file:
                    file.write(text)
                os.replace(temporary, path)
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module  # where numba looks for the globals of what it loads
            spec.loader.exec_module(module)
            _LOADED[name] = module
        return _LOADED[name].loop


class LoopKernel:
    """A fused computation over arrays.

    Parameters
    ----------
    result : Value
        What to compute of the operands, which are numbered.
    """

    def __init__(self, result: Value) -> None:
        self.result = result
        self.phases = phases(result)
        self._tile = TILE * 8 // max(v.dtype.itemsize for p in self.phases for v in (*p.inputs, *p.outputs))
        self._loops: list[Any] = []
        self._lock = threading.Lock()

    @property
    def called(self) -> list[str]:
        """What NumPy computes, because it cannot be printed."""
        return [v.op for p in self.phases if not p.printed for v in p.values]

    def compile(self) -> None:
        """Compile the printed loops, or load them; the first call does it where this was not called."""
        with self._lock:
            if not self._loops:
                self._loops = [load(source(p)) if p.printed else None for p in self.phases]

    def __call__(self, operands: Sequence[npt.NDArray[Any]], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """Compute an array.

        Parameters
        ----------
        operands : sequence of ndarray
            Of the operands' types, broadcastable to `shape`, in any memory layout.
        shape : tuple of int

        Returns
        -------
        ndarray, of `shape`, C-contiguous
        """
        self.compile()
        out = np.empty(shape, self.result.dtype)
        whole: list[npt.NDArray[Any]] = [np.broadcast_to(x, shape) for x in operands]
        target: npt.NDArray[Any] = out
        tile = self._tile
        pieces = slabs(shape, tile)
        flat = all(x.flags.c_contiguous and x.flags.aligned for x in whole)
        if flat:
            whole, target = [x.reshape(-1) for x in whole], out.reshape(-1)
            pieces = slabs(target.shape, tile if len(self.phases) > 1 else max(1, out.size))
        scratch = {
            id(v): np.empty(min(tile, out.size), v.dtype) for p in self.phases for v in p.outputs if v is not self.result
        }
        with np.errstate(all="ignore"):
            for piece in pieces:
                if flat:
                    self._run([x[piece] for x in whole], target[piece], scratch)
                else:
                    tiles = [np.require(x[piece], None, ("C", "A")).reshape(-1) for x in whole]
                    self._run(tiles, target[piece].reshape(-1), scratch)
        return out

    def _run(self, operands: Sequence[npt.NDArray[Any]], out: npt.NDArray[Any], scratch: dict[int, npt.NDArray[Any]]) -> None:
        """Compute one tile."""
        at = {key: buffer[: out.size] for key, buffer in scratch.items()}
        at[id(self.result)] = out

        def of(v: Value) -> npt.NDArray[Any]:
            return operands[v.data] if v.op == "operand" else at[id(v)]

        for phase, loop in zip(self.phases, self._loops, strict=True):
            if phase.printed:
                loop(*map(of, phase.inputs), *(at[id(v)] for v in phase.outputs))
            else:
                call_numpy(phase, at, operands)


def call_numpy(phase: Phase, at: dict[int, npt.NDArray[Any]], operands: Sequence[npt.NDArray[Any]]) -> None:
    """Compute the values of a phase with NumPy's own loops, into buffers where there are any."""
    for v in phase.values:
        args = [a.data if a.op == "constant" else operands[a.data] if a.op == "operand" else at[id(a)] for a in v.args]
        out = at.get(id(v))
        if v.op in ("cast", "where"):
            found = args[0].astype(v.dtype) if v.op == "cast" else np.where(*args)
            if out is not None:
                out[...] = found
        else:
            found = getattr(np, v.op)(*args, out=out)
        if out is None:
            at[id(v)] = found


def slabs(shape: tuple[int, ...], voxels: int) -> Iterable[tuple[Any, ...]]:
    """Yield indices of C-contiguous parts of an array, of at most `voxels` each: whole trailing axes, and a range of the one before."""
    inner, axis = 1, len(shape)
    while axis and inner * shape[axis - 1] <= voxels:
        axis -= 1
        inner *= shape[axis]
    if not axis:
        yield ()
        return
    step = max(1, voxels // max(1, inner))
    for outer in np.ndindex(*shape[: axis - 1]):
        for a in range(0, shape[axis - 1], step):
            yield (*outer, slice(a, a + step))
