"""What a block costs beside its work: blocks of 8^3 voxels, trivial arithmetic, with the I/O floor beside it.

``taskset -c 0 python tests/benchmarks/overhead.py --blocks 100 10000``
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from common import floor, header, table, use_cores

import volara_expr as ve
from executors import Multiprocessing, Serial
from volara_expr.store import Arrays, create_array

SIDE = 8


def grid(n: int) -> tuple[int, int, int]:
    """Return the sides, in blocks, of a volume of about `n` blocks."""
    a = round(n ** (1 / 3))
    b = round((n / a) ** 0.5)
    return a, b, -(-n // (a * b))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, nargs="+", default=[100, 1_000, 10_000], help="up to 1000000")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--cores", type=int, default=None)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--folder",
        default="/dev/shm" if os.path.isdir("/dev/shm") else None,
        help="for the volumes; in memory by default, as deleting 10,000 files takes minutes on some disks",
    )
    parser.add_argument(
        "--cpu", action="store_true", help="processor time, workers' too, instead of wall time, on a busy machine"
    )
    given = parser.parse_args()
    clock = cpu if given.cpu else time.perf_counter
    cores = use_cores(given.cores)
    executors = [Serial(block=(SIDE,) * 3), Multiprocessing(given.processes, block=(SIDE,) * 3)]
    rows: list[list[object]] = [["blocks", "executor", "ours ms/block", "floor ms/block", "overhead ms/block", "fixed s"]]
    with tempfile.TemporaryDirectory(prefix="bench-", dir=given.folder) as name:
        folder = Path(name)
        fixed: dict[str, float] = {}
        for n in [1, *given.blocks]:
            shape = tuple(SIDE * k for k in grid(n))
            blocks = int(np.prod(grid(n)))
            source, ours = str(folder / "source.zarr"), str(folder / "ours.zarr")
            shutil.rmtree(source, ignore_errors=True)
            data = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
            a = ve.from_numpy(data).node.spec
            create_array(source, shape=shape, dtype=data.dtype, chunks=(SIDE,) * 3, space=a.space, format="zarr")
            with Arrays(cache_bytes=0) as arrays:
                arrays.write(source, a.box, data).result()

            def run(executor, bottom=None, source=source, ours=ours) -> float:
                for left in (ours, ours + ".volara_expr", str(folder / "floor.zarr")):
                    shutil.rmtree(left, ignore_errors=True)
                os.sync()
                started = clock()
                if bottom is not None:
                    bottom()
                else:
                    (ve.open(source) + 1).write(ours, executor=executor, progress=False, format="zarr", chunks=SIDE)
                return clock() - started

            repeat = given.repeat if blocks <= 20_000 else 1
            for executor in executors:
                label = type(executor).__name__ + (f"({given.processes})" if not executor.in_process else "")
                run(executor)
                if n == 1:
                    fixed[label] = statistics.median(run(executor) for _ in range(repeat))
                    continue
                bottom = floor(source, ours, str(folder / "floor.zarr"), cores, side=SIDE)
                both = [(run(executor), run(None, bottom)) for _ in range(repeat)]  # in turn: file systems have moods
                ours_s, floor_s = (statistics.median(s) for s in zip(*both, strict=True))
                over = statistics.median(a - b for a, b in both) - fixed[label]
                rows.append(
                    [f"{blocks:,}", label, ours_s / blocks * 1e3, floor_s / blocks * 1e3, over / blocks * 1e3, fixed[label]]
                )
    print(header(f"blocks of {SIDE}^3, x + 1; overhead = ours - fixed costs of a run of one block - floor", cores))
    print(table(rows))


def cpu() -> float:
    """Return the processor time of this process and of the workers that have ended."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    main()
