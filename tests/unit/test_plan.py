"""The planner: what is stored and why, execution grids, bytes and memory."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import zarr

import volara_expr as ve
from executors import Multiprocessing, Serial
from volara_expr.plan.blocks import PlanTooBig

UNIT = [(1, 0, 0), (0, 1, 0), (0, 0, 1)]


def stored(path: Path, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: str = "uint8") -> str:
    """Make an array of metadata alone."""
    zarr.create_array(
        path,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        attributes={"neighborhood": UNIT, "voxel_size": [10, 10, 10], "offset": [0, 0, 0], "axis_names": ["c^", "z", "y", "x"]},
    )
    return str(path)


def segmentation(affs: ve.Array) -> ve.Array:
    frags = affs.watershed(bias=-0.5, block_size=(64, 64, 64), context=2)
    graph = frags.agglomerate(affs, scores={"all": slice(0, 3)})
    return frags.relabel(graph.mutex_watershed({"all": (1.0, -0.5)}))


@pytest.fixture
def affs(tmp_path: Path) -> ve.Array:
    return ve.open(stored(tmp_path / "affs.zarr", (3, 256, 256, 256), (3, 64, 64, 64))).normalize(0, 255)


def test_a_pointwise_chain_is_one_stage(affs: ve.Array) -> None:
    plan = (affs * 2 + 1 > 2).plan()
    assert len(plan.stages) == 1
    (stage,) = plan.stages
    assert [r.ratio for r in stage.reads] == [1.0]
    assert stage.written_bytes == 3 * 256**3


def test_the_main_job_reads_once_for_fragments_nodes_and_inner_edges(affs: ve.Array) -> None:
    plan = segmentation(affs).plan()
    labels = [[type(t.node).__name__ for t in s.targets] for s in plan.stages]
    assert labels[0] == ["NodeTable", "EdgeTable", "Watershed"]
    assert labels[-1] == ["Relabel"]
    assert ["EdgeTable"] in labels
    reasons = {type(t.node).__name__: t.reason for s in plan.stages for t in s.targets}
    assert "stored, never computed twice" in reasons["Watershed"]
    assert plan.stages[-1].needs == sorted(plan.stages[-1].needs)


def test_bytes_read_are_those_of_the_blocks(affs: ve.Array) -> None:
    plan = segmentation(affs).plan(block=(128, 128, 128))
    (read,) = plan.stages[0].reads
    once = sum(min(hi + 2, 256) - max(lo - 2, 0) for lo, hi in ((0, 128), (128, 256)))
    assert read.voxels == 3 * once**3


def test_labels_are_cut_where_write_blocks_do_not_fit(affs: ve.Array) -> None:
    frags = affs.watershed(bias=-0.5, block_size=(64, 64, 64), context=2)
    plan = frags[3:].plan()
    assert [type(s.targets[0].node).__name__ for s in plan.stages] == [
        "Watershed",
        plan.stages[1].targets[0].node.__class__.__name__,
    ]
    assert "cut through its blocks" in plan.stages[0].targets[0].reason


def test_a_block_is_rounded_up_to_write_units_and_says_so(affs: ve.Array) -> None:
    plan = segmentation(affs).plan(block=(50, 70, 64))
    assert plan.stages[0].grid is not None
    assert plan.stages[0].grid.block == (64, 128, 64)
    assert "rounded up to whole write units of (64, 64, 64)" in plan.explain()


def test_checkpoint_stores(affs: ve.Array) -> None:
    plan = (affs.checkpoint() + 1).plan()
    assert [t.reason for s in plan.stages for t in s.targets] == ["checkpoint", "output"]


def test_recomputed_halo_is_bounded(tmp_path: Path) -> None:
    a = ve.open(stored(tmp_path / "a.zarr", (3, 256, 256, 256), (1, 64, 64, 64), "float32"))
    b = a
    for _ in range(6):
        b = b.gaussian(6)
    plan = b.plan()
    assert len(plan.stages) > 1
    assert any("recomputed halo would make" in t.reason for s in plan.stages for t in s.targets)


def test_a_shared_expensive_node_is_stored_once(affs: ve.Array) -> None:
    smooth = affs.median(5)
    frags = smooth.watershed(bias=-0.5, block_size=(64, 64, 64), context=2)
    graph = frags.agglomerate(smooth, scores={"all": slice(0, 3)})
    plan = frags.relabel(graph.mutex_watershed({"all": (1.0, -0.5)})).plan()
    made = [type(t.node).__name__ for s in plan.stages for t in s.targets]
    assert made.count("MedianFilter") == 1


def test_memory_decides_the_block(affs: ve.Array) -> None:
    small = segmentation(affs).plan(executor=Serial(memory="900MB"))
    large = segmentation(affs).plan(executor=Serial(memory="8GB"))
    assert small.stages[0].grid is not None
    assert large.stages[0].grid is not None
    assert np.prod(small.stages[0].grid.block) <= np.prod(large.stages[0].grid.block)
    assert small.peak_bytes <= 900e6


def test_blocks_of_tables_hold_many_cells_in_a_large_volume(tmp_path: Path) -> None:
    small, large = (
        ve.open(stored(tmp_path / f"{n}.zarr", (3, n, n, n), (3, 64, 64, 64))).normalize(0, 255) for n in (512, 8192)
    )
    plans = [segmentation(a).plan(executor=Serial(memory="16GB")) for a in (small, large)]
    cells = [np.prod(p.stages[0].grid.block) // 64**3 for p in plans if p.stages[0].grid is not None]
    assert cells == [8, 64]


def test_too_big_names_the_worst_node_and_remedies(affs: ve.Array) -> None:
    with pytest.raises(PlanTooBig, match=r"projected to need .* a worker may use .*watershed.*Remedies: smaller chunks"):
        segmentation(affs).plan(executor=Serial(memory="560MB"))


def test_workers_share_the_memory(affs: ve.Array) -> None:
    one, four = segmentation(affs).plan(executor=Serial()), segmentation(affs).plan(executor=Multiprocessing(4))
    assert four.workers == 4
    assert four.worker_bytes * 4 <= one.worker_bytes + 4


def test_planning_does_not_grow_with_the_blocks(tmp_path: Path) -> None:
    affs = ve.open(stored(tmp_path / "affs.zarr", (3, 64000, 64000, 64000), (3, 64, 64, 64))).normalize(0, 255)
    seg = segmentation(affs)
    seg.plan()  # imports
    started = time.perf_counter()
    plan = seg.plan(block=(64, 64, 64))
    seconds = time.perf_counter() - started
    tracemalloc.start()
    seg.plan(block=(64, 64, 64))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert plan.stages[0].n_blocks == 10**9
    assert seconds < 1.0
    assert peak < 5e6


def test_explain_and_html_say_the_same(affs: ve.Array) -> None:
    plan = segmentation(affs).plan()
    text, html = plan.explain(), plan.to_html()
    for stage in plan.stages:
        assert stage.name in text
        for t in stage.targets:
            assert t.reason in text
            assert t.reason in html


def test_sharded_outputs_write_whole_shards(affs: ve.Array, tmp_path: Path) -> None:
    from volara_expr.plan.plan import make_plan
    from volara_expr.plan.targets import Output

    plan = make_plan([Output(affs.node, "x.zarr", chunks=(32, 32, 32), shards=(128, 128, 128))])
    assert plan.stages[0].grid is not None
    assert all(b % 128 == 0 for b in plan.stages[0].grid.block)
    with pytest.raises(ValueError, match=r"shards of 48 along 'z' do not hold whole chunks of 32.*64"):
        make_plan([Output(affs.node, "x.zarr", chunks=(32, 32, 32), shards=(48, 64, 64))])


def test_chunks_and_watershed_blocks_must_nest(affs: ve.Array) -> None:
    from volara_expr.plan.plan import make_plan
    from volara_expr.plan.targets import Output

    frags = affs.watershed(bias=-0.5, block_size=(64, 64, 64))
    with pytest.raises(ValueError, match="chunks of 48 and watershed blocks of 64 along 'z' divide neither way"):
        make_plan([Output(frags.node, "x.zarr", chunks=(48, 48, 48))])


@pytest.mark.parametrize("what", ["pointwise", "stencil", "segmentation"])
def test_measured_peak_stays_below_the_projection(tmp_path: Path, what: str) -> None:
    script = textwrap.dedent(
        f"""
        import numpy as np
        import volara_expr as ve
        from executors.worker import peak_rss_bytes
        rng = np.random.default_rng(0)
        data = rng.integers(0, 256, (3, 160, 160, 160), dtype=np.uint8)
        ve.from_numpy(data, voxel_size=10, units="nm", neighborhood={UNIT}).write(r"{tmp_path}/affs.zarr", progress=False)
        del data
        affs = ve.open(r"{tmp_path}/affs.zarr").normalize(0, 255)
        frags = affs.watershed(bias=-0.5, block_size=64, context=4)
        graph = frags.agglomerate(affs, scores={{"all": slice(0, 3)}})
        seg = frags.relabel(graph.mutex_watershed({{"all": (1.0, -0.5)}}))
        e = {{"pointwise": affs * 2.0 + 1, "stencil": affs.gaussian(2).gaussian(2), "segmentation": seg}}["{what}"]
        print(e.plan().peak_bytes)
        e.write(r"{tmp_path}/out.zarr", progress=False)
        print(peak_rss_bytes())  # ru_maxrss would count the parent before exec
        """
    )
    path = tmp_path / "script.py"
    path.write_text(script)
    out = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=True).stdout.split()
    projected, measured = map(int, out)
    assert measured <= projected, f"measured {measured / 1e6:.0f} MB, projected {projected / 1e6:.0f} MB"
