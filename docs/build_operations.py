"""Write docs/operations.md: every operation with its counterpart, exactness and halo, as the nodes themselves say.

`python docs/build_operations.py` takes over a change; a test fails until that is done.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import volara_expr as ve
from volara_expr.expr import ArrayNode, TableNode, topological
from volara_expr.geometry import Box
from volara_expr.ops.sources import InMemory
from volara_expr.plan.region import Region

PAGE = Path(__file__).with_name("operations.md")
SHAPE = (96, 96, 96)
MIDDLE = Box((32, 32, 32), (64, 64, 64))
WORST = ("exact", "cpu-exact", "inexact")

INTRODUCTION = """# Operations

What each operation corresponds to, how exact it is, and how far it looks. The last two columns are read off the nodes that the shown
call makes, so they are what the planner works with.

- **exact**: any division into blocks, on any executor, gives the whole-array result bit for bit. **cpu-exact**: so on CPUs with one version of
  NumPy and LAPACK. **inexact**: to within rounding.
- **halo**: voxels read beyond a block along each axis, for these parameters. *table*: besides, one pass over the whole volume makes a table, exactly,
  before the first block. *blocks*: whole blocks of the operation's own grid, and a context beyond them.
- The counterpart is what the whole result is compared with in the property tests. A note says where it differs on purpose.
"""

Row = tuple[str, str, Callable[[Any], Any], str]
"""Source, call as shown, call, counterpart."""


def sources() -> dict[str, Any]:
    """Make the arrays that the rows start from."""
    offsets = [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    rng = np.random.default_rng(0)
    return {
        "raw": ve.from_numpy(rng.integers(0, 255, SHAPE, np.uint8)),
        "seg": ve.from_numpy(rng.integers(0, 9, SHAPE, np.uint32)),
        "affs": ve.from_numpy(rng.integers(0, 255, (3, *SHAPE), np.uint8), axes=("c", "z", "y", "x"), neighborhood=offsets),
    }


A, S, F = "raw", "seg", "affs"
FAMILIES: dict[str, list[Row]] = {
    "Voxel by voxel": [
        (A, "a + b, a > 5, a & b, ...", lambda a: a + a, "`numpy` operators and ufuncs of one correctly rounded operation"),
        (A, "np.exp(a), a ** 2.5, ...", lambda a: np.exp(a), "`numpy.exp`, `log`, `power`, trigonometric functions"),
        (A, "ve.where(m, a, b)", lambda a: ve.where(a > 5, a, 0), "`numpy.where`"),
        (A, "clip(10, 90)", lambda a: a.clip(10, 90), "`numpy.clip`"),
        (A, "astype('int16')", lambda a: a.astype("int16"), "`numpy.ndarray.astype`"),
        (
            A,
            "astype('int8', saturate=True)",
            lambda a: a.astype("int8", saturate=True),
            "clip to the range, then `astype`; NaN is 0",
        ),
        (A, "normalize(0, 255)", lambda a: a.normalize(0, 255), "(x - lo) / (hi - lo) in float64, as float32"),
        (A, "normalize(percentiles=(1, 99))", lambda a: a.normalize(percentiles=(1, 99)), "the same of `numpy.percentile`"),
        (A, "scale_shift(2, 1)", lambda a: a.scale_shift(2, 1), "x * scale + shift in float64, as float32"),
        (A, "threshold(5)", lambda a: a.threshold(5), "(x > value) as uint8"),
        (A, "mask(m)", lambda a: a.mask(np.ones(SHAPE, bool)), "`numpy.where`, and statistics skip what is outside"),
    ],
    "Values of the whole volume": [
        (A, "sum()", lambda a: a.sum(), "`numpy.sum`; of floats rounded once, as `math.fsum`"),
        (A, "mean()", lambda a: a.mean(), "`numpy.mean`, rounded once"),
        (A, "min(), max()", lambda a: a.max(), "`numpy.min`, `numpy.max`; a zero is positive"),
        (A, "any(), all()", lambda a: a.any(), "`numpy.any`, `numpy.all`"),
        (A, "histogram(10, (0, 255))", lambda a: a.histogram(10, (0, 255))[0], "`numpy.histogram`"),
        (A, "quantile(0.5), percentile(50)", lambda a: a.quantile(0.5), "`numpy.quantile` of the values as float64"),
    ],
    "Along axes": [
        (F, "max(axis=0), min, any, all", lambda a: a.max(axis=0), "`numpy.max`, ..."),
        (F, "sum(axis=0), mean", lambda a: a.sum(axis=0), "`numpy.sum`; over channels, floats in index order"),
        (F, "argmax(axis=0), argmin", lambda a: a.argmax(axis=0), "`numpy.argmax`, `numpy.argmin`"),
        (
            F,
            "argmax(0, combine=[[0, 2], [1]])",
            lambda a: a.argmax(0, combine=[[0, 2], [1]]),
            "`numpy.argmax` of sums that cannot wrap",
        ),
    ],
    "Moving voxels": [
        (
            A,
            "a[10:20, ::2], flip, transpose, squeeze",
            lambda a: a[10:20, ::2],
            "`numpy` basic indexing, `flip`, `transpose`, `squeeze`",
        ),
        (A, "pad(2)", lambda a: a.pad(2), "`numpy.pad`: constant, edge, reflect"),
        (A, "ve.concat, ve.stack", lambda a: ve.stack([a, a]), "`numpy.concatenate`, `numpy.stack`"),
        (A, "downsample(2)", lambda a: a.downsample(2), "mean, mode, min, max or stride of bins; means of integers half up"),
        (A, "upsample(2)", lambda a: a.upsample(2), "`numpy.repeat` along the space axes"),
    ],
    "Filters": [
        (A, "gaussian(1.5)", lambda a: a.gaussian(1.5), "`scipy.ndimage.gaussian_filter`"),
        (A, "median(5)", lambda a: a.median(5), "`scipy.ndimage.median_filter`"),
        (A, "uniform(5)", lambda a: a.uniform(5), "`scipy.ndimage.uniform_filter`, by direct sums"),
        (A, "minimum_filter(5)", lambda a: a.minimum_filter(5), "`scipy.ndimage.minimum_filter`, exact for 64 bits"),
        (A, "maximum_filter(5)", lambda a: a.maximum_filter(5), "`scipy.ndimage.maximum_filter`, exact for 64 bits"),
        (A, "correlate1d([1, 2, 1], 'x')", lambda a: a.correlate1d([1, 2, 1], "x"), "`scipy.ndimage.correlate1d`"),
        (A, "laplace()", lambda a: a.laplace(), "`scipy.ndimage.laplace`"),
        (A, "sobel('x')", lambda a: a.sobel("x"), "`scipy.ndimage.sobel`"),
        (A, "prewitt('x')", lambda a: a.prewitt("x"), "`scipy.ndimage.prewitt`"),
        (A, "gaussian_laplace(1.5)", lambda a: a.gaussian_laplace(1.5), "`scipy.ndimage.gaussian_laplace`"),
        (
            A,
            "gaussian_gradient_magnitude(1.5)",
            lambda a: a.gaussian_gradient_magnitude(1.5),
            "`scipy.ndimage.gaussian_gradient_magnitude`",
        ),
        (A, "hessian(1.5)", lambda a: a.hessian(1.5), "`scipy.ndimage.gaussian_filter` with orders of derivative"),
        (
            A,
            "hessian_eigenvalues(1.5)",
            lambda a: a.hessian_eigenvalues(1.5),
            "`skimage.feature.hessian_matrix_eigvals` of these",
        ),
        (A, "structure_tensor(1.5)", lambda a: a.structure_tensor(1.5), "`skimage.feature.structure_tensor`"),
        (
            A,
            "map_blocks(fn, halo=3)",
            lambda a: a.map_blocks(np.copy, halo=3),
            "the function, of the whole array, if its halo is true",
        ),
    ],
    "Morphology": [
        (A, "grey_erosion(5), grey_dilation", lambda a: a.grey_erosion(5), "`scipy.ndimage.grey_erosion`, `grey_dilation`"),
        (A, "grey_opening(5), grey_closing", lambda a: a.grey_opening(5), "`scipy.ndimage.grey_opening`, `grey_closing`"),
        (A, "white_tophat(5), black_tophat", lambda a: a.white_tophat(5), "`scipy.ndimage.white_tophat`, `black_tophat`"),
        (A, "morphological_gradient(5)", lambda a: a.morphological_gradient(5), "`scipy.ndimage.morphological_gradient`"),
        (
            A,
            "binary_erosion(iterations=2), binary_dilation",
            lambda a: a.binary_erosion(iterations=2),
            "`scipy.ndimage.binary_erosion`, ...",
        ),
        (
            A,
            "binary_opening(), binary_closing",
            lambda a: a.binary_opening(),
            "`scipy.ndimage.binary_opening`, `binary_closing`",
        ),
        (
            A,
            "distance_transform(9)",
            lambda a: a.distance_transform(9),
            "`scipy.ndimage.distance_transform_edt`, at most max_distance",
        ),
        (A, "local_maxima()", lambda a: a.local_maxima(), "`skimage.morphology.local_maxima`"),
        (A, "fill_holes()", lambda a: (a > 99).fill_holes(), "`scipy.ndimage.binary_fill_holes`"),
    ],
    "Labels": [
        (
            A,
            "components()",
            lambda a: (a > 99).components(),
            "`scipy.ndimage.label`; of labels (`equal=True`) `skimage.measure.label`",
        ),
        (S, "relabel(lut)", lambda a: a.relabel({1: 7}), "`skimage.util.map_array`"),
        (S, "remove_small(64)", lambda a: a.remove_small(64), "`skimage.morphology.remove_small_objects`"),
        (
            S,
            "expand_labels(4)",
            lambda a: a.expand_labels(4),
            "`skimage.segmentation.expand_labels`; ties to the smallest label",
        ),
        (S, "find_boundaries()", lambda a: a.find_boundaries(), "`skimage.segmentation.find_boundaries`"),
        (
            A,
            "flood(seeds, context=32)",
            lambda a: a.flood(a.astype("u4"), block_size=32, context=32),
            "`skimage.segmentation.watershed`, of each block with its context",
        ),
        (
            F,
            "watershed(bias=-0.5)",
            lambda a: a.normalize(0, 255).watershed(bias=-0.5, block_size=32),
            "`mwatershed.agglom`, of each block with its context",
        ),
        (S, "table(raw)", lambda a: a.table(a), "`skimage.measure.regionprops_table`; floats in fixed point (2**-24)"),
    ],
}


def exactness(nodes: list[Any]) -> str:
    """Return the weakest of what is computed."""
    return max((n.exactness for n in nodes if isinstance(n, ArrayNode) and n.inputs), key=WORST.index, default="exact")


def halo(node: Any, nodes: list[Any]) -> str:
    """Say how far a block in the middle reaches into what the expression starts from."""
    blocks = any(isinstance(n, ArrayNode) and n.unit is not None for n in nodes)
    tables = any(isinstance(n, TableNode) and n.inputs for n in nodes)
    said = ["table"] if tables else []
    if blocks and tables:
        said = ["1 at faces of cells", *said] if isinstance(node, ArrayNode) else said
    elif isinstance(node, ArrayNode) and node.spec.shape[-3:] == SHAPE:
        lead = node.spec.ndim - 3
        asked = Box((*node.spec.box.lo[:lead], *MIDDLE.lo), (*node.spec.box.hi[:lead], *MIDDLE.hi))
        boxes = Region([node], [n for n in nodes if isinstance(n, TableNode)]).demand({node: asked})
        read = [box.lo[-3:] for n, box in boxes.items() if isinstance(n, InMemory)]
        reach = tuple(max(a - lo[k] for lo in read) for k, a in enumerate(MIDDLE.lo))
        if any(reach):
            said = ["blocks + " * blocks + str(reach[0] if len(set(reach)) == 1 else reach), *said]
    return ", ".join(said) or "none"


def page() -> str:
    """Return the page."""
    start = sources()
    text = [INTRODUCTION]
    for family, rows in FAMILIES.items():
        text += [f"## {family}", "", "| Operation | Counterpart | Exactness | Halo |", "|---|---|---|---|"]
        for source, title, make, counterpart in rows:
            node = make(start[source]).node
            nodes = topological([node])
            text.append(f"| `{title}` | {counterpart} | {exactness(nodes)} | {halo(node, nodes)} |")
        text.append("")
    return "\n".join(text)


if __name__ == "__main__":
    PAGE.write_text(page())
