"""What a run tells while it goes on, and what it has to say at the end."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

from executors.protocol import Event
from volara_expr.expr.show import html_table

__all__ = ["Progress", "StageReport", "as_html", "table"]

logger = logging.getLogger("volara_expr")
Mode = bool | Literal["bar", "lines"]
LINE_SECONDS = 30.0
PAGE_SECONDS = 0.3


@dataclass
class StageReport:
    """What a stage took.

    Attributes
    ----------
    name : str
    blocks, failed, lost : int
        Blocks done; attempts that failed; attempts lost with their worker.
    voxels : int
    seconds : float
        Wall time.
    read_s, compute_s, write_s : float
        Summed over workers.
    peak_bytes : int
        Highest resident memory of any worker so far.
    workers : str
        What the executor last said of those that run and wait; "" where it says nothing.
    """

    name: str
    total: int = 0
    blocks: int = 0
    failed: int = 0
    lost: int = 0
    voxels: int = 0
    seconds: float = 0.0
    read_s: float = 0.0
    compute_s: float = 0.0
    write_s: float = 0.0
    peak_bytes: int = 0
    workers: str = ""
    started: float = field(default=0.0, repr=False)

    @property
    def mvoxels_per_s(self) -> float:
        """Millions of voxels of output per second of wall time."""
        return self.voxels / 1e6 / self.seconds if self.seconds else 0.0

    @property
    def rate(self) -> float:
        """Blocks per second of wall time; 0 before the first is done."""
        return self.blocks / self.seconds if self.seconds else 0.0

    @property
    def time(self) -> str:
        """What is left at this rate, or what all blocks took: "1:30 left", "in 12.0 s"; "" before the first is done."""
        if self.blocks < self.total:
            return f"{clock((self.total - self.blocks) / self.rate)} left" if self.rate else ""
        return f"in {clock(self.seconds)}"


class Progress:
    """Turns events into reports, and into bars (terminal), a table with bars (notebook) or plain lines (files, SLURM logs).

    Parameters
    ----------
    names : dict
        Name of each job by its key, in the order in which they run.
    mode : bool or {"bar", "lines"}
        True chooses: bars where there is a terminal or a notebook, else lines.
    """

    def __init__(self, names: dict[str, str], mode: Mode) -> None:
        self.reports = {key: StageReport(name) for key, name in names.items()}
        self.mode: Literal["bar", "page", "lines", "none"] = "none" if mode is False else "lines"
        if mode is True or mode == "bar":
            self.mode = "page" if in_notebook() else "bar" if mode == "bar" or sys.stderr.isatty() else "lines"
        kinds = {"bar": Bar, "page": Page, "lines": Lines, "none": View}
        self._view: View = kinds[self.mode](list(self.reports.values()))
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Take an event of the executor."""
        with self._lock:
            report = self.reports[event.job]
            now = time.perf_counter()
            if event.kind == "job_started":
                report.total, report.started = event.total, now
                if report.total:
                    self._view.update(report, False)
            elif event.kind == "done":
                report.blocks += 1
                report.peak_bytes = max(report.peak_bytes, event.peak_bytes)
                report.seconds = now - report.started
                if event.record is not None:
                    report.voxels += event.record.voxels
                    report.read_s += event.record.read_s
                    report.compute_s += event.record.compute_s
                    report.write_s += event.record.write_s
                self._view.update(report, False)
            elif event.kind in ("failed", "lost"):
                if event.kind == "failed":
                    report.failed += 1
                else:
                    report.lost += 1
                why = reason(event.message)
                logger.warning("%s, block %s, attempt %d %s: %s", report.name, event.block, event.attempt, event.kind, why)
            elif event.kind == "workers":
                report.workers = event.message
                self._view.update(report, False)
            elif event.kind == "job_done":
                if report.started:
                    report.seconds = now - report.started
                if report.total:
                    self._view.update(report, True)

    @property
    def blocks(self) -> int:
        """Blocks done so far, over all stages."""
        return sum(r.blocks for r in self.reports.values())

    def close(self) -> None:
        """Leave the last state on view, also after an interruption."""
        self._view.close()


