"""Elementwise chains from zarr to zarr, against the floor of reading and writing the same bytes, NumPy, dask.array and volara.

``taskset -c 0 python tests/benchmarks/elementwise.py --cores 1``
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from common import floor, header, medians, stored, table, texture, use_cores

import volara_expr as ve
from executors import Multiprocessing, Serial
from volara_expr.geometry import Box
from volara_expr.kernels.fused import plain
from volara_expr.run.block import Program
from volara_expr.store import Arrays

VOLARA = """
import json, sys, time
from pathlib import Path
from funlib.geometry import Coordinate
from volara.blockwise import Threshold
from volara.datasets import Labels, Raw
source, target, repeat, side = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
import shutil
seconds = []
for k in range(repeat):
    shutil.rmtree(target, ignore_errors=True)
    shutil.rmtree("volara_logs", ignore_errors=True)
    task = Threshold(in_data=Raw(store=source), mask=Labels(store=target), threshold=128, block_size=Coordinate(side, side, side))
    t = time.perf_counter()
    task.run_blockwise(multiprocessing=False)
    seconds.append(time.perf_counter() - t)
print(json.dumps(sorted(seconds)[len(seconds) // 2]))
"""


def chains() -> dict:
    """The chains, each as a function of an array of ours, NumPy's or dask's."""
    f4 = np.float32

    def intensities(x):
        return ((x.astype(f4) - f4(20)) / f4(200)).clip(f4(0), f4(1)) * f4(1.5) + f4(0.1) > f4(0.5)

    return {
        "table: threshold chain, uint8 -> bool": (("u1",), intensities),
        "loop: two uint8 -> float32": (("u1", "u1"), lambda x, y: x.astype(f4) * f4(0.5) + np.sqrt(y.astype(f4))),
        "loop: float32 chain -> bool": (("f4",), lambda x: (x - f4(20)) / f4(200) * f4(1.5) + f4(0.1) > f4(0.5)),
        "loop + exp: float32 -> float32": (("f4",), lambda x: np.exp(x * f4(0.01)) + f4(1)),
    }


def dask_run(function, sources, target):
    import dask.array as da

    shutil.rmtree(target, ignore_errors=True)
    with np.errstate(all="ignore"):
        out = function(*[da.from_zarr(s) for s in sources])
        import zarr

        codec = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
        z = zarr.create_array(target, shape=out.shape, dtype=out.dtype, chunks=(64,) * 3, compressors=codec)
        da.store(out, z, lock=False)


def numpy_run(function, sources, target):
    import zarr

    shutil.rmtree(target, ignore_errors=True)
    out = function(*[zarr.open_array(s, mode="r")[...] for s in sources])
    codec = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
    zarr.create_array(target, shape=out.shape, dtype=out.dtype, chunks=(64,) * 3, compressors=codec)[...] = out


def compute_seconds(function, sources, repeat: int) -> float:
    """Seconds that the fused loops alone take for the whole volume, on one core and on one block that is in memory."""
    arrays = [ve.open(s) for s in sources]
    out, leaves = function(*arrays).node, [a.node for a in arrays]
    program = Program([out], leaves, {out: out.spec.box})
    block = Box.of_shape((128, 128, 256)).clip(out.spec.box)
    boxes = program.demand({out: block})
    with Arrays() as stores:
        data = {id(n): stores.read(s, block).result() for n, s in zip(leaves, sources, strict=True)}

    def run() -> None:
        for _ in range(4):
            patches = program.evaluate(boxes, lambda node, _: data[id(node)], lambda _: None, [out])
            np.asarray(plain(patches[out].data), out.spec.dtype, order="C")

    return medians({"compute": run}, repeat)["compute"] / 4 * out.spec.box.size / block.size


def exp_seconds(voxels: int, repeat: int) -> float:
    """Seconds that NumPy's exp takes for so many float32, on one core and in tiles that stay in the second cache."""
    tile = np.linspace(0, 2, 1 << 16, dtype=np.float32)
    out = np.empty_like(tile)

    def run() -> None:
        for _ in range(64):
            np.exp(tile, out=out)

    return medians({"exp": run}, repeat)["exp"] / 64 / tile.size * voxels


def volara_seconds(python: str, source: str, folder: Path, repeat: int) -> float:
    script = folder / "volara_run.py"
    script.write_text(VOLARA)
    arguments = [python, script.name, source, str(folder / "volara.zarr/mask"), str(repeat), "64"]
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"volara failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--side", type=int, default=512, help="of volumes with floats; those of bytes alone get half as much again"
    )
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--cores", type=int, default=None)
    parser.add_argument("--processes", type=int, default=0, help="worker processes of ours; 0: Serial")
    parser.add_argument("--path", help="a uint8 zarr array of three axes in place of generated data")
    parser.add_argument("--volara-python", help="an interpreter that has volara")
    parser.add_argument("--cpu", action="store_true", help="processor time instead of wall time, on a busy machine")
    parser.add_argument("--only", default="", help="chains whose name holds this")
    parser.add_argument("--no-peers", action="store_true", help="ours and the floor alone")
    parser.add_argument(
        "--folder",
        default="/dev/shm" if os.path.isdir("/dev/shm") else None,
        help="where files go; in memory by default, as a disk takes what it likes for a new file",
    )
    given = parser.parse_args()
    cores = use_cores(given.cores)
    import dask

    dask.config.set(scheduler="threads" if cores > 1 else "synchronous")
    executor = Multiprocessing(given.processes) if given.processes else Serial()
    head = ["chain", "floor s", "ours s", "compute s", "ours/floor", "numpy/ours", "dask/ours", "dask/floor", "volara/ours"]
    rows: list[list[object]] = [head]
    with tempfile.TemporaryDirectory(prefix="bench-", dir=given.folder) as name:
        folder = Path(name)
        for title, (types, function) in chains().items():
            if given.only not in title:
                continue
            side = given.side if "float32" in title else 3 * given.side // 2  # about as many bytes in and out
            data = ve.open(given.path).compute() if given.path else texture((side,) * 3)
            sources = [stored(folder, data[:: (-1) ** k].astype(t), f"{k}.zarr") for k, t in enumerate(types)]
            ours = str(folder / "ours.zarr")

            def run(function=function, sources=sources, ours=ours) -> None:
                shutil.rmtree(ours, ignore_errors=True)
                shutil.rmtree(ours + ".volara_expr", ignore_errors=True)
                function(*[ve.open(s) for s in sources]).write(
                    ours, executor=executor, progress=False, format="zarr", chunks=64
                )

            run()
            bottom = [floor(s, s if k else ours, str(folder / f"floor{k}.zarr"), cores) for k, s in enumerate(sources)]
            if len(sources) > 1:  # every source is read once, the result written once
                bottom = [many(sources, bottom[0], cores)]
            peers = {
                "numpy": lambda f=function, s=sources: numpy_run(f, s, str(folder / "numpy.zarr")),
                "dask": lambda f=function, s=sources: dask_run(f, s, str(folder / "dask.zarr")),
            }
            made = ("ours.zarr", "ours.zarr.volara_expr", "floor0.zarr", "floor1.zarr", "numpy.zarr", "dask.zarr")
            clock = time.process_time if given.cpu else time.perf_counter
            clear = [str(folder / f) for f in made]
            m = medians({"ours": run, "floor": bottom[0]}, 3 * given.repeat, clock, clear)  # which differ by little
            m |= {} if given.no_peers else medians(peers, given.repeat, clock, clear)
            volara: object = "-"
            if given.volara_python and title.startswith("table"):
                volara = volara_seconds(given.volara_python, sources[0], folder, given.repeat) / m["ours"]
            ratios = [m[p] / m[q] if p in m else "-" for p, q in (("numpy", "ours"), ("dask", "ours"), ("dask", "floor"))]
            alone = compute_seconds(function, sources, given.repeat)
            rows.append([title, m["floor"], m["ours"], alone, m["ours"] / m["floor"], *ratios, volara])
    shape = "the shape of the given array" if given.path else f"{given.side}^3 (bytes alone: {3 * given.side // 2}^3)"
    print(header(f"zarr -> zarr, {shape}, 64^3 chunks, zstd-1, {executor!r}", cores))
    print(table(rows))
    for row in rows[1:]:
        if "exp" in str(row[0]) and not given.path:
            alone = exp_seconds(given.side**3, given.repeat)
            print(table([["NumPy's exp alone", "s", "ours/(floor + exp)"], [row[0], alone, row[2] / (row[1] + alone)]]))


def many(sources, first, threads):
    """The floor of several sources: the first with the write, the others read alone, in the same blocks."""
    from common import boxes

    from volara_expr.store import Arrays, open_array

    def run() -> None:
        first()
        with Arrays(cache_bytes=0, threads=threads) as arrays:
            for s in sources[1:]:
                pending = [arrays.read(s, b) for b in boxes(open_array(s).shape, 128)]
                for p in pending:
                    p.result()

    return run


if __name__ == "__main__":
    main()
