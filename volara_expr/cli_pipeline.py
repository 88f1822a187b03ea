"""Commands for pipeline files and for what runs leave: `volara-expr run`, `plan`, `schema`, `status`, `drop`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from volara_expr.array.pipeline import Pipeline
    from volara_expr.array.writing import Run

__all__ = ["drop", "finish", "plan", "run", "schema", "status"]

SET = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Give a parameter of the file; may be repeated. Lists as in [1, 2].",
)
FILE = click.argument("file", type=click.Path(exists=True, dir_okay=False))


def loaded(file: str, settings: tuple[str, ...]) -> Pipeline:
    """Read a pipeline file with the parameters of a command line.

    Raises
    ------
    ValueError
        For a parameter without a value.
    """
    from volara_expr.array.document import parse
    from volara_expr.array.pipeline import load_pipeline

    given: dict[str, Any] = {}
    for item in settings:
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"--set {item!r} should be KEY=VALUE, as in --set bias=-0.5")
        given[key] = parse(value, f"--set {item}")
    return load_pipeline(file, **given)


def finish(run: Run) -> dict[str, Any]:
    """Wait for a run and return its outputs; interrupted, stop it, say what to do and leave."""
    try:
        while not run.wait(0.2):
            pass
    except KeyboardInterrupt:
        run.cancel()
        click.echo("Interrupted. What is done is recorded; the same command goes on from there.", err=True)
        sys.exit(130)
    return run.result()


@click.command()
@FILE
@SET
@click.option(
    "--executor", "-x", default=None, help="Where blocks run, as in multiprocessing:8.  [default: that of the file, or serial]"
)
@click.option("--overwrite", is_flag=True, help="Replace outputs of other parameters.")
@click.option("--keep", type=click.Choice(["tables", "all"]), default=None, help="Intermediates to keep.  [default: tables]")
@click.option("--quiet", "-q", is_flag=True, help="No progress, no summary.")
def run(file: str, settings: tuple[str, ...], executor: str | None, overwrite: bool, keep: str | None, quiet: bool) -> None:
    """Compute and store the outputs of a pipeline file. Killed at any moment, the same command goes on where it stopped."""
    from volara_expr.run.progress import table

    given = {"executor": executor, "overwrite": overwrite or None, "keep": keep}
    running = loaded(file, settings).submit(progress=not quiet, **{k: v for k, v in given.items() if v is not None})
    results = finish(running)
    if not quiet:
        click.echo(table(running.reports))
        click.echo("\n".join(results))


@click.command()
@FILE
@SET
@click.option("--executor", "-x", default=None, help="For the number of workers and their memory.")
def plan(file: str, settings: tuple[str, ...], executor: str | None) -> None:
    """Print what `run` would do: stages, blocks, halos, bytes, memory, and why each cut."""
    click.echo(loaded(file, settings).plan(executor).explain())


@click.command()
def schema() -> None:
    """Print the JSON schema of pipeline files, for editors that complete and check."""
    from volara_expr.array.schema import schema as make

    click.echo(json.dumps(make(), indent=1))


@click.command()
@click.argument("out")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(out: str, as_json: bool) -> None:
    """Print what is finished. OUT is a store, an output in it, or the folder of a SLURM run."""
    from dataclasses import asdict

    from executors.slurm_files import RunFolder
    from volara_expr.cli_runs import runs_of, summary
    from volara_expr.run.places import Workspace
    from volara_expr.run.state import stored_nodes
    from volara_expr.store import locate

    if Path(out, "run.json").is_file():
        click.echo("\n".join(map(summary, runs_of(out))))
        return
    nodes = stored_nodes(out)
    if as_json:
        click.echo(json.dumps([asdict(n) for n in nodes]))
        return
    width = max(len(n.name) for n in nodes)
    for n in nodes:
        state = "done" if n.done == n.total else f"{n.done / max(n.total, 1):.0%}"
        what = f"output, {n.op}" if n.named else "intermediate"
        click.echo(f"{n.name:<{width}}  {n.done:>8,}/{n.total:<8,} {state:>5}  {what}")
    if RunFolder.all_in(Workspace(locate(out).workspace).jobs):
        click.echo("\n".join(map(summary, runs_of(out))))


@click.command()
@click.argument("out")
@click.option("--keep-outputs", is_flag=True, help="Delete the workspace alone: ledgers and intermediates.")
@click.option("--keep-workspace", is_flag=True, help="Delete the outputs alone; intermediates serve the next run.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
def drop(out: str, keep_outputs: bool, keep_workspace: bool, yes: bool) -> None:
    """Delete what runs have written. OUT is a store, with its workspace, or an output in it."""
    from volara_expr.run.state import drop as delete
    from volara_expr.run.state import stored_nodes
    from volara_expr.store import locate

    nodes = stored_nodes(out)
    named = [n for n in nodes if n.named and not keep_outputs]
    where = locate(out)
    listed = [f"{n.name} ({n.done:,} of {n.total:,} write units)" for n in named]
    if not where.path and not keep_workspace:
        listed.append(f"{where.workspace} ({len(nodes) - sum(n.named for n in nodes)} intermediates, all ledgers)")
    if not listed:
        raise ValueError("nothing to delete: outputs and workspace are both to be kept")
    click.echo("\n".join(listed))
    if not yes:
        click.confirm("Delete these?", abort=True)
    for path in delete(out, nodes, outputs=not keep_outputs, workspace=not keep_workspace):
        click.echo(f"deleted {path}")
