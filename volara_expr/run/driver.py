"""From a plan to its results: prepare stores and ledgers, hand the jobs to an executor, check, clean up."""

from __future__ import annotations

import difflib
import errno
import fcntl
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from glob import escape, glob
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from executors.protocol import Cancelled, Executor, Resources, detached_runs
from volara_expr.config import config
from volara_expr.expr import ArrayNode, Node, digest_of, pack, topological
from volara_expr.expr.digest import Function
from volara_expr.expr.show import tree
from volara_expr.ops.graph_tables import StoredTable
from volara_expr.ops.sources import InMemory, StoredArray
from volara_expr.plan.plan import Plan, Stage, make_plan
from volara_expr.plan.targets import Output, Target
from volara_expr.run.ahead import compiling_ahead
from volara_expr.run.job import BlockJob, MemoryResult, TableJob
from volara_expr.run.ledger import Ledger, force_to_disk
from volara_expr.run.places import ATTRIBUTE, Place, Workspace, make_array
from volara_expr.run.progress import Mode, Progress, StageReport
from volara_expr.run.request import save_request
from volara_expr.run.tables import graph_content
from volara_expr.store import Arrays, fingerprint, locate, open_array, read_attributes, update_attributes
from volara_expr.store import delete as delete_array
from volara_expr.store.graph_db import GraphDB
from volara_expr.store.nodes import read_node

__all__ = ["Result", "content_of", "execute", "plan_for"]

logger = logging.getLogger("volara_expr")
Keep = Literal["tables", "all"]
Overwrite = bool | Literal["always"]
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

    todo = [o for o in outputs if afresh or not is_done(o, workspace)]
    hints = executor.hints
    return make_plan(todo, workers=hints.workers, block=block or hints.block, worker_bytes=hints.memory_bytes, found=found)


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
        for job in [] if executor.in_process else jobs:
            job.compile()
        if getattr(executor, "survives_driver", False) and jobs:
            save_request(workspace.jobs, outputs, keep, [j.key for j in jobs])
        watch = Progress({j.key: j.name for j in jobs}, progress)
        on_progress(watch)
        try:
            with compiling_ahead(executor, jobs, watch) as on_event:
                executor.run(jobs, on_event, should_stop)
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


_held = threading.local()
"""Folders whose lock this thread holds: a block may itself compute something, in the same session's workspace."""


@contextmanager
def alone(folders: Sequence[str], should_stop: Callable[[], bool]) -> Iterator[None]:
    """Hold the right to drive runs in these workspaces; wait while another driver, of any process, holds one of them.

    The system takes the locks back when their holder ends, however it ends.
    """
    mine: set[str] = vars(_held).setdefault("folders", set())
    with ExitStack() as locks:
        for folder in sorted({*folders} - mine):
            os.makedirs(folder, exist_ok=True)
            fd = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT, 0o644)
            locks.callback(os.close, fd)
            told = False
            while not lock(fd, folder):
                if should_stop():
                    raise Cancelled(f"stopped while waiting for another run that writes to {folder}")
                if not told:
                    logger.warning("another run holds %s; waiting until it ends, then going on with what it left", folder)
                    told = True
                time.sleep(0.1)
            mine.add(folder)
            locks.callback(mine.discard, folder)
        yield


def lock(fd: int, folder: str) -> bool:
    """Take a lock if it is free."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as e:
        if e.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        logger.warning("the file system of %s has no locks (%s); see to it that no other run writes there now", folder, e)
    return True


def check_apart(named: Mapping[Output, Place], sources: Sequence[StoredArray | StoredTable]) -> None:
    """Check that no output would replace another one, or what it is computed from."""
    taken = [(s.url if isinstance(s, StoredArray) else s.path, "an input of this run") for s in sources]
    for o, place in named.items():
        if dict(o.options).get("format") == "level":
            continue
        mine = str(o.url) if place.kind == "array" else place.url
        for url, what in taken:
            a, b = os.path.realpath(mine) + os.sep, os.path.realpath(url) + os.sep
            if a.startswith(b) or b.startswith(a):
                raise ValueError(
                    f"the output {mine} and {url}, {what}, cannot both be there: one would replace the other. Write beside it"
                )
        taken.append((mine, "another output of this run"))


def is_blocked(output: Output, place: Place, overwrite: Overwrite) -> bool:
    """Whether something else stands where an output goes and is to be replaced.

    Raises
    ------
    FileExistsError
        It is not to be replaced; says what it is, and how its expression differs where that is known.
    """
    options = dict(output.options)
    if options.get("format") == "level":
        return False  # made and replaced with the finest level of its image
    url = str(output.url) if place.kind == "array" else place.url
    coarser = [locate(f"{url}/{k}") for k in range(1, options.get("levels", 1))]
    own = place.exists() and all(read_node(level) is not None for level in coarser)
    if (own and overwrite != "always") or not stands(place, url):
        return False
    if not overwrite:
        what, more = what_stands(output.node, place)
        raise FileExistsError(f"{url} exists and {what}; choose another name, or pass overwrite=True to replace it{more}")
    return True


def stands(place: Place, url: str) -> bool:
    """Whether there is anything at an output's place."""
    if place.kind == "file":
        return os.path.exists(url)
    return read_node(locate(url)) is not None


