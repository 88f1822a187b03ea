"""Tutorial: from affinities to segments, as a script of notebook cells."""

# %% [markdown]
# # Tutorial: from affinities to segments
#
# volara's tutorial, retold in array expressions: the same data, the same steps, the same check at the end. Open this file as
# a notebook, or run it; pictures and stores go to `tutorial_out`.

# %%
from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

import volara_expr as ve

OUT = Path("tutorial_out")
OUT.mkdir(exist_ok=True)
STORE = f"{OUT}/cells3d.zarr"
mpl.use("Agg")


def picture(name: str, data: np.ndarray) -> None:
    """Save an image: (y, x) grey, (channel, y, x) colours; labels get random colours, 0 black."""
    if data.dtype == np.uint64:
        _, index = np.unique(data, return_inverse=True)
        colours = np.random.default_rng(0).integers(60, 256, (index.max() + 1, 3), dtype=np.uint8)
        data = np.where(data[..., None] > 0, colours[index.reshape(data.shape)], np.uint8(0))
    elif data.ndim == 3:
        data = np.moveaxis(data[[0, 1, 0]] * np.uint8([1, 1, 0])[:, None, None] if len(data) == 2 else data, 0, -1)
    plt.imsave(OUT / f"{name}.png", data, cmap="gray")


# %% [markdown]
# ## Data
#
# A two-channel fluorescence image, membranes and nuclei, with voxels of 290 x 260 x 260 nm. Where scikit-image or the network
# is missing, a generated stack of the same shape takes its place.

# %%
try:
    from skimage import data

    stack = (data.cells3d().transpose(1, 0, 2, 3) / 256).astype(np.uint8)
except (ImportError, OSError) as error:
    from volara_expr.testing.volumes import cells3d_like

    print(f"generated data stand in for skimage.data.cells3d ({error})")
    stack = cells3d_like()

raw = ve.from_numpy(stack, voxel_size=(290, 260, 260), units="nm", axes=("c", "z", "y", "x"))
raw = raw.write(f"{STORE}/raw", overwrite="always", progress=False)
print(raw)
picture("1_membranes", raw[0, 30].compute())
picture("2_nuclei", raw[1, 30].compute())
picture("3_both", raw[:, 30].compute())

# %% [markdown]
# ## Pseudo ground truth
#
# Blur, threshold, connected components. Nothing runs yet; slicing and `compute` run what the slice needs. Components are
# global, the number of one depends on all before it, so those are stored.

# %%
nuclei = raw[1].gaussian(1, mode="nearest") > 30
no_membrane = raw[0].gaussian(1, mode="nearest") < 10
labels = (nuclei & no_membrane).components().write(f"{STORE}/labels", overwrite="always", progress=False)
picture("4_labels", labels[30].compute())

# %% [markdown]
# ## Affinities
#
# A network would predict them; here they are perfect. The affinity of a voxel to its neighbour at an offset is 255 where both
# have the same label. `pad` adds background at the end of an axis, slicing moves the neighbours in, and `at` lays them on
# the voxels that they are compared with.

# %%
NEIGHBORHOOD = [(1, 0, 0), (0, 1, 0), (0, 0, 1)]


def same_object(offset: tuple[int, ...]) -> ve.Array:
    """Compare each label with its neighbour's."""
    neighbour = labels.pad([(0, n) for n in offset])[tuple(slice(n, None) for n in offset)].at(labels)
    return ((labels == neighbour) & (labels > 0)).astype("uint8") * np.uint8(255)


affs = ve.stack([same_object(offset) for offset in NEIGHBORHOOD], neighborhood=NEIGHBORHOOD)
affs = affs.write(f"{STORE}/affs", overwrite="always", progress=False)
picture("5_affinities", affs[:, 30].compute())

# %% [markdown]
# ## Supervoxels
#
# A mutex watershed within each block. The **bias** shifts affinities from 0..1 to weights: negative ones split, positive ones
# join. -2 would split everything, 1 would join everything; -0.5 splits at boundaries. Every offset may have its own. The
# **context** is read beyond each block so that fragments agree at its faces. Blocks are part of what the watershed means, so
# its result does not depend on how it is run.

# %%
fragments = affs.normalize(0, 255).watershed(bias=-0.5, block_size=(20, 100, 100), context=(2, 2, 2))

# %% [markdown]
# ## Region graph
#
# Fragments are the nodes; the mean affinity between two of them is the score of their edge. So what remains is a problem of
# a few hundred nodes instead of four million voxels.

# %%
graph = fragments.agglomerate(affs.normalize(0, 255), scores={"zyx_aff": slice(0, 3)})

# %% [markdown]
# ## Global matching and relabeling
#
# A mutex watershed again, of the graph, with score * 1.0 - 0.5 for the weight. It gives a table from fragments to segments,
# and relabeling applies it. Still nothing has run: the plan shows what will.

# %%
lut = graph.mutex_watershed({"zyx_aff": (1.0, -0.5)})
segments = fragments.relabel(lut)
print(segments.plan().explain())

# %% [markdown]
# One `write` runs all of it, as one plan; `executor="multiprocessing:4"` would give the same bytes sooner.

# %%
outputs = {f"{STORE}/fragments": fragments, f"{STORE}/graph": graph, f"{STORE}/segments": segments}
fragments, graph, segments = ve.write(outputs, overwrite="always", progress=False).values()
picture("6_fragments", fragments[30].compute())
picture("7_segments", segments[30].compute())
nodes, edges = graph.nodes(), graph.edges()
print(f"{nodes.num_rows} fragments, {edges.num_rows} edges; some of them:")
print(nodes.slice(40, 3).to_pylist())
print(edges.slice(40, 3).to_pylist())

# %% [markdown]
# ## Check
#
# With perfect affinities, segments and labels must be the same but for their numbers.

# %%
pairs = list(zip(segments[30].compute().flat, labels[30].compute().flat, strict=True))
label_of: dict[int, int] = {}
segment_of: dict[int, int] = {}
false_merges = sum(label_of.setdefault(segment, label) != label for segment, label in pairs)
false_splits = sum(segment_of.setdefault(label, segment) != segment for segment, label in pairs)
print(f"{len(label_of) - 1} segments in slice 30: {false_merges} false merges, {false_splits} false splits")
assert false_merges == 0
assert false_splits == 0
