"""Generated volumes with known truth: an electron micrograph of neuropil, and a fluorescence stack of cultured cells.

They stand in where real data cannot be shipped or fetched. Nothing here knows of the segmentation that is run on them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["cells", "cells3d_like"]

Floats = NDArray[np.float32]
Rng = np.random.Generator


def cells(
    shape: tuple[int, int, int] = (96, 256, 256),
    seed: int = 0,
    *,
    voxels_per_cell: float = 35_000.0,
    organelles: bool = True,
    noise: float = 9.0,
) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
    """Generate an electron micrograph of neuropil, and the cells in it.

    Cells are the Voronoi regions of random tortuous neurites and cell bodies, warped by a smooth field. Membranes are
    2-4 voxels thick, vary in contrast and have gaps; the cytoplasm is textured and holds mitochondria, vesicles and
    thin reticulum; each slice has its own brightness and gain.

    Parameters
    ----------
    shape : tuple of int
        (z, y, x) in voxels.
    seed : int
        Equal seeds give equal volumes.
    voxels_per_cell : float
        Volume of a cell, on average over the seeds drawn; sizes span two orders of magnitude around it.
    organelles : bool
        Draw mitochondria, vesicles and reticulum, the structures that mislead a membrane detector.
    noise : float
        Standard deviation of the shot noise at medium brightness, in grey values.

    Returns
    -------
    raw : uint8 array, (z, y, x)
        Membranes dark, cytoplasm bright, around 130.
    truth : uint64 array, (z, y, x)
        Cells numbered from 1; 0 on membranes and in splinters below 100 voxels, which belong to no cell. Each cell is one
        6-connected piece within the volume.
    """
    rng = np.random.default_rng(seed)
    # The skeletons are drawn and warped in a larger volume, so that cells at the faces look like all others.
    margin = 16
    regions = _regions(rng, shape, margin, max(2, round(np.prod(np.add(shape, 2 * margin)) / voxels_per_cell)))
    inside = _interior(regions)
    truth, count = ndimage.label(inside, output=np.int32)
    sizes = np.bincount(truth.ravel(), minlength=count + 1)
    kept = (sizes >= 100) & (np.arange(count + 1) > 0)
    truth = np.where(kept, np.cumsum(kept), 0)[truth].astype(np.uint64)
    depth = ndimage.distance_transform_edt(inside).astype(np.float32)
    return _image(rng, truth, depth, organelles, noise), truth


def _image(rng: Rng, truth: NDArray[np.uint64], depth: Floats, organelles: bool, noise: float) -> NDArray[np.uint8]:
    """Render cells whose voxels lie `depth` voxels away from a membrane."""
    shape = depth.shape
    shade = rng.normal(168, 15, int(truth.max()) + 1).astype(np.float32)
    image = shade[truth]
    # Cytoplasm: cloudy, with dark specks (filaments, ribosomes) of two sizes.
    image += 5 * _smooth_noise(rng, shape, 6)
    image -= 16 * np.maximum(_fine_noise(rng, shape, 1.3) - 0.6, 0)
    (organelle_rng,) = rng.spawn(1)
    if organelles:
        _draw_reticulum(organelle_rng, image, depth)
        _draw_vesicles(organelle_rng, image, depth)
        _draw_mitochondria(organelle_rng, image, depth)
    width = np.float32(1.1) + np.float32(0.3) * _smooth_noise(rng, shape, 20)
    contrast = np.clip(np.float32(0.97) + np.float32(0.2) * _smooth_noise(rng, shape, 7), 0.1, 1)
    membrane = contrast * np.exp(-0.5 * np.square(depth / np.maximum(width, 0.7)))
    image += (70 - image) * membrane
    image = ndimage.gaussian_filter(image, (0.65, 0.55, 0.55))
    image += noise * np.sqrt(np.maximum(image, 1) / 130) * rng.standard_normal(shape, dtype=np.float32)
    gain, brightness = rng.normal(1, 0.02, (shape[0], 1, 1)), rng.normal(0, 2.5, (shape[0], 1, 1))
    raw: NDArray[np.uint8] = np.clip(np.rint((image - 130) * gain + 130 + brightness), 0, 255).astype(np.uint8)
    return raw


def _interior(regions: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Voxels whose six neighbours belong to the same region."""
    inside = np.ones(regions.shape, bool)
    for axis in range(3):
        same = np.moveaxis(np.diff(regions, axis=axis) == 0, axis, 0)
        along = np.moveaxis(inside, axis, 0)
        along[1:] &= same
        along[:-1] &= same
    return inside


