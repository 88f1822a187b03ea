"""Write the reference: ``python docs/build_reference.py`` makes docs/reference/*.md from the docstrings, and docs/img/ops/*.png.

A picture shows what a line of code makes of a small generated image. The line stands below it and is what was run.
"""

from __future__ import annotations

import inspect
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

import volara_expr as ve
from volara_expr.array.base import Expression
from volara_expr.array.dask import ToDask
from volara_expr.array.filters import Filters
from volara_expr.array.interop import Interop
from volara_expr.array.labels import Labels
from volara_expr.array.morphology import Morphology
from volara_expr.array.pointwise import Pointwise
from volara_expr.array.reduce import Reduce
from volara_expr.array.regions import Regions
from volara_expr.array.shape import Shape
from volara_expr.array.stencil import Stencil
from volara_expr.array.tables import Tables
from volara_expr.array.values import Values
from volara_expr.array.viewing import Viewing
from volara_expr.array.writing import Evaluation
from volara_expr.testing.volumes import cells

DOCS = Path(__file__).parent
SIDE = 96
GAP = 4
START = ("open", "from_numpy", "from_dask", "open_graph", "load_pipeline", "from_json")
SEVERAL = ("where", "align", "concat", "stack", "write", "submit", "show")
PAGES: dict[str, tuple[str, Any]] = {
    "start": ("Begin and end", (*START, *SEVERAL)),
    "array": ("Array", ve.Array),
    "expression": ("Expressions as text", Expression),
    "pointwise": ("Voxel by voxel", Pointwise),
    "shape": ("Index, turn, join", Shape),
    "reduce": ("Reductions", Reduce),
    "values": ("Statistics of whole volumes", Values),
    "stencil": ("Windows and resolutions", Stencil),
    "filters": ("Derivatives and distances", Filters),
    "morphology": ("Morphology", Morphology),
    "regions": ("Regions", Regions),
    "labels": ("Segmentation", Labels),
    "tables": ("Tables of labels", Tables),
    "evaluation": ("Plan, compute, write", Evaluation),
    "viewing": ("Look", Viewing),
    "interop": ("Other libraries", Interop),
    "dask": ("Dask", ToDask),
    "graph": ("Region graphs", ve.Graph),
    "lut": ("Look-up tables", ve.Lut),
    "table": ("Tables", ve.Table),
    "pipeline": ("Pipeline files", ve.Pipeline),
    "plan": ("Plans", ve.Plan),
    "run": ("Runs", ve.Run),
    "roi": ("World boxes", ve.Roi),
}
SEGMENT = "frags.relabel(frags.agglomerate(affs, {'all': [0, 1]})"
PICTURES = {
    "astype": ("raw", "(raw.astype('float32') - 128).astype('int8')"),
    "clip": ("raw", "raw.clip(90, 160)"),
    "where": ("raw", "ve.where(raw > 120, raw, 0)"),
    "normalize": ("raw", "raw.normalize(60, 200).clip(0, 1)"),
    "scale_shift": ("raw", "raw.scale_shift(-1, 255)"),
    "threshold": ("raw", "raw.threshold(130)"),
    "world": ("raw", "raw.world['100nm':'300nm', '100nm':'300nm']"),
    "transpose": ("raw", "raw.transpose('x', 'y')"),
    "flip": ("raw", "raw.flip('x')"),
    "pad": ("raw", "raw[:64, :64].pad(16, 'reflect')"),
    "concat": ("raw", "ve.concat([raw[:48], raw.flip('y')[48:]], axis='y')"),
    "stack": ("raw", "ve.stack([raw, 255 - raw])"),
    "sum": ("volume[0]", "volume.sum('z').astype('float32')"),
    "mean": ("volume[0]", "volume.mean('z')"),
    "max": ("volume[0]", "volume.max('z')"),
    "min": ("volume[0]", "volume.min('z')"),
    "any": ("volume[0]", "(volume > 180).any('z')"),
    "all": ("volume[0]", "(volume > 110).all('z')"),
    "argmax": ("volume[0]", "volume.gaussian(2).argmax('z')"),
    "argmin": ("volume[0]", "volume.gaussian(2).argmin('z')"),
    "histogram": ("raw", "bars(raw.histogram(48, (0, 255))[0])"),
    "quantile": ("raw", "raw > raw.quantile(0.75)"),
    "percentile": ("raw", "raw > raw.percentile(25)"),
    "gaussian": ("raw", "raw.gaussian(2)"),
    "median": ("raw", "raw.median(5)"),
    "uniform": ("raw", "raw.uniform(5)"),
    "minimum_filter": ("raw", "raw.minimum_filter(5)"),
    "maximum_filter": ("raw", "raw.maximum_filter(5)"),
    "downsample": ("raw", "raw.downsample(4)"),
    "resample_like": ("raw.downsample(4)", "raw.downsample(4).resample_like(raw)"),
    "upsample": ("raw[:32, :32]", "raw[:32, :32].upsample(3)"),
    "map_blocks": ("raw", "raw.map_blocks(np.bitwise_not)"),
    "correlate1d": ("raw", "raw.astype('float32').correlate1d([-1, 0, 1], 'x')"),
    "laplace": ("raw", "raw.gaussian(2).laplace()"),
    "sobel": ("raw", "raw.gaussian(1).sobel('y')"),
    "prewitt": ("raw", "raw.gaussian(1).prewitt('x')"),
    "gaussian_gradient_magnitude": ("raw", "raw.gaussian_gradient_magnitude(2)"),
    "gaussian_laplace": ("raw", "raw.gaussian_laplace(2)"),
    "hessian": ("raw", "raw.hessian(2)"),
    "hessian_eigenvalues": ("raw", "raw.hessian_eigenvalues(2)"),
    "symmetric_eigenvalues": ("raw", "raw.structure_tensor(2).symmetric_eigenvalues()"),
    "structure_tensor": ("raw", "raw.structure_tensor(2)"),
    "distance_transform": ("inside", "inside.distance_transform(12)"),
    "grey_erosion": ("raw", "raw.grey_erosion(5)"),
    "grey_dilation": ("raw", "raw.grey_dilation(5)"),
    "grey_opening": ("raw", "raw.grey_opening(5)"),
    "grey_closing": ("raw", "raw.grey_closing(5)"),
    "white_tophat": ("raw", "raw.white_tophat(7)"),
    "black_tophat": ("raw", "raw.black_tophat(7)"),
    "morphological_gradient": ("raw", "raw.morphological_gradient(3)"),
    "binary_erosion": ("inside", "inside.binary_erosion(iterations=2)"),
    "binary_dilation": ("inside", "inside.binary_dilation()"),
    "binary_opening": ("inside", "inside.binary_opening(iterations=3)"),
    "binary_closing": ("raw > 130", "(raw > 130).binary_closing()"),
    "local_maxima": ("raw.gaussian(4)", "raw.gaussian(4).local_maxima().binary_dilation()"),
    "fill_holes": ("labels.find_boundaries()", "labels.find_boundaries().fill_holes(max_size=150)"),
    "remove_small": ("labels", "labels.remove_small(100)"),
    "expand_labels": ("labels", "labels.expand_labels(2)"),
    "find_boundaries": ("labels", "labels.find_boundaries()"),
    "flood": ("raw", "(255 - raw.gaussian(1)).flood(labels.remove_small(60))"),
    "watershed": ("raw", "affs.watershed(-0.5, block_size=48)"),
    "agglomerate": ("frags", f"{SEGMENT}.components({{'all': 0.4}}))"),
    "relabel": ("labels", "labels.relabel({3: 9, 5: 0})"),
    "components": ("inside", "inside.components()"),
    "mask": ("raw", "raw.mask(inside)"),
    "mutex_watershed": ("frags", f"{SEGMENT}.mutex_watershed({{'all': (1, -0.4)}}))"),
}
"""By operation: what is shown before, and the line that makes what is shown after."""
UNSEEN = {
    *("at", "with_neighborhood", "with_voxel_size", "checkpoint", "squeeze", "expand_dims", "table", "align"),
    *("real", "imag"),
}
"""Operations that leave every voxel of an image as it is, or make no image."""


