"""Mutex watershed of one block of affinities: every voxel pair is an edge, every edge is seen once, in order of strength.

The algorithm is that of Wolf et al., "The Mutex Watershed" (ECCV 2018); in the tests, `mwatershed` fed the same edges gives
the same clusters. Two ways lead to the sorted edges. uint8 codes take at most 256 weights for each channel, so a counting
sort by rank writes the edges in order while it scans the block. All other inputs, and uint8 with noise, get a fixed-point
weight for each voxel, made by NumPy so that numba need not compile for their dtype, and a radix sort. (uint16 codes go the
second way: with 65,536 weights for each channel the buckets of a counting sort no longer stay in cache.)

Sorting E edges takes O(E); so does clustering them, up to the near-constant of union-find, plus the mutexes, which a join
moves from the shorter of two lists. Measured on one core (AMD EPYC, 128^3 voxels, 9 channels of uint8): 2.6 ns an edge to sort
and 5 ns to cluster where long offsets have strides of 3 (3.2 edges a voxel); 2 and 15 ns where they have none (8.7 edges,
many of them mutexes, whose hash table is larger than the cache). Memory: 17 bytes a voxel for the forest, its lists and the
labels, 4 to 24 for the hash table, and for each edge 4 bytes, or 16 besides the weights the second way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from volara_expr.kernels import BadVoxel
from volara_expr.kernels.clusters import Workspace, clusters
from volara_expr.kernels.fragments import crop_components, number, surviving
from volara_expr.kernels.jit import helper, kernel

__all__ = ["Workspace", "fragments"]

U, P = np.uint32, np.uint64

SCALE, LIMIT = 2.0**20, 2047.0  # weights are int32 in steps of 2**-20
BAD = -(2**31)  # the weight of a voxel that has none
BAD_KEY = 0xFFFFFFFF  # 2**31 - 1 - abs(BAD), as uint32
U32_CODES = 2**32  # edge codes below this are uint32
SLAB = 1 << 15  # voxels whose float64 values stay in cache

GOLDEN = P(0x9E3779B97F4A7C15)  # SplitMix64's increment
ALWAYS = P(0xFFFFFFFFFFFFFFFF)  # no hash exceeds it


# ---------------------------------------------------------------- weights


def _mix(h):
    """Finaliser of SplitMix64 (Steele et al. 2014) on uint64, scalar or array."""
    h = (h ^ (h >> P(30))) * P(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> P(27))) * P(0x94D049BB133111EB)
    return h ^ (h >> P(31))


_mix_scalar = helper(_mix)
# A voxel's state is linear in its coordinates, which makes each row along x a SplitMix64 stream.
STEP = np.array([0xD1342543DE82EF95, 0xAF251AF3B0F025B5, GOLDEN], np.uint64)


def _salts(seed: int, purpose: int, channels: int) -> np.ndarray:
    """One start of the hash for each channel; purpose 0 is noise, 1 random strides."""
    start = _mix(np.array([seed & (2**64 - 1)], np.uint64))
    salts: np.ndarray = _mix(start + np.arange(purpose, 2 * channels + purpose, 2, dtype=np.uint64) * GOLDEN)
    return salts


def _normal(salt: Any, coordinates: Sequence[np.ndarray]) -> np.ndarray:
    """Sum of four uniform 16-bit numbers, scaled to mean 0 and variance 1, for the grid of absolute coordinates."""
    z, y, x = (c.astype(np.int64).view(np.uint64) * s for c, s in zip(coordinates, STEP, strict=True))
    h = _mix((salt + z)[:, None, None] + y[:, None] + x)
    total: np.ndarray = (h & P(0xFFFF)) + ((h >> P(16)) & P(0xFFFF)) + ((h >> P(32)) & P(0xFFFF)) + (h >> P(48))
    return (total.astype(np.float64) - 131070.0) * (3**0.5 / 65536)


def _fixed(value: np.ndarray) -> np.ndarray:
    """Round float64, which is overwritten, to int32 steps of 2**-20; BAD where not finite."""
    bad = ~np.isfinite(value)
    np.clip(value, -LIMIT, LIMIT, out=value)
    value *= SCALE
    np.rint(value, out=value)
    value[bad] = BAD
    return value.astype(np.int32)


# ---------------------------------------------------------------- edges in order


@kernel
def _count(a, box, rank, counts):
    """Add the number of edges of each rank; channel by channel, as one histogram of codes fits in L1."""
    for c in range(a.shape[0]):
        hist = np.zeros((4, 256), np.uint32)  # four, so that runs of one code do not wait for their own store
        h0, h1, h2, h3 = hist[0], hist[1], hist[2], hist[3]
        x0, x1, dx = box[c, 2]
        for z in range(box[c, 0, 0], box[c, 0, 1], box[c, 0, 2]):
            for y in range(box[c, 1, 0], box[c, 1, 1], box[c, 1, 2]):
                row = a[c, z, y]
                if dx == 1:
                    quads = (x1 - x0) // 4
                    for k in range(quads):
                        i = P(x0 + 4 * k)
                        h0[row[i]] += U(1)
                        h1[row[i + P(1)]] += U(1)
                        h2[row[i + P(2)]] += U(1)
                        h3[row[i + P(3)]] += U(1)
                    for x in range(x0 + 4 * quads, x1):
                        h0[row[P(x)]] += U(1)
                else:
                    for x in range(x0, x1, dx):
                        h0[row[P(x)]] += U(1)
        for v in range(256):
            counts[rank[c, v]] += np.int64(h0[v]) + h1[v] + h2[v] + h3[v]


@kernel
def _scatter(a, box, groups, shift, rank, place, codes, keys):
    """Write the code of each edge: voxel << shift | channel << 1 | positive.

    With `rank` (uint8 `a`), rank << 1 | positive of each code, an edge goes to the next place of its rank. Without, `a` holds
    weights, edges are written in the order of the scan and `keys` receives 2**31 - 1 - abs(weight).
    """
    C, D, H, W = a.shape
    flat = a.reshape(-1)
    one = codes.dtype.type(1)
    row = np.empty(C, np.uint64)  # for each channel that has edges in this row: where it starts in `flat`,
    table = np.empty(C, np.uint64)  # where the channel starts in `rank`,
    tag = np.empty(C, codes.dtype)  # the channel in a code,
    start = np.empty(C, np.uint32)  # and the voxels along x that have an edge
    length = np.empty(C, np.uint32)
    n = 0
    for g in range(groups.shape[0]):
        first = box[groups[g, 0]]
        dz, dy, dx = first[0, 2], first[1, 2], first[2, 2]
        for z in range(first[0, 0] % dz, D, dz):
            for y in range(first[1, 0] % dy, H, dy):
                m = 0
                low, high = U(0), U(W)  # where all of these channels have an edge, which is tested at once
                for t in range(C):
                    c = groups[g, t]
                    if c >= 0 and box[c, 0, 0] <= z < box[c, 0, 1] and box[c, 1, 0] <= y < box[c, 1, 1]:
                        row[m] = ((c * D + z) * H + y) * W
                        table[m] = c * 256
                        tag[m] = c << 1
                        start[m] = box[c, 2, 0]
                        length[m] = box[c, 2, 1] - box[c, 2, 0]
                        low, high = max(low, start[m]), min(high, U(box[c, 2, 1]))
                        m += 1
                base = codes.dtype.type((z * H + y) * W)
                for x in range(first[2, 0] % dx, W, dx):
                    voxel = (base + codes.dtype.type(x)) << shift
                    for t in range(m):
                        if low <= U(x) < high or U(U(x) - start[t]) < length[t]:
                            w = flat[row[t] + P(x)]
                            if rank is None:
                                if keys is not None:  # numba types this branch with `rank` as well
                                    keys[n] = U(np.int64(0x7FFFFFFF) - abs(np.int64(w)))
                                codes[n] = voxel + (tag[t] + codes.dtype.type(w > 0))
                                n += 1
                            else:
                                r = rank[table[t] + P(w)]
                                k = place[r >> np.uint16(1)]
                                codes[k] = voxel + (tag[t] + codes.dtype.type(r & np.uint16(1)))
                                place[r >> np.uint16(1)] = k + one


@kernel
def _keep(codes, keys, shift, step, mask, chance, salts, origin, shape):
    """Drop, in place and in order, the edges at a masked voxel and those that random strides leave out; return the rest's number."""
    channels = codes.dtype.type((U(1) << U(shift - 1)) - 1)
    _, H, W = shape
    n = 0
    for k in range(codes.shape[0]):
        e = codes[k]
        i = U(e >> shift)
        c = P((e >> U(1)) & channels)
        if mask[i] == 0 or mask[U(i + step[c])] == 0:
            continue
        if chance[c] != ALWAYS:
            yx = i % U(H * W)
            # numba adds uint64 and int64 as floats, so the coordinates wrap around in uint64 before they are added
            z, y, x = P(i // U(H * W)) + P(origin[0]), P(yx // U(W)) + P(origin[1]), P(yx % U(W)) + P(origin[2])
            if _mix_scalar(salts[c] + z * STEP[0] + y * STEP[1] + x * STEP[2]) > chance[c]:
                continue
        codes[n] = e
        if keys is not None:
            keys[n] = keys[k]
        n += 1
    return n


@kernel
def _radix_sort(keys, codes, spare_keys, spare_codes):
    """Return `codes` in ascending order of `keys` (uint32), equal keys in the order given; all four arrays are scratch."""
    n = keys.shape[0]
    hist = np.zeros((3, 2048), np.int64)
    for i in range(n):
        k = keys[i]
        hist[0, k & U(2047)] += 1
        hist[1, (k >> U(11)) & U(2047)] += 1
        hist[2, k >> U(22)] += 1
    for p in range(3):
        place = hist[p]
        if place.max() == n:
            continue
        total = 0
        for d in range(2048):
            size = place[d]
            place[d] = total
            total += size
        low = U(11 * p)
        for i in range(n):
            k = keys[i]
            d = (k >> low) & U(2047)
            j = P(place[d])
            place[d] += 1
            spare_keys[j] = k
            spare_codes[j] = codes[i]
        keys, spare_keys = spare_keys, keys
        codes, spare_codes = spare_codes, codes
    return codes


# ---------------------------------------------------------------- one block


def _lattices(shape: Sequence[int], offsets: np.ndarray, strides: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """First, last + 1 and step of the base voxels of each channel's edges, (C, 3, 3) int64."""
    box = np.empty((len(offsets), 3, 3), np.int64)
    low = np.maximum(-offsets, 0)
    box[..., 0] = low + -(low + origin) % strides
    box[..., 1] = np.maximum(np.minimum(shape, shape - offsets), box[..., 0])
    box[..., 2] = strides
    return box


def _groups(strides: np.ndarray) -> np.ndarray:
    """Channels of equal stride, unstrided first, then in order of appearance; (groups, C) padded with -1."""
    found: dict[tuple[int, ...], list[int]] = {(1,) * strides.shape[1]: []}
    for c, stride in enumerate(strides.tolist()):
        found.setdefault(tuple(stride), []).append(c)
    groups = np.full((len(found), len(strides)), -1, np.int64)
    for row, channels in zip(groups, found.values(), strict=True):
        row[: len(channels)] = channels
    return groups[groups[:, 0] >= 0]


@dataclass(frozen=True)
class _Block:
    """The arguments of `fragments`, checked and in three dimensions; arrays of three are z, y, x."""

    affs: np.ndarray
    offsets: np.ndarray
    bias: np.ndarray
    strides: np.ndarray
    random_strides: bool
    noise: float
    seed: int
    table: np.ndarray | None
    origin: np.ndarray
    mask: np.ndarray | None
    workspace: Workspace

    def clusters(self) -> tuple[np.ndarray, int]:
        """Label the clusters from 1, background 0, in (D, H, W) uint32 of the workspace."""
        C, *space = self.affs.shape
        voxels = math.prod(space)
        take = self.workspace.take
        shift = max(1, (C - 1).bit_length()) + 1
        dtype: Any = np.uint32 if voxels << shift <= U32_CODES else np.uint64
        step = (self.offsets @ [space[1] * space[2], space[2], 1]).astype(np.uint32)  # modulo 2**32, as voxel numbers are
        codes = self._sorted_edges(dtype, dtype(shift), step)
        parent, seen = clusters(codes, dtype(shift), step, voxels, self.workspace)
        labels = take("labels", tuple(space))
        return labels, number(parent, seen, take("ends", voxels), labels.reshape(-1))

    def _sorted_edges(self, dtype: Any, shift: Any, step: np.ndarray) -> np.ndarray:
        """Codes of all edges in order."""
        C, *space = self.affs.shape
        box = _lattices(space, self.offsets, np.ones_like(self.strides) if self.random_strides else self.strides, self.origin)
        groups = _groups(self.strides)
        room = int(np.ceil((box[..., 1] - box[..., 0]) / box[..., 2]).prod(axis=1).sum())
        codes = self.workspace.take("codes", room, dtype)
        values = np.arange(256.0) if self.table is None else self.table
        if self.affs.dtype == np.uint8 and C <= 128 and not self.noise and np.isfinite(values).all():
            affs = np.require(self.affs, requirements=["C", "W"])  # one array type, so that numba compiles once
            w = _fixed(values + self.bias[:, None])
            levels, rank = np.unique(-np.abs(w), return_inverse=True)
            rank = rank.reshape(w.shape).astype(np.uint16)
            counts = np.zeros(len(levels) + 1, np.int64)
            _count(affs, box, rank, counts[1:])
            _scatter(
                affs, box, groups, shift, (rank << 1 | (w > 0)).reshape(-1), counts.cumsum()[:-1].astype(dtype), codes, None
            )
            return codes[: self._keep(codes, None, shift, step)]
        keys = self.workspace.take("keys", room)
        weights = self.workspace.take("weights", self.affs.shape, np.int32)
        self._fill_weights(box, weights)
        _scatter(weights, box, groups, shift, None, None, codes, keys)
        n = self._keep(codes, keys, shift, step)
        if n and keys[:n].max() == BAD_KEY:
            bad = int(codes[(keys[:n] == BAD_KEY).argmax()])
            voxel, channel = divmod(bad >> 1, 1 << int(shift) - 1)
            at = (channel, *(int(i) for i in np.unravel_index(voxel, space)))
            value = self.affs[at] if self.table is None else self.table[self.affs[at]]
            raise BadVoxel(f"the affinity of an edge of channel {channel} is {value}; fill such voxels or mask them", at)
        spare = self.workspace.take("spare_keys", n), self.workspace.take("spare_codes", n, dtype)
        ordered: np.ndarray = _radix_sort(keys[:n], codes[:n], *spare)
        return ordered

    def _fill_weights(self, box: np.ndarray, out: np.ndarray) -> None:
        """Weights of all voxels of the lattices `box` into `out` (C, D, H, W) int32."""
        salts = _salts(self.seed, 0, len(out))
        for c, ((z0, z1, dz), *plane) in enumerate(box.tolist()):
            depth = dz * max(1, SLAB // max(1, math.prod(len(range(*axis)) for axis in plane)))
            for z in range(z0, z1, depth):
                lattice = tuple(slice(*axis) for axis in ((z, min(z + depth, z1), dz), *plane))
                codes = self.affs[c][lattice]
                value = codes.astype(np.float64) if self.table is None else self.table[codes]
                value += self.bias[c]
                if self.noise:
                    grid = [np.arange(s.start, s.stop, s.step) + o for s, o in zip(lattice, self.origin, strict=True)]
                    value += self.noise * _normal(salts[c], grid)
                out[c][lattice] = _fixed(value)

    def _keep(self, codes: np.ndarray, keys: Any, shift: Any, step: np.ndarray) -> int:
        """Take out the edges that the mask forbids or random strides leave out; return the number of those that stay."""
        if self.mask is None and not self.random_strides:
            return len(codes)
        C, *space = self.affs.shape
        mask = np.ones(space, np.uint8) if self.mask is None else (self.mask != 0).astype(np.uint8)
        chance = np.full(C, ALWAYS) // (self.strides.prod(axis=1).astype(np.uint64) if self.random_strides else P(1))
        salts = _salts(self.seed, 1, C)
        n: int = _keep(codes, keys, shift, step, mask.ravel(), chance, salts, self.origin, tuple(space))
        return n


def _triples(name: str, values: Any, shape: tuple[int, ...], fill: int) -> np.ndarray:
    """Integers of the given shape as int64, made three along the last axis by `fill` in front."""
    array = np.asarray(values)
    if array.shape != shape or array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be integers of shape {shape}; got {array.dtype} {array.shape}")
    front = [(0, 0)] * (array.ndim - 1) + [(3 - shape[-1], 0)]
    return np.pad(array.astype(np.int64), front, constant_values=fill)


def fragments(
    affs: np.ndarray,
    offsets: Sequence[Sequence[int]] | np.ndarray,
    *,
    bias: Sequence[float] | np.ndarray,
    strides: Sequence[Sequence[int]] | np.ndarray | None = None,
    random_strides: bool = False,
    noise: float = 0.0,
    seed: int = 0,
    table: np.ndarray | None = None,
    origin: Sequence[int] | None = None,
    crop: tuple[slice, ...] | None = None,
    mask: np.ndarray | None = None,
    mean_affs: np.ndarray | None = None,
    min_size: int = 0,
    min_mean_affinity: float = 0.0,
    min_extent: Sequence[int] | None = None,
    workspace: Workspace | None = None,
) -> tuple[np.ndarray, int]:
    """Segment a block of affinities into fragments by the mutex watershed.

    Channel c at voxel v weighs the edge between v and v + offsets[c] with ``rint((x + bias + noise * n) * 2**20)``, x being the
    affinity, computed in float64 and clipped to +-2047 * 2**20. Edges are taken by falling absolute weight; equal ones by
    class of stride (unstrided first, then in order of appearance), voxel in raster order, channel. A positive edge joins its
    voxels' clusters unless an earlier edge keeps them apart; any other edge keeps them apart from then on. Voxels without a
    positive edge become background, 0.

    Parameters
    ----------
    affs : ndarray of integers or floats, shape (C, *space)
        Two or three space axes, any memory layout.
    offsets : array_like of int, shape (C, nd)
        Voxels, in the order of the space axes; any sign, none of them all zero.
    bias : array_like of float, shape (C,)
        Added to the affinities.
    strides : array_like of int, shape (C, nd), optional
        An edge exists where each absolute coordinate of v is a multiple of the stride; everywhere by default.
    random_strides : bool
        Keep each edge with probability 1 / prod(stride) instead.
    noise : float
        Standard deviation of the noise; n is nearly normal and lies within +-3.5. Noise and random strides depend on `seed`,
        channel and absolute voxel only.
    seed : int
    table : ndarray of float, shape (256,) or (65536,), optional
        Affinities of the codes of uint8 or uint16 `affs`.
    origin : sequence of int, optional
        Absolute coordinates of the first voxel; zeros by default.
    crop : tuple of slice, optional
        Part of the space that is returned; all of it by default.
    mask : ndarray, shape (*space), optional
        Where it is 0, no edge touches the voxel, and its label is 0.
    mean_affs : ndarray, shape (channels, *space), optional
        Averaged for `min_mean_affinity`; the affinities by default.
    min_size : int
        Fragments of fewer voxels become 0. Like the next two, tested before cropping.
    min_mean_affinity : float
        Fragments with a lower mean of the first nd channels over their voxels become 0; 0.0 asks for no mean.
    min_extent : sequence of int, optional
        Fragments whose bounding box is shorter along any axis become 0.
    workspace : Workspace, optional
        Reused between calls of one thread; the result does not live in it.

    Returns
    -------
    labels : ndarray of uint32, shape of the crop
        Connected components (26 neighbours, 8 in two dimensions) of the fragments within the crop, numbered from 1 by first
        voxel.
    n : int
        Number of labels.

    Raises
    ------
    BadVoxel
        If the affinity of an edge, or one that enters a mean, is NaN or infinite.
    ValueError
        If shapes do not fit, an offset is zero, a stride is not positive, or the block has 2**31 voxels or more.
    MemoryError
        If more than 2**30 pairs of clusters are kept apart.

    Examples
    --------
    >>> affs = np.array([[[0.9, 0.2, 0.8, 0.0]]])
    >>> fragments(affs, [(0, 1)], bias=[-0.5])
    (array([[1, 1, 2, 2]], dtype=uint32), 2)
    """
    affs = np.asarray(affs)
    C, *shape = affs.shape
    nd = len(shape)
    if nd not in (2, 3) or C == 0 or affs.dtype.kind not in "iuf":
        raise ValueError(f"affs must be numbers of shape (C, *space), space 2-D or 3-D; got {affs.dtype} {affs.shape}")
    if math.prod(shape) >= 2**31:
        raise ValueError(f"a block holds at most 2**31 - 1 voxels, this one {math.prod(shape)}; use a smaller block_size")
    bias = np.asarray(bias, np.float64)
    if bias.shape != (C,) or not np.isfinite(bias).all():
        raise ValueError(f"bias must be {C} finite numbers, one for each channel; got {bias.tolist()}")
    steps = _triples("offsets", offsets, (C, nd), 0)
    every = _triples("strides", np.ones((C, nd), int) if strides is None else strides, (C, nd), 1)
    corner = _triples("origin", np.zeros(nd, int) if origin is None else origin, (nd,), 0)
    if not steps.any(axis=1).all():
        raise ValueError(f"offset {steps.any(axis=1).argmin()} is zero, so it links no two voxels; drop that channel")
    if every.min() < 1:
        raise ValueError(f"strides must be at least 1; got {every.min()}")
    if table is not None:
        table = np.asarray(table, np.float64)
        codes = {"uint8": 256, "uint16": 65536}.get(affs.dtype.name)
        if table.shape != (codes,):
            raise ValueError(
                f"a table of shape {table.shape} does not fit {affs.dtype} affs; use 256 for uint8, 65536 for uint16"
            )
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise must be a finite standard deviation, at least 0; got {noise}")
    for name, space_of in (("mask", mask), ("mean_affs", None if mean_affs is None else mean_affs[0])):
        if space_of is not None and space_of.shape != tuple(shape):
            raise ValueError(f"{name} has space {space_of.shape}, affs have {tuple(shape)}; crop both to the same box")
    crop = (slice(None),) * nd if crop is None else crop
    for name, entries in (("crop", crop), ("min_extent", min_extent)):
        if entries is not None and len(entries) != nd:
            raise ValueError(f"{name} has {len(entries)} entries, the block {nd} space axes; give one for each")
    box = [s.indices(size) for s, size in zip(crop, shape, strict=True)]
    if any(step != 1 for _, _, step in box):
        raise ValueError(f"crop must have steps of 1; got {crop}")

    space = (1,) * (3 - nd) + tuple(shape)
    workspace = workspace or Workspace()
    mask3 = None if mask is None or mask.all() else mask.reshape(space)
    block = _Block(
        affs.reshape(C, *space), steps, bias, every, random_strides, noise, int(seed), table, corner, mask3, workspace
    )
    try:
        labels, n = block.clusters()
    except BadVoxel as error:
        raise BadVoxel(str(error), (error.voxel[0], *error.voxel[4 - nd :])) from None
    if min_size > 1 or min_mean_affinity or min_extent is not None:
        keep = surviving(
            labels.reshape(shape),
            n,
            affs if mean_affs is None else mean_affs,
            min_size=min_size,
            min_mean_affinity=min_mean_affinity,
            min_extent=min_extent,
            table=table if mean_affs is None else None,
        )
        labels *= keep[labels]
    low = np.array([0] * (3 - nd) + [start for start, _, _ in box], np.int64)
    out = np.empty([1] * (3 - nd) + [max(0, stop - start) for start, stop, _ in box], np.uint32)
    rows = workspace.take("rows", math.prod(out.shape[:2]) + 1, np.int64)
    start, parent = workspace.take("ends", out.size + 1), workspace.take("parent", out.size)
    count = crop_components(labels, low, rows, start, parent, out)
    return out.reshape(out.shape[3 - nd :]), count
