"""Commands for runs that go on without this process: `volara-expr attach`, `cancel`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from executors.slurm_files import RunFolder

__all__ = ["attach", "cancel", "runs_of", "summary"]


def runs_of(place: str) -> list[RunFolder]:
    """Return the run of a folder, or those beside a store.

    Raises
    ------
    ValueError
        There is none.
    """
    from executors.slurm_files import RunFolder
    from volara_expr.run.places import Workspace
    from volara_expr.store import locate

    if Path(place, "run.json").is_file():
        return [RunFolder(place)]
    found = RunFolder.all_in(Workspace(locate(place).workspace).jobs)
    if not found:
        raise ValueError(f"no SLURM run lies at {place} or beside that store; one that succeeded is removed by its driver")
    return found


def summary(run: RunFolder) -> str:
    """Say how far a run is: from its ledgers, and from SLURM's queue."""
    from executors.slurm_script import queue

    state = run.state()
    lines = [f"{run.path}: {state.phase}"]
    for stage, about in enumerate(run.about["stages"]):
        total = state.totals[stage] if stage < len(state.totals) else None
        if total is None:
            what = "waits"
        elif stage < state.stage or state.phase == "done":
            what = f"{total}/{total} blocks"
        else:
            left = sum(map(len, run.job(stage).pending()))
            what = f"{total - left}/{total} blocks, {len(state.set_aside)} set aside, round {state.round}"
        lines.append(f"  {about['name']}: {what}")
    if state.phase == "failed":
        lines.append(f"  {run.report().get('text') or f'blocks failed; volara-expr attach {run.path} shows them'}")
    if not state.ended:
        queued = queue(run.name)
        if queued is None:
            lines.append("  SLURM does not answer")
        else:
            counts = Counter(f"{q.state.lower()} ({q.reason})" if q.state == "PENDING" else q.state.lower() for q in queued)
            lines.append("  jobs: " + (", ".join(f"{n} {state}" for state, n in counts.items()) or "none; attach to go on"))
    return "\n".join(lines)


@click.command()
@click.argument("run")
def attach(run: str) -> None:
    """Watch a SLURM run to its end and complete its outputs. RUN is the folder of a run, or a store that it writes to."""
    from executors.slurm import Slurm
    from executors.slurm_gate import error_of
    from volara_expr.array.writing import run_outputs
    from volara_expr.run.request import requests

    found = runs_of(run)[-1]
    phase = found.state().phase
    if phase == "failed":
        raise error_of(found)
    if phase == "cancelled":
        raise ValueError(f"{found.path} was cancelled; write the same outputs again to go on with what it left")
    for request in requests(found.path.parent):
        if set(request.keys) <= set(found.keys):
            outputs = request.outputs()
            run_outputs(outputs, Slurm.like(found), keep=request.keep)
            click.echo("complete: " + ", ".join(str(o.url) for o in outputs))
            return
    raise ValueError(f"nobody noted what {found.path} is to make; write the same outputs again, which attaches to its jobs")


@click.command()
@click.argument("run")
def cancel(run: str) -> None:
    """Cancel the jobs of SLURM runs. RUN is the folder of a run, or a store that it writes to; what is done is recorded."""
    from executors.slurm import cancel_run

    for found in runs_of(run):
        if not found.state().ended:
            cancel_run(found)
            click.echo(f"cancelled: {found.path}")
