"""Twenty typical mistakes and what is said to each; `python tests/snapshot/test_mistakes.py` takes over a change of a message.

The transcript is a page of the docs, so that it can be searched for.
"""

from __future__ import annotations

import inspect
import linecache
import os
import pickle
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

import volara_expr as ve
from executors import Serial
from volara_expr.array.core import Array
from volara_expr.array.graph import Graph
from volara_expr.array.vocabulary import ARGUMENTS, METHODS
from volara_expr.expr.node import pack, unpack
from volara_expr.expr.origin import line_of

PAGE = Path(__file__).parents[2] / "docs" / "mistakes.md"
HEAD = """# Twenty mistakes

What is said to typical mistakes. Every message says what is wrong, with the numbers, and what to do; the last line names the line of the
program. A failing block names the line that made the operation that failed.

In all of them

```
raw = ve.from_numpy(np.zeros((64, 128, 128), np.uint8), voxel_size=(40, 8, 8), units="nm")
affs = ve.from_numpy(np.zeros((3, 64, 128, 128), np.float32), neighborhood=[(1, 0, 0), (0, 1, 0), (0, 0, 1)])
labels = raw.astype("uint64")
```
"""
MISTAKES = {
    "A halo that nobody needs to give": "raw.gaussian(sigma=2, context=8)",
    "A misspelt operation": "raw.gausian(2)",
    "SciPy's name": "raw.gaussian_filter(2)",
    "SciPy's argument": "raw.gaussian(2, mode='constant', cval=1)",
    "volara's name": "affs.ExtractFrags(bias=-0.5)",
    "volara's argument": "affs.watershed(-0.5, remove_debris=64)",
    "Dask's name": "raw.map_overlap(np.sort, depth=2)",
    "A method as a function": "ve.threshold(raw, 128)",
    "An argument that is missing": "affs.watershed(block_size=64)",
    "One bias too few": "affs.watershed(bias=[-0.5, -0.5])",
    "No neighborhood": "raw.watershed(-0.5)",
    "Arrays that lie apart": "raw[1:] - raw[:-1]",
    "Arrays of another resolution": "raw + raw.downsample(2).pad(((0, 32), (0, 64), (0, 64)))",
    "The truth of an array": "if (raw > 0).any():\n    pass",
    "Two entries for three axes": "raw.gaussian((2, 2))",
    "A length that has no meaning here": "affs.watershed(-0.5, block_size='500nm')",
    "Floats as labels": "affs[0].relabel({1: 7})",
    "A graph that nobody computed": "labels.agglomerate(affs, scores={'all': slice(0, 3)}).edges()",
    "A store that is not there": "ve.open('sample.zarr/raw')",
    "A function that changes the shape": "flat = raw.map_blocks(np.ravel)\nflat.compute(Serial(block=(64, 128, 128)))",
}


def message(code: str, title: str) -> str:
    """What Python prints of a mistake, but for the traceback."""
    name = "segment.py"
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    raw = ve.from_numpy(np.zeros((64, 128, 128), np.uint8), voxel_size=(40, 8, 8), units="nm")
    affs = ve.from_numpy(np.zeros((3, 64, 128, 128), np.float32), neighborhood=[(1, 0, 0), (0, 1, 0), (0, 0, 1)])
    labels = raw.astype("uint64")
    try:
        exec(compile(code, name, "exec"), {"ve": ve, "np": np, "Serial": Serial, "raw": raw, "affs": affs, "labels": labels})
    except Exception as e:
        text = "\n".join([f"{type(e).__name__}: {e}", *e.__notes__]).replace(os.getcwd(), "/data")
        return shortened(text)
    raise AssertionError(f"{title}: no error")


def shortened(text: str) -> str:
    """Leave the frames of a traceback out, and what differs from run to run."""
    frames = re.sub(r" *Traceback \(most recent call last\):\n.*\n(?=    \w+: )", "    ...\n", text, flags=re.DOTALL)
    frames = re.sub(r"pid \d+", "pid 4711", frames)
    return "\n".join(line for line in frames.splitlines() if not line.startswith(("run it alone", "There is no job file")))


def page() -> str:
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            parts = [
                f"## {title}\n\n```\n{code}\n```\n\n```\n{message(code, title)}\n```\n" for title, code in MISTAKES.items()
            ]
        finally:
            os.chdir(here)
    return "\n".join([HEAD, *parts])


def test_messages_are_those_of_the_page():
    assert page() == PAGE.read_text(), "if the new messages are better, run `python tests/snapshot/test_mistakes.py`"


def test_all_twenty_name_the_line():
    assert len(MISTAKES) == len(re.findall(r"^in segment\.py:\d: .*\n```$", PAGE.read_text(), re.MULTILINE)) == 20


def test_what_is_recommended_exists():
    """Every call that a suggestion names is a method of an array or a graph, or a function of the package or of NumPy."""
    for name, advice in METHODS.items():
        assert not hasattr(Array, name), f"{name} exists, so nobody is ever told to use {advice!r}"
        for call in re.findall(r"(?<!np\.)(?<!compute\(\)\.)\b(\w+)\(", advice):
            assert any(hasattr(home, call) for home in (Array, Graph, ve.Plan, ve)), f"{name}: {call} does not exist"


def test_what_is_recommended_for_arguments_exists():
    """An advice of one word is an argument that some operation has."""
    taken = {p for n in dir(Array) if not n.startswith("_") for p in arguments(getattr(Array, n))}
    words = {a for a in ARGUMENTS.values() if a.isidentifier()}
    assert words <= taken


def arguments(member: object) -> list[str]:
    return list(inspect.signature(member).parameters) if inspect.isfunction(member) else []


def test_an_existing_argument_never_meets_advice():
    """What a method has is taken, also where other methods are told to do without it."""
    x = ve.from_numpy(np.zeros((8, 8), np.uint8))
    assert x.components(block_size=4).shape == (8, 8)
    with pytest.raises(TypeError, match="blocks do not change the result"):
        x.gaussian(1, block_size=4)


def test_lines_are_no_part_of_an_expression_and_travel_with_it():
    x = ve.from_numpy(np.arange(12.0).reshape(3, 4))
    one = x.gaussian(0.75)
    two = x.gaussian(0.75)
    assert one.node is two.node
    node = x.gaussian(0.625).node
    assert re.search(r"test_mistakes.py:\d+: node = x.gaussian\(0.625\).node", line_of(node.origin))
    packed = pack([node])
    digest, line = node.digest, line_of(node.origin)
    del node
    again = unpack(pickle.loads(pickle.dumps(packed)))[-1]
    assert (again.digest, line_of(again.origin)) == (digest, line)


def test_cells_of_a_notebook_go_by_their_number():
    code = (
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance()\n"
        "shell.run_cell('import volara_expr as ve, numpy as np', store_history=True)\n"
        "done = shell.run_cell('a = ve.from_numpy(np.zeros(3))\\na.gausian(3)', store_history=True)\n"
        "print(done.error_in_exec.__notes__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "['in Cell In[2]:2: a.gausian(3)']" in done.stdout


def test_arguments_that_pass_through_are_answered_too(tmp_path):
    graph = ve.from_numpy(np.ones((2, 4), np.uint64)).agglomerate(
        ve.from_numpy(np.ones((1, 2, 4)), axes=("c", "y", "x"), neighborhood=[(0, 1)]), scores={"a": [0]}
    )
    with pytest.raises(TypeError, match=r"write has no argument 'num_workers': executor='multiprocessing:8'"):
        graph.write(tmp_path / "out.zarr", num_workers=8)


if __name__ == "__main__":
    PAGE.write_text(page())
