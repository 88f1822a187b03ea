"""The step from one round of a SLURM run to the next, taken by a small job between them, or by the driver.

A stage runs in rounds. Each is an array of tasks, and a *gate*: a job that SLURM starts when no task is left. The gate reads the
ledger. What is not recorded there goes to the next round, with a gate of its own; a block that had its attempts is set aside.
When nothing is left, the gate begins the next stage or ends the run.

Started by a job script as ``python -m executors.slurm_gate RUN_FOLDER``.
"""

from __future__ import annotations

import shutil
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from math import ceil
from pathlib import Path

from executors.bookkeeping import never
from executors.protocol import MAX_ATTEMPTS, BlockFailure, BlockFailures, Job, WorkersFailed, job_file
from executors.slurm_files import Entry, RoundFolder, RunFolder, State, read_events
from executors.slurm_script import Options, max_array_size, script, submit, wait_for_queue
from executors.slurm_task import among, held, without

__all__ = ["array_script", "error_of", "first_round", "gate_script", "main", "step"]

FIRST_SECONDS = 30.0
"""How long the tasks of a first round may run, when nobody knows how long a block takes."""

SLOTS = 16
"""Tasks that run at the same time, where the user set no throttle."""

TASKS_PER_SLOT = 4
"""So that a slow task delays a stage by a fraction of its time."""

EARLY_S = 120
"""How long before the walltime a task is told to finish the blocks at hand."""

MAX_BARREN = 3
"""Rounds in a row that may end without a block done or an attempt made."""


def step(run: RunFolder, should_stop: Callable[[], bool] = never) -> State:
    """Take a run as far as it can go without waiting for tasks; safe at any moment, and to repeat.

    Raises
    ------
    WorkersFailed
        SLURM refuses a job or does not answer.
    Exception
        Whatever `Job.pending` and `Job.finish` raise.
    """
    state = run.state()
    while not state.ended:
        if run.cancelled:
            return run.save(replace(state, phase="cancelled"))
        if state.round == 0:
            state = _begin(run, state)
        elif tasks := [q for q in wait_for_queue(run.name, should_stop) if q.comment == state.tag and q.state != "COMPLETING"]:
            _submit_gate(run, state, tasks[0].job, should_stop)
            return run.save(replace(state, phase="running"))
        elif state.phase == "submitting" and not run.round(state.tag).begun():
            return _submit(run, state, should_stop)
        else:
            state = _after_round(run, state)
        if not state.ended and state.phase == "submitting":
            return _submit(run, state, should_stop)
    return state


def _begin(run: RunFolder, state: State) -> State:
    """Begin a stage: check what it needs, and make its first round."""
    job = run.job(state.stage)
    for need in job.needs:
        if need in run.keys and any(run.job(run.keys.index(need)).pending()):
            raise RuntimeError(f"{job.name!r} needs the job {need}, whose ledger lacks blocks; was its output changed?")
    ranges = list(job.pending())
    seconds = job.resources.seconds_per_block
    state = replace(state, totals=(*state.totals, sum(map(len, ranges))), barren=0, seconds_per_block=seconds, set_aside={})
    return _next_round(run, state, job, ranges, {})


def _next_round(run: RunFolder, state: State, job: Job, ranges: Sequence[range], attempts: dict[int, int]) -> State:
    """Make the next round of what is pending, or end the stage or the run where there is none to make."""
    open_ = list(without(ranges, state.set_aside))
    if not any(ranges):
        job.finish()
        last = state.stage + 1 == len(run.keys)
        return run.save(
            replace(state, phase="done") if last else replace(state, stage=state.stage + 1, round=0, phase="running")
        )
    if not open_:
        return _fail_blocks(run, state, job)
    options = run.options.of_stage(job.name)
    n = sum(map(len, open_))
    per_task, seconds = _batch_size(n, state.seconds_per_block, options)
    batches = islice(_batches(open_, attempts, per_task), min(options.max_tasks, max_array_size()))
    state = replace(state, round=state.round + 1, phase="submitting", pending=n)
    round_ = run.round(state.tag)
    n_tasks = round_.create(batches, attempts, seconds)
    (round_.path / "task.sh").write_text(array_script(run, state.stage, state.tag, n_tasks))
    return run.save(state)


