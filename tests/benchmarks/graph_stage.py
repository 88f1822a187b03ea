"""Clustering a region graph: ours, mwatershed.cluster alone, and networkx + mwatershed as volara's GraphMWS has it; on one core.

    python tests/benchmarks/graph_stage.py --edges 100000 1000000 10000000

Ours is the kernel on arrays, its sort included, and the whole step: Parquet tables to a Parquet table of segments. Memory is
what the kernel takes beyond its input, at the peak, in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import multiprocess
import mwatershed
import networkx
import numpy as np
from common import header, medians, table, use_cores

from executors.worker import peak_rss_bytes
from volara_expr.kernels.graph import mutex_watershed
from volara_expr.ops.graph_tables import StoredTable
from volara_expr.ops.lut import MutexWatershedLut
from volara_expr.run.tables import TableFiles
from volara_expr.store.tables import write_table

SCALE, BIAS, COUNT = 255, -0.6, 40
"""Of the one score: affinities in uint8, each a mean over so many voxel pairs."""
LIST_LIMIT = 1_000_000
"""Edges beyond this do not go through Python objects, which take 400 bytes each."""


def graph(n_edges: int) -> dict[str, np.ndarray]:
    """Fragments on a grid, 6.5 edges each, in segments of 6 cubed with noise; ids as sparse as real ones."""
    side = round((n_edges / 6.5) ** (1 / 3)) + 1
    random = np.random.default_rng(0)
    number = np.arange(side**3, dtype=np.uint32).reshape((side,) * 3)
    z, y, x = np.indices(number.shape, np.int16) // 6
    segment = (z.astype(np.int32) * 10_000 + y) * 10_000 + x
    u, v, same = [], [], []
    steps = [s for s in np.ndindex(3, 3, 3) if s > (1, 1, 1)]
    for step in np.array(steps) - 1:
        here, there = (tuple(slice(max(0, d), side + min(0, d)) for d in sign * step) for sign in (-1, 1))
        kept = random.random(number[here].shape) < 0.5
        u.append(number[here][kept])
        v.append(number[there][kept])
        same.append((segment[here] == segment[there])[kept])
    a, b, inside = np.concatenate(u), np.concatenate(v), np.concatenate(same)
    order = np.lexsort((b, a))[:n_edges]
    a, b, inside = a[order], b[order], inside[order]
    score = np.clip(random.normal(np.where(inside, 0.75, 0.45), 0.15), 0, 1)
    total = np.rint(score * SCALE * COUNT).astype(np.int64)
    ids = (np.arange(1, side**3 + 1, dtype=np.uint64) << np.uint64(19)) + np.uint64(7)
    return {"u": a, "v": b, "sum": total, "ids": ids}


def weights(g: dict[str, np.ndarray]) -> np.ndarray:
    """Weight of each edge."""
    return g["sum"] / SCALE / COUNT + BIAS


def volara_way(g: dict[str, np.ndarray]) -> object:
    """A networkx graph, a sorted list, clusters and a table of them, as GraphMWS makes them once rows are in memory."""
    u, v = g["ids"][g["u"]].tolist(), g["ids"][g["v"]].tolist()
    of_rows = networkx.Graph()
    of_rows.add_nodes_from(g["ids"].tolist())
    of_rows.add_edges_from((a, b, {"direct": s}) for a, b, s in zip(u, v, (weights(g) - BIAS).tolist(), strict=True))
    edges = [(attributes["direct"] + BIAS, a, b) for a, b, attributes in of_rows.edges(data=True)]
    edges = sorted(edges, key=lambda edge: abs(edge[0]), reverse=True)
    found = mwatershed.cluster([(bool(w > 0), a, b) for w, a, b in edges])
    return np.array([list(x) for x in zip(*found, strict=True)])


def step(folder: Path, g: dict[str, np.ndarray]) -> Callable[[], None]:
    """Write the merged tables and return the stage that clusters them."""
    nodes, edges, out = (str(folder / f"{n}.parquet") for n in ("nodes", "edges", "lut"))
    write_table(nodes, {"id": g["ids"], "size": np.full(len(g["ids"]), 700)})
    sums = {"direct_sum": g["sum"], "direct_count": np.full(len(g["u"]), COUNT)}
    write_table(edges, {"u": g["ids"][g["u"]], "v": g["ids"][g["v"]], **sums})
    columns = (("id",), ("u", "v", "direct_sum", "direct_count"))
    tables = [TableFiles(path=p, columns=c) for p, c in zip((nodes, edges), columns, strict=True)]
    a, b = (StoredTable(p, "benchmark", c) for p, c in zip((nodes, edges), columns, strict=True))
    lut = MutexWatershedLut(a, b, (("direct", 1.0, BIAS),), (SCALE,))
    return lambda: lut.run(mutex_watershed, tables, out, 0)


def peak(connection: object, n_edges: int) -> None:
    """Send the bytes that the kernel takes beyond its input; Linux resets the peak of a process that writes 5 there."""
    g = graph(n_edges)
    w = weights(g)
    mutex_watershed(g["u"][:10], g["v"][:10], w[:10], len(g["ids"]))
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_rss_bytes()
    mutex_watershed(g["u"], g["v"], w, len(g["ids"]))
    connection.send(peak_rss_bytes() - before)


def bytes_per_edge(n_edges: int) -> float:
    """Measure in a new process."""
    here, there = multiprocess.get_context("spawn").Pipe()
    process = multiprocess.get_context("spawn").Process(target=peak, args=(there, n_edges))
    process.start()
    there.close()
    taken = here.recv()
    process.join()
    return taken / n_edges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edges", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--cpu", action="store_true", help="processor time instead of wall time, on a busy machine")
    given = parser.parse_args()
    clock = time.process_time if given.cpu else time.perf_counter
    os.environ["NUMBA_NUM_THREADS"] = "1"
    cores = use_cores(1)
    head = "edges,networkx + mwatershed s,mwatershed.cluster s,ours kernel s,ours step s,networkx/ours step,cluster/ours kernel,B/edge"
    rows: list[list[object]] = [head.split(",")]
    for n in given.edges:
        g = graph(n)
        w = weights(g)
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            ways: dict[str, Callable[[], object]] = {
                "kernel": lambda: mutex_watershed(g["u"], g["v"], w, len(g["ids"])),
                "step": step(Path(folder), g),
            }
            if n <= LIST_LIMIT:
                order = np.argsort(-np.abs(w), kind="stable")
                ordered = list(zip((w > 0)[order].tolist(), g["u"][order].tolist(), g["v"][order].tolist(), strict=True))
                ways["cluster"] = lambda: mwatershed.cluster(ordered)
                ways["networkx"] = lambda: volara_way(g)
            m = medians(ways, given.repeat if n <= LIST_LIMIT else min(3, given.repeat), clock)
        ratios = [m[a] / m[b] if a in m else "-" for a, b in (("networkx", "step"), ("cluster", "kernel"))]
        rows.append(
            [
                f"{len(g['u']):,}",
                m.get("networkx", "-"),
                m.get("cluster", "-"),
                m["kernel"],
                m["step"],
                *ratios,
                bytes_per_edge(n),
            ]
        )
    print(header("clustering a region graph with one score", cores))
    print(table(rows))


if __name__ == "__main__":
    main()
