"""How loops are compiled. Whoever computes first on a machine waits for numba, so what nothing calls is left out.

What costs most is NumPy within a loop: numba compiles `np.zeros`, `np.append` or `a.min()` anew for each kernel, in up to
0.4 s. Hence arrays are made by the callers.
"""

from __future__ import annotations

from typing import Any

import numba as nb

__all__ = ["helper", "kernel"]

_njit: Any = nb.njit  # whose type leaves these options out
kernel = _njit(cache=True, nogil=True, no_cfunc_wrapper=True)
"""For what Python calls: compiled once on a machine, and run without the lock of the interpreter."""
helper = _njit(no_cfunc_wrapper=True, no_cpython_wrapper=True)
"""For what only kernels call; it becomes part of them, so it needs no cache."""