def _batch_size(n: int, seconds_per_block: float, options: Options) -> tuple[int, float]:
    """Blocks of a task, and the seconds that it may run."""
    slots = options.throttle or SLOTS
    if not seconds_per_block:
        return ceil(n / min(slots, ceil(n / options.cpus))), min(FIRST_SECONDS, options.batch_seconds)
    most = options.batch_seconds * options.cpus / seconds_per_block
    size = min(max(n / (TASKS_PER_SLOT * slots), most / 5, 1), most)
    waves = ceil(n / max(size, 1) / slots)  # whole ones, or some slots would wait for the others
    return ceil(n / (waves * slots)), 2 * options.batch_seconds


def _batches(ranges: Sequence[range], attempts: dict[int, int], per_task: int) -> Iterator[list[range]]:
    """Yield batches: what was never tried first, then each block that was lost in a task of its own, to blame no other."""
    batch: list[range] = []
    room = per_task
    for r in without(ranges, attempts):
        start = r.start
        while start < r.stop:
            stop = min(r.stop, start + room)
            batch.append(range(start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield batch
                batch, room = [], per_task
    if batch:
        yield batch
    for block in attempts:
        yield [range(block, block + 1)]


@dataclass
class _Outcome:
    """What the tasks of a round noted."""

    n_done: int = 0
    seconds: float = 0.0
    started: bool = False
    told: bool = False
    """Some task was told to stop."""
    attempts: dict[int, int] = field(default_factory=dict)
    why: dict[int, Entry] = field(default_factory=dict)
    """Last failure of blocks that were not done."""
    fatal: str = ""

    def fail(self, entry: Entry) -> None:
        """Count an attempt."""
        self.attempts[entry.block] = max(entry.attempt, self.attempts.get(entry.block, 0))
        self.why[entry.block] = entry


def _read_round(round_: RoundFolder, pending: Sequence[range]) -> _Outcome:
    """Read what the tasks of a round noted, and note what they could not: how blocks ended that they held when they were killed."""
    out = _Outcome(attempts=round_.header()[0])
    notes: list[Entry] = []
    for log in round_.event_logs():
        for entry, _ in read_events(log):
            if entry.kind == "done":
                out.n_done += 1
                out.seconds += entry.seconds
                out.attempts.pop(entry.block, None)
            elif entry.kind == "fatal":
                out.fatal = entry.message
            elif entry.kind == "started":
                out.started = True
            elif entry.kind in ("failed", "lost") and entry.attempt:
                out.fail(entry)
        open_, told = held(log)
        out.told |= told
        undone = set(among(pending, open_))
        task = int(log.name.split("-")[0])
        message = (
            f"task {task} ended without a word while it held the block: killed (the kernel does that to processes beyond the memory "
            f"limit), or its node died. Its log: {round_.logs / f'{task}.log'}"
        )
        for block, entry in open_.items():
            if block not in undone:
                notes.append(entry._replace(kind="done"))
            elif not told:
                notes.append(entry._replace(kind="lost", message=message))
                out.fail(notes[-1])
    if notes:
        own = round_.new_event_log(999_999, 0)
        for entry in notes:
            own.append(entry)
        own.close()
    return out


def _after_round(run: RunFolder, state: State) -> State:
    """Read the ledger after a round has ended, and make of it what follows."""
    job = run.job(state.stage)
    round_ = run.round(state.tag)
    ranges = list(job.pending())
    outcome = _read_round(round_, ranges)
    n = sum(map(len, without(ranges, state.set_aside)))
    attempts = {block: outcome.attempts[block] for block in among(ranges, outcome.attempts)}
    aside = dict(state.set_aside)
    for block, k in list(attempts.items()):
        if k >= MAX_ATTEMPTS:
            why = outcome.why[block]
            log = round_.logs / f"{why.worker.partition(' of task ')[2].split()[0]}.log"
            aside[block] = (attempts.pop(block), f"{why.worker}, log {log}", why.message)
    tried = sum(attempts.values()) > sum(round_.header()[0].values()) or len(aside) > len(state.set_aside)
    barren = 0 if tried or n < state.pending else state.barren + 1
    seconds = outcome.seconds / outcome.n_done if outcome.n_done else state.seconds_per_block
    state = replace(state, barren=barren, seconds_per_block=seconds, set_aside=aside)
    if not outcome.n_done and outcome.fatal:
        return _fail_workers(run, state, job, outcome.fatal, round_)
    if barren >= MAX_BARREN or (barren and not outcome.started and not outcome.told and round_.tail()):
        what = (
            f"{barren} rounds completed no block; time= may be too short for one"
            if outcome.started
            else "no task started a block"
        )
        return _fail_workers(run, state, job, what, round_)
    return _next_round(run, state, job, ranges, attempts)


def _fail_blocks(run: RunFolder, state: State, job: Job) -> State:
    failures = [[block, *why, job.describe(block)] for block, why in sorted(state.set_aside.items())]
    shutil.copyfile(run.job_path(job.key), job_file(job))  # for the command that each failure names
    run.save_report("blocks", job=job.key, name=job.name, n_done=state.totals[-1] - len(failures), failures=failures)
    return run.save(replace(state, phase="failed"))


def _fail_workers(run: RunFolder, state: State, job: Job, what: str, round_: RoundFolder) -> State:
    tail = round_.tail() or (
        f"No task wrote a log to {round_.logs}: SLURM starts none where that folder is missing or not on storage that all nodes "
        "share, and none that was cancelled"
    )
    text = (
        f"{what}. That was round {state.round} of {job.name!r}. Look at the job script {round_.path / 'task.sh'} (interpreter, "
        f"setup lines, memory), mend the cause and run the same line again. {tail}"
    )
    run.save_report("workers", text=text)
    return run.save(replace(state, phase="failed"))


def error_of(run: RunFolder) -> Exception:
    """Return the error that a run failed with."""
    report = run.report()
    if report["kind"] != "blocks":
        return WorkersFailed(report["text"])
    failures = [
        BlockFailure(report["job"], block, attempts, worker, where, message)
        for block, attempts, worker, message, where in report["failures"]
    ]
    return BlockFailures(failures, report["name"], report["n_done"])


# --- scripts -------------------------------------------------------------------------------------------------------------


def array_script(run: RunFolder, stage: int, tag: str, n_tasks: int) -> str:
    """Return the script of a round's tasks."""
    about = run.about["stages"][stage]
    options = run.options.of_stage(about["name"])
    throttle = f"%{options.throttle}" if options.throttle else ""
    return script(
        options,
        name=run.name,
        comment=tag,
        cwd=run.about["cwd"],
        sentinel=run.sentinel,
        output=run.round(tag).logs / "%a.log",
        module="executors.slurm_task",
        arguments=[str(run.path), tag],
        memory_bytes=about["memory_bytes"],
        directives=[f"--array=0-{n_tasks - 1}{throttle}", f"--signal=B:USR1@{EARLY_S}"],
    )


def first_round(job: Job, options: Options) -> int:
    """Return how many tasks the first round of a job has, none of its blocks done."""
    per_task, _ = _batch_size(max(job.n_blocks, 1), job.resources.seconds_per_block, options.of_stage(job.name))
    return max(1, min(ceil(job.n_blocks / per_task), options.max_tasks))


def gate_script(run: RunFolder, tag: str, job: str) -> str:
    """Return the script of the gate behind a job; options in `stages` under the name "gate" hold for it."""
    plain = replace(run.options, cpus=1, gpus=0, mem=None, time=None, throttle=None, constraint=None, extra=())
    return script(
        plain.of_stage("gate"),
        name=run.name,
        comment=f"gate-{tag}",
        cwd=run.about["cwd"],
        sentinel=run.sentinel,
        output=run.path / "gate.log",
        module="executors.slurm_gate",
        arguments=[str(run.path)],
        memory_bytes=512 << 20,
        directives=[f"--dependency=afterany:{job}"],
    )


def _submit(run: RunFolder, state: State, should_stop: Callable[[], bool]) -> State:
    """Submit a round that was made, and its gate."""
    round_ = run.round(state.tag)
    job = submit(round_.path / "task.sh", run.name, state.tag, should_stop)
    _submit_gate(run, state, job, should_stop)
    return run.save(replace(state, phase="running"))


def _submit_gate(run: RunFolder, state: State, job: str, should_stop: Callable[[], bool]) -> None:
    """Submit the gate of a round unless it waits in the queue already, or the driver takes the steps."""
    comment = f"gate-{state.tag}"
    if run.options.gate == "driver":
        return
    if any(q.comment == comment and q.state == "PENDING" for q in wait_for_queue(run.name, should_stop)):
        return
    path = run.path / "gate.sh"
    path.write_text(gate_script(run, state.tag, job))
    submit(path, run.name, comment, should_stop)


def main(arguments: Sequence[str] | None = None) -> None:
    """Take the step; what goes wrong ends the run with a report."""
    run = RunFolder(Path((arguments or sys.argv[1:])[0]))
    sys.path[:] = run.about["sys_path"]
    try:
        step(run)
    except Exception:
        run.save_report("gate", text=f"the step between two rounds failed in {run.path}:\n{traceback.format_exc()}")
        run.save(replace(run.state(), phase="failed"))
        raise


if __name__ == "__main__":
    main()
