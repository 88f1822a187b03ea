"""The DuckDB file of a region graph, which a user queries.

Parquet is the record; the DuckDB file is made from it and can be made again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa

from volara_expr.geometry import Roi
from volara_expr.geometry.space import exact
from volara_expr.store.files import replacing
from volara_expr.store.sql import double, identifier, literal, mebibytes, quiet
from volara_expr.store.tables import open_table, require_columns

if TYPE_CHECKING:
    import networkx

__all__ = ["GraphDB", "build_graph_db", "check_scores"]

StrPath = str | os.PathLike[str]


def build_graph_db(
    path: StrPath,
    nodes_parquet: StrPath,
    edges_parquet: StrPath,
    metadata: Mapping[str, object],
    *,
    memory_limit_bytes: int | None = None,
) -> None:
    """Make the DuckDB file of a region graph from its merged tables; whole or not at all.

    Rows keep their order, by id and by (u, v), which makes box queries fast: DuckDB skips the row groups of other blocks.

    Parameters
    ----------
    path : str or PathLike
        Of the .duckdb file; replaced if it exists.
    nodes_parquet : str or PathLike
        Columns `id`, `size` (voxels), `<axis>_sum` (of voxel indices) for each axis in `metadata["axes"]`, and
        `<name>_sum` for means over the voxels. They become `id`, `size`, `<axis>` (world position of the centre) and `<name>`.
    edges_parquet : str or PathLike
        Columns `u`, `v`, and `<name>_sum`, `<name>_count` for each score. They become `u`, `v` and, for each score, `<name>`
        (the mean; NULL where the count is 0), `<name>_sum`, `<name>_count`.
    metadata : mapping
        JSON values. `axes` (names, in order), `voxel_size` and `origin` (numbers or strings of exact decimals; default 1 and 0),
        `units`, `scales` (what a sum of each score or mean was multiplied by; default 1). All are kept, so are others.
    memory_limit_bytes : int, optional

    Raises
    ------
    OSError
        If a table is missing or damaged, or the file cannot be written.
    KeyError
        If a column is missing.
    """
    axes = [str(a) for a in _sequence(metadata, "axes", ())]
    voxel_size = [float(exact(v)) for v in _sequence(metadata, "voxel_size", [1] * len(axes))]
    origin = [float(exact(v)) for v in _sequence(metadata, "origin", [0] * len(axes))]
    scales = metadata.get("scales") or {}
    if not isinstance(scales, Mapping):
        raise ValueError(f"metadata 'scales' is {scales!r}; give a mapping from score names to numbers")

    def mean(name: str, count: str) -> str:
        total = f"CAST({identifier(name + '_sum')} AS DOUBLE) / {double(scales.get(name, 1))}"
        return f"{total} / NULLIF({count}, 0) AS {identifier(name)}"

    node_columns, edge_columns = _columns(nodes_parquet), _columns(edges_parquet)
    require_columns(nodes_parquet, node_columns, ["id", "size", *(f"{a}_sum" for a in axes)])
    nodes = ["CAST(id AS UBIGINT) AS id", "CAST(size AS BIGINT) AS size"]
    for axis, step, start in zip(axes, voxel_size, origin, strict=True):
        centre = f"CAST({identifier(axis + '_sum')} AS DOUBLE) / size + 0.5"
        nodes.append(f"{double(start)} + ({centre}) * {double(step)} AS {identifier(axis)}")
    nodes += [
        mean(c[:-4], f"{identifier(c[:-4] + '_count')}" if f"{c[:-4]}_count" in node_columns else "size")
        for c in node_columns
        if c.endswith("_sum") and c[:-4] not in axes
    ]
    scores = [c[:-6] for c in edge_columns if c.endswith("_count")]
    require_columns(edges_parquet, edge_columns, ["u", "v", *(f"{s}_sum" for s in scores)])
    edges = ["CAST(u AS UBIGINT) AS u", "CAST(v AS UBIGINT) AS v"]
    for score in scores:
        edges.append(mean(score, identifier(f"{score}_count")))
        edges += [f"CAST({identifier(score + end)} AS BIGINT) AS {identifier(score + end)}" for end in ("_sum", "_count")]

    settings: dict[str, Any] = {} if memory_limit_bytes is None else {"memory_limit": mebibytes(memory_limit_bytes)}
    with replacing(os.fspath(path)) as temporary:
        try:
            with duckdb.connect(temporary, config=settings) as connection:
                quiet(connection)
                for table, columns, source in (("nodes", nodes, nodes_parquet), ("edges", edges, edges_parquet)):
                    connection.execute(
                        f"CREATE TABLE {table} AS SELECT {', '.join(columns)} FROM read_parquet({literal(os.fspath(source))})"
                    )
                connection.execute("CREATE TABLE metadata (key VARCHAR, value VARCHAR)")
                for key, value in metadata.items():
                    connection.execute("INSERT INTO metadata VALUES (?, ?)", [key, json.dumps(value)])
        except duckdb.Error as error:
            with suppress(FileNotFoundError):
                os.unlink(temporary + ".wal")
            raise OSError(
                f"cannot build {os.fspath(path)}: {error}; check the space left there and both Parquet tables"
            ) from error


class GraphDB:
    """A region graph in a DuckDB file, for reading.

    The file is open only while a query runs: it may be replaced at any time, copied to other machines, and used from several
    threads and processes.

    Parameters
    ----------
    path : str or PathLike

    Attributes
    ----------
    path : str
    metadata : dict
        What `build_graph_db` was given.
    scores : tuple of str
        Names of the edge scores.

    Raises
    ------
    FileNotFoundError, OSError
        If there is no such file, another process writes it, or it is no region graph.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = os.fspath(path)
        with _connect(self.path) as connection:
            try:
                self.metadata: dict[str, Any] = {
                    key: json.loads(value) for key, value in connection.execute("SELECT key, value FROM metadata").fetchall()
                }
                columns = [row[0] for row in connection.execute("DESCRIBE edges").fetchall()]
            except duckdb.CatalogException as error:
                raise OSError(
                    f"{self.path} is a DuckDB file but no region graph ({error}); write a graph there first"
                ) from error
        self.scores = tuple(c[:-6] for c in columns if c.endswith("_count"))

    def sql(self, query: str) -> pa.Table:
        """Run a query on the tables `nodes`, `edges` and `metadata`.

        Raises
        ------
        ValueError
            If the query is wrong, or gives no rows to return.
        """
        return self._run(query)

    def nodes(self, roi: Roi | None = None) -> pa.Table:
        """Return the nodes, by id; with a Roi, those whose centre lies in it (lower faces included, upper ones not).

        Columns: id, size (voxels), the position along each space axis in world units, means.
        """
        return self._run(f"SELECT * FROM nodes{self._within(roi)} ORDER BY id")

    def edges(self, roi: Roi | None = None) -> pa.Table:
        """Return the edges, by (u, v); with a Roi, those of which at least one end lies in it, as `nodes` has it.

        Columns: u, v (u < v), and for each score its mean, sum and count.
        """
        return self._run(f"{self._edge_query(roi)} ORDER BY u, v")

    def to_networkx(self, roi: Roi | None = None) -> networkx.Graph:
        """Return a graph whose nodes and edges have the columns of the tables as attributes.

        With a Roi, the edges of which at least one end lies in it, with both their ends, and all nodes in it.
        """
        import networkx

        edges = self.edges(roi)
        if roi is None:
            nodes = self.nodes()
        else:
            ends = f"SELECT UNNEST([u, v]) FROM ({self._edge_query(roi)})"
            nodes = self._run(f"SELECT * FROM nodes{self._within(roi)} OR id IN ({ends}) ORDER BY id")
        graph = networkx.Graph()
        graph.add_nodes_from((row.pop("id"), row) for row in nodes.to_pylist())
        graph.add_edges_from((row.pop("u"), row.pop("v"), row) for row in edges.to_pylist())
        return graph

    def _run(self, query: str) -> pa.Table:
        with _connect(self.path) as connection:
            try:
                found = connection.sql(query)
                if found is None:
                    raise ValueError(f"the query returns no table: {query}; write a SELECT")
                return found.to_arrow_table()
            except duckdb.Error as error:
                raise ValueError(f"{self.path} cannot answer {query!r}: {error}") from error

    def _within(self, roi: Roi | None) -> str:
        """Return the WHERE clause for a position in the Roi; parenthesised, and empty for None."""
        if roi is None:
            return ""
        axes = self.metadata.get("axes", [])
        unit = next(iter(self.metadata.get("units") or ()), None)
        if len(axes) != len(roi.offset):
            raise ValueError(
                f"the Roi has {len(roi.offset)} axes, the graph {len(axes)} ({', '.join(axes)}); give one range each"
            )
        if roi.unit and unit:
            roi = roi.to(unit)
        ranges = (
            f"{identifier(a)} >= {double(lo)} AND {identifier(a)} < {double(hi)}"
            for a, lo, hi in zip(axes, roi.offset, roi.end, strict=True)
        )
        return f" WHERE ({' AND '.join(ranges)})"

    def _edge_query(self, roi: Roi | None) -> str:
        if roi is None:
            return "SELECT * FROM edges"
        inside = f"(SELECT id FROM nodes{self._within(roi)})"
        return (  # two scans, each limited to the range of the ids: one scan with OR reads the whole table
            f"(SELECT * FROM edges WHERE u IN {inside} UNION ALL SELECT * FROM edges WHERE v IN {inside} AND u NOT IN {inside})"
        )


