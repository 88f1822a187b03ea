"""Run every benchmark, one after another, at one commit, and write docs/performance.md and its plot.

    make peers
    python tests/benchmarks/run_all.py --affs AFFS --volara-python .venv-peers/bin/python

Without `--affs` the affinities are generated; without `--volara-python` volara's figures are left out. `--quick` is for trying
this script: small volumes, two runs of each, nothing written to docs unless `--docs` says where.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from common import header
from main_job import generated

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
Table = list[list[str]]

LIMITS = {
    "main_job": "The profile below says where the time goes. With one worker, `Serial` computes two blocks at a time in threads. "
    "Worker processes are kept from run to run (`with Multiprocessing(2) as executor`), as imports are left out on both sides: volara forks "
    "its workers with all imports done. The last table shows what a run takes whose workers start from nothing: in two interpreters at once "
    "other packages (NumPy, tensorstore, pyarrow, numba and what that imports at its first use) take the seconds of the last table of the next "
    "section to import, before anything of ours can run.",
    "main_profile": "What is listed as Python includes what the profiler itself takes, about a tenth of the whole.",
    "elementwise": "Decoding and encoding. The floor reads and writes the same bytes with tensorstore and computes nothing; it plans "
    "nothing and keeps no ledger either, which costs ours some 10 ms in each run and 0.3 ms a block. Files are in memory, as a disk takes "
    "what it likes for a new file; ours and the floor took turns 15 times. On one core nothing can hide what computing takes (column compute: the "
    "loops alone, on a block that is in memory); in the last chain about half of it is NumPy's own `exp` (second table), whose bits we keep. Where dask takes less than twice the "
    "floor (column dask/floor), nothing that stores the same bytes can be twice as fast as dask.",
    "watershed_kernel": "One core. Random access: of 18.2 million edges of a block of 128 cubed without strides (6.7 million with), "
    "each asks for the parents of two voxels. Two thirds find both ends in one cluster already; they leave in batches of 64, without "
    "a branch for each. An edge takes 5 ns with strides. What was tried and gave nothing: prefetching, contracting voxels whose first edge joins, "
    "dropping parallel edges before the sort, flattening between levels, hashes that keep neighbours together.",
    "graph_stage": "The kernel: two thirds are the union, a third the radix sort of the weights; both go through memory at random. "
    "The step takes twice as long: half of it is the search for the position of each edge's ends among the ids, and Parquet.",
    "overhead": "Python: the executor's loop, a tensorstore call and a record in the ledger for each block; the floor shows what its "
    "file costs. Processes add messages both ways, which overlap with other workers' blocks.",
    "halo_chain": "The sums take 0.3 s of one core, as much as decoding and encoding; half of the rest of the wall time is the first "
    "read and the last write, in which no block is computed. They are SciPy's sums, in float64 and in its order, but in vector "
    "instructions, and of each axis only what the next one takes. dask computes SciPy's filters on the grown blocks of each step "
    "and copies each block's neighbours together before.",
    "memory": "Blocks: decoded affinities of the block that is computed and of the one read ahead, fragments that are being "
    "written, and the edges of one block of the watershed; in the worker that builds the graph, DuckDB. A worker's own part is what "
    "counts; `Serial` computes two blocks at a time. Workers that are kept begin the next run with some 60 MB more: libraries and buffers of "
    "the stages before. The projection must hold for the worst data and for a first compilation, so it "
    "lies above.",
    "cold_start": "LLVM: each kernel is compiled once for each type that it meets, by one process of the machine while others "
    "compile other ones, and stored.",
}
TITLES = {
    "main_job": "The main job: affinities to segments",
    "main_profile": "Where the main job's time goes",
    "elementwise": "Elementwise chains, store to store",
    "watershed_kernel": "The watershed of one block",
    "graph_stage": "Clustering a region graph",
    "halo_chain": "Three chained gaussians",
    "overhead": "What a block costs beside its work",
    "memory": "Memory of a worker",
    "cold_start": "The first run on a machine",
}


@dataclass
class Study:
    """One benchmark that ran: its title line and tables, heads first."""

    name: str
    about: str
    tables: list[Table]
    seconds: float
    text: str

    def column(self, head: str, table: int = 0) -> dict[str, float]:
        """A column's numbers by the first cell of their rows."""
        at = self.tables[table][0].index(head)
        return {row[0]: float(row[at]) for row in self.tables[table][1:] if row[at] != "-"}


