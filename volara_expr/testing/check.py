"""The project's central claim as an assertion: any block partition gives the whole-array result, also where blocks run in threads.

Needs NumPy only, so that authors of ops outside this project can use it in their tests.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from volara_expr.array.base import Handle
from volara_expr.expr.node import ArrayNode, Node
from volara_expr.geometry import BlockGrid, Box
from volara_expr.ops.sources import InMemory
from volara_expr.run.block import Program
from volara_expr.run.preview import Look

__all__ = ["assert_blockwise_equal", "assert_same", "evaluate", "random_grids"]


def evaluate(array: Handle | ArrayNode, box: Box | None = None) -> npt.NDArray[Any]:
    """Compute `box` of an expression over arrays in memory, as one block; tables behind it are made of the whole volume.

    Parameters
    ----------
    array : Array or ArrayNode
        All of its sources are NumPy arrays.
    box : Box, optional
        In absolute voxels; the whole array by default.
    """
    node = array.node if isinstance(array, Handle) else array
    with _tables() as tables:
        return _block(Program([node], []), node, node.spec.box if box is None else box, tables)


@contextmanager
def _tables() -> Iterator[Callable[[Node], Any]]:
    """Give the function that makes a table, cell by cell, or finds the one it has made."""
    with tempfile.TemporaryDirectory(prefix="volara_expr-") as folder:
        look, one_at_a_time = Look(folder, {}), threading.Lock()

        def table(node: Node) -> Any:
            with one_at_a_time:
                return look.table(node)

        try:
            yield table
        finally:
            look.stores.close()


def _block(program: Program, node: ArrayNode, box: Box, tables: Callable[[Node], Any]) -> npt.NDArray[Any]:
    def read(leaf: ArrayNode, part: Box) -> npt.NDArray[Any]:
        if not isinstance(leaf, InMemory) or leaf.data is None:
            raise TypeError(f"{leaf!r} is not in memory; checks take expressions over NumPy arrays")
        return leaf.data[part.slices(leaf.spec.box.lo)]

    from volara_expr.kernels.fused import plain

    return plain(program.evaluate(program.demand({node: box}), read, tables, [node])[node].data)


def assert_same(got: npt.NDArray[Any], expected: npt.NDArray[Any], what: str = "", rtol: float | None = None) -> None:
    """Raise AssertionError unless two arrays agree in type, shape and every bit; all NaNs count as one value.

    Parameters
    ----------
    rtol : float, optional
        Relative tolerance, for results that are not exact.
    """
    if got.dtype != expected.dtype or got.shape != expected.shape:
        raise AssertionError(f"{what}: got {got.dtype} {got.shape}, expected {expected.dtype} {expected.shape}")
    if rtol is not None:
        np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol, err_msg=what)
        return
    differ = got != expected
    if got.dtype.kind in "fc":
        differ &= ~(np.isnan(got) & np.isnan(expected))
    if got.dtype.kind == "f":
        differ |= (np.signbit(got) != np.signbit(expected)) & (got == 0)
    if differ.any():
        at = tuple(int(i) for i in np.argwhere(differ)[0])
        raise AssertionError(
            f"{what}: {np.count_nonzero(differ)} of {differ.size} voxels differ, first at {at}: "
            f"got {got[at]!r}, expected {expected[at]!r}"
        )


def random_grids(box: Box, n: int, rng: np.random.Generator, most_blocks: int = 64) -> list[BlockGrid]:
    """Return grids over a box with random block shapes (single voxels to the whole box) and random origins."""
    grids = []
    for _ in range(0 if box.empty else n):
        block = tuple(int(rng.integers(1, s + 1)) for s in box.shape)
        while box.size > most_blocks * np.prod(block):  # keeps the number of blocks, and so the time, within bounds
            block = tuple(min(s, 2 * b) for s, b in zip(box.shape, block, strict=True))
        origin = tuple(int(rng.integers(-b, b + 1)) for b in block)
        grids.append(BlockGrid(box, block, origin))
    return grids


def assert_blockwise_equal(
    array: Handle | ArrayNode,
    reference: npt.NDArray[Any] | None = None,
    *,
    grids: Iterable[BlockGrid] | None = None,
    seed: int | Sequence[int] = 0,
    rtol: float | None = None,
) -> None:
    """Raise AssertionError unless every block of several grids equals the same part of the whole result, bit for bit.

    Parameters
    ----------
    array : Array or ArrayNode
        All of its sources are NumPy arrays.
    reference : ndarray, optional
        What the whole array must be, computed otherwise.
    grids : iterable of BlockGrid, optional
        Over the array's box; three random ones by default.
    seed : int or sequence of int
        Of the random grids.
    rtol : float, optional
        Relative tolerance, for ops that are not exact.

    Examples
    --------
    >>> import numpy as np, volara_expr as ve
    >>> x = np.arange(40.0).reshape(5, 8)
    >>> assert_blockwise_equal(ve.from_numpy(x)[1:] * 2, x[1:] * 2)
    """
    node = array.node if isinstance(array, Handle) else array
    box = node.spec.box
    with _tables() as tables:
        _check_blocks(
            node, reference, tables, random_grids(box, 3, np.random.default_rng(seed)) if grids is None else grids, rtol
        )


def _check_blocks(
    node: ArrayNode,
    reference: npt.NDArray[Any] | None,
    tables: Callable[[Node], Any],
    grids: Iterable[BlockGrid],
    rtol: float | None,
) -> None:
    program, box = Program([node], []), node.spec.box
    whole = _block(program, node, box, tables)
    if whole.dtype != node.spec.dtype or whole.shape != box.shape:
        raise AssertionError(f"{node!r} promised {node.spec.dtype} {box.shape} and gave {whole.dtype} {whole.shape}")
    if reference is not None:
        assert_same(whole, reference, f"{node!r}, whole against the reference", rtol)
    side_by_side = all(n.thread_safe for n in program.computed)
    with ThreadPoolExecutor(2 if side_by_side else 1) as pool:
        for grid in grids:
            parts = [grid.box(i) for i in range(grid.n_blocks)]
            for part, made in zip(parts, pool.map(lambda p: _block(program, node, p, tables), parts), strict=True):
                assert_same(made, whole[part.slices(box.lo)], f"{node!r}, block {part} of {grid}", rtol)
