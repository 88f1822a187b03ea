"""A real SLURM of two nodes on this machine, for as long as the tests here run."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("executors.contract")

HERE = Path(__file__).parent


def free_ports(n: int) -> int:
    """The first of so many neighbouring ports that are free."""
    for first in range(21_000 + os.getpid() % 5000, 32_000, n):
        try:
            for port in range(first, first + n):
                with socket.socket() as s:
                    s.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise OSError(f"no {n} neighbouring free ports above 21000")


class Cluster:
    """Does to a cluster what happens to clusters."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.environment = {
            **os.environ,
            "SLURM_UP_DIR": folder,
            "SLURM_UP_PORT": str(free_ports(4)),
            "SLURM_UP_NODE_TIMEOUT": "5",
            "SLURM_CONF": f"{folder}/slurm.conf",
        }

    def up(self) -> None:
        """Start what does not run."""
        done = subprocess.run(["bash", HERE / "slurm-up"], env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def down(self) -> None:
        """Stop everything."""
        environment = self.environment | {"SLURM_UP_WIPE": "1"}
        subprocess.run(["bash", HERE / "slurm-down"], env=environment, capture_output=True, check=True)

    def command(self, *words: str) -> str:
        """Run a command of SLURM."""
        return subprocess.run(words, env=self.environment, capture_output=True, text=True, check=True).stdout

    def queue(self) -> list[list[str]]:
        """Job, task, state, comment, node and restarts of all jobs."""
        lines = self.command("squeue", "-h", "-r", "-o", "%F|%K|%T|%k|%N|%i").splitlines()
        return [line.split("|") for line in lines]

    def tasks(self, state: str = "RUNNING") -> list[str]:
        """Ids of tasks in a state, as scancel takes them."""
        return [row[5] for row in self.queue() if row[2] == state and not row[3].startswith("gate")]

    def controller(self) -> int:
        """Process of slurmctld."""
        return int((self.folder / "pid" / "slurmctld.pid").read_text())

    def kill_node(self, name: str) -> None:
        """Kill the node's daemon, its jobs and their keepers, as a power cut does."""
        daemon = int((self.folder / "pid" / f"slurmd.{name}.pid").read_text())
        doomed = [daemon]
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes()
                environment = (folder / "environ").read_bytes() if b"python" in command or b"bash" in command else b""
            except (OSError, ProcessLookupError):
                continue
            of_node = f"SLURMD_NODENAME={name}\0".encode() in environment
            if (of_node and f"SLURM_CONF={self.folder}".encode() in environment) or (
                command.startswith(b"slurmstepd") and _parent_is(int(folder.name), daemon)
            ):
                doomed.append(int(folder.name))
        for pid in doomed:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def _parent_is(pid: int, parent: int) -> bool:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) in (parent, 1)
    except OSError:
        return False


@pytest.fixture(scope="session")
def _cluster() -> Iterator[Cluster]:
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    for daemon in ("slurmctld", "slurmd", "munged", "sbatch"):
        if shutil.which(daemon) is None:
            pytest.skip(f"{daemon} is not installed (apt-get install slurm-wlm slurm-client munge)")
    cluster = Cluster(tempfile.mkdtemp(prefix="ve-slurm-"))
    cluster.up()
    yield cluster
    cluster.down()


@pytest.fixture
def cluster(_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two idle nodes of two CPUs, and SLURM's commands bound to them."""
    monkeypatch.setenv("SLURM_CONF", _cluster.environment["SLURM_CONF"])
    _cluster.up()
    yield _cluster
    _cluster.up()
    left = [row for row in _cluster.queue() if row[2] != "COMPLETING"]
    if left:
        _cluster.command("scancel", *{row[0] for row in left})
    end = time.monotonic() + 30
    while _cluster.queue():
        assert time.monotonic() < end, _cluster.queue()
        time.sleep(0.1)


@pytest.fixture
def background() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start processes that do not outlive the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*command: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
