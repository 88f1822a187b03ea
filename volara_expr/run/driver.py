"""From a plan to its results: prepare stores and ledgers, hand the jobs to an executor, check, clean up."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import escape, glob
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from executors.bookkeeping import available_cpus
from executors.protocol import Cancelled, Executor, Resources, detached_runs
from volara_expr.config import config
from volara_expr.expr import ArrayNode, Node, digest_of, pack, topological
from volara_expr.expr.show import tree
from volara_expr.ops.graph_tables import StoredTable
from volara_expr.ops.sources import InMemory, StoredArray
from volara_expr.plan.plan import Plan, Stage, make_plan
from volara_expr.plan.targets import Output, Target
from volara_expr.run.guard import Overwrite, alone, check_apart, check_sources, clear, is_blocked
from volara_expr.run.job import BlockJob, MemoryResult
from volara_expr.run.ledger import force_to_disk
from volara_expr.run.places import ATTRIBUTE, Place, Workspace, make_array
from volara_expr.run.progress import Mode, Progress, StageReport
from volara_expr.run.request import save_request
from volara_expr.run.table_job import TableJob
from volara_expr.store import Arrays, locate, read_attributes, update_attributes
from volara_expr.store import delete as delete_array

__all__ = ["Result", "execute", "plan_for"]

Keep = Literal["tables", "all"]
UNFINISHED = re.compile(r"\.[0-9a-f]{12}\.tmp(\.wal)?$")
"""What follows the name of a file or folder that was being made or deleted when its process was killed."""
MOST_IO_THREADS = 8
"""Each holds a decoded chunk; one thread that computes keeps no more of them busy."""


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

    todo = [o for o in outputs if afresh or not is_done(o, workspace)]
    hints = executor.hints
    return make_plan(
        todo,
        workers=hints.workers,
        threads=hints.threads,
        block=block or hints.block,
        worker_bytes=hints.memory_bytes,
        found=found,
    )


def is_done(output: Output, workspace: Workspace | None) -> bool:
    """Whether an output is complete where it was asked for."""
    return workspace is not None and output.url is not None and workspace.place(Target(output.node, "", output)).complete()


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

    All that can be wrong with the request is found before anything is deleted, made or run.

    Raises
    ------
    FileExistsError
        An output exists and is that of another expression, and `overwrite` is false.
    ValueError
        Outputs lie in one another, or would replace what they are computed from.
    RuntimeError
        The data of an input changed since it was opened, or while the run was going on.
    executors.protocol.BlockFailures
        Blocks failed; the others are done and recorded.
    """
    afresh = overwrite == "always"
    nodes = topological([o.node for o in outputs])
    sources = [n for n in nodes if isinstance(n, (StoredArray, StoredTable))]
    named = {o: workspace.place(Target(o.node, "", o)) for o in outputs if o.url is not None}
    check_apart(named, sources)
    with alone([workspace.folder, *(locate(str(o.url)).workspace for o in named)], should_stop):
        check_sources(sources, "since it was opened; open it again and write to another place, or with overwrite=True")
        blocked = [o for o, place in named.items() if is_blocked(o, place, overwrite)]
        if blocked and (runs := detached_runs(workspace.jobs)):
            raise FileExistsError(
                f"jobs of {runs[0]} may still write to {blocked[0].url}, which is to be replaced; wait for them, or cancel them "
                f"by: volara-expr cancel {runs[0]}"
            )
        for o, place in named.items():
            if o not in blocked and place.complete():
                workspace.remember(o.node, place)
        plan = plan_for(outputs, workspace, executor, block, afresh)
        for o in blocked:
            clear(o, named[o])
        if blocked:  # what was deleted may have been found before
            plan = plan_for(outputs, workspace, executor, block, afresh)
        try:
            jobs, results, places = make_jobs(plan, executor, workspace, afresh)
        except OSError as e:
            e.add_note(
                f"Nothing has run: outputs, or ledgers in {workspace.folder}, could not be made. Mend that and run the same line again."
            )
            raise
        calls = [job.calls() for job in jobs]
        for k, job in enumerate(jobs):
            job.later = list(dict.fromkeys(chain.from_iterable(calls[k + 1 :])))
        if getattr(executor, "survives_driver", False) and jobs:
            save_request(workspace.jobs, outputs, keep, [j.key for j in jobs])
        watch = Progress({j.key: j.name for j in jobs}, progress)
        on_progress(watch)
        try:
            executor.run(jobs, watch, should_stop)
        except (KeyboardInterrupt, Cancelled) as e:
            e.add_note(f"blocks done and recorded: {watch.blocks}; run the same line again to go on from there")
            raise e.with_traceback(None) from None  # where in a block it struck is of no use to anybody
        finally:
            watch.close()
        try:
            check_sources(
                sources,
                "while the run was going on, so the results mix old and new; open it again and write with overwrite=True",
            )
        except RuntimeError:
            for place in places.values():
                place.ledger.discard()
            raise
        for o, place in named.items():
            mark_complete(o, place)
        for n in nodes:
            if n.digest not in places and (at := workspace.found(n)) is not None:
                places[n.digest] = at
        arrays = {d: r.data for d, r in results.items()}
        for o in outputs:
            if o.url is None and isinstance(o.node, ArrayNode) and o.node.digest not in arrays:
                arrays[o.node.digest] = read_back(places[o.node.digest])
        clean_up(nodes, workspace, keep, [*places.values(), *named.values()])
    return Result(arrays, places, list(watch.reports.values()))


# --- before the run ------------------------------------------------------------------------------------------------------


