"""What holds for every test: reproducible examples, and no skip that nobody has allowed.

`tests/allowed_skips.txt` holds one rule a line: a pattern of test ids, ` | `, and a pattern of the reason.
"""

from __future__ import annotations

import os
from fnmatch import fnmatch
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

collect_ignore = ["benchmarks"]  # programs of their own; --doctest-modules would import them
RULES = Path(__file__).with_name("allowed_skips.txt")


class Skips:
    """Collects skips and fails a run that has others than those allowed."""

    def __init__(self) -> None:
        lines = [line.strip() for line in RULES.read_text().splitlines()]
        self.rules = [line.split(" | ", 1) for line in lines if line and not line.startswith("#")]
        self.refused: list[str] = []

    def _take(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reason = reason.removeprefix("Skipped: ")
        if not any(fnmatch(report.nodeid, test) and fnmatch(reason, why) for test, why in self.rules):
            self.refused.append(f"{report.nodeid} | {reason}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._take(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._take(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.refused and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.refused:
            terminalreporter.section(f"skips that {RULES.name} does not allow", red=True)
            for line in self.refused:
                terminalreporter.line(line)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Skips(), "allowed skips")
