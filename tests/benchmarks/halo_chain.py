"""Three Gaussian filters in a row from zarr to zarr, against dask's map_overlap and whole-array SciPy.

``taskset -c 0 python tests/benchmarks/halo_chain.py --cores 1``
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import zarr
from common import header, medians, stored, table, texture, use_cores
from scipy.ndimage import gaussian_filter

import volara_expr as ve
from executors import Multiprocessing, Serial

SIGMAS = (1.0, 1.5, 2.0)
TRUNCATE = 4.0
CODEC = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}


def created(target: str, shape: tuple[int, ...]) -> zarr.Array:
    """Make the peers' output, chunked and compressed as ours."""
    shutil.rmtree(target, ignore_errors=True)
    return zarr.create_array(target, shape=shape, dtype=np.float32, chunks=(64,) * 3, compressors=CODEC)


def ours(source: str, target: str, executor: Serial | Multiprocessing) -> None:
    for folder in (target, target + ".volara_expr"):
        shutil.rmtree(folder, ignore_errors=True)
    a = ve.open(source)
    for sigma in SIGMAS:
        a = a.gaussian(sigma)
    a.write(target, executor=executor, progress=False, format="zarr", chunks=64)


def scipy_whole(source: str, target: str) -> None:
    a = zarr.open_array(source, mode="r")[...]
    for sigma in SIGMAS:
        a = gaussian_filter(a, sigma, truncate=TRUNCATE)
    created(target, a.shape)[...] = a


def dask_overlap(source: str, target: str, side: int) -> None:
    a = da.from_zarr(source).rechunk((side,) * 3)
    for sigma in SIGMAS:
        a = a.map_overlap(
            gaussian_filter, sigma=sigma, truncate=TRUNCATE, depth=int(TRUNCATE * sigma + 0.5), boundary="reflect"
        )
    da.store(a.rechunk((64,) * 3), created(target, a.shape), lock=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--cores", type=int, default=None)
    parser.add_argument("--processes", type=int, default=0, help="worker processes of ours; 0: Serial")
    parser.add_argument("--cpu", action="store_true", help="processor time instead of wall time, on a busy machine")
    given = parser.parse_args()
    cores = use_cores(given.cores)
    dask.config.set(scheduler="threads" if cores > 1 else "synchronous")
    executor = Multiprocessing(given.processes) if given.processes else Serial()
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        folder = Path(scratch)
        source = stored(folder, texture((given.side,) * 3).astype(np.float32))
        ways = {
            "ours": partial(ours, source, str(folder / "ours.zarr"), executor),
            "scipy, whole array": partial(scipy_whole, source, str(folder / "scipy.zarr")),
            "dask map_overlap, 64^3": partial(dask_overlap, source, str(folder / "dask64.zarr"), 64),
            "dask map_overlap, 128^3": partial(dask_overlap, source, str(folder / "dask128.zarr"), 128),
        }
        clock = time.process_time if given.cpu else time.perf_counter
        m = {}
        files = ("ours", "scipy", "dask64", "dask128")
        for (name, way), file in zip(ways.items(), files, strict=True):  # apart, as they leave different heaps behind
            m |= medians({name: way}, given.repeat, clock, [str(folder / f"{file}.zarr{end}") for end in ("", ".volara_expr")])
        whole = zarr.open_array(str(folder / "scipy.zarr"), mode="r")[...]
        rows: list[list[object]] = [["way", "s", "s / ours", "largest difference from whole-array SciPy"]]
        for way, file in zip(ways, files, strict=True):
            found = zarr.open_array(str(folder / f"{file}.zarr"), mode="r")[...]
            rows.append([way, m[way], m[way] / m["ours"], float(np.abs(found - whole).max())])
    print(header(f"gaussian, sigma {SIGMAS}, float32 {given.side}^3, {executor!r}", cores))
    print(table(rows))


if __name__ == "__main__":
    main()