def what_stands(node: Node, place: Place) -> tuple[str, str]:
    """Say what is in the way of an output, and, where that is known, how its expression differs from the new one."""
    digest = None
    if place.kind == "array":
        try:
            digest = read_attributes(place.url).get(ATTRIBUTE, {}).get("digest")
        except FileNotFoundError:
            return "holds something else than an array of this format", ""
        if digest is None:
            return "was not written by volara_expr", ""
    about = place.ledger.describe()
    if digest == node.digest:
        mine = "holds the result of this expression"
        if about is None:
            return f"{mine}, but its ledger {place.folder} is gone, which says what is finished", ""
        if tuple(about["unit"]) != place.grid.block:
            return f"{mine} in write units of {tuple(about['unit'])}, not {place.grid.block} as asked for", ""
        return f"{mine} without all the levels asked for", ""
    for folder in ledgers(place):
        old = Ledger(folder, place.grid).describe()
        if old is not None and digest in (None, old["digest"]) and folder != place.folder:
            lines = difflib.ndiff(str(old["expression"]).splitlines(), tree([node]).splitlines())
            changed = "\n".join([d for d in lines if d[:1] in "-+"][:20]) or (
                "no line of their text, but in the code or a captured value of a function, or in the version of an operation"
            )
            return "holds the result of another expression", f". They differ in\n{changed}{opaque(node)}"
    return ("holds the result of another expression" if digest else "was not written by this expression"), opaque(node)


def opaque(node: Node) -> str:
    """Say which functions make an expression new in every session."""
    found = [v for n in topological([node]) for v in vars(n).values() if isinstance(v, Function) and v.opaque]
    return "".join(
        f"\n{f!r} never counts as the same function, since {f.opaque} cannot be compared; give map_blocks a name="
        for f in found
    )


def ledgers(place: Place) -> list[str]:
    """Return the folders of all ledgers that belong to an output's place, of any expression."""
    return [os.path.dirname(p) for p in glob(os.path.join(escape(os.path.dirname(place.folder)), "*", "node.json"))]


def clear(output: Output, place: Place) -> None:
    """Delete what stands where an output goes; first the ledgers, so that nothing half deleted counts as done."""
    for folder in ledgers(place):
        Ledger(folder, place.grid).discard()
    if place.kind == "file":
        os.unlink(place.url)
    elif stands(place, str(output.url)):  # a level of an image goes with the image
        delete_array(str(output.url))


def check_sources(sources: Sequence[StoredArray | StoredTable], when: str) -> None:
    """Check that the inputs are what they were when they were opened."""
    for s in sources:
        if isinstance(s, StoredArray):
            url, content = s.url, content_of(s.url)
        elif s.path.endswith(".duckdb"):
            url, content = s.path, graph_content(GraphDB(s.path))
        else:
            continue  # a look-up table that a run of ours has just written
        if content != s.content:
            raise RuntimeError(f"the data of {url} changed {when}")


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
    return BlockJob(**common, n_blocks=grid.n_blocks, grid=grid, io_threads=io_threads, results=mine)


def io_threads(executor: Executor) -> int:
    """Return how many threads may decode and encode for a worker: more than one only where no other worker has the cores."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(cores, MOST_IO_THREADS) if executor.in_process else 1


# --- after the run -------------------------------------------------------------------------------------------------------


def mark_complete(output: Output, place: Place) -> None:
    """Check an output, and note in an array itself that it is whole, so that it is known by its expression when opened."""
    if not place.complete():
        raise RuntimeError(f"{output.url} is not complete after the run, although no block failed; run the same line again")
    if place.kind == "array":
        mark = read_attributes(place.url)[ATTRIBUTE]
        if not mark.get("complete"):
            force_to_disk(place.url)  # also what workers wrote that were killed before they synced
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
