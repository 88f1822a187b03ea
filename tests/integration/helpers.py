"""What the integration tests share: a small volume whose segmentation is not trivial, the main job on it, and comparisons of bytes."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
from scipy.spatial import cKDTree

import volara_expr as ve
from executors import Serial
from executors.protocol import Event, Job

NEIGHBORHOOD = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (3, 0, 0), (0, 3, 0), (0, 0, 3), (6, 0, 0), (0, 6, 0), (0, 0, 6))
BIAS = (-0.5,) * 3 + (-0.6,) * 6
STRIDES = ((1, 1, 1),) * 3 + ((2, 2, 2),) * 6
WEIGHTS = {"direct": (1.0, -0.5), "long": (1.0, -0.6)}
SHAPE = (32, 48, 48)
BLOCK = (16, 16, 16)
CELLS = 18  # watershed blocks of BLOCK in SHAPE


def affinities(shape: Sequence[int] = SHAPE, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Noisy affinities of Voronoi cells, uint8, (offsets, z, y, x)."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    cells = cKDTree(rng.uniform(0, shape, (int(np.prod(shape)) // 1500, 3))).query(grid)[1]
    affs = np.zeros((len(NEIGHBORHOOD), *shape), np.uint8)
    for channel, offset in zip(affs, NEIGHBORHOOD, strict=True):
        here = tuple(slice(0, n - o) for n, o in zip(shape, offset, strict=True))
        there = tuple(slice(o, None) for o in offset)
        joined = np.where(cells[here] == cells[there], 200, 60)
        channel[here] = np.clip(joined + rng.normal(0, 45, joined.shape), 0, 255)
    return affs


def store_affinities(url: str | Path, affs: npt.NDArray[Any] | None = None) -> str:
    """Write affinities as a store that is not known to be ours, as a network's prediction would be."""
    import zarr

    data = affinities() if affs is None else affs
    array = zarr.create_array(
        str(url), shape=data.shape, dtype=data.dtype, chunks=(9, *BLOCK), dimension_names=["c", "z", "y", "x"]
    )
    array[...] = data
    return str(url)


def main_job(affs_url: str, block_size: int = 16) -> dict[str, Any]:
    """Fragments, region graph and segmentation of stored affinities, as expressions; under the names of the outputs."""
    stored = ve.open(affs_url, neighborhood=NEIGHBORHOOD)
    affs = stored.normalize(0, 255) if stored.dtype == np.uint8 else stored
    frags = affs.watershed(bias=BIAS, strides=STRIDES, block_size=block_size)
    graph = frags.agglomerate(affs, scores={"direct": slice(0, 3), "long": slice(3, 9)})
    return {"frags": frags, "graph": graph, "seg": frags.relabel(graph.mutex_watershed(WEIGHTS))}


def write(folder: Path, job: dict[str, Any], executor: Any = None, **options: Any) -> ve.Run:
    """Write a job's outputs into a folder and wait; returns the run, whose `reports` tell what was done."""
    options = {"chunks": BLOCK} | options
    run = ve.submit({str(folder / "out.zarr" / name): e for name, e in job.items()}, executor=executor or Serial(), **options)
    run.result()
    return run


def blocks_run(run: ve.Run) -> dict[str, int]:
    """How many blocks the stages of each name ran, in order; stages that found all done are left out."""
    counts: dict[str, int] = {}
    for r in run.reports:
        if r.blocks:
            counts[r.name] = counts.get(r.name, 0) + r.blocks
    return counts


def contents(folder: Path) -> dict[str, bytes]:
    """All bytes of a folder's outputs: files of arrays (chunks and what describes them), and rows of tables in their order.

    The incarnation, which differs from run to run, is left out.
    """
    found: dict[str, bytes] = {}
    for path in sorted((folder / "out.zarr").rglob("*")):
        if path.is_file():
            found[str(path.relative_to(folder))] = re.sub(rb'"incarnation": "\w+"', b"", path.read_bytes())
    for path in sorted(folder.glob("*.duckdb")):
        graph = ve.open_graph(path)
        for name, table in (("nodes", graph.nodes()), ("edges", graph.edges())):
            for column in table.column_names:
                found[f"{path.name}/{name}/{column}"] = repr(table.column(column).to_pylist()).encode()
    return found