def tables(text: str) -> list[Table]:
    """The tables that `common.table` printed: lines of as many cells, two spaces or more between them."""
    found: list[Table] = [[]]
    for line in text.splitlines():
        cells = re.split(r" {2,}", line.strip())
        if len(cells) < 2:
            continue
        if found[-1] and len(found[-1][0]) != len(cells):
            found.append([])
        found[-1].append(cells)
    return [t for t in found if len(t) > 1]


def stages(text: str) -> list[Table]:
    """What `main_job` printed, as one table for each number of workers."""
    found: dict[str, Table] = {}
    for line in text.splitlines():
        if total := re.match(r"(ours|volara), ([^:]+): ([\d.]+) s", line):
            who, n, s = total.groups()
            found.setdefault(n, [[n, "s"]]).append([f"{who}, in all", s])
        elif stage := re.match(r"  (\S.*?) +([\d.]+) s$", line):
            found[n].append([f"{who}: {stage[1]}", stage[2]])
    return list(found.values())


def study(name: str, *arguments: str) -> Study:
    """Run one benchmark in a process of its own."""
    command = [sys.executable, str(HERE / f"{name}.py"), *arguments]
    print(f"{datetime.datetime.now():%H:%M:%S} {' '.join([name, *arguments])}", flush=True)
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    print(done.stdout, flush=True)
    titles = [x for x in done.stdout.splitlines() if x and "  " not in x and (name != "main_job" or "VOI" in x)]
    return Study(
        name,
        titles[0] if titles else "",
        (stages if name == "main_job" else tables)(done.stdout),
        time.perf_counter() - started,
        done.stdout,
    )


