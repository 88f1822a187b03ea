"""The main job per stage, ours and volara's, on the same affinities in one run.

    python tests/benchmarks/main_job.py                                      generated volume, ours alone
    python tests/benchmarks/main_job.py AFFS --truth GT.npz:gt --volara-python .venv-peers/bin/python

Every figure of ours includes opening, planning, ledger and writing; imports are left out on both sides, caches are warm.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

OURS = """
import json, os, shutil, sys, time
from contextlib import nullcontext
import volara_expr as ve
from executors import Multiprocessing, Serial
from executors.worker import peak_rss_bytes
import numba, tensorstore, duckdb, pyarrow.parquet
from volara_expr.kernels import edges, graph, mutex_watershed, relabel
from volara_expr.run.compiler import load_numba
load_numba()  # what numba imports at its first use
bare = peak_rss_bytes()
affs_url, out, block, context, workers = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
repeat = int(sys.argv[6]) if len(sys.argv) > 6 else 1  # with the same workers
executor = Multiprocessing(workers) if workers > 1 else Serial()
with executor if repeat > 1 else nullcontext():
    for k in range(repeat):
        if k:
            shutil.rmtree(os.path.dirname(out))
        started = time.perf_counter()
        affs = ve.open(affs_url)
        affs = affs.normalize(0, 255) if affs.dtype.kind == "u" else affs
        unit = [sum(map(abs, o)) == 1 for o in affs.neighborhood]
        frags = affs.watershed(bias=[-.5 if u else -.6 for u in unit], strides=[(1, 1, 1) if u else (3, 3, 3) for u in unit],
                               block_size=block, context=context)
        scores = {"direct": [i for i, u in enumerate(unit) if u], "long": [i for i, u in enumerate(unit) if not u]}
        graph = frags.agglomerate(affs, scores={k: v for k, v in scores.items() if v})
        lut = graph.mutex_watershed({"direct": (1.0, -0.6), "long": (1.0, -0.7)} if scores["long"] else {"direct": (1.0, -0.6)})
        seg = frags.relabel(lut)
        run = ve.submit({out + "/seg": seg, out + "/graph": graph}, executor=executor)
        run.wait()
        run.result()
        total = time.perf_counter() - started
        print("RESULT " + json.dumps({"seconds": {r.name: r.seconds for r in run.reports}, "total": total, "bare_kb": bare // 1024,
              "peak_kb": max(r.peak_bytes for r in run.reports) // 1024,
              "projected_kb": seg.plan(executor=executor).peak_bytes // 1024}))
"""


def results(command: list[str]) -> list[dict]:
    """Run a command and return what it printed as results."""
    out = subprocess.run(command, capture_output=True, text=True)
    found = [json.loads(x[7:]) for x in out.stdout.splitlines() if x.startswith("RESULT ")]
    if not found:
        sys.exit(f"{' '.join(command[:2])} failed:\n{out.stdout[-2000:]}\n{out.stderr[-4000:]}")
    return found


def run(command: list[str]) -> dict:
    """Run a command and return what it printed as its result."""
    (found,) = results(command)
    return found


def quality(url: str, truth: str) -> tuple[float, float, float]:
    import numpy as np

    import volara_expr as ve
    from volara_expr.kernels.evaluate import adapted_rand_error, variation_of_information

    path, _, key = truth.partition(":")
    wanted = np.load(path)[key or "gt"]
    found = ve.open(url).compute()
    split, merge = variation_of_information(found, wanted)
    return split, merge, adapted_rand_error(found, wanted)


def generated(folder: Path, shape: tuple[int, int, int] = (128, 256, 256)) -> str:
    """Write affinities of a generated volume, smoothed and noisy, and return their url."""
    import numpy as np

    import volara_expr as ve
    from volara_expr.testing.volumes import cells

    offsets = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (4, 0, 0), (0, 4, 0), (0, 0, 4), (9, 0, 0), (0, 9, 0), (0, 0, 9)]
    _, truth = cells(shape=shape)
    affs = np.zeros((9, *truth.shape), np.uint8)
    for c, o in enumerate(offsets):
        here, there = (
            tuple(slice(0, n - d) for n, d in zip(truth.shape, o, strict=True)),
            tuple(slice(d, n) for n, d in zip(truth.shape, o, strict=True)),
        )
        affs[(c, *here)] = 255 * (truth[here] == truth[there])
    noise = np.random.default_rng(0).normal(0, 40, affs.shape)
    affs = np.clip(affs * 0.8 + 25 + noise, 0, 255).astype(np.uint8)
    ve.from_numpy(affs, voxel_size=10, units="nm", neighborhood=offsets).write(
        folder / "affs.zarr", format="zarr", progress=False
    )
    return str(folder / "affs.zarr")


def volara(given: argparse.Namespace, affs: str, out: Path, workers: int) -> dict:
    """Run volara's main job."""
    script = str(Path(__file__).parent / "peers/volara_main_job.py")
    return run([given.volara_python, script, affs, str(out), str(given.block), str(given.contexts[0]), str(workers)])


def report(many: str, runs: list[dict], peer: dict) -> None:
    """Print the stages of ours, and those of the peer."""
    total = statistics.median(r["total"] for r in runs)
    print(
        f"\nours, {many}: {total:.2f} s median of {len(runs)} (min {min(r['total'] for r in runs):.2f}, "
        f"max {max(r['total'] for r in runs):.2f}), peak {max(r['peak_kb'] for r in runs) / 1024:.0f} MB per worker, "
        f"{max(r['peak_kb'] - r['bare_kb'] for r in runs) / 1024:.0f} MB above the imports"
    )
    for name in runs[0]["seconds"]:
        print(f"  {name:<45} {statistics.median(r['seconds'][name] for r in runs):7.2f} s")
    if peer:
        peer_total = sum(peer["seconds"].values())
        print(f"volara, {many}: {peer_total:.1f} s, peak {max(peer['own_kb'], peer['child_kb']) / 1024:.0f} MB")
        for name, s in peer["seconds"].items():
            print(f"  {name:<45} {s:7.2f} s")
        print(f"volara / ours: {peer_total / total:.1f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("affs", nargs="?")
    parser.add_argument("--truth", help="FILE.npz:KEY")
    parser.add_argument("--volara-python", help="interpreter of an environment with volara")
    parser.add_argument("--block", type=int, default=64)
    parser.add_argument("--contexts", type=int, nargs="+", default=[10])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeat", type=int, default=5)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        affs = a.affs or generated(Path(folder))
        affs = os.path.abspath(affs)
        out = Path(folder) / "run"
        ours = [sys.executable, "-c", OURS, affs, str(out / "o.zarr"), str(a.block), str(a.contexts[0])]
        for workers in a.workers:
            many = f"{workers} worker{'s' * (workers > 1)}"
            peer = volara(a, affs, Path(folder) / "volara", workers) if a.volara_python else {}
            # the first run of each is not counted: it warms caches, and imports what kept workers need
            if workers > 1:
                shutil.rmtree(out, ignore_errors=True)
                report(f"{many}, kept", results([*ours, str(workers), str(a.repeat + 1)])[1:], peer)
                many = f"{workers} new workers"
            runs = []
            for _ in range(a.repeat + 1):
                shutil.rmtree(out, ignore_errors=True)
                runs.append(run([*ours, str(workers)]))
            report(many, runs[1:], peer)
        if a.truth:
            print("\ncontext  VOI split  merge    sum   adapted Rand error")
            rows = []
            for context in a.contexts:
                shutil.rmtree(out, ignore_errors=True)
                run([sys.executable, "-c", OURS, affs, str(out / "o.zarr"), str(a.block), str(context), "1"])
                split, merge, error = quality(str(out / "o.zarr/seg"), a.truth)
                rows.append((split + merge, error))
                print(f"{context:>7} {split:>10.3f} {merge:>6.3f} {split + merge:>6.3f} {error:>10.3f}")
            of = f"mean of {len(rows)}" if len(rows) > 1 else f"with context {a.contexts[0]}"
            voi, error = (statistics.mean(r[k] for r in rows) for k in (0, 1))
            print(f"{of}: VOI {voi:.3f}, adapted Rand error {error:.3f}")
    print(
        f"\n{os.cpu_count()} cores, Python {sys.version.split()[0]}, driver peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB"
    )


if __name__ == "__main__":
    main()
