"""`Graph`: the handle of a region graph."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from volara_expr.array.base import Expression
from volara_expr.array.lut import Lut
from volara_expr.ops.agglomerate import cluster, connect
from volara_expr.ops.graph_tables import RegionGraph, StoredGraph, StoredTable

if TYPE_CHECKING:
    import networkx
    import pyarrow as pa

    from volara_expr.geometry import Roi
    from volara_expr.store.graph_db import GraphDB

__all__ = ["Graph", "NotComputed", "open_graph"]


class NotComputed(RuntimeError):
    """Rows were asked of an expression that nobody has computed; nothing is ever computed behind the user's back."""


class Graph(Expression):
    """Fragments and the scores between them, still to be computed or in a database.

    `Array.agglomerate` makes one, `open_graph` opens one. Clustering it is an expression again, so it works on both.
    """

    __slots__ = ("__weakref__", "node")
    node: RegionGraph | StoredGraph

    def __init__(self, node: RegionGraph | StoredGraph) -> None:
        self.node = node

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of the scores."""
        return self.node.scores

    def mutex_watershed(self, weights: Mapping[str, tuple[float, float]], combine: bool = False) -> Lut:
        """Segments by the mutex watershed of the graph (Wolf et al., "The Mutex Watershed", ECCV 2018).

        A pair of fragments has one edge for each score, of weight ``factor * mean + bias``, taken by falling magnitude: positive
        ones join, others keep apart. Equal ones are taken in the order of (u, v), then of `weights`. A segment's id is its
        smallest fragment id; every fragment is in the table.

        Parameters
        ----------
        weights : dict of str to (float, float)
            Factor and bias of each score to be used.
        combine : bool
            One edge for each pair, of the sum of its scores' weights.

        Returns
        -------
        Lut
            From fragments to segments.

        Raises
        ------
        KeyError
            If the graph has no such score.

        Examples
        --------
        >>> import numpy as np
        >>> import volara_expr as ve
        >>> data = np.array([[[0.9, 0.2, 0.8, 0.0]]])
        >>> affs = ve.from_numpy(data, axes=("c", "y", "x"), neighborhood=[(0, 1)])
        >>> graph = affs.watershed(bias=-0.5, block_size=8).agglomerate(affs, scores={"direct": slice(0, 1)})
        >>> [lut.compute() for lut in graph.sweep([{"direct": (1.0, -0.1)}, {"direct": (1.0, -0.3)}])]
        [{129: 129, 130: 129}, {129: 129, 130: 130}]
        """
        return Lut.of(cluster(self.node, weights, combine))

    def components(self, thresholds: Mapping[str, float]) -> Lut:
        """Segments by connected components: a pair is joined where the mean of any of these scores is above its threshold.

        Parameters
        ----------
        thresholds : dict of str to float

        Returns
        -------
        Lut
            From fragments to segments; a segment's id is its smallest fragment id.

        Raises
        ------
        KeyError
            If the graph has no such score.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> frags = ve.from_numpy(np.array([[1, 1, 2, 2, 3]]))
        >>> affs = ve.from_numpy(np.full((1, 1, 5), 0.75), axes=("c", "y", "x"), neighborhood=[(0, 1)])
        >>> frags.agglomerate(affs, scores={"mean": [0]}).components({"mean": 0.5}).compute()
        {1: 1, 2: 1, 3: 1}
        """
        return Lut.of(connect(self.node, thresholds))

    def sweep(self, weights: Iterable[Mapping[str, tuple[float, float]]], combine: bool = False) -> list[Lut]:
        """Return one mutex watershed for each set of weights; the graph is made once for all of them."""
        return [self.mutex_watershed(w, combine) for w in weights]

    def nodes(self, roi: Roi | None = None) -> pa.Table:
        """Return the fragments as an Arrow table, by id.

        Columns: `id`, `size` in voxels, the position of the centre along each space axis in world units, the means.

        Parameters
        ----------
        roi : Roi, optional
            Only fragments whose centre lies in it.

        Raises
        ------
        NotComputed
            If the graph is still an expression.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> frags = ve.from_numpy(np.array([[1, 1, 2, 2, 3]]))
        >>> affs = ve.from_numpy(np.full((1, 1, 5), 0.75), axes=("c", "y", "x"), neighborhood=[(0, 1)])
        >>> frags.agglomerate(affs, scores={"mean": [0]}).compute().nodes().to_pylist()[0]
        {'id': 1, 'size': 2, 'y': 0.5, 'x': 1.0}
        """
        return self._database().nodes(roi)

    def edges(self, roi: Roi | None = None) -> pa.Table:
        """Return the pairs of touching fragments as an Arrow table, by (u, v), u < v.

        For each score its mean (NULL where no voxel pair has it), `<score>_sum` and `<score>_count`.

        Parameters
        ----------
        roi : Roi, optional
            Only pairs of which at least one fragment's centre lies in it.

        Raises
        ------
        NotComputed
            If the graph is still an expression.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> frags = ve.from_numpy(np.array([[1, 1, 2, 2, 3]]))
        >>> affs = ve.from_numpy(np.full((1, 1, 5), 0.75), axes=("c", "y", "x"), neighborhood=[(0, 1)])
        >>> frags.agglomerate(affs, scores={"mean": [0]}).compute().edges().select(["u", "v", "mean"]).to_pylist()
        [{'u': 1, 'v': 2, 'mean': 0.75}, {'u': 2, 'v': 3, 'mean': 0.75}]
        """
        return self._database().edges(roi)

    def sql(self, query: str) -> pa.Table:
        """Run a query on the tables `nodes`, `edges` and `metadata`.

        Raises
        ------
        NotComputed
            If the graph is still an expression.
        ValueError
            If the query is wrong.
        """
        return self._database().sql(query)

    def to_networkx(self, roi: Roi | None = None) -> networkx.Graph:
        """Return a networkx graph, with the columns of the tables as attributes.

        Raises
        ------
        NotComputed
            If the graph is still an expression.
        """
        return self._database().to_networkx(roi)

    def compute(self, executor: Any = None) -> Graph:
        """Return the graph in a database of this session; runs what it needs."""
        from volara_expr.array.writing import compute_table

        return self if isinstance(self.node, StoredGraph) else open_graph(compute_table(self, executor))

    def write(self, url: str | os.PathLike[str], **options: Any) -> Graph:
        """Compute the graph and store it; "out.zarr/graph" becomes the file out.graph.duckdb. Options as those of `write`."""
        from volara_expr.array.writing import write

        graph: Graph = write({url: self}, **options)[os.fspath(url)]
        return graph

    def _database(self) -> GraphDB:
        if not isinstance(self.node, StoredGraph):
            raise NotComputed(
                "this graph has not been computed; graph.write('out.zarr/graph') computes and returns it, and ve.open_graph(path) "
                "opens one that exists"
            )
        from volara_expr.store.graph_db import GraphDB

        return GraphDB(self.node.path)

    def __repr__(self) -> str:
        where = self.node.path if isinstance(self.node, StoredGraph) else "not computed"
        return f"Graph(scores={', '.join(self.scores)}; {where})"

    def _repr_html_(self) -> str:
        from volara_expr.array.names import variable_names
        from volara_expr.view.summary import table_html

        where = self.node.path if isinstance(self.node, StoredGraph) else "not computed"
        return table_html("graph", self.node, [("scores", ", ".join(self.scores)), ("rows", where)], variable_names())


def open_graph(path: str | os.PathLike[str]) -> Graph:
    """Open the database of a region graph.

    Parameters
    ----------
    path : str or PathLike
        The .duckdb file, or the url that the graph was written to.

    Returns
    -------
    Graph
        Can be queried, and clustered again with other weights.

    Raises
    ------
    FileNotFoundError, OSError
        If there is no such file, another process writes it, or it is no region graph.

    Examples
    --------
    >>> import tempfile, numpy as np, volara_expr as ve
    >>> frags = ve.from_numpy(np.array([[1, 1, 2, 2, 3]]))
    >>> affs = ve.from_numpy(np.full((1, 1, 5), 0.75), axes=("c", "y", "x"), neighborhood=[(0, 1)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made = frags.agglomerate(affs, scores={"mean": [0]}).write(f"{folder}/out.zarr/graph", progress=False)
    ...     ve.open_graph(f"{folder}/out.graph.duckdb").scores
    ('mean',)
    """
    from volara_expr.run.tables import graph_content
    from volara_expr.store.graph_db import GraphDB
    from volara_expr.store.location import locate

    db = GraphDB(os.path.abspath(locate(path).file(".duckdb")))
    content, scales = graph_content(db), db.metadata.get("scales", {})
    edge_columns = ("u", "v", *(f"{s}{end}" for s in db.scores for end in ("", "_sum", "_count")))
    return Graph(
        StoredGraph(
            StoredTable(db.path, content, ("id", "size"), "nodes"),
            StoredTable(db.path, content, edge_columns, "edges"),
            db.scores,
            tuple((s, int(scales.get(s, 1))) for s in db.scores),
        )
    )