def _regions(rng: Rng, shape: Sequence[int], margin: int, count: int) -> NDArray[np.int32]:
    """Voronoi regions of `count` drawn skeletons, warped; one number per region."""
    outer = [n + 2 * margin for n in shape]
    skeletons = np.zeros(outer, np.int32)
    for label in range(1, count + 1):
        voxels = _neurite(rng, outer)
        free = skeletons[tuple(voxels)] == 0
        skeletons[tuple(voxels[:, free])] = label
    nearest = ndimage.distance_transform_edt(skeletons == 0, return_distances=False, return_indices=True)
    regions = skeletons[tuple(nearest)]
    where = []
    for axis, n in enumerate(shape):
        grid = np.arange(margin, n + margin, dtype=np.float32).reshape([-1 if k == axis else 1 for k in range(3)])
        moved = np.rint(grid + 3 * _smooth_noise(rng, shape, 14))
        where.append(np.clip(moved, 0, outer[axis] - 1).astype(np.intp))
    warped: NDArray[np.int32] = regions[tuple(where)]
    return warped


def _neurite(rng: Rng, shape: Sequence[int]) -> NDArray[np.intp]:
    """Voxels, (3, n), of a tube of varying radius along a smooth random curve; one in ten is thick and short, a cell body."""
    body = rng.random() < 0.1
    radius, length = (rng.uniform(6, 14), 20) if body else (rng.lognormal(0.5, 0.5), int(rng.uniform(60, 300)))
    window = np.hanning(24) / np.linalg.norm(np.hanning(24))

    def wander(*columns: int) -> NDArray[np.float64]:
        return np.apply_along_axis(np.convolve, 0, rng.standard_normal((length + 23, *columns)), window, "valid")

    tangent = 0.7 * wander(3) + rng.standard_normal(3)
    path = rng.uniform(0, shape) + np.cumsum(tangent / np.linalg.norm(tangent, axis=1, keepdims=True), axis=0)
    radii = np.maximum(np.rint(2 * radius * np.exp(0.3 * wander())) / 2, 0.5)
    pieces = []
    for r in np.unique(radii):
        reach = np.arange(-int(r), int(r) + 1)
        ball = np.stack(np.meshgrid(reach, reach, reach, indexing="ij"), -1).reshape(-1, 3)
        ball = ball[np.square(ball).sum(1) <= r * r]
        pieces.append((np.rint(path[radii == r]).astype(np.intp)[:, None] + ball).reshape(-1, 3))
    voxels = np.concatenate(pieces)
    return voxels[((voxels >= 0) & (voxels < shape)).all(1)].T


def _window(centre: NDArray[np.float64], radius: float, shape: Sequence[int]) -> tuple[tuple[slice, ...], list[Floats]]:
    """Return the part of a volume around a ball, and its voxels' positions relative to the centre, one array per axis."""
    window = tuple(slice(*np.clip([c - radius, c + radius + 2], 0, n).astype(int)) for c, n in zip(centre, shape, strict=True))
    return window, [(g - c).astype(np.float32) for g, c in zip(np.ogrid[window], centre, strict=True)]


