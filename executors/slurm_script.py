"""What is asked of SLURM: job scripts, and the four commands sbatch, squeue, scancel and scontrol."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal, NamedTuple

from executors.protocol import Cancelled, WorkersFailed

__all__ = ["HOPELESS", "Options", "Queued", "cancel", "max_array_size", "queue", "script", "submit", "wait_for_queue"]

_PATIENCE_S = 1800.0
"""How long a controller that does not answer is asked again."""

_OVERHEAD_BYTES = 256 << 20
"""Memory of the process that feeds the workers of a task."""

_TRANSIENT = re.compile(
    r"contact slurm controller|timed out|connection (refused|failure)|temporarily unable|resource temporarily|not responding",
    re.IGNORECASE,
)

HOPELESS = {
    "AccountNotAllowed": "the partition does not take this account; give account= or another partition=",
    "BadConstraints": "no node satisfies constraint= together with cpus, mem and gpus",
    "InvalidAccount": "give account= one that exists",
    "InvalidQOS": "give qos= one that exists",
    "PartitionConfig": "the partition has no node with so many CPUs, so much memory or so many GPUs, or a lower time limit",
    "PartitionNodeLimit": "the partition has no node with so many CPUs, so much memory or so many GPUs",
    "PartitionTimeLimit": "the partition's time limit is below time=",
    "launch failed requeued held": "SLURM could not start it on a node; see the site's slurmd log, then scontrol release it",
    "QOSMaxCpuPerJobLimit": "the qos allows fewer cpus= for a job",
    "QOSMaxMemoryPerJob": "the qos allows less mem= for a job",
    "QOSMaxWallDurationPerJobLimit": "the qos allows less time= for a job",
}
"""Reasons for which a pending job never starts, and what to do."""


@dataclass(frozen=True)
class Options:
    """What the user asked for; see `executors.slurm.Slurm`."""

    partition: str | None = None
    cpus: int = 1
    mem: str | None = None
    time: str | int | None = None
    gpus: int = 0
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    extra: Sequence[str] = ()
    throttle: int | None = None
    max_tasks: int = 1000
    batch_seconds: float = 300.0
    gate: Literal["slurm", "driver"] = "slurm"
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    python: str = sys.executable
    setup: Sequence[str] = ()

    def of_stage(self, name: str) -> Options:
        """Options of a stage: those of every pattern in `stages` that its name matches, the last one first."""
        overrides: dict[str, Any] = {}
        for pattern, values in self.stages.items():
            if fnmatch(name, pattern):
                overrides |= values
        return replace(self, **overrides)


def script(
    options: Options,
    *,
    name: str,
    comment: str,
    cwd: str,
    sentinel: Path,
    output: Path,
    module: str,
    arguments: Sequence[str],
    memory_bytes: int = 0,
    directives: Sequence[str] = (),
) -> str:
    """Return a job script.

    Parameters
    ----------
    options : Options
        Of the stage.
    name, comment : str
        Of the job: the run, and its part in it.
    cwd : str
        Where it runs.
    sentinel : Path
        A file that must be there.
    output : Path
        Log, in SLURM's notation; its folder must exist, or the job fails without a word.
    module, arguments : str, sequence of str
        What Python runs.
    memory_bytes : int
        Memory of one worker as the plan projects it; 0 where unknown.
    directives : sequence of str
        Further options, as ``--array=0-7``.
    """
    o = options
    asked = {
        "--partition": o.partition,
        "--account": o.account,
        "--qos": o.qos,
        "--constraint": o.constraint,
        "--time": o.time,
        "--gres": f"gpu:{o.gpus}" if o.gpus else None,
        "--mem": o.mem,
    }
    if memory_bytes and not o.mem and not any(line.startswith("--mem") for line in o.extra):
        asked["--mem"] = f"{-(-(memory_bytes * o.cpus + _OVERHEAD_BYTES) >> 20)}M"
    lines = [
        f"--job-name={name}",
        f"--comment={comment}",
        f"--output={shlex.quote(str(output))}",
        f"--chdir={shlex.quote(cwd)}",
        "--ntasks=1",
        f"--cpus-per-task={o.cpus}",
        "--requeue",
        "--open-mode=append",
        *(f"{option}={value}" for option, value in asked.items() if value),
        *directives,
        *o.extra,
    ]
    threads = [f"export {library}_NUM_THREADS=1" for library in ("OMP", "MKL", "OPENBLAS", "NUMBA")] if o.cpus == 1 else []
    run = shlex.join([o.python, "-m", module, *arguments])
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {line}" for line in lines),
            *threads,
            *o.setup,
            f"if [ ! -e {shlex.quote(str(sentinel))} ]; then",
            f'    echo "$SLURMD_NODENAME does not see {sentinel.parent}; it must lie on storage that all nodes share" >&2',
            "    exit 66",
            "fi",
            f"exec {run}",
            "",
        ]
    )


class Queued(NamedTuple):
    """A job in SLURM's queue, or a task of an array."""

    job: str
    task: str
    state: str
    comment: str
    reason: str


