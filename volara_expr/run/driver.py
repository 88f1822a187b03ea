"""From a plan to its results: prepare stores and ledgers, hand the jobs to an executor, check, clean up."""

from __future__ import annotations

import difflib
import json
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import psutil

from executors.protocol import Cancelled, Event, Executor, Resources
from volara_expr.config import config
from volara_expr.expr import ArrayNode, BlockTable, GlobalTable, Node, digest_of, pack, topological
from volara_expr.expr.show import tree
from volara_expr.geometry.grid import BlockGrid
from volara_expr.ops.sources import InMemory, StoredArray
from volara_expr.plan.plan import Plan, Stage, make_plan
from volara_expr.plan.targets import Output, Target
from volara_expr.run.job import BlockJob, MemoryResult, TableJob
from volara_expr.run.places import ATTRIBUTE, Place, Workspace, make_array
from volara_expr.run.progress import Mode, Progress, StageReport
from volara_expr.store import Arrays, create_array, fingerprint, locate, open_array, read_attributes
from volara_expr.store import delete as delete_array

__all__ = ["Result", "content_of", "execute", "plan_for"]

logger = logging.getLogger("volara_expr")
Keep = Literal["tables", "all"]
Overwrite = bool | Literal["always"]
Incomplete = (InterruptedError,)


@dataclass
class Result:
    """What a run leaves.

    Attributes
    ----------
    arrays : dict
        Results handed over in memory, by digest.
    places : dict
        Where every stored node is, by digest.
    reports : list of StageReport
    """

    arrays: dict[str, npt.NDArray[Any]]
    places: dict[str, Place]
    reports: list[StageReport]


def content_of(url: str) -> str:
    """Return what the data of an array is: the expression that wrote it, or a fingerprint of the store.

    An array that a run of ours wrote completely is known by the digest of its expression; any other by its metadata and the
    sizes and times of up to 1,000 of its chunks.
    """
    try:
        mark = read_attributes(url).get(ATTRIBUTE)
    except FileNotFoundError:
        mark = None
    if mark and mark.get("complete"):
        return f"written:{mark['digest']}:{mark['incarnation']}"
    return f"found:{fingerprint(open_array(url))}"


def plan_for(
    outputs: Sequence[Output],
    workspace: Workspace | None,
    executor: Executor,
    block: tuple[int, ...] | None,
    afresh: bool = False,
) -> Plan:
    """Plan outputs, leaving out what the workspace already holds."""
    seen: dict[int, bool] = {}

    def found(node: Node) -> bool:
        if workspace is None or afresh or not node.inputs:
            return False
        if id(node) not in seen:
            seen[id(node)] = workspace.found(node) is not None
        return seen[id(node)]

    todo = [o for o in outputs if not (o.url is not None and is_done(o, workspace, found))]
    hints = executor.hints
    return make_plan(todo, workers=hints.workers, block=block or hints.block, worker_bytes=hints.memory_bytes, found=found)


def is_done(output: Output, workspace: Workspace | None, found: Callable[[Node], bool]) -> bool:
    """Whether an output is complete where it was asked for."""
    if workspace is None or not found(output.node):
        return False
    wanted, have = workspace.place(Target(output.node, "", output)), workspace.found(output.node)
    return have is not None and have.url == wanted.url