@cache
def scene() -> dict[str, Any]:
    """Return the arrays that the lines of `PICTURES` name."""
    image, truth = cells((12, SIDE, SIDE), seed=5, voxels_per_cell=6000)
    volume = ve.from_numpy(image, voxel_size=(4, 4, 4), units="nm")
    ids = truth[6]
    values = [np.zeros(ids.shape, np.float32) for _ in range(2)]
    soft = ndimage.gaussian_filter((ids > 0).astype(np.float32), 1)
    values[0][:-1] = np.minimum(soft[:-1], soft[1:])
    values[1][:, :-1] = np.minimum(soft[:, :-1], soft[:, 1:])
    labels = ve.from_numpy(ndimage.label(ids)[0].astype(np.uint64))
    affs = ve.from_numpy(np.stack(values), axes=("c", "y", "x"), neighborhood=[(1, 0), (0, 1)])
    frags = affs.watershed(-0.5, block_size=48)
    space = {"ve": ve, "np": np, "volume": volume, "raw": volume[6], "affs": affs, "frags": frags, "bars": bars}
    return space | {"labels": labels.at(volume[6]), "inside": ve.from_numpy(ids > 0).at(volume[6])}


def bars(counts: ve.Array) -> np.ndarray:
    """Draw counts as bars."""
    heights = counts.compute() * SIDE // counts.compute().max()
    return np.repeat(np.arange(SIDE)[::-1, None] < heights[None], 2, axis=1)


