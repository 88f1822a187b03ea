"""The notebooks run and print what is saved in them; a cell that is interrupted can be run again.

`python tests/integration/test_notebooks.py` runs them and saves what they show. Look at it before you commit it.
"""

from __future__ import annotations

from pathlib import Path

import nbclient
import nbformat
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(path.stem for path in EXAMPLES.glob("*.ipynb"))


def run(notebook, folder, allow_errors=False):
    client = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", allow_errors=allow_errors, resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return notebook


def printed(notebook):
    """Return what each cell printed: that must not depend on the machine."""
    outputs = [cell.get("outputs", []) for cell in notebook.cells]
    return ["".join(o.text for o in cell if o.output_type == "stream") for cell in outputs]


def pictures(notebook):
    return [sum("image/png" in o.get("data", {}) for o in cell.get("outputs", [])) for cell in notebook.cells]


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook(name, tmp_path):
    saved = nbformat.read(EXAMPLES / f"{name}.ipynb", 4)
    fresh = run(nbformat.read(EXAMPLES / f"{name}.ipynb", 4), tmp_path)
    assert printed(fresh) == printed(saved)
    assert pictures(fresh) == pictures(saved)
    assert sum(pictures(saved)) >= 4
    assert (EXAMPLES / f"{name}.ipynb").stat().st_size < 1 << 20


INTERRUPTED = """
import os, signal, threading, time
import numpy as np
import volara_expr as ve
from executors import Serial

def slow(block):
    time.sleep(0.1)
    if (block == 20).any() and not os.path.exists("again"):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    return block

x = ve.from_numpy(np.arange(32, dtype=np.uint8)).map_blocks(slow, name="slow")
"""
LINE = "x.write('out.zarr', executor=Serial(block=(4,)), chunks=4, format='zarr', progress={})"


def test_an_interrupted_cell_says_so_and_goes_on(tmp_path):
    again = "open('again', 'w').close()\n"
    cells = [INTERRUPTED, LINE.format(True), again + LINE.format("'lines'"), "print(ve.open('out.zarr').compute().tolist())"]
    done = run(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells]), tmp_path, allow_errors=True)
    page, error = done.cells[1].outputs
    assert "<progress value=" in page.data["text/html"]
    assert error.ename == "KeyboardInterrupt"
    assert "run the same line again to go on from there" in "\n".join(error.traceback)
    recorded = int("\n".join(error.traceback).split("blocks done and recorded: ")[-1].split(";")[0])
    assert 3 <= recorded <= 6
    line = printed(done)[2]
    assert int(line.split("/")[1].split(": ")[-1]) in (8 - recorded, 7 - recorded)  # the last block may be recorded but untold
    assert printed(done)[3] == f"{list(range(32))}\n"


if __name__ == "__main__":
    for name in NOTEBOOKS:
        executed = run(nbformat.read(EXAMPLES / f"{name}.ipynb", 4), EXAMPLES)
        for cell in executed.cells:
            cell.metadata.pop("execution", None)
        nbformat.write(executed, EXAMPLES / f"{name}.ipynb")
