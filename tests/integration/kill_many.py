"""Kill workers and drivers of the main job at random moments, again and again, and compare with an undisturbed run.

Run as ``python tests/integration/kill_many.py 50 [seed]``. Ends with status 1 if a byte differs or a run fails by itself.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from executors import Serial
from tests.integration.helpers import (
    BLOCK,
    contents,
    differing_bytes,
    end,
    kill,
    leftovers,
    main_job,
    start,
    store_affinities,
    write,
)

RUNS = ((2, BLOCK), (2, BLOCK), (1, (32, 16, 48)), (0, (16, 32, 16)))


def kill_many(root: Path, kills: int, rng: random.Random) -> tuple[int, int, int]:
    """Kill that many processes; returns how many were killed, how many outputs were completed, and how many bytes differ."""
    affs = store_affinities(root / "affs.zarr")
    (root / "undisturbed").mkdir()
    write(root / "undisturbed", main_job(affs), Serial())
    expected = contents(root / "undisturbed")
    began = time.monotonic()
    process = start(affs, root / "timed")
    ready = time.monotonic()
    status, errors = end(process)
    assert status == 0, errors
    longest = time.monotonic() - ready
    print(f"undisturbed: {ready - began:.1f} s to start, {longest:.1f} s to run", flush=True)
    dead = completed = differing = 0
    folder = root / "killed"
    while dead < kills or folder.exists():
        whom = rng.choice(["worker", "driver", "both"])
        workers, block = rng.choice(RUNS)
        process = start(affs, folder, workers, block)
        if dead < kills:
            time.sleep(rng.uniform(0, longest))
            dead += kill(process, whom, rng)
        status, errors = end(process)
        if status not in (0, -9) or (status and whom == "worker"):
            raise RuntimeError(f"after {dead} kills a run failed by itself (status {status}):\n{errors}")
        if status == 0:
            completed += 1
            differing += differing_bytes(contents(folder), expected)
            if left := leftovers(folder):
                raise RuntimeError(f"left behind: {', '.join(left)}")
            shutil.rmtree(folder)
    return dead, completed, differing


def main() -> int:
    """Run the command."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(10**6)
    with tempfile.TemporaryDirectory(prefix="kill_many-") as folder:
        dead, completed, differing = kill_many(Path(folder), kills, random.Random(seed))
    print(f"{dead} kills, {differing} differing bytes ({completed} outputs completed, seed {seed})")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
