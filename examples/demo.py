"""From a raw electron micrograph to segments, in one expression; run by `make demo`.

The micrograph is generated, so that the truth is known. The affinities come from the image alone, by a bank of filters; they
err, and so does the segmentation. Leaves a store, a region graph, the plan and a picture in `demo_out`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import volara_expr as ve
from executors import Multiprocessing
from volara_expr.kernels.evaluate import adapted_rand_error, variation_of_information
from volara_expr.testing.volumes import cells

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    LabelImage = NDArray[np.uint64]

OUT = Path("demo_out")
SCALE = 4
"""Of the picture: voxels are squares of so many pixels."""
VOXEL_NM = 10
NEIGHBORHOOD = [tuple(reach * (axis == k) for k in range(3)) for reach in (1, 4, 9) for axis in range(3)]


def affinities(raw: ve.Array) -> ve.Array:
    """Predict affinities from an electron micrograph; uint8, 255 where two voxels surely share a cell.

    Membranes are dark, and darker than their surroundings: the weighted difference of two Gaussians gives the evidence for one,
    clipped to 0 to 1. Two voxels are as affine as the weakest voxel between them.
    """
    membrane = ((150 + 1.5 * raw.gaussian(2.5) - 2.5 * raw.gaussian(0.75)) / 100).clip(0, 1)
    inside = np.rint(255 * (1 - membrane)).astype("uint8")
    return ve.stack([weakest(inside, offset) for offset in NEIGHBORHOOD], neighborhood=NEIGHBORHOOD)


def weakest(inside: ve.Array, offset: Sequence[int]) -> ve.Array:
    """Take the minimum over the voxels from each one to that at an offset along an axis."""
    centred = inside.minimum_filter([n + 1 for n in offset], mode="nearest")
    shift = [(n + 1) // 2 for n in offset]
    return centred.pad([(0, n) for n in shift], mode="edge")[tuple(slice(n, None) for n in shift)].at(inside)


def main() -> None:
    """Generate, segment, score and draw."""
    began = time.perf_counter()
    OUT.mkdir(exist_ok=True)
    image, truth = cells()
    store = f"{OUT}/demo.zarr"
    raw = ve.from_numpy(image, voxel_size=VOXEL_NM, units="nm").write(f"{store}/raw", overwrite="always", progress=False)
    print(f"generated {' x '.join(map(str, image.shape))} voxels of {VOXEL_NM} nm, {truth.max()} cells\n")

    stored = affinities(raw)
    affs = stored.normalize(0, 255)
    fragments = affs.watershed(
        bias=[-0.5] * 3 + [-0.7] * 6, strides=[(1, 1, 1)] * 3 + [(3, 3, 3)] * 6, block_size=64, context=10, min_size=10
    )
    graph = fragments.agglomerate(affs, scores={"direct": slice(0, 3), "long": slice(3, 9)})
    segments = fragments.relabel(graph.mutex_watershed({"direct": (1.0, -0.3), "long": (1.0, -0.7)}))

    executor = Multiprocessing(2)
    plan = segments.plan(executor=executor)
    print(plan.explain())
    (OUT / "plan.html").write_text(plan.to_html(), encoding="utf-8")

    urls = {name: f"{store}/{name}" for name in ("affs", "fragments", "graph", "segments")}
    run = ve.submit(
        dict(zip(urls.values(), (stored, fragments, graph, segments), strict=True)),
        executor=executor,
        overwrite="always",
        progress=True,
    )
    written = run.result()
    print(f"\n{'stage':<44}{'seconds':>9}{'Mvoxel/s':>10}{'peak MB':>9}")
    for report in run.reports:
        print(f"{report.name[:43]:<44}{report.seconds:>9.2f}{report.mvoxels_per_s:>10.1f}{report.peak_bytes / 1e6:>9.0f}")

    found, pieces = written[urls["segments"]].compute(), written[urls["fragments"]].compute()
    counts = [f"{np.unique(x[x > 0]).size:,} {name}" for x, name in ((pieces, "fragments"), (found, "segments"))]
    print(f"\n{', '.join(counts)}, {int(truth.max())} cells")
    print_scores(found, truth)

    draw(image, written[urls["affs"]][:3].compute(), pieces, found, truth)
    print(f"\nwrote {OUT}/demo.png, {OUT}/plan.html and {store}; {time.perf_counter() - began:.0f} s in all")


def print_scores(found: LabelImage, truth: LabelImage) -> None:
    """Print how far the segments are from the cells: where both have a label, and with every gap given to its nearest segment."""
    from scipy.ndimage import distance_transform_edt

    nearest = distance_transform_edt(found == 0, return_distances=False, return_indices=True)
    grown = found[tuple(nearest)]
    cell = truth > 0
    both = cell & (found > 0)
    print(f"{'':<42}{'VOI split':>10}{'merge':>8}{'adapted Rand error':>20}")
    for what, seg, where in (
        (f"segmented voxels of the cells ({both.sum() / cell.sum():.0%})", found, both),
        ("all voxels of the cells, gaps grown over", grown, cell),
    ):
        split, merge = variation_of_information(seg[where], truth[where])
        print(f"{what:<42}{split:>10.3f}{merge:>8.3f}{adapted_rand_error(seg[where], truth[where]):>20.3f}")


def draw(image: NDArray[np.uint8], affs: NDArray[np.uint8], pieces: LabelImage, found: LabelImage, truth: LabelImage) -> None:
    """Draw a section along each of two planes, raw data and every result side by side."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    from volara_expr.view.picture import colours_of, enlarged, tinted

    # A segment is coloured as its cell, so that an error is a change of colour.
    results = [("fragments", pieces, pieces), ("segments", found, matched(found, truth)), ("truth", truth, truth)]
    views = {"xy": np.s_[image.shape[0] // 2], "xz": np.s_[:, image.shape[1] // 2]}
    heights = [image[view].shape[0] for view in views.values()]
    size = (20, 4 * sum(heights) / image.shape[2] + 0.7)
    figure, axes = plt.subplots(2, 5, figsize=size, height_ratios=heights, facecolor="#101014", layout="constrained")
    for row, (plane, view) in enumerate(views.items()):
        grey = np.repeat(image[view][..., None] / 255, 3, axis=-1)
        direct = np.stack([channel[view] for channel in affs], -1) / 255
        panels = [("raw", enlarged(grey, SCALE)), ("affinities: z red, y green, x blue", enlarged(direct, SCALE))]
        panels += [(name, tinted(grey, labels[view], colours_of(names[view]), SCALE)) for name, labels, names in results]
        for axis, (name, picture) in zip(axes[row], panels, strict=True):
            axis.imshow(picture, interpolation="none")
            axis.set_axis_off()
            axis.set_title(name if row == 0 else "", color="white", fontsize=15)
        bar, foot = 500 / VOXEL_NM * SCALE, heights[row] * SCALE - 30
        axes[row, 0].plot([30, 30 + bar], [foot, foot], color="white", linewidth=4, solid_capstyle="butt")
        axes[row, 0].text(30 + bar / 2, foot - 16, f"500 nm ({plane})", color="white", ha="center", fontsize=11)
    figure.savefig(OUT / "demo.png", dpi=110)
    plt.close(figure)


def matched(found: LabelImage, truth: LabelImage) -> LabelImage:
    """Rename the largest segment of each cell to that cell, all others to numbers beyond the cells'."""
    ids, index = np.unique(found, return_inverse=True)
    index = index.reshape(found.shape)
    inside = (truth > 0) & (found > 0)
    pairs, counts = np.unique(np.stack([index[inside], truth[inside].astype(np.int64)]), axis=1, return_counts=True)
    names = np.arange(ids.size, dtype=np.uint64) + truth.max() + 1
    given: set[int] = set()
    for segment, cell in pairs.T[np.argsort(-counts)]:
        if cell not in given and names[segment] > truth.max():
            names[segment] = cell
            given.add(cell)
    names[ids == 0] = 0
    return names[index]


if __name__ == "__main__":
    main()
