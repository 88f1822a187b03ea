"""Progress as it really appears: in a file, in a terminal, in the page of a notebook."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from executors.protocol import Event
from volara_expr.run import progress
from volara_expr.run.progress import Progress, StageReport, as_html

SCRIPT = """
import sys
import numpy as np
import volara_expr as ve
from executors import Serial
raw = ve.from_numpy(np.zeros((8, 8, 8), np.uint8))
(raw + 1).write(sys.argv[1], executor=Serial(block=(4, 4, 4)), chunks=4)
"""


def test_a_file_gets_one_line_a_stage(tmp_path):
    done = subprocess.run([sys.executable, "-c", SCRIPT, tmp_path / "out.zarr"], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{tmp_path.name}/out.zarr: 8/8 blocks, ")
    assert "/s, in " in line


def test_a_terminal_gets_a_bar(tmp_path):
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", SCRIPT, str(tmp_path / "out.zarr")])
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    shown = b""
    try:
        while piece := os.read(fd, 4096):
            shown += piece
    except OSError:  # how Linux says that the other side has gone
        pass
    finally:
        os.close(fd)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    last = [line for line in shown.decode().replace("\r", "\n").splitlines() if line.strip()][-1]
    assert "100%|" in last
    assert "8/8 [" in last
    assert "block/s]" in last


def test_lines_say_rate_and_what_is_left(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_SECONDS", -1)
    watch = Progress({"a": "watershed"}, "lines")
    watch(Event("job_started", "a", total=4))
    watch(Event("done", "a", 0))
    watch.reports["a"].seconds = 30
    watch(Event("job_done", "a"))
    first, second, _ = capsys.readouterr().err.splitlines()
    assert first == "watershed: 0/4 blocks, none done yet"
    assert second.startswith("watershed: 1/4 blocks, ")
    assert second.endswith(" left")


def test_nothing_pending_shows_nothing(capsys):
    watch = Progress({"a": "watershed"}, "lines")
    watch(Event("job_started", "a", total=0))
    watch(Event("job_done", "a"))
    watch.close()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("report", "time"),
    [
        (StageReport("x", total=100, blocks=10, seconds=20), "3:00 left"),
        (StageReport("x", total=100, blocks=100, seconds=4000), "in 1:06:40"),
        (StageReport("x", total=100), ""),
    ],
)
def test_what_is_left(report, time):
    assert report.time == time
    assert "<progress value=" in as_html([report])
