from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import volara_expr as ve
from volara_expr.expr import topological
from volara_expr.kernels import loops
from volara_expr.run.block import Program
from volara_expr.run.compiler import Compiler, Input, calls_of

PATIENCE_S = 20


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(loops, "cache_folder", lambda: tmp_path)


def started_call():
    """A call that goes on until it is let go, and the two events."""
    begun, let_go = threading.Event(), threading.Event()

    def call():
        begun.set()
        assert let_go.wait(PATIENCE_S)

    return call, begun, let_go


def test_two_never_make_the_same_call_at_a_time_and_use_the_wait():
    long, begun, let_go = started_call()
    made: list[str] = []
    one = Compiler({"long": long}, {})
    assert begun.wait(PATIENCE_S)
    last = threading.Event()
    calls = {"long": lambda: made.append("long"), "short": lambda: made.append("short")}
    two = Compiler(calls, {"later": lambda: (made.append("later"), last.set())})
    assert last.wait(PATIENCE_S)
    assert made == ["short", "later"]
    assert not two._ready.is_set()
    let_go.set()
    two.wait()
    assert made == ["short", "later", "long"]
    one.close()
    two.close()


def test_later_calls_follow_and_are_left_to_whom_makes_them():
    long, begun, let_go = started_call()
    made: list[str] = []
    one = Compiler({"long": long}, {})
    assert begun.wait(PATIENCE_S)
    two = Compiler(
        {"now": lambda: made.append("now")}, {"now": lambda: made.append("again"), "long": long, "b": lambda: made.append("b")}
    )
    two.wait()
    two._thread.join(PATIENCE_S)
    assert made == ["now", "b"]
    let_go.set()
    one.close()


def test_a_call_that_fails_leaves_the_error_to_the_block():
    made: list[str] = []
    compiler = Compiler({"bad": lambda: 1 / 0, "good": lambda: made.append("good")}, {})
    compiler.wait()
    compiler.close()
    assert made == ["good"]


def test_closing_waits_for_the_call_at_hand_and_leaves_out_the_rest():
    long, begun, let_go = started_call()
    made: list[str] = []
    compiler = Compiler({"long": long, "next": lambda: made.append("next")}, {"later": lambda: made.append("later")})
    assert begun.wait(PATIENCE_S)
    closing = threading.Thread(target=compiler.close)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive()
    let_go.set()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert not made
    compiler.wait()


def test_a_lock_holds_between_processes(tmp_path):
    script = "import sys; from volara_expr.kernels import loops; from pathlib import Path; loops.cache_folder = lambda: Path(sys.argv[1])\n"
    script += "from volara_expr.run.compiler import locked\nwith locked('a') as mine: print(mine, flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "True\n"
    made: list[str] = []
    compiler = Compiler({"b": lambda: made.append("b"), "a": lambda: made.append("a")}, {})
    assert not compiler._ready.wait(0.3)
    assert made == ["b"]
    other.communicate()  # it ends
    compiler.wait()
    assert made == ["b", "a"]
    compiler.close()


def pipeline(dtype):
    offsets = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (3, 0, 0)]
    data = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 8))
    affs = ve.from_numpy(data.astype(dtype), voxel_size=1, units="nm", neighborhood=offsets)
    affs = affs.normalize(0, 255) if dtype == "uint8" else affs / 255
    frags = affs.watershed(bias=-0.5, block_size=8)
    graph = frags.agglomerate(affs, scores={"all": slice(0, 4)})
    return affs, frags, frags.relabel(graph.mutex_watershed({"all": (1.0, -0.5)}))


def calls(dtype):
    affs, frags, segments = pipeline(dtype)
    return calls_of(topological([segments.node]), Program([affs.node, frags.node], []))


def test_calls_name_what_kernels_get():
    names = ["mutex_watershed:fragments", "edges:node_sums", "edges:edge_sums", "graph:mutex_watershed", "relabel:relabel"]
    for dtype, affs in (("uint8", Input("uint8", True)), ("float32", Input("float32"))):
        found = {c.kernel.removeprefix("volara_expr.kernels."): c.inputs for c in calls(dtype)}
        assert sorted(found) == sorted(names)
        assert found["mutex_watershed:fragments"] == (affs,)
        assert found["edges:edge_sums"] == (Input("uint64"), affs)
        assert found["relabel:relabel"] == (Input("uint64"),)
    assert calls_of([]) == []


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from test_compiler import calls, pipeline
from numba.core.dispatcher import Dispatcher

for call in calls(sys.argv[2]):
    call()
def signatures():
    modules = [m for name, m in list(sys.modules.items()) if name.startswith("volara_expr.kernels.")]
    return {v.py_func.__qualname__: v.signatures for m in modules for v in vars(m).values() if isinstance(v, Dispatcher)}
before = signatures()
assert sum(map(bool, before.values())) > 8, before
pipeline(sys.argv[2])[2].compute()
more = {name: found for name, found in signatures().items() if found != before[name]}
assert not more, more
"""


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_runs_compile_nothing_that_the_calls_did_not(dtype):
    subprocess.run([sys.executable, "-c", SCRIPT, str(Path(__file__).parent), dtype], check=True)
