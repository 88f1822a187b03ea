"""What grows with the number of blocks: ledgers, tables, the driver, the global stage.

    python tests/benchmarks/scale.py ledger  [--blocks 1000000] [--tasks 1000]
    python tests/benchmarks/scale.py parts   [--blocks 10000]
    python tests/benchmarks/scale.py driver  [--blocks 1000000]
    python tests/benchmarks/scale.py graph   [--edges 100000000] [--memory-gb 6]

No image is read or computed. Records, tables, merging, the database and clustering are the real ones, at the density of a real
volume: 339 fragments and 1,568 edges in a block of 64 x 64 x 64 voxels. `--folder` says where (100 bytes a block for `ledger`, 40 kB
for `parts`, 60 bytes an edge for `graph`); everything written is deleted at the end.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import multiprocess
import numpy as np
import numpy.typing as npt
import psutil

from executors.bookkeeping import BlockQueue
from executors.protocol import Event
from executors.toy_job import ToyJob
from executors.worker import peak_rss_bytes
from volara_expr.geometry import BlockGrid, Box
from volara_expr.run.job import Record
from volara_expr.run.ledger import Ledger
from volara_expr.run.progress import Progress
from volara_expr.run.tables import TableFiles

FRAGMENTS, EDGES = 339, 1568
BITS = 19
"""Of a local fragment id in a block of 64 cubed."""


def grid_of(n_blocks: int) -> BlockGrid:
    """A grid of at least so many blocks, nearly cubic."""
    side = round(n_blocks ** (1 / 3))
    shape = (-(-n_blocks // (side * side)) * 64, side * 64, side * 64)
    return BlockGrid(Box((0, 0, 0), shape), (64, 64, 64), (0, 0, 0))


def measured(what: str, function: Callable[..., Any], *args: Any) -> Any:
    """Run a function in a process of its own and print its wall time, CPU time and peak memory."""
    here, there = multiprocess.get_context("spawn").Pipe()
    process = multiprocess.get_context("spawn").Process(target=report, args=(there, function, args))
    process.start()
    there.close()
    result, wall, cpu, peak = here.recv()
    process.join()
    print(
        f"{what:<58} {wall:9.1f} s {cpu:9.1f} s CPU {peak / 1e6:9.0f} MB peak  {'' if result is None else result}", flush=True
    )
    return result


def report(connection: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Body of the process that `measured` starts."""
    began, cpu = time.perf_counter(), time.process_time()
    result = function(*args)
    connection.send((result, time.perf_counter() - began, time.process_time() - cpu, peak_rss_bytes()))


# --- ledger --------------------------------------------------------------------------------------------------------------