def picture(name: str) -> np.ndarray:
    """Return the picture of an operation: before and after, (y, x, 3) uint8."""
    before, after = PICTURES[name]
    panels = [*panels_of(before), *panels_of(after)]
    height = max(p.shape[0] for p in panels)
    gap = np.full((height, GAP, 3), 255, np.uint8)
    parts: list[np.ndarray] = []
    for p in panels:
        parts += [np.pad(p, ((0, height - p.shape[0]), (0, 0), (0, 0)), constant_values=255), gap]
    return np.concatenate(parts[:-1], axis=1)


def panels_of(line: str) -> Iterator[np.ndarray]:
    """Yield the images that a line of code makes."""
    space = dict(scene())
    exec(f"made = {line}", space)
    made = space["made"]
    data = made.compute() if isinstance(made, ve.Array) else made
    for plane in data if data.ndim == 3 else [data]:
        yield coloured(plane)


def coloured(plane: np.ndarray) -> np.ndarray:
    """Return an image in colours: labels in stable ones, all else in grey from its lowest to its highest value."""
    if plane.dtype == np.uint64:
        hashed = plane * np.uint64(0x9E3779B97F4A7C15)
        shades = [(hashed >> np.uint64(s) & np.uint64(127)).astype(np.uint8) + 100 for s in (20, 35, 50)]
        return np.where(plane[..., None] > 0, np.stack(shades, -1), np.uint8(0))
    wide = plane.astype(np.float64)
    lo, hi = wide.min(), wide.max()
    grey = np.rint((wide - lo) / (hi - lo or 1) * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, -1)


