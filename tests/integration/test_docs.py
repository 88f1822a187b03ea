"""Every code block of the README and the docs runs, and prints what the page says that it prints.

Each page is one script, run in a folder that holds the README's sample data. ```python blocks run one after another in one
process, ```sh blocks by bash between them; a ```text block is what the block before it prints, where ``...`` stands for
anything; in a ```text approximate block, numbers may be off by a tenth (two units of the last digit, if that is more), for they
hang on the last bits of floats, which differ between machines. A ```python block that begins with ``# NAME.py`` is saved under that name instead. ```console blocks are not run:
they hold the two set-up commands, which run longer than a test.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```([\w ]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?")
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")
SET_UP = re.compile(r"(git clone|cd|make|python -m venv|pip install|volara-expr) .*|make")
END = "\x1e"


def blocks(page: Path) -> list[tuple[str, str]]:
    return FENCE.findall(page.read_text())


def script(parts: list[tuple[str, str]]) -> str:
    """One program of all blocks; prints `END` after each."""
    lines = ["import pathlib, subprocess"]
    for kind, code in parts:
        if kind == "python" and (name := re.match(r"# (\w+\.py)\n", code)):
            lines.append(f"pathlib.Path({name[1]!r}).write_text({code!r})")
        elif kind == "python":
            lines.append(code)
        elif kind == "sh":
            lines.append(
                f"print(end=subprocess.run(['bash', '-euc', {code!r}], check=True, capture_output=True, text=True).stdout)"
            )
        if kind in ("python", "sh"):
            lines.append(f"print(end={END!r}, flush=True)")
    return "\n".join(lines)


def run(parts: list[tuple[str, str]], folder: Path) -> list[str]:
    """Run blocks in a folder and return what each printed."""
    (folder / "page.py").write_text(script(parts))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path}
    done = subprocess.run([sys.executable, "page.py"], cwd=folder, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout.split(END)[:-1]


def agree(kind: str, page: str, got: str) -> bool:
    """Whether a page says what was printed."""
    pattern = re.escape(" ".join(page.split())).replace(re.escape("..."), ".*?")
    if kind == "text approximate":
        pattern = NUMBER.sub(lambda _: f"({NUMBER.pattern})", pattern.replace(re.escape("."), "."))
    match = re.fullmatch(pattern, " ".join(got.split()))
    if match is None:
        return False
    said = NUMBER.findall(page) if kind == "text approximate" else []
    return all(
        abs(float(a) - float(b)) <= max(0.1 * float(a), 2.01 * unit(a)) for a, b in zip(said, match.groups(), strict=True)
    )


def unit(number: str) -> float:
    """The last digit's."""
    return float(10.0 ** -len(number.partition(".")[2]))


@pytest.fixture(scope="session")
def sample(tmp_path_factory) -> Path:
    """A folder with the data that the README's first Python block makes."""
    folder = tmp_path_factory.mktemp("sample")
    run([block for block in blocks(ROOT / "README.md") if block[0] == "python"][:1], folder)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_code_runs_and_prints_what_the_page_says(page, sample, tmp_path):
    parts = blocks(page)
    folder = tmp_path / "page"
    folder.mkdir() if page.name == "README.md" else shutil.copytree(sample, folder)
    runnable = [p for p in parts if p[0] in ("python", "sh")]
    if not runnable:
        return
    printed = iter(run(runnable, folder))
    got = ""
    for kind, text in parts:
        if kind in ("python", "sh"):
            got = next(printed)
        elif kind.startswith("text"):
            assert agree(kind, text, got), f"the page says\n{text}\nand it prints\n{got}"


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_page_is_well_formed(page):
    """Known kinds of blocks, links that lead somewhere, and commands that are not run are those of the set-up."""
    text = page.read_text()
    kinds = {kind for kind, _ in blocks(page)}
    assert kinds <= {"python", "sh", "text", "text approximate", "console", "toml", ""}, (
        f"a block of {kinds} is neither code nor its output"
    )
    for kind, code in blocks(page):
        if kind == "console":
            assert all(SET_UP.fullmatch(line.partition("  #")[0].strip()) for line in code.strip().splitlines()), code
    for target, _ in LINK.findall(text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_a_wrong_output_is_noticed(tmp_path):
    printed = run([("python", "print(1 + 1)\n"), ("sh", "echo $((2 + 3))\n")], tmp_path)
    assert printed == ["2\n", "5\n"]
    assert agree("text", "2", printed[0])
    assert not agree("text", "3", printed[0])
    assert agree("text approximate", "[100, 0.20] of ...", "[109, 0.18] of 3")
    assert not agree("text approximate", "[100, 0.20] of ...", "[112, 0.20] of 3")
    assert not agree("text approximate", "[100, 0.20]", "(100, 0.20)")
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run([("python", "1 / 0\n")], tmp_path)
