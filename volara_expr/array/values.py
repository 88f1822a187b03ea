"""Statistics of whole volumes, as lazy values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from volara_expr.array.base import Handle, node_of
from volara_expr.ops.ranks import quantile
from volara_expr.ops.values import histogram

if TYPE_CHECKING:
    from volara_expr.array.core import Array

__all__ = ["Values"]


class Values(Handle):
    """Statistics of all voxels, or of those inside a mask that the array carries (see `mask`).

    They are lazy arrays without axes (or of one axis that is not of space), so they enter arithmetic: ``(a - a.mean()) / a.max()``.
    Each is made from a table of exact partial results and rounded once, so it depends on no blocks; `compute` gives a NumPy
    scalar. Sums, means and extremes of one array share one pass over it.
    """

    __slots__ = ()

    def histogram(self, bins: int = 10, range: tuple[float, float] | None = None) -> tuple[Array, Array]:
        """Count the values in bins of equal width, as `numpy.histogram`; floats are taken as float64.

        Halo: none; a table of the whole volume. Exact.

        Parameters
        ----------
        bins : int
        range : (float, float), optional
            Lower edge of the first bin and upper edge of the last, which it includes. Values beyond are not counted. By default
            from the smallest to the largest value, which takes another pass.

        Returns
        -------
        counts : Array of int64, shape (bins,)
        edges : Array of float64, shape (bins + 1,)

        Raises
        ------
        ValueError
            For a range that is not finite, also when blocks run.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> counts, edges = ve.from_numpy(np.array([1, 2, 2, 7])).histogram(3)
        >>> counts.compute(), edges.compute()
        (array([3, 0, 1]), array([1., 3., 5., 7.]))
        """
        counts, edges = histogram(self.node, bins, range)
        return self._new(counts), self._new(node_of(edges) if isinstance(edges, np.ndarray) else edges)

    def quantile(self, q: float | Sequence[float]) -> Array:
        """Return the value below which a share `q` of the voxels lies, between two of them by linear interpolation.

        The result is that of `numpy.quantile` of the values as float64, rounded to their type where they are floats. It takes one
        pass over the data for each two bytes of a voxel. NaN where any value is NaN.

        Halo: none; a table of the whole volume. Exact.

        Parameters
        ----------
        q : float or sequence of float
            0 to 1; a sequence gives an array of as many entries.

        Raises
        ------
        ValueError
            For a `q` beyond 0 to 1, and for an array without voxels.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([4, 1, 2, 8])).quantile([0, 0.5]).compute()
        array([1., 3.])
        """
        return self._new(quantile(self.node, q))

    def percentile(self, q: float | Sequence[float]) -> Array:
        """Return quantiles given in percent, as `numpy.percentile`; see `quantile`.

        Halo: none; a table of the whole volume. Exact.

        Examples
        --------
        >>> import numpy as np, volara_expr as ve
        >>> ve.from_numpy(np.array([4, 1, 2, 8])).percentile(50).compute()
        np.float64(3.0)
        """
        shares: Any = [p / 100 for p in q] if isinstance(q, Sequence) else q / 100
        return self.quantile(shares)