def differing_bytes(a: dict[str, bytes], b: dict[str, bytes]) -> int:
    """How many bytes of two contents differ; of a file that only one has, all."""
    total = 0
    for name in a.keys() | b.keys():
        x, y = a.get(name, b""), b.get(name, b"")
        total += abs(len(x) - len(y)) + sum(p != q for p, q in zip(x, y, strict=False)) if x != y else 0
    return total


def leftovers(folder: Path) -> list[str]:
    """What lies in a folder that is no output, ledger or table: job files, temporary and discarded files."""
    return [
        str(p.relative_to(folder))
        for p in sorted(folder.rglob("*"))
        if p.suffix in (".tmp", ".trash", ".job", ".wal") or p.name.endswith(".__lock") or p.name in ("jobs", "array.zarr")
    ]


class Stopping(Serial):
    """Serial, and interrupts itself after a number of blocks, as Ctrl-C would."""

    def __init__(self, after: int, **options: Any) -> None:
        super().__init__(**options)
        self.after = after

    def run(
        self,
        jobs: Sequence[Job],
        on_event: Callable[[Event], None] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        done = 0

        def count(event: Event) -> None:
            nonlocal done
            on_event(event)
            done += event.kind == "done"
            if done == self.after:
                raise KeyboardInterrupt

        super().run(jobs, count, should_stop)


SCRIPT = """
import sys
import volara_expr as ve
from executors import Multiprocessing, Serial
from tests.integration.helpers import BLOCK, main_job
affs, folder, workers, *block = sys.argv[1:]
block = [int(side) for side in block]
job = main_job(affs)
print("ready", flush=True)
executor = Multiprocessing(int(workers), block=block) if int(workers) else Serial(block=block)
ve.write({f"{folder}/out.zarr/{name}": e for name, e in job.items()}, executor=executor, chunks=BLOCK)
print("complete", flush=True)
"""
"""Runs the main job; has no ``__main__`` guard, as users' scripts have none."""


def start(affs_url: str, folder: Path, workers: int = 2, block: Sequence[int] = BLOCK) -> subprocess.Popen[str]:
    """Start the main job in a process of its own, with 0 workers serially, and return when it begins to run."""
    script = folder / "script.py"
    folder.mkdir(exist_ok=True)
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), affs_url, str(folder), str(workers), *map(str, block)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise RuntimeError(process.communicate()[1])
    return process


def workers_of(pid: int) -> list[psutil.Process]:
    """The worker processes of a driver."""
    try:
        return [p for p in psutil.Process(pid).children() if "spawn_main" in " ".join(p.cmdline())]
    except psutil.Error:
        return []


def kill(process: subprocess.Popen[str], whom: str, rng: random.Random) -> int:
    """SIGKILL a driver, one of its workers, or all of them; returns how many processes died of it."""
    victims = workers_of(process.pid)
    if whom == "worker":
        victims = [rng.choice(victims)] if victims else []
    elif whom == "driver":
        victims = [psutil.Process(process.pid)]
    else:
        victims.append(psutil.Process(process.pid))
    dead = 0
    for victim in victims:
        try:
            victim.send_signal(signal.SIGKILL)
            dead += 1
        except psutil.NoSuchProcess:
            continue  # it ended by itself
    return dead


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a script, and for its orphans, whom the kernel kills; returns exit status and stderr."""
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Wait until something is true and return it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s in vain")
        time.sleep(0.002)
    return found


def logs(folder: Path) -> list[Path]:
    """The files of all ledgers below a folder."""
    return sorted(folder.glob("*.volara_expr/**/done/*.log"))


def recorded_bytes(folder: Path) -> int:
    """Size of all ledgers: a clock that goes with the work and not with the load of the machine."""
    return sum(path.stat().st_size for path in logs(folder))


def wait_for_record(process: subprocess.Popen[str], folder: Path, n_bytes: int = 1) -> None:
    """Wait until a script has recorded so much, and is still running."""
    wait_until(lambda: recorded_bytes(folder) >= n_bytes or process.poll() is not None)
    if process.poll() is not None:
        raise RuntimeError(f"the script ended too early:\n{process.communicate()[1]}")


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for counts as ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return not os.path.exists(f"/proc/{pid}")