def make_jobs(
    plan: Plan, executor: Executor, workspace: Workspace, afresh: bool
) -> tuple[list[BlockJob | TableJob], dict[str, MemoryResult], dict[str, Place]]:
    """Create stores and ledgers, and describe each stage as a job."""
    places: dict[str, Place] = {}
    results: dict[str, MemoryResult] = {}
    for t in [t for stage in plan.stages for t in stage.targets]:
        if t.in_memory and executor.in_process:
            assert isinstance(t.node, ArrayNode)
            results[t.node.digest] = MemoryResult(t.node)
        else:
            places[t.node.digest] = prepare(t, workspace, afresh)
    keys: list[str] = []
    jobs: list[BlockJob | TableJob] = []
    for stage in plan.stages:
        jobs.append(job_of(stage, plan, workspace, places, results, keys, io_threads(executor)))
        keys.append(jobs[-1].key)
    return jobs, results, places


def prepare(target: Target, workspace: Workspace, afresh: bool) -> Place:
    """Make the ledger and the array of a target, or find those of an earlier run."""
    place = workspace.place(target)
    if afresh or not place.exists():
        place.ledger.discard()
        incarnation = place.ledger.create(
            {
                "digest": target.node.digest,
                "op": target.node.label,
                "expression": tree([target.node]),
                "kind": place.kind,
                "url": place.url,
                "named": target.url is not None,
                "lo": place.grid.domain.lo,
                "hi": place.grid.domain.hi,
            }
        )
        if place.kind == "array":
            if target.url is None and os.path.exists(place.url):
                delete_array(place.url)
            make_array(target, place, incarnation)
    workspace.remember(target.node, place)
    return place


def job_of(
    stage: Stage,
    plan: Plan,
    workspace: Workspace,
    places: dict[str, Place],
    results: dict[str, MemoryResult],
    keys: list[str],
    io_threads: int,
) -> BlockJob | TableJob:
    """Describe a stage as a job."""
    nodes = [t.node for t in stage.targets]
    inside = {id(n) for n in nodes}
    at: dict[str, Place] = {}
    used: list[Node] = [*stage.group.region.order, *nodes]
    for n in [*used, *(x for m in used for x in m.inputs)]:
        if n.digest in places and (id(n) in inside or n not in stage.group.region.computed):
            at[n.digest] = places[n.digest]
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
        "resources": Resources(memory_bytes=stage.projected_bytes, threads=stage.threads, writes=stage.writes),
        "folder": workspace.jobs,
        "packed": pack(nodes),
        "stored": stored,
        "places": at,
        "cache_bytes": stage.cache_bytes,
    }
    if grid is None:
        return TableJob(**common, memory_bytes=max(plan.worker_bytes - config.reserved_bytes, 256 << 20))
    mine = {d: results[d] for d in stored if d in results}
    return BlockJob(**common, n_blocks=grid.n_blocks, grid=grid, io_threads=io_threads, results=mine)


def io_threads(executor: Executor) -> int:
    """Return how many threads may decode and encode for a worker: more than one only where no other worker has the cores."""
    return min(available_cpus(), MOST_IO_THREADS) if executor.in_process else 1


# --- after the run -------------------------------------------------------------------------------------------------------


def mark_complete(output: Output, place: Place) -> None:
    """Check an output, and note in an array itself that it is whole, so that it is known by its expression when opened."""
    if not place.complete():
        raise RuntimeError(f"{output.url} is not complete after the run, although no block failed; run the same line again")
    if place.kind == "array":
        mark = read_attributes(place.url)[ATTRIBUTE]
        if not mark.get("complete"):
            if not place.ledger.forced():  # by workers that were killed before they could
                force_to_disk(place.url)
            update_attributes(place.url, {ATTRIBUTE: {**mark, "complete": True}})


def read_back(place: Place) -> npt.NDArray[Any]:
    """Read a result that workers wrote to the workspace."""
    with Arrays(cache_bytes=0) as arrays:
        box = place.grid.domain.shift(tuple(-v for v in place.lo))
        data: npt.NDArray[Any] = arrays.read(place.url, box).result()
        return data


def clean_up(nodes: Sequence[Node], workspace: Workspace, keep: Keep, places: Sequence[Place]) -> None:
    """Remove intermediate arrays that nobody asked to keep, job files, shipped NumPy arrays, and what killed runs left."""
    others = detached_runs(workspace.jobs)  # runs of other outputs, which may share arrays with this one
    for n in nodes:
        folder = workspace.node_folder(n)
        if others and isinstance(n, ArrayNode):
            continue
        if isinstance(n, InMemory):
            shutil.rmtree(workspace.memory_folder(n), ignore_errors=True)
        elif isinstance(n, ArrayNode) and os.path.exists(os.path.join(folder, "array.zarr")):
            if keep == "all":
                Path(folder, "keep").touch()
            elif not os.path.exists(os.path.join(folder, "keep")):
                workspace.forget(n)
    if not others:
        shutil.rmtree(workspace.jobs, ignore_errors=True)
    for parent in {os.path.join(workspace.folder, "nodes"), *(os.path.dirname(p.folder) for p in places)}:
        for left in glob(os.path.join(escape(parent), "*.trash")):
            shutil.rmtree(left)
    for place in places:
        if place.kind == "rows":
            named = {os.path.join(place.folder, e.part) for e in place.ledger.entries()}
            for part in {*glob(os.path.join(escape(place.folder), "parts", "*"))} - named:
                os.unlink(part)
        for path in (place.url, locate(place.url).root):
            for left in glob(f"{escape(path)}.*.tmp*"):
                if UNFINISHED.match(left[len(path) :]):
                    shutil.rmtree(left) if os.path.isdir(left) else os.unlink(left)


def default_workspace(outputs: Sequence[Output]) -> Workspace | None:
    """Return the workspace beside the first output that has a place."""
    named = [o.url for o in outputs if o.url is not None]
    return Workspace(locate(named[0]).workspace) if named else None
