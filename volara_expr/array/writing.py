"""From expressions to results: planning, computing, writing, and runs in the background."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from volara_expr.array.base import Handle
from volara_expr.array.graph import Graph
from volara_expr.array.lut import Lut
from volara_expr.array.tables import Table
from volara_expr.array.teach import teaching
from volara_expr.config import config
from volara_expr.expr import ArrayNode, GlobalTable, Node, topological
from volara_expr.ops.graph_tables import StoredGraph, StoredTable
from volara_expr.ops.lut import LUT_COLUMNS
from volara_expr.plan.blocks import gb
from volara_expr.plan.plan import Plan
from volara_expr.plan.targets import Output

if TYPE_CHECKING:
    from executors.protocol import Executor
    from volara_expr.array.core import Array
    from volara_expr.run.driver import Keep, Result
    from volara_expr.run.guard import Overwrite
    from volara_expr.run.progress import Progress, StageReport

__all__ = ["Evaluation", "Run", "compute_table", "executor_of", "submit", "write"]

Expression = Handle | Graph | Lut | Table
Format = Literal["ome-zarr", "ome-zarr-0.4", "zarr", "zarr2"]
Mode = bool | Literal["bar", "lines"]


def executor_of(executor: Any) -> Executor:
    """Return an executor: one that was given, one by name ("serial", "multiprocessing:8"), or `Serial` for None.

    Raises
    ------
    ValueError
        If no installed executor has the name; lists those found.
    """
    if executor is None:
        executor = "serial"
    if not isinstance(executor, str):
        if not hasattr(executor, "run") or not hasattr(executor, "hints"):
            raise TypeError(
                f"{executor!r} is no executor; give one of executors.Serial(), executors.Multiprocessing(n), ... or a name"
            )
        found: Executor = executor
        return found
    name, _, argument = executor.partition(":")
    known = {e.name: e for e in entry_points(group="volara_expr.executors")}
    if name not in known:
        raise ValueError(f"there is no executor {name!r}; found are {', '.join(sorted(known))}")
    if argument and not argument.isdecimal():
        raise ValueError(f"{executor!r}: after the colon comes a number of workers, as in '{name}:8'")
    made: Executor = known[name].load()(int(argument)) if argument else known[name].load()()
    return made


@cache
def session_workspace() -> str:
    """Return a folder for what `compute` stores on its way; deleted when the session ends."""
    folder = tempfile.mkdtemp(prefix="volara_expr-")
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def outputs_of(
    expressions: Mapping[str | os.PathLike[str], Expression],
    chunks: int | Sequence[int] | None = None,
    shards: int | Sequence[int] | None = None,
    levels: int = 1,
    format: Format = "ome-zarr",
) -> list[Output]:
    """Return what is asked for, with the levels of pyramids as outputs of their own."""
    from volara_expr.store import locate

    outputs: list[Output] = []
    for url, expression in expressions.items():
        if not isinstance(expression, (Handle, Graph, Lut, Table)):
            raise TypeError(f"{url}: expected an Array, Graph, Lut or Table, got {type(expression).__name__}")
        if isinstance(expression.node, (StoredGraph, StoredTable)) or (
            isinstance(expression, Lut) and not expression.node.inputs
        ):
            raise ValueError(f"{url}: this {type(expression).__name__} is stored or given already; there is nothing to compute")
        place = locate(url).url
        if not isinstance(expression, Handle):
            outputs.append(Output(expression.node, place))
            continue
        node = copied(expression.node)
        if levels < 1 or (levels > 1 and not format.startswith("ome-zarr")):
            raise ValueError(f"levels={levels} with format={format!r}: a pyramid needs levels >= 1 and format='ome-zarr'")
        asked, shard = (per_space_axis(sizes, node) for sizes in (chunks, shards))
        outputs.append(Output(node, place, asked, shard, (("format", format), ("levels", levels))))
        for k in range(1, levels):
            node = coarser(node)
            outputs.append(Output(node, f"{place}/{k}", asked, shard, (("format", "level"), ("levels", 1))))
    return outputs


def copied(node: ArrayNode) -> ArrayNode:
    """Return a source's copy, so that the stage reads the source and not what it stores; other nodes as they are."""
    from volara_expr.ops.sources import Checkpoint

    return node if node.inputs else Checkpoint(node)