def imports(repeat: int) -> float:
    """Median seconds of `import volara_expr`, the bare interpreter taken off."""

    def run(code: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
        return time.perf_counter() - started

    run("import volara_expr")
    return statistics.median(run("import volara_expr") for _ in range(repeat)) - statistics.median(
        run("pass") for _ in range(repeat)
    )


@dataclass
class Goal:
    """What a figure should reach: at least, or at most."""

    what: str
    target: float
    found: float
    most: bool = False
    unit: str = "x"
    limit: str = ""

    @property
    def met(self) -> bool:
        """Whether it is reached."""
        return self.found <= self.target if self.most else self.found >= self.target


def goals(s: dict[str, Study], import_s: float) -> list[Goal]:
    """Every figure that has a target, as far as the benchmarks with their peers ran; the worst where there are several."""
    found: list[Goal] = []
    for table, target in zip(range(len(s["main_job"].tables)), (18, 15), strict=False):
        seconds = s["main_job"].column("s", table)
        if "volara, in all" in seconds:
            title = f"main job, {s['main_job'].tables[table][0][0]}: volara / ours"
            found.append(Goal(title, target, seconds["volara, in all"] / seconds["ours, in all"]))
    above = s["memory"].column("above imports")
    if "volara, main job, serial" in above:
        ours = above["main job, Multiprocessing(2)"]
        found.append(
            Goal(
                "main job, memory of a worker above imports: ours / volara", 0.5, ours / above["volara, main job, serial"], True
            )
        )
    for name, cores, target in (("elementwise", "one core", 1.05), ("elementwise 2", "two cores", 1.15)):
        if name in s:
            ours, dask = s[name].column("ours/floor"), s[name].column("dask/ours")
            chain = max(ours, key=ours.__getitem__)
            alone = s[name].column("compute s")[chain] / s[name].column("floor s")[chain]
            limit = f"{chain}; its loops alone take {alone:.1%} of the floor"
            if "exp" in chain:
                limit += f"; with NumPy's exp in the floor {s[name].column('ours/(floor + exp)', 1)[chain]:g}x"
            found.append(Goal(f"elementwise chains, {cores}: ours / floor", target, ours[chain], True, limit=limit))
            chain = min(dask, key=dask.__getitem__)
            limit = f"{chain}; dask takes {s[name].column('dask/floor')[chain]:g}x the floor"
            found.append(Goal(f"elementwise chains, {cores}: dask / ours", 2, dask[chain], limit=limit))
    volara = s["elementwise"].column("volara/ours")
    if volara:
        found.append(Goal("elementwise chain, one core: volara / ours", 8, min(volara.values())))
    for row in s["watershed_kernel"].tables[0][1:]:
        if row[1] == "uint8":
            found.append(
                Goal(f"watershed, strides: {row[0]}: mwatershed / ours", 7 if row[0] == "none" else 16, float(row[-1]))
            )
    dask = [v for k, v in s["halo_chain"].column("s / ours").items() if k.startswith("dask")]
    found.append(Goal("three gaussians: dask map_overlap / ours", 3, min(dask)))
    graph = s["graph_stage"]
    most = max(graph.column("networkx/ours step"), key=lambda k: int(k.replace(",", "")))
    found.append(
        Goal(f"graph of {most} edges: networkx + mwatershed / ours, whole step", 20, graph.column("networkx/ours step")[most])
    )
    found.append(Goal(f"graph of {most} edges: mwatershed.cluster / our kernel", 3, graph.column("cluster/ours kernel")[most]))
    found.append(Goal("graph, memory beyond the input, an edge", 30, max(graph.column("B/edge").values()), True, " B"))
    rows = s["overhead"].tables[0][1:]
    for executor, target in (("Serial", 0.3), ("Multiprocessing", 1.0)):
        last = [r for r in rows if r[1].startswith(executor)][-1]
        found.append(Goal(f"{executor}, {last[0]} blocks: overhead of a block", target, float(last[4]), True, " ms"))
    fixed = {r[1].partition("(")[0]: float(r[5]) for r in rows}
    found.append(
        Goal(
            "start of workers: a run of one block, beyond Serial's", 1.0, fixed["Multiprocessing"] - fixed["Serial"], True, " s"
        )
    )
    found.append(Goal("import volara_expr", 0.25, import_s, True, " s"))
    cold = s["cold_start"]
    found.append(Goal("first main job, beyond a warm one", 6, max(cold.column("cold - warm s").values()), True, " s"))
    found.append(Goal("files that a warm main job compiles", 0, max(cold.column("compiled warm").values()), True, ""))
    return found


def markdown(table: Table) -> str:
    """A table as Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in table]
    return "\n".join([lines[0], f"|{'---|' * len(table[0])}", *lines[1:]])


def page(s: dict[str, Study], found: list[Goal], about: list[str], command: str) -> str:
    """The page."""
    table = [["figure", "target", "measured", ""]]
    for g in found:
        target = f"at {'most' if g.most else 'least'} {g.target:g}{g.unit}"
        table.append([g.what, target, f"{g.found:.3g}{g.unit}", "" if g.met else "**missed**" + f": {g.limit}" * bool(g.limit)])
    parts = [
        "# Performance",
        "Made by `tests/benchmarks/run_all.py`: all figures come from one run at one commit, one benchmark after another. They are "
        "medians of five runs or more after one that is not counted (volara's main job ran once, 10 million edges and memory three times, "
        "cold starts twice), wall time, with the page cache warm; figures of ours include opening, planning, the ledger and writing, those of "
        "peers their own best way to do the same.",
        "\n".join(f"- {line}" for line in about),
        f"Run it with\n\n```\n{command}\n```",
        "![Ratios and stages](img/performance.png)",
        "## Targets",
        "The worst figure where a benchmark has several of a kind. Ratios above 1 favour this package, except those to the floor and of memory.",
        markdown(table),
    ]
    for name, study in s.items():
        base = name.split()[0]
        if base == name:
            parts += [f"## {TITLES[name]}", LIMITS[name]]
        if study.about:
            parts.append(f"{study.about[0].upper()}{study.about[1:]}.")
        parts += [markdown(t) for t in study.tables]
    return "\n\n".join(parts) + "\n"


def plot(path: Path, s: dict[str, Study], found: list[Goal]) -> None:
    """Ratios to peers with their targets, and the stages of the main job."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ratios = [g for g in found if not g.most]
    fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), width_ratios=(3, 2), layout="constrained")
    places = range(len(ratios))[::-1]
    left.barh(places, [g.found for g in ratios], color="#4878a8", height=0.6)
    left.plot([g.target for g in ratios], list(places), "|", color="black", markersize=16, markeredgewidth=2, label="target")
    left.set_yticks(list(places), [g.what for g in ratios], fontsize=8)
    left.set_xscale("log")
    left.set_xlim(0.8, 2 * max(max(g.found, g.target) for g in ratios))
    left.set_xlabel("times faster than the peer")
    left.xaxis.set_major_formatter("{x:g}")
    left.axvline(1, color="grey", linewidth=0.8)
    left.legend(frameon=False, loc="lower right", fontsize=8)
    for place, g in zip(places, ratios, strict=True):
        left.annotate(f"{g.found:.3g}", (g.found, place), (4, 0), textcoords="offset points", va="center", fontsize=8)

    own = [
        (k.removeprefix("ours: ").rpartition("/")[2], v) for k, v in s["main_job"].column("s").items() if k.startswith("ours: ")
    ]
    begin = 0.0
    for k, (_, seconds) in enumerate(own):
        right.barh(-k, seconds, left=begin, color="#4878a8", height=0.6)
        begin += seconds
    right.set_yticks([-k for k in range(len(own))], [name for name, _ in own], fontsize=8)
    right.set_xlabel("main job, one worker: seconds")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=110)


