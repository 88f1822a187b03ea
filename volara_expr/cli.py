"""The command line: `volara-expr segment` and `info`; `run`, `plan`, `schema`, `status` and `drop`; on SLURM `attach` and `cancel`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from volara_expr.cli_pipeline import drop, finish, plan, run, schema, status
from volara_expr.cli_runs import attach, cancel

__all__ = ["main"]

USER_ERRORS = (ValueError, TypeError, KeyError, OSError, MemoryError)


class Numbers(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """A comma-separated list of numbers, or one number for all."""

    name = "numbers"

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        """Parse "64" or "20,100,100"."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.kind(v) for v in str(value).split(","))
        except ValueError:
            self.fail(
                f"{value!r} is no list of numbers; write one number, or several with commas, as in 20,100,100", param, ctx
            )


class Offsets(click.ParamType):  # type: ignore[type-arg]
    """A neighborhood: "1,0,0 0,1,0 0,0,1"."""

    name = "offsets"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[tuple[int, ...], ...]:
        """Parse offsets separated by spaces."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(tuple(int(v) for v in o.split(",")) for o in str(value).split())
        except ValueError:
            self.fail(f"{value!r} is no neighborhood; write offsets as in '1,0,0 0,1,0 0,0,1'", param, ctx)


INTS, FLOATS = Numbers(int), Numbers(float)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="volara_expr")
def cli() -> None:
    """Blockwise processing of volumes too large for memory."""


def one_or_all(values: Sequence[Any]) -> Any:
    """Return the number itself where only one was given."""
    return values[0] if len(values) == 1 else list(values)


@cli.command()
@click.argument("affs", type=str)
@click.option(
    "--out", "-o", required=True, help="Zarr store to make: OUT/fragments, OUT/segments; graph and table go beside it."
)
@click.option("--level", default=0, show_default=True, help="Level of a multiscale image.")
@click.option(
    "--neighborhood", type=Offsets(), help="Offsets of the channels, '1,0,0 0,1,0 0,0,1'; by default those stored with AFFS."
)
@click.option("--lo", default=None, type=float, help="Value of an affinity of 0.  [default: 0]")
@click.option(
    "--hi", default=None, type=float, help="Value of an affinity of 1.  [default: 255 for uint8, 65535 for uint16, else 1]"
)
@click.option(
    "--bias",
    type=FLOATS,
    default=None,
    help="Of the watershed, per offset or one for all.  [default: -0.5 for unit offsets, -0.6 for others]",
)
@click.option(
    "--stride",
    type=INTS,
    default=(3,),
    show_default=True,
    help="Of the offsets that are longer than one voxel, per space axis or one for all.",
)
@click.option(
    "--block-size", type=INTS, default=(64,), show_default=True, help="Of the watershed, in voxels; part of the result."
)
@click.option("--context", type=INTS, default=None, help="Voxels read beyond a block.  [default: the longest offset]")
@click.option("--noise", default=0.0, show_default=True, help="Standard deviation of noise added to the affinities.")
@click.option("--sigma", type=FLOATS, default=None, help="Smooth the affinities by a Gaussian, in voxels.")
@click.option("--seed", default=0, show_default=True, help="Of noise and random strides.")
@click.option("--random-strides", is_flag=True, help="Keep edges at random instead of on a lattice.")
@click.option("--mask", type=str, default=None, help="Url of a mask; voxels where it is 0 become background.")
@click.option("--min-size", default=0, show_default=True, help="Smaller fragments become background, in voxels.")
@click.option("--min-mean-affinity", default=0.0, show_default=True, help="Fragments of lower mean affinity become background.")
@click.option("--min-extent", type=INTS, default=None, help="Thinner fragments become background, in voxels.")
@click.option(
    "--graph-bias",
    type=FLOATS,
    default=(-0.6, -0.7),
    show_default=True,
    help="Of the scores direct (unit offsets) and long (all others).",
)
@click.option(
    "--mean-of", multiple=True, metavar="NAME=URL", help="Store the mean of an image over each fragment; may be repeated."
)
@click.option("--chunks", type=INTS, default=None, help="Of the segments, in voxels.")
@click.option("--levels", default=1, show_default=True, help="Of the segments' pyramid.")
@click.option("--executor", "-x", default="serial", show_default=True, help="Where blocks run, as in multiprocessing:8.")
@click.option("--overwrite", is_flag=True, help="Replace outputs of other parameters.")
@click.option(
    "--keep", type=click.Choice(["tables", "all"]), default="tables", show_default=True, help="Intermediates to keep."
)
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@click.option("--quiet", "-q", is_flag=True, help="No progress, no summary.")
def segment(**options: Any) -> None:
    """Segment affinities: mutex watershed in blocks, region graph, graph mutex watershed, relabelling.

    AFFS is a zarr array or OME-Zarr image with one channel per offset. Killed at any moment, the same command goes on where it
    stopped.
    """
    fragments, graph, lut, segments = segmentation(options)
    if options["dry_run"]:
        click.echo(segments.plan(executor=options["executor"]).explain())
        return
    import volara_expr as ve

    out = options["out"].rstrip("/")
    common = {"executor": options["executor"], "overwrite": options["overwrite"], "keep": options["keep"]}
    running = ve.submit(
        {f"{out}/fragments": fragments, f"{out}/graph": graph, f"{out}/lut": lut, f"{out}/segments": segments},
        chunks=one_for_axes(options["chunks"], segments),
        levels=options["levels"],
        progress=not options["quiet"],
        **common,
    )
    results = finish(running)
    if not options["quiet"]:
        from volara_expr.run.progress import table

        made = results[f"{out}/graph"]
        click.echo(table(running.reports))
        click.echo(f"{made.nodes().num_rows:,} fragments, {made.edges().num_rows:,} edges")
        click.echo(f"segments: {out}/segments\ngraph: {made.node.path}")


def one_for_axes(values: tuple[int, ...] | None, like: Any) -> tuple[int, ...] | None:
    """Repeat a single number for every space axis."""
    if values is None or len(values) > 1:
        return values
    return values * len(like.voxel_size)


def segmentation(options: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    """Return the expressions of the fragments, the graph, the look-up table and the segments."""
    import volara_expr as ve

    stored = ve.open(options["affs"], level=options["level"], neighborhood=options["neighborhood"])
    offsets = stored.neighborhood
    if offsets is None:
        raise ValueError(f"{options['affs']} does not say its neighborhood; give --neighborhood '1,0,0 0,1,0 0,0,1'")
    top = {"uint8": 255.0, "uint16": 65535.0}.get(str(stored.dtype), 1.0)
    lo, hi = options["lo"] or 0.0, options["hi"] if options["hi"] is not None else top
    affs = stored if (lo, hi) == (0.0, 1.0) and stored.dtype.kind == "f" else stored.normalize(lo, hi)
    unit = [sum(map(abs, o)) == 1 for o in offsets]
    n_space = len(stored.voxel_size)
    stride = options["stride"] * n_space if len(options["stride"]) == 1 else options["stride"]
    fragments = affs.watershed(
        bias=one_or_all(options["bias"]) if options["bias"] else [-0.5 if u else -0.6 for u in unit],
        strides=[(1,) * n_space if u else tuple(stride) for u in unit],
        block_size=one_or_all(options["block_size"]),
        context=one_or_all(options["context"]) if options["context"] else None,
        noise=options["noise"],
        sigma=one_or_all(options["sigma"]) if options["sigma"] else None,
        seed=options["seed"],
        random_strides=options["random_strides"],
        mask=ve.open(options["mask"]) if options["mask"] else None,
        min_size=options["min_size"],
        min_mean_affinity=options["min_mean_affinity"],
        min_extent=one_or_all(options["min_extent"]) if options["min_extent"] else None,
    )
    direct = [i for i, u in enumerate(unit) if u]
    long = [i for i, u in enumerate(unit) if not u]
    scores = {name: channels for name, channels in (("direct", direct), ("long", long)) if channels}
    means = {}
    for item in options["mean_of"]:
        name, _, url = item.partition("=")
        if not url:
            raise ValueError(f"--mean-of {item!r} should be NAME=URL, as in raw=sample.zarr/raw")
        means[name] = ve.open(url)
    graph = fragments.agglomerate(affs, scores=scores, mean_of=means or None)
    bias = options["graph_bias"] if len(options["graph_bias"]) > 1 else options["graph_bias"] * 2
    lut = graph.mutex_watershed({name: (1.0, b) for name, b in zip(scores, bias, strict=False)})
    return fragments, graph, lut, fragments.relabel(lut)


@cli.command()
@click.argument("url")
@click.option("--level", default=0, show_default=True, help="Level of a multiscale image.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(url: str, level: int, as_json: bool) -> None:
    """Print what an array or a region graph is: shape, voxel size, chunks, neighborhood; scores."""
    import volara_expr as ve
    from volara_expr.store import locate, open_array

    table = locate(url).file(".duckdb")
    if Path(table).is_file() and not Path(locate(url).url).is_dir():
        graph = ve.open_graph(url)
        found: dict[str, Any] = {
            "graph": table,
            "scores": list(graph.scores),
            "fragments": graph.sql("select count(*) as n from nodes").column("n")[0].as_py(),
            "edges": graph.sql("select count(*) as n from edges").column("n")[0].as_py(),
        }
    else:
        a = ve.open(url, level=level)
        at = open_array(url, level)
        found = {
            "url": at.url,
            "shape": list(a.shape),
            "axes": list(a.axes),
            "dtype": str(a.dtype),
            "voxel_size": a.node.spec.space.describe_voxel() if a.node.spec.space.placed else None,
            "chunks": list(at.chunks),
            "shards": list(at.shards) if at.shards else None,
            "neighborhood": [list(o) for o in a.neighborhood] if a.neighborhood else None,
        }
    if as_json:
        click.echo(json.dumps(found))
        return
    for key, value in found.items():
        if value is not None:
            click.echo(f"{key + ':':<14}{value}")


for command in (run, plan, schema, status, drop, attach, cancel):
    cli.add_command(command)


def main() -> None:
    """Run the command line; errors of the user are one message, not a traceback."""
    from executors.protocol import BlockFailures, Cancelled, WorkersFailed
    from volara_expr.expr.origin import from_line

    try:
        with from_line(" ".join(["volara-expr", *sys.argv[1:2]])):
            cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("Aborted.", err=True)
        sys.exit(130)
    except click.ClickException as e:
        e.show()
        sys.exit(e.exit_code)
    except (*USER_ERRORS, BlockFailures, Cancelled, WorkersFailed) as e:
        text = str(e.args[0]) if isinstance(e, KeyError) and e.args else str(e)
        notes = [n for n in getattr(e, "__notes__", ()) if not n.startswith("in volara-expr")]
        click.echo("\n".join([f"Error: {text}", *notes]), err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
