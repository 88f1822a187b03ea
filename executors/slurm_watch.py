"""Watch a SLURM run, from the process that started it or any other."""

from __future__ import annotations

import pickle
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from executors.protocol import Cancelled, Event, Job, WorkersFailed
from executors.slurm_files import RunFolder, State, read_events
from executors.slurm_gate import error_of, step
from executors.slurm_script import HOPELESS, Queued, queue

__all__ = ["Watch"]

_TICK_S = 0.1


class Watch:
    """Follows a run: passes on what its tasks note, looks for jobs that are lost or can never start, and raises its error."""

    def __init__(
        self,
        run: RunFolder,
        jobs: Sequence[Job],
        poll_s: float,
        on_event: Callable[[Event], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self._run = run
        self._jobs = {job.key: job for job in jobs}
        self._poll_s = poll_s
        self._on_event = on_event
        self._should_stop = should_stop
        self._stage = 0
        self._round = 0
        self._announced = False
        self._offsets: dict[Path, int] = {}
        self._told = ""
        self._suspect: tuple[str, State] | None = None

    def until_end(self) -> None:
        """Return when the run is done."""
        next_read = next_look = 0.0
        pause = min(1.0, self._poll_s)
        while True:
            now = time.monotonic()
            if now >= next_read:
                try:
                    state = self._run.state()
                    self._read(state)
                except FileNotFoundError:
                    if self._run.path.exists():
                        raise
                    return self._after_another_driver()
                if state.phase == "failed":
                    raise error_of(self._run)
                if state.phase == "cancelled" or self._run.cancelled:
                    raise Cancelled(f"run {self._run.name} was cancelled; run the same line again to go on from there")
                if state.phase == "done":
                    return None
                took = time.monotonic() - now
                next_read = now + took + min(max(2 * _TICK_S, 20 * took), self._poll_s)  # so that it costs few per cent
            if now >= next_look:
                self._look(state)
                next_look = time.monotonic() + pause
                pause = min(1.5 * pause, self._poll_s)
            if self._should_stop():
                raise Cancelled(f"stopped in {self._run.about['stages'][state.stage]['name']!r}; what is done is recorded")
            time.sleep(_TICK_S)

    def _after_another_driver(self) -> None:
        """Another process watched the run to its end and removed the folder."""
        for job in self._jobs.values():
            if any(job.pending()):
                raise WorkersFailed(
                    f"the folder {self._run.path} was removed before {job.name!r} was complete; run the same line again"
                )

    def _read(self, state: State) -> None:
        """Pass on all events up to a state, in the order of stages and rounds."""
        while self._stage < len(state.totals):
            key = self._run.keys[self._stage]
            if not self._announced:
                self._emit(Event("job_started", key, total=state.totals[self._stage]))
                self._announced = True
            if self._round:
                self._read_round(key)
            if not state.ended and (state.stage, state.round) <= (self._stage, self._round):
                return
            if self._run.round(f"{self._stage}-{self._round + 1}").path.exists():
                self._round += 1
                self._offsets.clear()
            elif state.stage > self._stage or state.phase == "done":
                self._emit(Event("job_done", key, total=state.totals[self._stage]))
                self._stage, self._round, self._announced = self._stage + 1, 0, False
                self._offsets.clear()
            else:
                return

    def _read_round(self, key: str) -> None:
        for path in self._run.round(f"{self._stage}-{self._round}").event_logs():
            start = self._offsets.get(path, 0)
            if path.stat().st_size == start:
                continue
            for entry, offset in read_events(path, start):
                self._offsets[path] = offset
                if entry.kind in ("started", "done", "failed", "lost"):
                    record = pickle.loads(entry.record) if entry.record else None
                    self._emit(
                        Event(
                            cast("Any", entry.kind),
                            key,
                            entry.block,
                            entry.attempt,
                            entry.worker,
                            entry.message,
                            entry.seconds,
                            record,
                            peak_bytes=entry.peak_bytes,
                        )
                    )

    def _emit(self, event: Event) -> None:
        if event.job in self._jobs:
            self._on_event(event)

    def _look(self, state: State) -> None:
        """Look at SLURM's queue, and act where nothing else would."""
        queued = queue(self._run.name)
        if queued is None:
            return
        tasks = [job for job in queued if job.comment == state.tag]
        self._tell(state, tasks)
        suspicion = ""
        if not tasks and (self._run.options.gate == "driver" or not queued):
            suspicion = "left"
        elif tasks and all(job.state == "PENDING" and job.reason in HOPELESS for job in tasks):
            suspicion = tasks[0].reason
        certain = (suspicion == "left" and self._run.options.gate == "driver") or self._suspect == (suspicion, state)
        self._suspect = (suspicion, state) if suspicion else None
        if not suspicion or not certain or self._run.state() != state:
            return
        if suspicion == "left":
            step(self._run, self._should_stop)
        else:
            raise WorkersFailed(self._hopeless(tasks))

    def _tell(self, state: State, tasks: Sequence[Queued]) -> None:
        """Say how many tasks run and wait, where that changed."""
        running = sum(job.state == "RUNNING" for job in tasks)
        waiting = [job.reason for job in tasks if job.state == "PENDING"]
        told = f"tasks: {running} running"
        if waiting:
            told += f", {len(waiting)} pending ({Counter(waiting).most_common(1)[0][0]})"
        if told != self._told and self._announced:
            self._told = told
            self._emit(Event("workers", self._run.keys[state.stage], message=told))

    def _hopeless(self, tasks: Sequence[Queued]) -> str:
        reason = tasks[0].reason
        script = self._run.round(tasks[0].comment).path / "task.sh"
        return f"{len(tasks)} tasks of {script} can never start; SLURM says {reason}: {HOPELESS[reason]}"