def machine() -> str:
    """Cores, processor and memory."""
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        names = re.findall(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = names[0] if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{len(os.sched_getaffinity(0))} cores of {model}, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"


def git(*arguments: str) -> str:
    """Ask git."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--affs", help="uint8 affinities with a neighborhood, in a zarr array; generated by default")
    parser.add_argument("--truth", help="FILE.npz:KEY, segments of the same volume")
    parser.add_argument("--volara-python", help="interpreter of an environment with volara")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--docs", type=Path, help="folder of the page; the repository's by default")
    given = parser.parse_args()
    quick = given.quick
    commit = git("rev-parse", "--short", "HEAD") + (
        " with changes" if git("status", "--porcelain", "volara_expr", "executors") else ""
    )
    repeat = ["--repeat", "2" if quick else "5"]
    peer = ["--volara-python", os.path.abspath(given.volara_python)] if given.volara_python else []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        shape = (64, 128, 128) if quick else (128, 256, 256)
        affs = os.path.abspath(given.affs) if given.affs else generated(Path(folder), shape)
        truth = ["--truth", os.path.abspath(given.truth)] if given.truth else []
        side = ["--side", "128" if quick else "512"]
        todo = {
            "main_job": ("main_job", affs, *repeat, *peer, *truth),
            "main_profile": ("main_profile", affs),
            "elementwise": ("elementwise", "--cores", "1", *repeat, *side, *peer),
            "elementwise 2": ("elementwise", "--cores", "2", *repeat, *side),
            "watershed_kernel": ("watershed_kernel", affs, *repeat, "--side", "64" if quick else "128"),
            "graph_stage": ("graph_stage", *repeat, "--edges", *("100000", "1000000", "10000000")[: 1 if quick else 3]),
            "halo_chain": ("halo_chain", *repeat, *(["--side", "96"] if quick else [])),
            "overhead": ("overhead", *repeat, "--blocks", *("100", "1000", "10000")[: 2 if quick else 3]),
            "cold_start": ("cold_start", affs, "--repeat", "1" if quick else "2"),
        }
        s = {name: study(*arguments) for name, arguments in todo.items()}
        if peak := re.search(r"volara, 1 worker: .* peak (\d+) MB", s["main_job"].text):
            peer += ["--volara-peak", peak[1]]
        s["memory"] = study("memory", affs, "--side", "128" if quick else "384", "--repeat", "1" if quick else "3", *peer)
        found = goals(s, imports(int(repeat[1])))
    volume = "affinities given by path" if given.affs else "generated affinities"
    about = [
        f"{datetime.date.today()}, commit {commit}; {volume}",
        machine(),
        ", ".join(header("", 0).split(", ")[3:]),
    ]
    command = "make peers\n" * bool(peer) + "python tests/benchmarks/run_all.py" + " --affs AFFS" * bool(given.affs)
    command += " --volara-python .venv-peers/bin/python" * bool(peer)
    text = page(s, found, about, command)
    docs = given.docs or (None if quick else ROOT / "docs")
    if docs is not None:
        docs.mkdir(parents=True, exist_ok=True)
        (docs / "performance.md").write_text(text)
        plot(docs / "img/performance.png", s, found)
    print(text)
    print(f"{sum(x.seconds for x in s.values()):.0f} s in all: " + ", ".join(f"{n} {x.seconds:.0f}" for n, x in s.items()))


if __name__ == "__main__":
    main()