def _run(*command: str) -> tuple[int, str, str]:
    """Run a command of SLURM without the variables of a job that this process may be; exit status, output, errors."""
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_")) or key == "SLURM_CONF"
    }
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=120, check=False, start_new_session=True
        )
    except subprocess.TimeoutExpired:
        return 1, "", f"{command[0]} timed out"
    except FileNotFoundError as error:
        raise WorkersFailed(
            f"{command[0]} is not found on this machine. Start from a node where SLURM's commands are installed, or use "
            "Multiprocessing() here"
        ) from error
    return done.returncode, done.stdout, done.stderr.strip()


def queue(name: str) -> list[Queued] | None:
    """Jobs of a run that are not over, one entry per task of an array; None where SLURM does not answer."""
    rc, out, _ = _run("squeue", "-h", "-r", "-n", name, "-o", "%F|%K|%T|%k|%r")
    return None if rc else [Queued(*line.split("|", 4)) for line in out.splitlines()]


def wait_for_queue(name: str, should_stop: Callable[[], bool]) -> list[Queued]:
    """Ask `queue` until SLURM answers.

    Raises
    ------
    WorkersFailed
        It does not for half an hour.
    Cancelled
        `should_stop` returned True.
    """
    deadline = time.monotonic() + _PATIENCE_S
    pause = 1.0
    while (found := queue(name)) is None:
        pause = _wait(pause, deadline, should_stop, "squeue does not answer")
    return found


def submit(path: Path, name: str, comment: str, should_stop: Callable[[], bool]) -> str:
    """Submit a script and return the number of the job; once only, also where the first answer got lost.

    Raises
    ------
    WorkersFailed
        SLURM refuses it, or does not answer for half an hour.
    Cancelled
        `should_stop` returned True.
    """
    deadline = time.monotonic() + _PATIENCE_S
    pause = 1.0
    while True:
        rc, out, error = _run("sbatch", "--parsable", str(path))
        if rc == 0:
            return out.strip().split(";")[0]
        if not _TRANSIENT.search(error):
            raise WorkersFailed(f"sbatch refused {path}: {error}. Change the options of Slurm(...) and run the same line again")
        pause = _wait(pause, deadline, should_stop, f"sbatch fails: {error}")
        for queued in wait_for_queue(name, should_stop):
            if queued.comment == comment:
                return queued.job


def _wait(pause: float, deadline: float, should_stop: Callable[[], bool], what: str) -> float:
    if time.monotonic() > deadline:
        raise WorkersFailed(f"{what}, for {_PATIENCE_S / 60:.0f} minutes. What is done is recorded; run the same line again")
    end = time.monotonic() + pause
    while time.monotonic() < end:
        if should_stop():
            raise Cancelled(f"stopped while {what}")
        time.sleep(0.1)
    return min(2 * pause, 60.0)


def cancel(name: str) -> str:
    """Cancel the jobs of a run; returns what SLURM said against it."""
    return _run("scancel", f"--name={name}")[2]


def max_array_size() -> int:
    """Tasks that one array may have at this site."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", _run("scontrol", "show", "config")[1])
    return int(found[1]) if found else 1001