def _draw_mitochondria(rng: Rng, image: Floats, depth: Floats) -> None:
    """Dark rods with a darker rim and faint cristae, wherever a cell is thick enough."""
    for centre in _places(rng, depth, 5.0, depth.size // 55_000):
        radius = float(rng.uniform(5, 9))
        direction = rng.standard_normal(3)
        direction /= np.linalg.norm(direction)
        window, position = _window(centre, 2.6 * radius, image.shape)
        along = sum(p * d for p, d in zip(position, direction, strict=True))
        across = np.sqrt(np.maximum(sum(p * p for p in position) - along**2, 0))
        profile = np.maximum(np.abs(along) / (2.3 * radius), 0) ** 2.5 + (across / radius) ** 2
        inner = (profile < 1) & (depth[window] > 2.5)
        rim = inner & ((profile > 0.75) | (depth[window] < 3.5))
        cristae = 9 * np.sin(along * rng.uniform(1.2, 1.6) + 0.5 * across)
        level = rng.uniform(80, 98)
        part = image[window]
        part[inner] = (level + cristae + 0.15 * (part - 160))[inner]
        part[rim] = level - 16


def _draw_vesicles(rng: Rng, image: Floats, depth: Floats) -> None:
    """Clusters of small dark rings."""
    for cluster in _places(rng, depth, 6.0, depth.size // 120_000):
        for _ in range(rng.integers(6, 22)):
            radius = rng.uniform(1.6, 2.3)
            window, position = _window(cluster + 5 * rng.standard_normal(3), radius + 1, image.shape)
            ring = np.exp(-np.square((np.sqrt(sum(p * p for p in position)) - radius) / 0.6))
            image[window] -= np.float32(75) * ring * (depth[window] > 2.5)


def _draw_reticulum(rng: Rng, image: Floats, depth: Floats) -> None:
    """Thin dark sheets and tubules deep inside large cells: the level set of a smooth field."""
    sheet = np.exp(-np.square(_smooth_noise(rng, image.shape, 9) / 0.09))
    patch = np.clip(_smooth_noise(rng, image.shape, 12) - 0.9, 0, 1)
    image -= 55 * sheet * patch * (depth > 5)


def _places(rng: Rng, depth: Floats, least: float, count: int) -> NDArray[np.float64]:
    """Random voxels at least that deep inside a cell."""
    deep = np.flatnonzero(depth >= least)
    if not deep.size:
        return np.empty((0, 3))
    return np.stack(np.unravel_index(rng.choice(deep, count), depth.shape), 1).astype(np.float64)


def _smooth_noise(rng: Rng, shape: Sequence[int], scale: float) -> Floats:
    """Gaussian noise of unit variance that varies over `scale` voxels, made on a coarse grid."""
    step = max(1, round(scale / 2))
    coarse = rng.standard_normal([n // step + 3 for n in shape], dtype=np.float32)
    coarse = ndimage.gaussian_filter(coarse, scale / step / 2, mode="wrap")
    coarse /= coarse.std()
    fine: Floats = ndimage.zoom(coarse, step, order=1, grid_mode=True, mode="nearest") if step > 1 else coarse
    return fine[tuple(slice(n) for n in shape)]


def _fine_noise(rng: Rng, shape: Sequence[int], sigma: float) -> Floats:
    """Gaussian noise of unit variance, smoothed by `sigma` voxels."""
    noise: Floats = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), sigma)
    noise /= noise.std()
    return noise


def cells3d_like(seed: int = 0) -> NDArray[np.uint8]:
    """Generate a two-channel fluorescence stack of a cell monolayer, a stand-in for `skimage.data.cells3d` divided by 256.

    Parameters
    ----------
    seed : int
        Equal seeds give equal stacks.

    Returns
    -------
    uint8 array, (2, 60, 256, 256) : (channel, z, y, x)
        Channel 0 holds membranes, channel 1 nuclei; voxels are (290, 260, 260) nm. As in the original, nuclei lie above 30
        and membranes above 10 after smoothing by one voxel, on a darker background.
    """
    rng = np.random.default_rng(seed)
    shape, margin = (60, 256, 256), 32
    outer = tuple(n + m for n, m in zip(shape, (0, 2 * margin, 2 * margin), strict=True))
    nuclei = np.zeros(outer, np.int32)
    bumps = _smooth_noise(rng, outer, 12)
    for label, (y, x) in enumerate(_spread(rng, outer[1:], 40.0), 1):
        centre = np.array([rng.normal(29, 1.5), y, x])
        window, (z, v, u) = _window(centre, 30.0, outer)
        angle = rng.uniform(0, np.pi)
        along, across = np.cos(angle) * v + np.sin(angle) * u, np.cos(angle) * u - np.sin(angle) * v
        long = rng.uniform(17, 21)
        inside = (z / rng.uniform(9, 12)) ** 2 + (along / long) ** 2 + (across / (0.75 * long)) ** 2 + 0.12 * bumps[window] < 1
        nuclei[window][inside & (nuclei[window] == 0)] = label
    nearest = ndimage.distance_transform_edt(nuclei == 0, return_distances=False, return_indices=True)
    regions = nuclei[tuple(nearest)]
    z = np.arange(shape[0], dtype=np.float32)[:, None, None]
    floor, ceiling = 12 + _smooth_noise(rng, outer[1:], 40), 46 + 2 * _smooth_noise(rng, outer[1:], 30)
    regions[(z < floor) | (z > ceiling)] = 0
    crop = (slice(None), slice(margin, -margin), slice(margin, -margin))
    membranes = np.where(_interior(regions[crop]), 0, 85 + 20 * _smooth_noise(rng, shape, 8))
    brightness = rng.normal(85, 14, int(nuclei.max()) + 1) * (np.arange(nuclei.max() + 1) > 0)
    chromatin = 1 + 0.14 * _smooth_noise(rng, shape, 5)
    channels = []
    for signal, haze in ((membranes, 3.0 * (regions[crop] > 0)), (brightness[nuclei[crop]] * chromatin, 3.0)):
        blurred = ndimage.gaussian_filter(signal.astype(np.float32), (1.6, 0.9, 0.9)) + haze + 1.0
        channels.append(rng.poisson(4 * np.maximum(blurred, 0)) / 4)
    return np.clip(np.rint(channels), 0, 255).astype(np.uint8)


def _spread(rng: Rng, shape: Sequence[int], distance: float) -> NDArray[np.float64]:
    """Random points that keep a distance from each other, in the order drawn."""
    points = np.empty((0, len(shape)))
    for point in rng.uniform(0, shape, (2000, len(shape))):
        if (np.linalg.norm(points - point, axis=1) >= distance).all():
            points = np.append(points, [point], axis=0)
    return points
