"""Which pointwise parts become tables, loops or NumPy calls, what that saves, and that loops are compiled once."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import volara_expr as ve
from volara_expr.expr import topological
from volara_expr.geometry import Box
from volara_expr.kernels import loops
from volara_expr.kernels.fused import Coded, plain, step_at
from volara_expr.kernels.loops import LoopKernel, slabs
from volara_expr.kernels.scalars import TILE, Scalars
from volara_expr.ops.mask import masked
from volara_expr.plan import fusion
from volara_expr.plan.blocks import footprint
from volara_expr.plan.fusion import Loop, Step, Table
from volara_expr.plan.region import Region
from volara_expr.plan.targets import Target
from volara_expr.run.block import Program
from volara_expr.testing.check import assert_same

rng = np.random.default_rng(2)


def array(dtype: str, shape=(6, 7, 8)) -> ve.Array:
    return ve.from_numpy((rng.random(shape) * 200).astype(dtype))


def steps(*arrays: ve.Array, leaves=()) -> dict[str, Step]:
    """The fused parts behind some arrays, by the label of their result."""
    nodes = [a.node for a in arrays]
    region = Region(nodes, [a.node for a in leaves])
    region.fuse({n: n.spec.box for n in topological(nodes) if hasattr(n, "spec")})
    return {s.root.label: s for s in region.steps.values()}


def labels(step: Step) -> list[str]:
    return [n.label for n in step.members]


@pytest.fixture
def always(monkeypatch):
    """Find every loop worth compiling."""
    monkeypatch.setattr(fusion, "WORTH", 1)


def test_parts_of_one_byte_array_are_tables_and_mixed_ones_loops(always):
    a, b = array("u1"), array("f4")
    table = steps((np.exp(a.normalize(0, 255)) + a).threshold(1))["threshold"]
    assert isinstance(table, Table)
    assert table.arrays == (a.node,)
    assert table.path == "table of 256"
    loop = steps((a.normalize(0, 255) * b + 1).clip(0, 1))["clip"]
    assert isinstance(loop, Loop)
    assert labels(loop) == ["normalize", "multiply", "add", "clip"]  # cheaper again than a table beside the loop
    assert loop.path == "compiled loop of 4 ops"
    found = steps(np.exp(a.normalize(0, 255)) * b + 1)
    assert isinstance(found["exp"], Table)  # 256 times exp in place of once per voxel
    assert labels(found["add"]) == ["multiply", "add"]


def test_wide_tables_need_enough_voxels():
    few, many = array("u2"), array("u2", (64, 64, 64))
    assert not steps(few + 1)
    assert steps(many.normalize(0, 9).threshold(3))["threshold"].path == "table of 65,536"
    assert_same((many.normalize(0, 9) > 3).compute(), (many.compute() / 9.0).astype("f4") > 3)


def test_loops_need_enough_work():
    a = array("f4")
    assert not steps((a + 1) * 2)
    stretched = ve.from_numpy(np.broadcast_to(np.float32(3), (1 << 9, 1 << 9, 1 << 8)))
    assert labels(steps((stretched + 1) * 2)["multiply"]) == ["add", "multiply"]
    assert not steps(stretched + 1)  # NumPy needs no more passes than a loop


def test_what_others_need_ends_a_loop(always):
    a, b = array("f4"), array("f4")
    total = a + b
    found = steps(total * 2 + 1, total * 3 - 1)  # two loops use it, so it is computed once
    assert sorted(map(labels, found.values())) == [["multiply", "add"], ["multiply", "subtract"]]
    assert labels(steps(total * 2 + 1, total)["add"]) == ["multiply", "add"]  # it is asked for
    assert "add" not in steps((total * 2 + 1).gaussian(1) * 2)["add"].arrays


def test_reductions_over_the_first_axis_join_others_do_not(always):
    a = array("f4", (4, 6, 7, 8))
    loop = steps((a.normalize(0, 200).max(0) > 0.5).astype("u1"))["cast"]
    assert labels(loop) == ["normalize", "max", "greater", "cast"]
    assert loop.operands[0].planes == 4
    assert not steps(a.normalize(0, 200).max((1, 2, 3)))
    assert labels(steps(a.max(0).max(0) * 2 + 1)["add"]) == ["max", "multiply", "add"]  # one reduction in a loop
    wide = ve.from_numpy(np.zeros((40, 5, 5, 5), "f4"))
    assert "sum" not in steps(wide.normalize(0, 1).sum(0))


def test_masks_join(always):
    a, m = array("f4", (3, 6, 7, 8)), array("?")
    made = ve.array.core.Array(masked((a * 2).node, m.node, 7)) + 1
    (step,) = steps(made).values()
    assert labels(step) == ["multiply", "mask", "add"]
    assert_same(run(made), np.where(m.compute(), a.compute() * 2, np.float32(7)) + 1)


def run(array: ve.Array) -> np.ndarray:
    node = array.node
    program = Program([node], [], {n: n.spec.box for n in topological([node])})
    assert any(isinstance(s, Loop) for s in program.steps.values())
    patches = program.evaluate(
        program.demand({node: node.spec.box}), lambda n, b: n.data[b.slices(n.spec.box.lo)], None, [node]
    )
    return plain(patches[node].data)


def test_types_that_loops_do_not_know_stay_with_numpy(always):
    for dtype in ("f2", "c8", "c16"):
        assert not any(isinstance(s, Loop) for s in steps((array(dtype) + 1) * 2).values()), dtype
    assert not steps((array("f4") + 1).astype("f2") * np.float16(2))
    assert not steps(np.fmax(array("f4"), 1) * 1j)


def test_transcendental_functions_break_a_loop_and_run_on_tiles():
    code = Scalars()
    x, y = code.operand(np.dtype("f4")), code.operand(np.dtype("f4"))
    v = code.ufunc("add", [code.ufunc("exp", [code.ufunc("multiply", [x, 0.5])]), code.ufunc("sqrt", [y])])
    kernel = LoopKernel(v)
    assert kernel.called == ["exp"]
    assert [p.printed for p in kernel.phases] == [True, False, True]
    assert len(kernel.phases[0].outputs) == 1  # the square root waits for the second loop
    a, b = rng.random((2, 3 * TILE + 5)).astype("f4")
    assert_same(kernel([a, b], a.shape), np.exp(a * np.float32(0.5)) + np.sqrt(b))


@pytest.mark.parametrize("shape", [(), (1,), (7, 5), (3, 1, 70_001), (2, 300, 300), (0, 4)])
def test_slabs_cover_every_voxel_once(shape):
    count = np.zeros(shape, int)
    for piece in slabs(shape, TILE):
        count[piece] += 1
        assert np.empty(shape)[piece].size <= TILE
    assert (count == 1).all()


def test_any_memory_layout_and_shape_of_operands():
    code = Scalars()
    x, y = code.operand(np.dtype("f4")), code.operand(np.dtype("u1"))
    kernel = LoopKernel(code.ufunc("multiply", [x, y]))
    a, b = rng.random((40, 50, 60)).astype("f4"), rng.integers(0, 9, (50, 60), dtype="u1")
    unaligned = np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view("f4").reshape(a.shape)
    for data in (a, a[::-1, :, ::2].repeat(2, 2), np.asfortranarray(a), a[::-1], unaligned, a[:, :1, :1]):
        assert_same(kernel([data, b], a.shape), np.broadcast_to(data, a.shape) * b)
    assert_same(kernel([np.float32(2), np.uint8(3)], ()), np.asarray(np.float32(6)))


def test_tables_are_looked_up_in_any_type():
    codes = rng.integers(0, 256, (70, 70, 70), dtype="u1")
    for dtype in ("?", "u1", "i2", "f4", "u8", "f8", "c16", "f2"):
        table = rng.integers(0, 2, 256).astype(dtype)
        for part in (codes, codes[3:9, :, ::2], codes[:1]):
            assert_same(plain(Coded(part, table)), table[part])


def test_intermediates_of_a_loop_take_no_memory(always):
    a, b = array("f4", (96, 96, 96)), array("f4", (96, 96, 96))
    out = ((a * 2 + b) / (b + 1) - a).clip(0, 1)
    target = Target(out.node, "")
    apart = Region([out.node], [])
    fused = Region([out.node], [])
    fused.fuse({n: n.spec.box for n in topological([out.node])})
    block = Box.of_shape((96, 96, 96))
    size = 96**3 * 4
    assert footprint([target], fused, block).peak_bytes < 2 * 2 * size + 3 * size + (3 << 20)
    assert footprint([target], fused, block).peak_bytes < footprint([target], apart, block).peak_bytes - size


def test_explain_names_the_path(always):
    a, b = array("u1", (64, 64, 64)), array("f4", (64, 64, 64))
    text = str((a.normalize(0, 9).gaussian(1) * b + 1).plan())
    assert "by     table of 256: normalize\n" in text
    assert "by     compiled loop of 2 ops: multiply -> add\n" in text
    assert "by     numpy: add\n" in str((array("f2") + 1).plan())


COLD = """
import numpy as np, sys
import volara_expr as ve
from executors import Serial
from volara_expr.kernels import loops
from volara_expr.plan import fusion
fusion.WORTH = 1
x = ve.from_numpy(np.arange(8.0 * 8 * 8).reshape(8, 8, 8))
(np.exp(-x) * x + 1).write(sys.argv[1] + "/out.zarr", executor=Serial(), overwrite="always", chunks=4, progress=False)
stats = [m.loop.stats for m in loops._LOADED.values()]
print(sum(sum(s.cache_misses.values()) for s in stats), sum(sum(s.cache_hits.values()) for s in stats))
"""


def test_loops_are_compiled_once(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(COLD)
    folder = tmp_path / "loops"

    def compiled_and_loaded() -> list[int]:
        done = subprocess.run(
            [sys.executable, str(script), str(tmp_path)],
            env=os.environ | {"VOLARA_EXPR_CACHE": str(folder)},
            capture_output=True,
            text=True,
            check=True,
        )
        return [int(n) for n in done.stdout.split()]

    assert compiled_and_loaded() == [2, 0]  # before and after exp
    made = {p: p.stat().st_mtime_ns for p in folder.rglob("*.nb*")}
    assert made
    assert compiled_and_loaded() == [0, 2]
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.nb*")} == made


def test_the_cache_folder_may_be_chosen_and_need_not_be_writable(tmp_path, monkeypatch):
    loops.cache_folder.cache_clear()
    monkeypatch.setenv("VOLARA_EXPR_CACHE", str(tmp_path / "a" / "b"))
    assert loops.cache_folder() == tmp_path / "a" / "b"
    loops.cache_folder.cache_clear()
    monkeypatch.delenv("VOLARA_EXPR_CACHE")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found = loops.cache_folder()
    assert found.is_dir()
    assert tmp_path not in found.parents
    found.rmdir()
    loops.cache_folder.cache_clear()


def test_tables_of_a_threshold_are_comparisons():
    codes = np.arange(256, dtype="u1").repeat(300)
    for dtype in ("?", "u1"):
        for step in (1, 100, 255):
            table = (np.arange(256) >= step).astype(dtype)
            assert step_at(table) == step
            assert_same(plain(Coded(codes, table, step)), table[codes])
    other = [np.zeros(256, "u1"), np.arange(256) < 9, np.arange(256, dtype="u1"), (np.arange(256) % 2).astype("u1")]
    assert [step_at(t) for t in other] == [None] * 4


def test_loops_that_only_copy(always):
    a = array("f4")
    for same in (a.astype("f4").astype("f4"), (a > 0).astype("?").astype("?")):
        assert_same(run(same), one(same))
    code = Scalars()
    assert_same(LoopKernel(code.constant(7, np.dtype("i4")))([], (3, 2)), np.full((3, 2), 7, "i4"))


def one(array: ve.Array) -> np.ndarray:
    """Without loops."""
    node = array.node
    program = Program([node], [])
    patches = program.evaluate(
        program.demand({node: node.spec.box}), lambda n, b: n.data[b.slices(n.spec.box.lo)], None, [node]
    )
    return plain(patches[node].data)