def execute(
    outputs: Sequence[Output],
    executor: Executor,
    workspace: Workspace,
    *,
    block: tuple[int, ...] | None = None,
    overwrite: Overwrite = False,
    keep: Keep = "tables",
    progress: Mode = True,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Result:
    """Run what the outputs need and is not there yet.

    Raises
    ------
    FileExistsError
        An output exists and is that of another expression, and `overwrite` is false.
    executors.protocol.BlockFailures
        Blocks failed; the others are done and recorded.
    """
    run_key = digest_of(sorted(o.node.digest for o in outputs), [o.url or "" for o in outputs])
    sources = [n for n in topological([o.node for o in outputs]) if isinstance(n, StoredArray)]
    with alone(workspace, run_key, should_stop):
        for o in outputs:
            if o.url is not None:
                clear_way(o, workspace, overwrite)
        check_sources(sources, "since it was opened; open it again")
        plan = plan_for(outputs, workspace, executor, block, afresh=overwrite == "always")
        jobs, results, places, shipped = make_jobs(plan, executor, workspace)
        watch = Progress({j.key: j.name for j in jobs}, progress)
        on_progress(watch)
        try:
            executor.run(jobs, watch, should_stop)
        except (KeyboardInterrupt, Cancelled) as e:
            e.add_note("What is done is recorded; run the same line again to go on from there.")
            raise
        finally:
            watch.close()
        check_sources(
            sources, "while the run was going on; results may mix old and new data. Write them again with overwrite='always'"
        )
        for o in outputs:
            if o.url is not None:
                mark_complete(o, workspace)
        for n in topological([o.node for o in outputs]):
            if n.digest not in places and (at := workspace.found(n)) is not None:
                places[n.digest] = at
        arrays = {d: r.data for d, r in results.items()}
        for d in [
            o.node.digest for o in outputs if o.url is None and isinstance(o.node, ArrayNode) and o.node.digest not in arrays
        ]:
            arrays[d] = read_back(places[d])
        clean_up(outputs, workspace, keep, jobs, shipped)
    return Result(arrays, places, list(watch.reports.values()))


# --- before the run ------------------------------------------------------------------------------------------------------


@contextmanager
def alone(workspace: Workspace, run_key: str, should_stop: Callable[[], bool]) -> Iterator[None]:
    """Hold the right to drive a run; wait while another living process on this machine holds it."""
    os.makedirs(workspace.jobs, exist_ok=True)
    path = os.path.join(workspace.jobs, f"{run_key}.driver")
    me = psutil.Process()
    told = False
    while True:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            if not is_alive(path):
                steal(path)
                continue
            if should_stop():
                raise Cancelled("stopped while waiting for the driver that runs the same") from None
            if not told:
                logger.warning("another process drives the same run; waiting for it (%s)", path)
                told = True
            time.sleep(0.2)
            continue
        with os.fdopen(fd, "w") as f:
            json.dump({"pid": me.pid, "started": me.create_time()}, f)
        break
    try:
        yield
    finally:
        if os.path.exists(path):
            os.unlink(path)


def is_alive(path: str) -> bool:
    """Whether the driver that wrote the file lives; one that has not written yet does."""
    try:
        with open(path) as f:
            text = f.read()
    except FileNotFoundError:
        return False
    if not text:
        return time.time() - os.path.getmtime(path) < 5.0
    holder = json.loads(text)
    try:
        return bool(psutil.Process(holder["pid"]).create_time() == holder["started"])
    except psutil.NoSuchProcess:
        return False


def steal(path: str) -> None:
    """Remove the mark of a dead driver; of several that try, one succeeds."""
    grave = f"{path}.{uuid.uuid4().hex[:8]}"
    try:
        os.rename(path, grave)
    except FileNotFoundError:
        return
    os.unlink(grave)


def clear_way(output: Output, workspace: Workspace, overwrite: Overwrite) -> None:
    """Refuse, or delete, what stands where an output goes and is not its own beginning."""
    target = Target(output.node, "", output)
    place = workspace.place(target)
    node = output.node
    if place.exists() and overwrite != "always":
        return
    if place.ledger.describe() is not None:
        place.ledger.discard()  # its data was deleted, replaced, or is to be made afresh
    url = str(output.url) if isinstance(node, ArrayNode) else place.url
    there = what_stands_at(url, place, isinstance(node, ArrayNode))
    if there is None:
        return
    if not overwrite:
        raise FileExistsError(
            f"{url} exists{there}. Choose another name, or pass overwrite=True to replace it"
            + difference(output, workspace, place, there)
        )
    if isinstance(node, ArrayNode):
        delete_array(url)
    else:
        os.unlink(url)
    forget_siblings(place)


def what_stands_at(url: str, place: Place, is_array: bool) -> str | None:
    """Say what exists at an output's place; None for nothing."""
    if not is_array:
        return " and was not written by this expression" if os.path.exists(url) else None
    try:
        mark = read_attributes(place.url).get(ATTRIBUTE)
    except FileNotFoundError:
        try:
            read_attributes(url)
        except FileNotFoundError:
            return None
        return " and is not an image written here"
    if mark is None:
        return " and was not written by volara_expr"
    return f" and holds the result of another expression ({str(mark.get('digest'))[:8]})"


def difference(output: Output, workspace: Workspace, place: Place, there: str) -> str:
    """Return how the expression that wrote what is there differs from the new one, where that is known."""
    parent = os.path.dirname(place.folder)
    if not os.path.isdir(parent):
        return ""
    for name in os.listdir(parent):
        about = os.path.join(parent, name, "node.json")
        if os.path.exists(about):
            with open(about) as f:
                old = str(json.load(f).get("expression", ""))
            new = tree([output.node])
            lines = [d for d in difflib.ndiff(old.splitlines(), new.splitlines()) if d[:1] in "-+"]
            if lines:
                return ".\n" + "\n".join(lines[:20])
    return ""


def forget_siblings(place: Place) -> None:
    """Delete the ledgers of what was replaced at a place."""
    parent = os.path.dirname(place.folder)
    if os.path.isdir(parent):
        for name in os.listdir(parent):
            if os.path.exists(os.path.join(parent, name, "node.json")) and os.path.join(parent, name) != place.folder:
                Place("rows", "", os.path.join(parent, name), place.grid).ledger.discard()


def check_sources(sources: Sequence[StoredArray], when: str) -> None:
    """Check that the inputs are what they were when they were opened."""
    for s in sources:
        if content_of(s.url) != s.content:
            raise RuntimeError(f"the data of {s.url} changed {when}")


def make_jobs(
    plan: Plan, executor: Executor, workspace: Workspace
) -> tuple[list[BlockJob | TableJob], dict[str, MemoryResult], dict[str, Place], list[str]]:
    """Create stores and ledgers, and describe each stage as a job."""
    places: dict[str, Place] = {}
    results: dict[str, MemoryResult] = {}
    shipped: list[str] = []
    memory: dict[str, Place] = {}
    for stage in plan.stages:
        for t in stage.targets:
            if t.in_memory and executor.in_process:
                assert isinstance(t.node, ArrayNode)
                results[t.node.digest] = MemoryResult(t.node)
            else:
                places[t.node.digest] = prepare(t, workspace)
        if not executor.in_process:
            for n in stage.group.region.leaves.values():
                if isinstance(n, InMemory) and n.content not in memory:
                    memory[n.content] = ship(n, workspace)
                    shipped.append(memory[n.content].folder)
    keys: list[str] = []
    jobs: list[BlockJob | TableJob] = []
    for stage in plan.stages:
        jobs.append(job_of(stage, plan, workspace, places, results, memory, keys))
        keys.append(jobs[-1].key)
    return jobs, results, places, shipped


def prepare(target: Target, workspace: Workspace) -> Place:
    """Make the ledger and the array of a target, or find those of an earlier run."""
    place = workspace.place(target)
    if place.ledger.describe() is not None and not place.exists():
        place.ledger.discard()
    if not place.exists():
        incarnation = place.ledger.create(
            {"digest": target.node.digest, "op": target.node.label, "expression": tree([target.node])}
        )
        if place.kind == "array":
            if target.url is None and os.path.exists(place.url):
                delete_array(place.url)
            make_array(target, place, incarnation)
    workspace.remember(target.node, place)
    return place


def ship(node: InMemory, workspace: Workspace) -> Place:
    """Write a NumPy array to the workspace for workers that cannot see this process's memory."""
    folder = os.path.join(workspace.folder, "nodes", node.content)
    url = os.path.join(folder, "array.zarr")
    spec = node.spec
    chunks = tuple(min(n, 64) for n in spec.shape) if spec.ndim > 2 else tuple(min(n, 1024) for n in spec.shape)
    place = Place("array", url, folder, BlockGrid(spec.box, chunks or (1,), spec.box.lo), spec.box.lo)
    try:
        if read_attributes(url).get(ATTRIBUTE, {}).get("shipped"):
            return place
    except FileNotFoundError:
        pass
    data = node.data
    assert data is not None
    create_array(url, shape=spec.shape, dtype=spec.dtype, chunks=chunks, space=spec.space, format="zarr")
    with Arrays(cache_bytes=0) as arrays:
        arrays.write(url, spec.box.shift(tuple(-v for v in spec.box.lo)), np.asarray(data)).result()
    from volara_expr.store import update_attributes

    update_attributes(url, {ATTRIBUTE: {"shipped": True}})
    return place


def job_of(
    stage: Stage,
    plan: Plan,
    workspace: Workspace,
    places: dict[str, Place],
    results: dict[str, MemoryResult],
    memory: dict[str, Place],
    keys: list[str],
) -> BlockJob | TableJob:
    """Describe a stage as a job."""
    nodes = [t.node for t in stage.targets]
    inside = {id(n) for n in nodes}
    at: dict[str, Place] = {}
    used: list[Node] = [*stage.group.region.order, *nodes]
    for n in [*used, *(x for m in used for x in m.inputs)]:
        if n.digest in places and (id(n) in inside or n not in stage.group.region.computed):
            at[n.digest] = places[n.digest]
        elif isinstance(n, InMemory) and n.content in memory:
            at[n.digest] = memory[n.content]
        elif (
            n.inputs
            and id(n) not in inside
            and n not in stage.group.region.computed
            and (old := workspace.found(n)) is not None
        ):
            at[n.digest] = old
    stored = [n.digest for n in nodes]
    grid = stage.grid
    common: dict[str, Any] = {
        "key": digest_of(stored, grid.block if grid else ()),
        "name": stage.name,
        "needs": tuple(keys[i] for i in stage.needs),
        "resources": Resources(memory_bytes=stage.projected_bytes),
        "folder": workspace.jobs,
        "packed": pack(nodes),
        "stored": stored,
        "places": at,
        "cache_bytes": config.cache_bytes,
    }
    if grid is None:
        return TableJob(**common, memory_bytes=max(plan.worker_bytes - config.reserved_bytes, 256 << 20))
    mine = {d: results[d] for d in stored if d in results}
    return BlockJob(**common, n_blocks=grid.n_blocks, grid=grid, results=mine)


# --- after the run -------------------------------------------------------------------------------------------------------


def mark_complete(output: Output, workspace: Workspace) -> None:
    """Note in the array itself that it is whole, so that it is known by its expression when it is opened."""
    if not isinstance(output.node, ArrayNode):
        return
    place = workspace.place(Target(output.node, "", output))
    about = place.ledger.describe()
    if about is None or not place.complete():
        raise RuntimeError(f"{output.url} is not complete after the run, although no block failed; run the same line again")
    mark = read_attributes(place.url).get(ATTRIBUTE, {})
    if not mark.get("complete"):
        from volara_expr.store import update_attributes

        update_attributes(place.url, {ATTRIBUTE: {**mark, "complete": True}})


def read_back(place: Place) -> npt.NDArray[Any]:
    """Read a result that workers wrote to the workspace."""
    with Arrays(cache_bytes=0) as arrays:
        box = place.grid.domain.shift(tuple(-v for v in place.lo))
        data: npt.NDArray[Any] = arrays.read(place.url, box).result()
        return data


def clean_up(
    outputs: Sequence[Output], workspace: Workspace, keep: Keep, jobs: Sequence[BlockJob | TableJob], shipped: Sequence[str]
) -> None:
    """Remove intermediates that are not to be kept, job files, and shipped NumPy arrays."""
    import shutil

    for folder in shipped:
        shutil.rmtree(folder, ignore_errors=True)
    for job in jobs:
        path = os.path.join(job.folder, f"{job.key}.job")
        if os.path.exists(path):
            os.unlink(path)
    if keep == "all":
        return
    for n in topological([o.node for o in outputs]):
        folder = workspace.node_folder(n)
        if isinstance(n, (BlockTable, GlobalTable)) or not n.inputs:
            continue
        if os.path.exists(os.path.join(folder, "array.zarr")):
            workspace.forget(n)


def ignore(event: Event) -> None:
    """Take an event and do nothing."""


def default_workspace(outputs: Sequence[Output]) -> Workspace | None:
    """Return the workspace beside the first output that has a place."""
    named = [o.url for o in outputs if o.url is not None]
    return Workspace(locate(named[0]).workspace) if named else None