class View:
    """Shows nothing; base of those that do.

    Parameters
    ----------
    reports : list of StageReport
        All stages, updated from outside.
    """

    def __init__(self, reports: list[StageReport]) -> None:
        self.reports = reports

    def update(self, report: StageReport, ended: bool) -> None:
        """Show that a stage started, advanced or ended."""

    def close(self) -> None:
        """Leave the last state on view."""


class Bar(View):
    """A bar for each stage, with rate and time left, for terminals."""

    _bar: Any = None

    def update(self, report: StageReport, ended: bool) -> None:
        """Move the bar."""
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=report.total, desc=report.name, unit="block", dynamic_ncols=True)
        self._bar.set_postfix_str(report.workers, refresh=False)
        self._bar.update(report.blocks - self._bar.n)
        if ended:
            self.close()

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Lines(View):
    """A line every half minute and at the end of each stage, for files and SLURM logs."""

    def __init__(self, reports: list[StageReport]) -> None:
        super().__init__(reports)
        self._last = time.monotonic()

    def update(self, report: StageReport, ended: bool) -> None:
        """Print a line when it is time."""
        if ended or time.monotonic() - self._last > LINE_SECONDS:
            self._last = time.monotonic()
            about = f"{report.rate:.3g}/s, {report.time}" if report.rate else "none done yet"
            about += f", {report.workers}" if report.workers else ""
            print(f"{report.name}: {report.blocks}/{report.total} blocks, {about}", file=sys.stderr, flush=True)


class Page(View):
    """A table of all stages in a notebook, in HTML that is saved with it and needs no widgets."""

    def __init__(self, reports: list[StageReport]) -> None:
        super().__init__(reports)
        self._handle: Any = None
        self._last = 0.0

    def update(self, report: StageReport, ended: bool) -> None:
        """Show the table again when it is time."""
        if ended or time.monotonic() - self._last > PAGE_SECONDS:
            self.close()

    def close(self) -> None:
        """Show the table as it is now."""
        started = [r for r in self.reports if r.total]
        if started:
            shown = sys.modules["IPython"].display
            page = shown.HTML(as_html(started))
            if self._handle is None:
                self._handle = shown.display(page, display_id=True)
            else:
                self._handle.update(page)
        self._last = time.monotonic()


def as_html(reports: Sequence[StageReport], title: str = "stage") -> str:
    """Return reports as a table with bars."""
    rows = []
    for r in reports:
        bar = f"<progress value='{r.blocks}' max='{max(r.total, 1)}'></progress> {r.blocks:,} of {r.total:,}"
        notes = [f"attempts {what}: {n}" for n, what in ((r.failed, "failed"), (r.lost, "lost")) if n]
        notes += [escape(r.workers)] if r.workers else []
        rows.append((escape(r.name), bar, f"{r.rate:.3g}/s" if r.rate else "", r.time, ", ".join(notes)))
    return html_table(rows, (title, "blocks", "rate", "time", ""))


def in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel."""
    shell: Callable[[], Any] | None = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return shell is not None and type(shell()).__name__ == "ZMQInteractiveShell"


def clock(seconds: float) -> str:
    """Return "3.2 s" or "1:02:03"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, s = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{s:02}" if hours else f"{minutes}:{s:02}"


def table(reports: list[StageReport]) -> str:
    """Return the reports as a text table."""
    width = max([len(r.name) for r in reports] + [5])
    lines = [
        f"{'stage':<{width}} {'blocks':>7} {'wall s':>7} {'Mvox/s':>7} {'read s':>7} {'comp. s':>7} {'write s':>7} {'peak MB':>8}"
    ]
    for r in reports:
        rate = f"{r.mvoxels_per_s:7.2f}" if r.voxels else f"{'-':>7}"
        lines.append(
            f"{r.name:<{width}} {r.blocks:>7} {r.seconds:>7.2f} {rate} {r.read_s:>7.2f} {r.compute_s:>7.2f} {r.write_s:>7.2f} "
            f"{r.peak_bytes / 1e6:>8.0f}"
        )
    return "\n".join(lines)


def reason(trace: str) -> str:
    """Return the end of a traceback: the error and, where it is noted, the line of the user's that it goes back to."""
    lines = trace.strip().splitlines() or ["its worker died"]
    return f"{lines[-2]} ({lines[-1]})" if lines[-1].startswith("in ") and len(lines) > 1 else lines[-1]
