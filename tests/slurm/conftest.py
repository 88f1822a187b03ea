"""A real SLURM of two nodes on this machine, for as long as the tests here run."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from executors.contract import is_alive, wait_until

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

    # Faults, each done to the task that holds a block

    def kill_worker(self, victim: Held) -> None:
        """Kill the process that runs the block."""
        os.kill(victim.pid, signal.SIGKILL)

    def crash_controller(self, victim: Held) -> None:
        """Kill slurmctld, then the task while nobody answers, and start slurmctld again."""
        os.kill(int((self.folder / "pid" / "slurmctld.pid").read_text()), signal.SIGKILL)
        self.kill_task(victim)
        with pytest.raises(subprocess.CalledProcessError):
            self.queue()
        self.up()

    def kill_task(self, victim: Held) -> None:
        """Kill the process that SLURM started."""
        os.kill(victim.parent, signal.SIGKILL)

    def cancel_task(self, victim: Held) -> None:
        """Cancel it."""
        self.command("scancel", victim.task)

    def signal_task(self, victim: Held) -> None:
        """Send what SLURM sends before the walltime, and what it sends then."""
        self.command("scancel", "--signal=USR1", "--batch", victim.task)
        time.sleep(1)
        assert is_alive(victim.pid)
        self.command("scancel", "--signal=KILL", victim.task)

    def requeue_task(self, victim: Held) -> None:
        """Requeue it."""
        self.command("scontrol", "requeue", victim.task)

    def preempt_task(self, victim: Held) -> None:
        """Send an urgent job to its node."""
        self.command("sbatch", "-p", "urgent", "-w", victim.node, "-N1", "-c2", "--mem=100", "-o/dev/null", "--wrap=sleep 1")

    def kill_node_of(self, victim: Held) -> None:
        """Kill the node's daemon, its jobs and their keepers, as a power cut does; the node comes back when it counts as dead."""
        daemon = int((self.folder / "pid" / f"slurmd.{victim.node}.pid").read_text())
        os.kill(daemon, signal.SIGKILL)
        mark = f"SLURM_CONF={self.folder}/slurm.conf\0".encode()
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                environment = b"\0" + (path / "environ").read_bytes()
                keeper = (path / "cmdline").read_bytes().startswith(b"slurmstepd") and victim.node.encode() in environment
                if mark in environment and (f"\0SLURMD_NODENAME={victim.node}\0".encode() in environment or keeper):
                    os.kill(int(path.name), signal.SIGKILL)
        wait_until(lambda: "down" in self.command("sinfo", "-h", "-N", "-n", victim.node, "-o", "%T"), 60)
        self.up()


class Held(NamedTuple):
    """A block whose body waits for a fault, and where it does."""

    pid: int
    parent: int
    task: str
    node: str


class Trap:
    """Blocks of a job whose body, until `spring` was called, does not return."""

    def __init__(self, folder: Path, blocks: set[int], seconds: float) -> None:
        self.folder, self.blocks, self.seconds = folder, blocks, seconds
        folder.mkdir()

    def body(self) -> Callable[[int], int]:
        """A function for `ToyJob`."""
        folder, blocks, seconds = str(self.folder), self.blocks, self.seconds

        def body(i: int) -> int:
            import os
            import time
            from pathlib import Path

            time.sleep(seconds)
            if i in blocks and not Path(folder, f"sprung{i}").exists():
                e = os.environ
                words = [
                    os.getpid(),
                    os.getppid(),
                    f"{e['SLURM_ARRAY_JOB_ID']}_{e['SLURM_ARRAY_TASK_ID']}",
                    e["SLURMD_NODENAME"],
                ]
                Path(folder, f"new{i}").write_text(" ".join(map(str, words)))
                Path(folder, f"new{i}").rename(Path(folder, f"held{i}"))
                time.sleep(300)
            return i * i

        return body

    def look(self, block: int) -> Held | None:
        """Whoever holds a block and lives."""
        path = self.folder / f"held{block}"
        if not path.exists():
            return None
        pid, parent, task, node = path.read_text().split()
        return Held(int(pid), int(parent), task, node) if is_alive(int(pid)) else None

    def held(self, block: int) -> Held:
        """Wait until a block is held."""
        wait_until(lambda: self.look(block) is not None, 60)
        found = self.look(block)
        assert found is not None
        return found

    def spring(self, block: int, fault: Callable[[Held], None]) -> Held:
        """Do something to the task that holds a block and wait until its process is gone."""
        victim = self.held(block)
        (self.folder / f"sprung{block}").touch()
        fault(victim)
        wait_until(lambda: not is_alive(victim.pid), 30)
        return victim


@pytest.fixture
def trap(tmp_path: Path) -> Callable[..., Trap]:
    """Make a trap."""
    return lambda blocks, seconds=0.1: Trap(tmp_path / "trap", blocks, seconds)


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