def png(image: np.ndarray) -> bytes:
    """Encode an RGB image as PNG."""
    height, width, _ = image.shape
    rows = b"".join(b"\0" + row.tobytes() for row in image)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def pixels(data: bytes) -> bytes:
    """Return the rows of a PNG that `png` made; compressors differ, rows do not."""
    at, rows = 8, b""
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        rows += data[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += size + 12
    return zlib.decompress(rows)


SECTION = re.compile(r"^(Parameters|Attributes|Returns|Raises|Notes|References|Examples)\n-+\n", re.MULTILINE)
ITEM = re.compile(r"^(\S.*)\n((?:^(?:    .*|\s*)\n?)*)", re.MULTILINE)


def sections(doc: str) -> Iterator[tuple[str, str]]:
    """Yield the sections of a numpydoc docstring, the text before them first, without a name."""
    parts = SECTION.split(doc)
    yield "", parts[0]
    yield from zip(parts[1::2], parts[2::2], strict=True)


def markdown(doc: str) -> str:
    """Return a docstring as Markdown."""
    out = []
    for name, text in sections(doc):
        text = text.strip("\n")
        if name == "Examples":
            out.append(f"```\n{text}\n```")
        elif name in ("Parameters", "Attributes", "Returns", "Raises"):
            items = [
                f"- `{head.strip()}`" + (f": {' '.join(body.split())}" if body.strip() else "")
                for head, body in ITEM.findall(text + "\n")
            ]
            out.append(f"**{name}**\n\n" + "\n".join(items))
        else:
            out.append(text)
    return "\n\n".join(part for part in out if part)


def shown_signature(name: str, thing: Any) -> str:
    """Return a call with its defaults."""
    parameters = [p.replace(annotation=p.empty) for n, p in inspect.signature(thing).parameters.items() if n != "self"]
    return f"{name}{inspect.Signature(parameters)}"


def entry(name: str, thing: Any, call: str) -> str:
    """Return the section of a function, method or property."""
    doc = markdown(inspect.getdoc(thing) or "")
    head = f"### {name}\n"
    if callable(thing):
        head += f"\n```\n{shown_signature(call, thing)}\n```\n"
    image = ""
    if name in PICTURES:
        before, after = PICTURES[name]
        image = f"\n\n![{name}](../img/ops/{name}.png)\n\n`{before}`, and `{after}`"
    return f"{head}\n{doc}{image}\n"


def members(home: type) -> list[tuple[str, Any]]:
    """Return the public methods and properties that a class itself defines, in its order."""
    return [
        (n, m)
        for n, m in vars(home).items()
        if not n.startswith("_") and (inspect.isfunction(m) or isinstance(m, (property, classmethod)))
    ]


def page(title: str, about: Any) -> str:
    """Return a page."""
    if isinstance(about, tuple):
        parts = [entry(n, inspect.unwrap(getattr(ve, n)), f"ve.{n}") for n in about]
        intro = "Functions of the package."
    else:
        owner = "array" if about.__module__.startswith("volara_expr.array") and issubclass(ve.Array, about) else ""
        prefix = f"{(owner or about.__name__.lower())}."
        parts = [entry(n, getattr(m, "__func__", m), prefix + n) for n, m in members(about)]
        intro = markdown(inspect.getdoc(about) or "")
    return f"# {title}\n\n{intro}\n\n" + "\n".join(parts)


def index() -> str:
    """Return the page that lists the others."""
    lines = ["# Reference", "", "Made from the docstrings. A table of all operations: [operations](../operations.md).", ""]
    for name, (title, about) in PAGES.items():
        names = about if isinstance(about, tuple) else [n for n, _ in members(about)]
        lines.append(f"- [{title}]({name}.md): " + ", ".join(f"`{n}`" for n in names))
    return "\n".join(lines) + "\n"


def pages() -> dict[Path, Callable[[], str]]:
    """Return what makes each page, by its file."""
    made: dict[Path, Callable[[], str]] = {
        DOCS / "reference" / f"{name}.md": lambda title=title, about=about: page(title, about)
        for name, (title, about) in PAGES.items()
    }
    return made | {DOCS / "reference" / "index.md": index}


def main() -> None:
    """Write all pages and pictures, and remove those of operations that are gone."""
    for folder, keep in (("reference", {p.name for p in pages()}), ("img/ops", {f"{n}.png" for n in PICTURES})):
        (DOCS / folder).mkdir(parents=True, exist_ok=True)
        for old in (DOCS / folder).iterdir():
            if old.name not in keep:
                old.unlink()
    for path, make in pages().items():
        path.write_text(make())
    for name in PICTURES:
        (DOCS / "img" / "ops" / f"{name}.png").write_bytes(png(picture(name)))


if __name__ == "__main__":
    main()
