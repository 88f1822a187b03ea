"""The main job in volara, for an interpreter that has it installed: prints one JSON line of seconds per step and peak memory."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import sys
import time
from pathlib import Path


def main() -> None:
    affs_url, out, block, context, workers = (
        sys.argv[1],
        Path(sys.argv[2]),
        int(sys.argv[3]),
        int(sys.argv[4]),
        int(sys.argv[5]),
    )
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    os.chdir(out)
    import zarr
    from funlib.geometry import Coordinate
    from volara.blockwise import AffAgglom, ExtractFrags, GraphMWS, Relabel
    from volara.datasets import Affs, Labels
    from volara.dbs import SQLite
    from volara.lut import LUT

    attributes = dict(zarr.open(affs_url, mode="r").attrs)
    neighborhood = [Coordinate(o) for o in attributes["neighborhood"]]
    unit = [sum(map(abs, o)) == 1 for o in neighborhood]
    size, halo = Coordinate((block,) * 3), Coordinate((context,) * 3)
    affs = Affs(store=affs_url, neighborhood=neighborhood)
    frags, segs = Labels(store=out / "out.zarr/frags"), Labels(store=out / "out.zarr/segs")
    db = SQLite(path=out / "out.zarr/db.sqlite", edge_attrs={"direct": "float", "long": "float"})
    scores = {
        "direct": [o for o, u in zip(neighborhood, unit, strict=True) if u],
        "long": [o for o, u in zip(neighborhood, unit, strict=True) if not u],
    }
    steps = {
        "fragments": lambda: ExtractFrags(
            db=db,
            affs_data=affs,
            frags_data=frags,
            block_size=size,
            context=halo,
            bias=[-0.5 if u else -0.6 for u in unit],
            strides=[Coordinate((1, 1, 1) if u else (3, 3, 3)) for u in unit],
            num_workers=workers,
        ),
        "edges": lambda: AffAgglom(
            db=db, affs_data=affs, frags_data=frags, block_size=size, context=halo, scores=scores, num_workers=workers
        ),
        "graph": lambda: GraphMWS(
            db=db,
            lut=LUT(path=str(out / "lut")),
            roi=(frags.array("r").roi.offset, frags.array("r").roi.shape),
            weights={"direct": (1.0, -0.6), "long": (1.0, -0.7)},
        ),
        "relabel": lambda: Relabel(
            frags_data=frags, seg_data=segs, lut=LUT(path=str(out / "lut")), block_size=size, num_workers=workers
        ),
    }
    seconds = {}
    for name, make in steps.items():
        started = time.perf_counter()
        make().run_blockwise(multiprocessing=workers > 1 and name != "graph")
        seconds[name] = time.perf_counter() - started
    # ru_maxrss of this process would count who started it
    own = int(Path("/proc/self/status").read_text().split("VmHWM:", 1)[1].split(maxsplit=1)[0])
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(
        "RESULT "
        + json.dumps({"seconds": seconds, "own_kb": own, "child_kb": children, "segments": str(out / "out.zarr/segs")})
    )


if __name__ == "__main__":
    multiprocessing.freeze_support()
    main()
