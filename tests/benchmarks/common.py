"""What the benchmarks share: medians, tables, one or several cores, and the floor that storage sets."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from volara_expr.geometry import Box
from volara_expr.run.ledger import force_to_disk
from volara_expr.store import Arrays, create_array, open_array

PACKAGES = ("numpy", "numba", "tensorstore", "zarr", "dask", "scipy")


def use_cores(n: int | None) -> int:
    """Keep this process to `n` cores, so that libraries which start threads have no more than ours."""
    cores = sorted(os.sched_getaffinity(0))
    if n is not None:
        cores = cores[:n]
        os.sched_setaffinity(0, cores)
    return len(cores)


def header(title: str, cores: int) -> str:
    """Say what ran where, with which versions."""
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except ImportError:
            found.append(f"{name} absent")
    return f"{title}\n{platform.processor() or platform.machine()}, {cores} core(s), {platform.python_version()}, {', '.join(found)}"


def medians(
    ways: dict[str, Callable[[], object]],
    repeat: int,
    clock: Callable[[], float] = time.perf_counter,
    clear: Sequence[str] = (),
) -> dict[str, float]:
    """Run all ways in turn, `repeat` times after a first that is not counted, and return the median seconds of each.

    The folders `clear` are deleted before each run, which is not timed: to delete a file may take longer than to write it.
    `time.process_time` as the clock counts the work of this process alone, for machines that others use at the same time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for k in range(repeat + 1):
        for name, run in ways.items():
            for folder in clear:
                shutil.rmtree(folder, ignore_errors=True)
            os.sync()  # ours and the floor force their output to disk, and must not wait for what others left to be written
            started = clock()
            run()
            if k:
                seconds[name].append(clock() - started)
    return {name: statistics.median(s) for name, s in seconds.items()}


def table(rows: Sequence[Sequence[object]]) -> str:
    """Return rows, the head first, as aligned text."""
    shown = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    return "\n".join(
        "  ".join(v.ljust(w) if i == 0 else v.rjust(w) for i, (v, w) in enumerate(zip(r, widths, strict=True))) for r in shown
    )


def texture(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Return a smooth uint8 volume with some noise, which compresses about as electron microscopy does."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 200, [-(-n // 8) for n in shape], dtype=np.uint8)
    whole = coarse.repeat(8, 0).repeat(8, 1).repeat(8, 2)[tuple(slice(n) for n in shape)]
    return whole + rng.integers(0, 16, shape, dtype=np.uint8)


def stored(folder: Path, data: np.ndarray, name: str = "source.zarr", chunk: int = 64) -> str:
    """Write an array with zstd-1 and return its path."""
    import volara_expr as ve

    url = str(folder / name)
    ve.from_numpy(data).write(url, chunks=chunk, progress=False, overwrite=True, format="zarr")
    return url


def boxes(shape: Sequence[int], side: int) -> list[Box]:
    """Return the blocks of a volume."""
    whole = Box.of_shape(shape)
    return [
        Box.of_shape((side,) * len(shape), [i * side for i in k]).clip(whole)
        for k in np.ndindex(*[-(-n // side) for n in shape])
    ]


def floor(source: str, result: str, target: str, threads: int, side: int = 128) -> Callable[[], None]:
    """Return a function that reads `source` and writes the content of `result` to `target` with tensorstore, computing nothing.

    Blocks of `side`, one read ahead and one write behind; forced to disk at the end, as ours is.
    """
    info = open_array(result)
    with Arrays(cache_bytes=0) as arrays:
        content = arrays.read(result, info.box).result()

    def run() -> None:
        shutil.rmtree(target, ignore_errors=True)
        create_array(target, shape=info.shape, dtype=info.dtype, chunks=info.chunks, space=info.space, format="zarr")
        parts = boxes(info.shape, side)
        with Arrays(cache_bytes=0, threads=threads) as arrays:
            reading = [arrays.read(source, parts[0])]
            writing = []
            for k, part in enumerate(parts):
                if k + 1 < len(parts):
                    reading.append(arrays.read(source, parts[k + 1]))
                reading.pop(0).result()
                writing.append(arrays.write(target, part, content[part.slices((0,) * part.ndim)]))
                if len(writing) > 1:
                    writing.pop(0).result()
            for w in writing:
                w.result()
        force_to_disk(target)

    return run
