"""Run blocks on a SLURM cluster: arrays of tasks, with a small job between them that decides what comes next."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Literal

from executors.bookkeeping import check_order, ignore, never
from executors.protocol import Cancelled, Event, Hints, Job, WorkersFailed, parse_bytes
from executors.slurm_files import RunFolder
from executors.slurm_gate import SLOTS, array_script, first_round, gate_script, step
from executors.slurm_script import Options, cancel, queue
from executors.slurm_watch import Watch

__all__ = ["Slurm", "cancel_run"]

logger = logging.getLogger(__name__)

_WORKER_BYTES = 4 * 10**9
"""Memory of a worker that the planner may count on where the user gave no `mem`: what most clusters have for each core."""

_CANCEL_S = 90.0
"""How long cancelled jobs may take to leave the queue."""


class Slurm:
    """Runs blocks as SLURM jobs: each stage is an array of tasks, each task a batch of blocks.

    The plan goes on by itself once it was submitted: a *gate*, a small job that SLURM starts behind each array, reads the ledger
    and submits what is missing, or the next stage. This process only watches; killed and started again, it finds the jobs that
    are queued. Folders of the outputs must lie on storage that all nodes share.

    Parameters
    ----------
    partition, account, qos, constraint : str, optional
        As sbatch takes them.
    cpus : int
        Worker processes of a task, and CPUs that it asks for.
    mem : str, optional
        Memory of a task, as sbatch takes it ("16G"). By default what the plan projects for `cpus` workers.
    time : str or int, optional
        Walltime of a task, as sbatch takes it. Two minutes before, tasks finish the blocks at hand and end.
    gpus : int
        GPUs of a task, asked for by ``--gres=gpu:N``.
    extra : sequence of str
        Further lines of the job script, behind ``#SBATCH``.
    throttle : int, optional
        Tasks that may run at the same time; not limited by default.
    max_tasks : int
        Tasks of one array at most; the site's MaxArraySize holds as well.
    batch_seconds : float
        Seconds of work that a task gets at most; a fifth of that at least where there is so much.
    poll_s : float
        Seconds between looks at SLURM's queue.
    gate : {"slurm", "driver"}
        "driver" submits no gates, for sites that forbid sbatch on nodes; then this process must stay.
    dry_run : bool
        Print the job scripts and submit nothing.
    block : sequence of int, optional
        Execution block in voxels of the space axes; chosen by the planner where not given. Never changes a result.
    stages : mapping, optional
        Other values of these parameters for stages whose name matches a pattern, as
        ``{"watershed*": {"gpus": 1, "partition": "gpu"}}``. "gate" is the name of the gates.
    python : str
        Interpreter on the nodes; by default the one that runs here.
    setup : sequence of str
        Shell lines that come first, as ``module load cuda``.

    Examples
    --------
    >>> Slurm(partition="main", cpus=4, mem="16G", throttle=8).hints
    Hints(workers=32, block=None, memory_bytes=4000000000, threads=1)
    """

    in_process = False

    def __init__(
        self,
        partition: str | None = None,
        *,
        cpus: int = 1,
        mem: str | None = None,
        time: str | int | None = None,
        gpus: int = 0,
        account: str | None = None,
        qos: str | None = None,
        constraint: str | None = None,
        extra: Sequence[str] = (),
        throttle: int | None = None,
        max_tasks: int = 1000,
        batch_seconds: float = 300.0,
        poll_s: float = 30.0,
        gate: Literal["slurm", "driver"] = "slurm",
        dry_run: bool = False,
        block: Sequence[int] | None = None,
        stages: Mapping[str, Mapping[str, Any]] | None = None,
        python: str = sys.executable,
        setup: Sequence[str] = (),
    ) -> None:
        known = {field.name for field in fields(Options)} - {"stages", "gate"}
        for pattern, values in (stages or {}).items():
            if unknown := set(values) - known:
                raise ValueError(
                    f"stages[{pattern!r}] has no parameter {unknown.pop()!r}; those that a stage may have are {sorted(known)}"
                )
        if gate not in ("slurm", "driver"):
            raise ValueError(f"gate={gate!r} is neither 'slurm' nor 'driver'")
        if min(max_tasks, cpus, 1 if throttle is None else throttle) < 1 or min(batch_seconds, poll_s) <= 0:
            raise ValueError(
                f"cpus={cpus}, throttle={throttle}, max_tasks={max_tasks}, batch_seconds={batch_seconds} and poll_s={poll_s} must "
                "all be positive"
            )
        self.options = Options(
            partition=partition,
            cpus=cpus,
            mem=mem,
            time=time,
            gpus=gpus,
            account=account,
            qos=qos,
            constraint=constraint,
            extra=tuple(extra),
            throttle=throttle,
            max_tasks=max_tasks,
            batch_seconds=batch_seconds,
            gate=gate,
            stages=dict(stages or {}),
            python=python,
            setup=tuple(setup),
        )
        self.poll_s = poll_s
        self.dry_run = dry_run
        self.hints = Hints.of(cpus * (throttle or SLOTS), block, parse_bytes(mem) // cpus if mem else _WORKER_BYTES)

    @classmethod
    def like(cls, run: RunFolder) -> Slurm:
        """Return an executor with the parameters of a run."""
        return cls(**{field.name: getattr(run.options, field.name) for field in fields(Options)})

    def __repr__(self) -> str:
        default = Options()
        given = [
            f"{field.name}={value!r}"
            for field in fields(Options)
            if (value := getattr(self.options, field.name)) != getattr(default, field.name)
        ]
        return f"Slurm({', '.join(given)})"

    @property
    def survives_driver(self) -> bool:
        """Whether a run goes on when this process ends."""
        return self.options.gate == "slurm"

    def run(
        self,
        jobs: Sequence[Job],
        on_event: Callable[[Event], None] = ignore,
        should_stop: Callable[[], bool] = never,
    ) -> None:
        """Run every pending block of every job, as `executors.protocol.Executor.run` promises, but for the end of this process.

        Where a run of these jobs is queued already, watch that. On Ctrl-C at a terminal, ask whether to cancel the jobs or to
        leave them. The run's folder, with all logs, stays until the next run of one of these jobs.

        Raises
        ------
        BlockFailures
            Blocks failed, or ended their task, `MAX_ATTEMPTS` times.
        WorkersFailed
            SLURM refused a job or can never start it, or tasks ended without starting a block.
        Cancelled
            `should_stop` returned True, or this is a dry run.
        ValueError
            A job comes before one that it needs.
        """
        check_order(jobs)
        if not jobs:
            return
        if should_stop():
            raise Cancelled(f"stopped before {jobs[0].name!r}")
        if self.dry_run:
            print(self.scripts(jobs))
            raise Cancelled("dry run: the job scripts are printed, nothing was submitted")
        run = _running(jobs)
        try:
            if run is None:
                run = self._start(jobs, should_stop)
            Watch(run, jobs, self.poll_s, on_event, should_stop).until_end()
        except KeyboardInterrupt as interrupt:
            if run is not None and self.survives_driver and _leave():
                interrupt.add_note(f"The jobs go on. `volara-expr attach {run.path}` or the same line again watches them.")
                raise
            self._cancel(run)
            raise
        except BaseException:
            self._cancel(run)
            raise

    def scripts(self, jobs: Sequence[Job]) -> str:
        """Return the scripts of the first array of each stage and of its gate."""
        run = RunFolder.plan(jobs, self.options)
        texts = []
        for stage, job in enumerate(jobs):
            n_tasks = first_round(job, self.options)
            texts.append(f"# {job.name}: {job.n_blocks} blocks\n{array_script(run, stage, f'{stage}-1', n_tasks)}")
        texts.append(f"# the gate behind each array\n{gate_script(run, '0-1', 'JOB_OF_THE_ARRAY')}")
        return "\n".join(texts)

    def _start(self, jobs: Sequence[Job], should_stop: Callable[[], bool]) -> RunFolder:
        mine = {job.key for job in jobs}
        for old in RunFolder.all_in(jobs[0].folder):
            if old.state().ended and mine & set(old.keys):
                shutil.rmtree(old.path)
        run = RunFolder.plan(jobs, self.options)
        run.create(jobs)
        try:
            step(run, should_stop)
        except BaseException:
            self._cancel(run)
            raise
        logger.info("run %s; `volara-expr status %s` says how far it is", run.name, run.path)
        return run

    @staticmethod
    def _cancel(run: RunFolder | None) -> None:
        if run is not None and run.path.exists() and not run.state().ended:
            if run.state().round:
                cancel_run(run)
            else:
                shutil.rmtree(run.path)  # nothing was submitted


def cancel_run(run: RunFolder) -> None:
    """Cancel all jobs of a run and wait until they have left the queue.

    Raises
    ------
    WorkersFailed
        SLURM does not answer, or jobs remain.
    """
    (run.path / "cancelled").touch()
    deadline = time.monotonic() + _CANCEL_S
    pause = 0.2
    error = cancel(run.name)
    while (left := queue(run.name)) is None or left:
        if time.monotonic() > deadline:
            raise WorkersFailed(
                f"jobs named {run.name} may still be in SLURM's queue {_CANCEL_S:.0f} s after they were cancelled: {error}. Try "
                f"`volara-expr cancel {run.path}` later"
            )
        time.sleep(pause)
        pause = min(2 * pause, 5.0)
        if left is None or any(job.state != "COMPLETING" for job in left):
            error = cancel(run.name)
    state = run.state()
    if not state.ended:
        run.save(replace(state, phase="cancelled"))


def _running(jobs: Sequence[Job]) -> RunFolder | None:
    """Find a run of these jobs that has not ended."""
    mine = {job.key for job in jobs}
    for run in reversed(RunFolder.all_in(jobs[0].folder)):
        if mine <= set(run.keys) and not run.cancelled and not run.state().ended:
            return run
    return None


def _leave() -> bool:
    """Ask whether jobs should go on; False where nobody can be asked."""
    if not sys.stdin.isatty():
        return False
    try:
        answer = input("\nCancel the SLURM jobs of this run? Otherwise they go on without this process. [Y/n] ")
    except (EOFError, OSError, KeyboardInterrupt):
        return False
    return answer.strip().lower().startswith("n")