def check_scores(names: Iterable[str], available: Sequence[str]) -> None:
    """Raise a KeyError that lists the scores there are if one of `names` is not among them."""
    unknown = [n for n in names if n not in available]
    if unknown:
        raise KeyError(f"no score {', '.join(unknown)}; the graph has {', '.join(available) or 'none'}")


@contextmanager
def _connect(path: str) -> Iterator[duckdb.DuckDBPyConnection]:
    if not os.path.exists(path):
        raise FileNotFoundError(f"no region graph at {path}; write the graph there first, or check the path")
    try:
        connection = duckdb.connect(path, read_only=True)
    except duckdb.Error as error:
        if "lock" in str(error):
            raise OSError(
                f"{path} is being written by another process: {error}; wait until it is done, or read the Parquet tables beside it"
            ) from error
        raise OSError(f"cannot open {path}: {error}; build it again from the Parquet tables beside it") from error
    with connection:
        yield connection


def _columns(path: StrPath) -> list[str]:
    with open_table(path) as file:
        return list(file.schema_arrow.names)


def _sequence(metadata: Mapping[str, object], key: str, default: Sequence[Any]) -> Sequence[Any]:
    value = metadata.get(key, default)
    if not isinstance(value, list | tuple):
        raise ValueError(f"metadata {key!r} is {value!r}; give one entry per axis")
    return value