def per_space_axis(sizes: int | Sequence[int] | None, node: ArrayNode) -> tuple[int, ...] | None:
    """Return chunks or shards as a tuple; one number stands for every space axis."""
    if sizes is None:
        return None
    if isinstance(sizes, (int, np.integer)):
        return (int(sizes),) * len(node.spec.space.spatial)
    return tuple(int(s) for s in sizes)


def coarser(node: ArrayNode) -> ArrayNode:
    """Return the next level of a pyramid: means of images, the most frequent label of labels."""
    from volara_expr.ops.resample import downsample

    labels = node.spec.dtype in (np.uint32, np.uint64, np.int32, np.int64, np.bool_)
    return downsample(node, (2,) * len(node.spec.space.spatial), "mode" if labels else "mean")


def run_outputs(
    outputs: Sequence[Output],
    executor: Any,
    *,
    overwrite: Overwrite = False,
    keep: Keep = "tables",
    progress: Mode = True,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Result:
    """Execute outputs in the workspace beside the first one that has a place, or in that of the session."""
    from volara_expr.run.driver import default_workspace, execute
    from volara_expr.run.places import Workspace

    workspace = default_workspace(outputs) or Workspace(session_workspace())
    return execute(
        outputs,
        executor_of(executor),
        workspace,
        overwrite=overwrite,
        keep=keep,
        progress=progress,
        should_stop=should_stop,
        on_progress=on_progress,
    )


def opened(url: str, node: Node) -> Array | Graph | Lut | Table:
    """Open what was written."""
    from volara_expr.array.graph import open_graph
    from volara_expr.array.sources import open_array
    from volara_expr.store import locate

    if isinstance(node, ArrayNode):
        return open_array(url)
    assert isinstance(node, GlobalTable)
    if node.suffix == ".duckdb":
        return open_graph(url)
    stored = StoredTable(locate(url).file(node.suffix), node.digest, node.columns)
    return Lut.of(stored) if node.columns == LUT_COLUMNS else Table(stored)


@teaching
def write(
    expressions: Mapping[str | os.PathLike[str], Expression],
    *,
    executor: Any = None,
    chunks: int | Sequence[int] | None = None,
    shards: int | Sequence[int] | None = None,
    levels: int = 1,
    format: Format = "ome-zarr",
    overwrite: Overwrite = False,
    keep: Keep = "tables",
    progress: Mode = True,
) -> dict[str, Any]:
    """Compute several expressions in one plan and store them; returns when all is done.

    Parameters
    ----------
    expressions : mapping of url to Array, Graph, Lut or Table
        `out.zarr/graph` of a Graph becomes the file `out.graph.duckdb`, a Lut `out.lut.parquet`, beside the store.
    executor : Executor or str, optional
        Where blocks run: `executors.Serial()` (the default), `executors.Multiprocessing(8)`, "multiprocessing:8", ...
        Never changes the result.
    chunks, shards : int or sequence of int, optional
        In voxels, for the space axes or for all axes; by default chunks of 64 cubed, no shards.
    levels : int
        Of the pyramid: each halves the space axes (means of images, most frequent labels).
    format : {"ome-zarr", "ome-zarr-0.4", "zarr", "zarr2"}
    overwrite : bool or "always"
        True replaces the output of another expression; that of the same expression is continued. "always" starts afresh.
    keep : {"tables", "all"}
        What stays of the intermediate results, beside the first output: tables only, or arrays too.
    progress : bool or {"bar", "lines"}

    Returns
    -------
    dict
        The opened outputs, by url.

    Raises
    ------
    executors.protocol.BlockFailures
        Some blocks failed three times; names each with its traceback. All others are done and recorded.

    Examples
    --------
    >>> import tempfile, numpy as np, volara_expr as ve
    >>> image = ve.from_numpy(np.arange(12).reshape(3, 4))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     urls = {f"{folder}/out.zarr/double": image * 2, f"{folder}/out.zarr/mask": image > 5}
    ...     [made.compute().sum() for made in ve.write(urls, progress=False).values()]
    [np.int64(132), np.int64(6)]
    """
    outputs = outputs_of(expressions, chunks, shards, levels, format)
    run_outputs(outputs, executor, overwrite=overwrite, keep=keep, progress=progress)
    return {os.fspath(url): opened(os.fspath(url), e.node) for url, e in expressions.items()}


@teaching
def submit(
    expressions: Mapping[str | os.PathLike[str], Expression],
    *,
    executor: Any = None,
    chunks: int | Sequence[int] | None = None,
    shards: int | Sequence[int] | None = None,
    levels: int = 1,
    format: Format = "ome-zarr",
    overwrite: Overwrite = False,
    keep: Keep = "tables",
    progress: Mode = False,
) -> Run:
    """Start what `write` does and return at once.

    Returns
    -------
    Run
        With `status`, `wait`, `cancel` and `result`.
    """
    outputs = outputs_of(expressions, chunks, shards, levels, format)
    return Run(outputs, list(expressions), executor_of(executor), overwrite, keep, progress)


class Run:
    """A run in the background.

    Attributes
    ----------
    reports : list of StageReport
        What each stage has taken so far.
    """

    def __init__(
        self,
        outputs: Sequence[Output],
        urls: Sequence[str | os.PathLike[str]],
        executor: Executor,
        overwrite: Overwrite,
        keep: Keep,
        progress: Mode,
    ) -> None:
        self._outputs = outputs
        self._urls = [os.fspath(u) for u in urls]
        self._stop = threading.Event()
        self._watch: Progress | None = None
        self._error: BaseException | None = None

        def watch(progress: Progress) -> None:
            self._watch = progress

        def body() -> None:
            try:
                run_outputs(
                    outputs,
                    executor,
                    overwrite=overwrite,
                    keep=keep,
                    progress=progress,
                    should_stop=self._stop.is_set,
                    on_progress=watch,
                )
            except BaseException as e:
                self._error = e

        self._thread = threading.Thread(target=body, name="volara_expr run", daemon=True)
        self._thread.start()
        while getattr(executor, "survives_driver", False) and not any(r.started for r in self.reports):
            self._thread.join(0.05)  # until others have the work, so that this process may end
            if not self._thread.is_alive():
                break

    @property
    def status(self) -> Literal["running", "done", "failed", "cancelled"]:
        """What has become of the run."""
        from executors.protocol import Cancelled

        if self._thread.is_alive():
            return "running"
        if self._error is None:
            return "done"
        return "cancelled" if isinstance(self._error, Cancelled) else "failed"

    @property
    def reports(self) -> list[StageReport]:
        """What each stage has taken so far, in the order in which they run."""
        return list(self._watch.reports.values()) if self._watch else []

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the run has ended, at most `timeout` seconds; returns whether it has. Errors are raised by `result`."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def cancel(self) -> None:
        """Stop after the blocks at hand and wait for that; what is recorded stays, and writing the same again continues it."""
        self._stop.set()
        self._thread.join()

    def result(self) -> dict[str, Any]:
        """Wait, and return the opened outputs by url; raises what the run raised. Interrupted, it stops the run as `cancel` does."""
        try:
            self._thread.join()
        except KeyboardInterrupt as e:
            self.cancel()
            e.add_note("What is done is recorded; run the same line again to go on from there.")
            raise
        if self._error is not None:
            raise self._error
        by_url = dict(zip(self._urls, [o for o in self._outputs if dict(o.options).get("format") != "level"], strict=True))
        return {url: opened(url, o.node) for url, o in by_url.items()}

    def __repr__(self) -> str:
        current = next((r for r in self.reports if r.blocks < r.total), None)
        where = f", {current.name}: {current.blocks}/{current.total} blocks" if current else ""
        return f"Run({self.status}{where})"

    def _repr_html_(self) -> str:
        from volara_expr.run.progress import as_html

        return as_html(self.reports, f"run: {self.status}")


def refuse_large(outputs: Sequence[Output], hidden: bool) -> None:
    """Refuse to make more than `config.preview_bytes` in memory, or to run global stages over more than that unasked."""
    node = outputs[0].node
    assert isinstance(node, ArrayNode)
    ways = "Ways out: write() it to a store, slice it first, preview() a region, or raise ve.config.preview_bytes"
    if node.spec.nbytes > config.preview_bytes:
        raise MemoryError(
            f"the result has {gb(node.spec.nbytes)}, and compute() makes at most {gb(config.preview_bytes)}. {ways}"
        )
    if hidden:
        behind = topological([node])
        if any(isinstance(n, GlobalTable) for n in behind):
            most = max((n.spec.nbytes for n in behind if isinstance(n, ArrayNode)), default=0)
            if most > config.preview_bytes:
                raise MemoryError(
                    f"this needs a global stage (clustering, components) over the whole volume of {gb(most)}, and compute() runs "
                    f"those over at most {gb(config.preview_bytes)}. {ways}"
                )


class Evaluation(Handle):
    """Methods that plan, compute and store."""

    __slots__ = ()

    def plan(self, block: Sequence[int] | None = None, executor: Any = None) -> Plan:
        """Return what `write` would do: stages, blocks, halos, bytes, projected memory and the reason for every cut.

        Reads no data, and takes no longer for more blocks.

        Parameters
        ----------
        block : sequence of int, optional
            Execution block along the space axes, in voxels; rounded up to whole write units. By default chosen for the memory.
        executor : Executor or str, optional
            For the number of workers and their memory.

        Examples
        --------
        >>> import numpy as np
        >>> import volara_expr as ve
        >>> image = ve.from_numpy(np.zeros((64, 64), np.uint8))
        >>> len(image.gaussian(2).threshold(0.5).plan().stages)
        1
        """
        from volara_expr.run.driver import plan_for

        output = Output(self.node, "plan.zarr")
        return plan_for([output], None, executor_of(executor), tuple(block) if block is not None else None)

    def compute(self, executor: Any = None) -> npt.NDArray[Any]:
        """Return the values as a NumPy array (a scalar, of an array without axes), exact. Only what the region needs is computed.

        Where a global stage lies behind (clustering, components), that stage runs for the whole volume once in a session.

        Raises
        ------
        MemoryError
            If that is more than `ve.config.preview_bytes`; names the ways out.
        """
        if not self.node.spec.box.size:  # libraries probe with empty slices
            return np.empty(self.node.spec.shape, self.node.spec.dtype)
        node = copied(self.node)
        outputs = [Output(node)]
        refuse_large(outputs, hidden=True)
        result = run_outputs(outputs, executor, keep="all", progress=False)
        values: npt.NDArray[Any] = result.arrays[node.digest][()]
        return values

    def write(
        self,
        url: str | os.PathLike[str],
        *,
        executor: Any = None,
        chunks: Sequence[int] | None = None,
        shards: Sequence[int] | None = None,
        levels: int = 1,
        format: Format = "ome-zarr",
        overwrite: Overwrite = False,
        keep: Keep = "tables",
        progress: Mode = True,
    ) -> Array:
        """Compute everything and store it; returns the opened output. Parameters as those of `volara_expr.write`.

        Killed at any moment, the same line goes on where it stopped, also with another executor. With changed parameters it
        refuses to touch the older result unless `overwrite` is true.
        """
        made = write(
            {url: self},
            executor=executor,
            chunks=chunks,
            shards=shards,
            levels=levels,
            format=format,
            overwrite=overwrite,
            keep=keep,
            progress=progress,
        )
        array: Array = made[os.fspath(url)]
        return array

    def submit(self, url: str | os.PathLike[str], **options: Any) -> Run:
        """Start what `write` does and return a `Run` at once; options as those of `volara_expr.submit`."""
        return submit({url: self}, **options)

    def checkpoint(self) -> Array:
        """Return the same array, to be stored on the way: its users read it instead of computing it again.

        Halo: none.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> smooth = ve.from_numpy(np.zeros((64, 64))).gaussian(2)
        >>> "store  checkpoint" in smooth.checkpoint().median(3).plan().explain()
        True
        """
        from volara_expr.ops.sources import Checkpoint

        return self._new(Checkpoint(self.node))


def compute_table(handle: Graph | Lut | Table, executor: Any = None) -> str:
    """Run what a graph or a table needs, in the session's workspace, and return the path of the result."""
    result = run_outputs([Output(handle.node)], executor, keep="all", progress=False)
    path = result.places[handle.node.digest].url
    return str(Path(path))
