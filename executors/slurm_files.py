"""The folder of a SLURM run: all that driver, gate and tasks know of each other.

::

    run.json                what was asked for; written once
    state.json              how far the run is; one writer at a time, replaced whole
    report.json             why it failed
    cancelled               present once someone asked to stop
    sentinel-<run>          proves to a job that it sees this folder
    <key>.job               the jobs
    gate.log, gate.sh
    <stage>-<round>/        batches.jsonl, task.sh, logs/<task>.log, events/<task>-<restart>-<host>-<pid>
"""

from __future__ import annotations

import json
import os
import pickle
import socket
import struct
import sys
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from executors.protocol import Job
from executors.slurm_script import Options
from executors.worker import load_job, save_job

__all__ = ["Entry", "EventLog", "RoundFolder", "RunFolder", "State", "read_events"]

_FRAME = struct.Struct("<II")
_TAIL_BYTES = 3000


def _replace(path: Path, text: str) -> None:
    """Write a file so that it appears whole or not at all."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


class Entry(NamedTuple):
    """What a task noted: an event of a block, "stopping" (it was told to end) or "fatal" (its workers cannot run)."""

    kind: str
    block: int = -1
    attempt: int = 0
    worker: str = ""
    message: str = ""
    seconds: float = 0.0
    record: bytes = b""
    peak_bytes: int = 0


class EventLog:
    """Appends entries to a file of its own; each is framed by its length and checksum."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)

    def append(self, entry: Entry) -> None:
        """Add an entry in one write."""
        data = pickle.dumps(tuple(entry))
        os.write(self._fd, _FRAME.pack(len(data), zlib.crc32(data)) + data)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def read_events(path: Path, start: int = 0) -> Iterator[tuple[Entry, int]]:
    """Yield entries from a byte offset on, each with the offset behind it, up to the first that is not there whole."""
    with path.open("rb") as file:
        file.seek(start)
        while len(head := file.read(_FRAME.size)) == _FRAME.size:
            length, checksum = _FRAME.unpack(head)
            data = file.read(length)
            if len(data) < length or zlib.crc32(data) != checksum:
                return
            start += _FRAME.size + length
            yield Entry(*pickle.loads(data)), start


@dataclass(frozen=True)
class State:
    """How far a run is.

    Attributes
    ----------
    stage, round : int
        Present stage; its last round, 0 where none was made yet.
    phase : str
        "submitting" is recorded before sbatch, so that jobs whose submission was not confirmed are looked for by name.
    totals : list of int
        Blocks that were pending when each stage began, for those that have begun.
    pending : int
        Blocks that were pending when the round was made.
    barren : int
        Rounds in a row that ended without a block done or an attempt made.
    seconds_per_block : float
        As measured in the last round; 0 where unknown.
    set_aside : dict
        Of this stage: block -> (attempts, worker, message).
    """

    stage: int = 0
    round: int = 0
    phase: Literal["submitting", "running", "done", "failed", "cancelled"] = "running"
    totals: tuple[int, ...] = ()
    pending: int = 0
    barren: int = 0
    seconds_per_block: float = 0.0
    set_aside: dict[int, tuple[int, str, str]] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether no job of the run is wanted any more."""
        return self.phase in ("done", "failed", "cancelled")

    @property
    def tag(self) -> str:
        """Comment of the round's tasks in SLURM's queue, and name of the round's folder."""
        return f"{self.stage}-{self.round}"