def append_records(folder: str, n_blocks: int, n_tasks: int, blocks_per_part: int) -> str:
    """Record every block, by so many writers in turn; a part of a table is named by as many records."""
    grid = grid_of(n_blocks)
    ledger = Ledger(folder, grid)
    ledger.create({"digest": "scale"})
    per_task = -(-grid.n_blocks // n_tasks)
    for task in range(n_tasks):
        writer = ledger.writer(f"node{task % 100:03}-{task}")
        mine = range(task * per_task, min((task + 1) * per_task, grid.n_blocks))
        for start in range(mine.start, mine.stop, max(1, blocks_per_part)):
            boxes = [unit(grid.index(i)) for i in mine[start - mine.start : start - mine.start + max(1, blocks_per_part)]]
            if blocks_per_part:
                part, path = writer.next_part()
                Path(path).touch()
                writer.append(zip(boxes, range(len(boxes)), strict=True), part)
            else:
                writer.append([(box, 0) for box in boxes])
        writer.close()
    files = list(Path(folder, "done").iterdir())
    return f"{grid.n_blocks:,} records, {len(files):,} logs, {sum(f.stat().st_size for f in files) / 1e6:.0f} MB"


def unit(index: tuple[int, ...]) -> Box:
    """The box of one write unit."""
    return Box(index, tuple(i + 1 for i in index))


def read_ledger(folder: str, n_blocks: int) -> str:
    """What `complete` costs: at the end of a job, and for the first look of another run."""
    done = Ledger(folder, grid_of(n_blocks)).done()
    assert done is not None
    return f"{int(done.sum()):,} done"


def read_groups(folder: str, n_blocks: int) -> str:
    """What the reader of a table made block by block costs."""
    return f"{len(Ledger(folder, grid_of(n_blocks)).groups()):,} runs of row groups"


def ledger(folder: str, n_blocks: int, n_tasks: int) -> None:
    """Ledger of an array, and of a table whose parts hold one block or 64."""
    for name, per_part in (("array", 0), ("table, 64 blocks a part", 64), ("table, one block a part", 1)):
        if per_part == 1 and n_blocks > 200_000:
            continue  # a million files are the point, and not worth making
        own = os.path.join(folder, name.replace(" ", "_"))
        measured(f"{name}: append", append_records, own, n_blocks, n_tasks, per_part)
        measured(f"{name}: read what is done", read_ledger, own, n_blocks)
        if per_part:
            measured(f"{name}: read where the rows are", read_groups, own, n_blocks)


# --- parts of tables -----------------------------------------------------------------------------------------------------


def edges_of(block: int, n_blocks: int, random: np.random.Generator) -> dict[str, npt.NDArray[Any]]:
    """Rows of a block: pairs of its own fragments, and one in six with a fragment of a later neighbour."""
    u = random.integers(1, FRAGMENTS + 1, EDGES)
    near = np.maximum(1, np.minimum(FRAGMENTS, u + random.integers(1, 20, EDGES)))
    side = round(n_blocks ** (1 / 3))
    step = np.where(np.arange(EDGES) % 6 == 0, np.array([1, side, side * side])[np.arange(EDGES) // 6 % 3], 0)
    step[block + step >= n_blocks] = 0
    low = (np.uint64(block + 1) << np.uint64(BITS)) + u.astype(np.uint64)
    high = ((block + 1 + step).astype(np.uint64) << np.uint64(BITS)) + np.where(step, u, near).astype(np.uint64)
    count = random.integers(1, 400, EDGES)
    total = np.rint(count * np.clip(random.normal(0.45, 0.25, EDGES), 0, 1) * 255).astype(np.int64)
    return {"u": low, "v": high, "direct_sum": total, "direct_count": count}


def nodes_of(block: int, random: np.random.Generator) -> dict[str, npt.NDArray[Any]]:
    """Rows of a block's fragments."""
    ids = (np.uint64(block + 1) << np.uint64(BITS)) + np.arange(1, FRAGMENTS + 1, dtype=np.uint64)
    size = random.integers(1, 1500, FRAGMENTS)
    return {"id": ids, "size": size} | {f"{a}_sum": size * random.integers(0, 10**5, FRAGMENTS) for a in "zyx"}


def write_parts(folder: str, n_blocks: int, blocks_per_part: int) -> str:
    """Write the tables of blocks, so many to a file."""
    from volara_expr.store.tables import write_part

    random = np.random.default_rng(0)
    os.makedirs(folder)
    for first in range(0, n_blocks, blocks_per_part):
        blocks = range(first, min(first + blocks_per_part, n_blocks))
        write_part(os.path.join(folder, f"edges-{first:09}.parquet"), [edges_of(b, n_blocks, random) for b in blocks])
        write_part(os.path.join(folder, f"nodes-{first:09}.parquet"), [nodes_of(b, random) for b in blocks])
    files = list(Path(folder).iterdir())
    return f"{len(files):,} files, {sum(f.stat().st_size for f in files) / n_blocks / 1e3:.1f} kB a block"


def parts_of(folder: str, table: str) -> list[tuple[str, list[int]]]:
    """The parts of a table and their row groups."""
    import pyarrow.parquet as pq

    paths = sorted(Path(folder).glob(f"{table}-*.parquet"))
    return [(str(p), list(range(pq.read_metadata(p).num_row_groups))) for p in paths]


def merge(folder: str, table: str, memory_bytes: int) -> str:
    """Add up the rows of equal keys."""
    import pyarrow.parquet as pq

    from volara_expr.store.merge import merge_tables

    keys, sums = (
        (("u", "v"), ("direct_sum", "direct_count")) if table == "edges" else (("id",), ("size", "z_sum", "y_sum", "x_sum"))
    )
    out = os.path.join(folder, f"merged_{table}.parquet")
    merge_tables(parts_of(folder, table), out, keys=keys, sums=sums, memory_limit_bytes=memory_bytes, tmp_dir=folder)
    return f"{pq.read_metadata(out).num_rows:,} rows, {os.path.getsize(out) / 1e6:.0f} MB"


def parts(folder: str, n_blocks: int) -> None:
    """What the number of blocks in a part of a table costs those who write and those who merge."""
    for per_part in (1, 8, 64, 512):
        own = os.path.join(folder, str(per_part))
        measured(f"{per_part} blocks a part: write", write_parts, own, n_blocks, per_part)
        measured(f"{per_part} blocks a part: merge", merge, own, "edges", 1 << 30)
        shutil.rmtree(own)


# --- driver --------------------------------------------------------------------------------------------------------------


@dataclass
class Million(ToyJob):
    """A job of which nothing is recorded."""

    def pending(self) -> Iterator[range]:
        """All blocks, always."""
        yield range(self.n_blocks)


def book(n_blocks: int) -> str:
    """What a driver does for each block, without any worker."""
    job = Million("unused", n_blocks)
    blocks = BlockQueue(job, Progress({job.key: job.name}, False))
    before = psutil.Process().memory_info().rss
    record = Record(64**3, 0.1, 0.5, 0.1)
    for _ in range(n_blocks):
        block = blocks.take()
        blocks.update(Event("started", job.key, block), "worker")
        blocks.update(Event("done", job.key, block, seconds=0.7, record=record), "worker")
    return f"{(psutil.Process().memory_info().rss - before) / 1e6:.0f} MB more at the end"


# --- global stage --------------------------------------------------------------------------------------------------------


def database(folder: str, memory_bytes: int) -> str:
    """Make the DuckDB file of the graph."""
    from volara_expr.store.graph_db import build_graph_db

    out = os.path.join(folder, "graph.duckdb")
    tables = (os.path.join(folder, f"merged_{t}.parquet") for t in ("nodes", "edges"))
    build_graph_db(out, *tables, {"axes": ["z", "y", "x"], "scales": {"direct": 255}}, memory_limit_bytes=memory_bytes)
    return f"{os.path.getsize(out) / 1e6:.0f} MB"


def cluster(folder: str) -> str:
    """Mutex watershed over the whole graph, as the stage does it."""
    from volara_expr.kernels.graph import mutex_watershed
    from volara_expr.ops.graph_tables import StoredTable
    from volara_expr.ops.lut import MutexWatershedLut
    from volara_expr.store.tables import read_table

    paths = [os.path.join(folder, f"merged_{t}.parquet") for t in ("nodes", "edges")]
    columns = (("id",), ("u", "v", "direct_sum", "direct_count"))
    tables = [TableFiles(path=p, columns=c) for p, c in zip(paths, columns, strict=True)]
    nodes, edges = (StoredTable(p, "scale", c) for p, c in zip(paths, columns, strict=True))
    out = os.path.join(folder, "lut.parquet")
    MutexWatershedLut(nodes, edges, (("direct", 1.0, -0.5),), (255,)).run(mutex_watershed, tables, out, 0)
    lut = read_table(out)
    return f"{len(lut['id']):,} fragments, {len(np.unique(lut['value'])):,} segments"


def graph(folder: str, n_edges: int, memory_bytes: int) -> None:
    """Ingest and cluster a graph: the stages that no number of workers makes faster."""
    n_blocks = -(-n_edges // EDGES)
    measured(f"tables of {n_blocks:,} blocks: write", write_parts, os.path.join(folder, "graph"), n_blocks, 512)
    own = os.path.join(folder, "graph")
    measured("nodes: merge", merge, own, "nodes", memory_bytes)
    measured("edges: merge", merge, own, "edges", memory_bytes)
    for part in Path(own).glob("*-*.parquet"):
        part.unlink()
    measured("database", database, own, memory_bytes)
    measured("mutex watershed", cluster, own)


def main() -> None:
    """Run one of the four studies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=("ledger", "parts", "driver", "graph"))
    parser.add_argument("--blocks", type=int)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--edges", type=int, default=100_000_000)
    parser.add_argument("--memory-gb", type=float, default=6)
    parser.add_argument("--folder", default=tempfile.gettempdir())
    given = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="scale-", dir=given.folder)
    print(f"{given.study}, {os.cpu_count()} CPUs, Python {sys.version.split()[0]}")
    try:
        if given.study == "ledger":
            ledger(folder, given.blocks or 1_000_000, given.tasks)
        elif given.study == "parts":
            parts(folder, given.blocks or 10_000)
        elif given.study == "driver":
            measured("book every block", book, given.blocks or 1_000_000)
        else:
            graph(folder, given.edges, int(given.memory_gb * 1e9))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