class RunFolder:
    """A run's folder.

    Parameters
    ----------
    path : path
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @classmethod
    def plan(cls, jobs: Sequence[Job], options: Options) -> RunFolder:
        """Return a new run beside the jobs' other files, without making its folder."""
        run = uuid.uuid4().hex[:12]
        folder = cls(Path(jobs[0].folder).absolute() / f"slurm-{run}")
        stages = [{"key": job.key, "name": job.name, **asdict(job.resources)} for job in jobs]
        path = [os.path.abspath(entry) for entry in sys.path]
        folder.about = {"run": run, "options": asdict(options), "stages": stages, "sys_path": path, "cwd": os.getcwd()}
        return folder

    def create(self, jobs: Sequence[Job]) -> None:
        """Make the folder with the jobs in it."""
        self.path.mkdir(parents=True)
        self.sentinel.touch()
        for job in jobs:
            save_job(job, self.job_path(job.key))
        self.save(State())
        _replace(self.path / "run.json", json.dumps(self.about, indent=1))

    @classmethod
    def all_in(cls, folder: str | os.PathLike[str]) -> list[RunFolder]:
        """Return the runs whose folders lie in a folder, oldest first."""
        found = sorted(Path(folder).glob("slurm-*/run.json"), key=lambda path: path.stat().st_mtime)
        return [cls(path.parent) for path in found]

    @cached_property
    def about(self) -> dict[str, Any]:
        """Content of run.json."""
        content: dict[str, Any] = json.loads((self.path / "run.json").read_text())
        return content

    @property
    def name(self) -> str:
        """Name of all jobs of this run in SLURM's queue."""
        return f"ve-{self.about['run']}"

    @cached_property
    def options(self) -> Options:
        """What the user asked for."""
        return Options(**self.about["options"])

    @property
    def sentinel(self) -> Path:
        """A file that proves to a job that it sees this folder."""
        return self.path / f"sentinel-{self.about['run']}"

    @property
    def keys(self) -> list[str]:
        """Keys of the stages, in order."""
        return [stage["key"] for stage in self.about["stages"]]

    def job_path(self, key: str) -> Path:
        """File of a job."""
        return self.path / f"{key}.job"

    def job(self, stage: int) -> Job:
        """Load the job of a stage."""
        return load_job(self.job_path(self.keys[stage]))

    def state(self) -> State:
        """How far the run is."""
        content = json.loads((self.path / "state.json").read_text())
        aside = {int(block): tuple(why) for block, why in content.pop("set_aside").items()}
        return State(**{**content, "totals": tuple(content["totals"]), "set_aside": aside})

    def save(self, state: State) -> State:
        """Replace the state."""
        _replace(self.path / "state.json", json.dumps(asdict(state)))
        return state

    def save_report(self, kind: str, **content: Any) -> None:
        """Write why the run failed."""
        _replace(self.path / "report.json", json.dumps({"kind": kind, **content}, indent=1))

    def report(self) -> dict[str, Any]:
        """Why the run failed."""
        content: dict[str, Any] = json.loads((self.path / "report.json").read_text())
        return content

    @property
    def cancelled(self) -> bool:
        """Whether someone asked to stop."""
        return (self.path / "cancelled").exists()

    def round(self, tag: str) -> RoundFolder:
        """Folder of a round."""
        return RoundFolder(self.path / tag)


class RoundFolder:
    """A round's folder within that of its run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = path / "logs"
        self.events = path / "events"

    def create(self, batches: Iterable[Sequence[range]], attempts: dict[int, int], seconds: float) -> int:
        """Write the batches, with the attempts that some blocks had and how long a task may run; returns how many there are."""
        self.logs.mkdir(parents=True, exist_ok=True)
        self.events.mkdir(exist_ok=True)
        lines = [json.dumps({"attempts": attempts, "seconds": seconds})]
        lines += [json.dumps([[r.start, r.stop] for r in ranges]) for ranges in batches]
        _replace(self.path / "batches.jsonl", "\n".join(lines))
        return len(lines) - 1

    def header(self) -> tuple[dict[int, int], float]:
        """Return the attempts that blocks had before, and the seconds that a task may run."""
        with (self.path / "batches.jsonl").open() as file:
            content = json.loads(next(file))
        return {int(block): n for block, n in content["attempts"].items()}, content["seconds"]

    def batch(self, task: int) -> list[range]:
        """Blocks of a task."""
        with (self.path / "batches.jsonl").open() as file:
            return [range(a, b) for a, b in json.loads(next(islice(file, task + 1, None)))]

    def event_logs(self, task: int | None = None) -> list[Path]:
        """Return the logs of events (of one task), its restarts in order."""
        return sorted(self.events.glob("*" if task is None else f"{task:06d}-*"))

    def new_event_log(self, task: int, restart: int) -> EventLog:
        """Start a log of this process."""
        unique = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        return EventLog(self.events / f"{task:06d}-{restart:03d}-{unique}")

    def begun(self) -> bool:
        """Whether some task has left a trace."""
        return any(self.logs.glob("*")) or any(self.events.glob("*"))

    def tail(self) -> str:
        """Return the end of the newest log that says more than that SLURM ended the task, with its path; "" if none does."""
        for path in sorted(self.logs.glob("*.log"), key=lambda path: -path.stat().st_mtime):
            text = path.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
            if any(not line.startswith("slurmstepd:") for line in text.splitlines()):
                return f"{path} ends with:\n{text}"
        return ""
