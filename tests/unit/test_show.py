"""Pictures of sections: what is cut, how it is coloured, and that a look stays quick."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest

import volara_expr as ve
from volara_expr.expr import ArrayNode
from volara_expr.ops.functions import MapBlocks
from volara_expr.view.picture import colours_of, grey_of, length_of_bar, tinted
from volara_expr.view.section import section

DATA = np.random.default_rng(0).integers(0, 256, (6, 20, 30), dtype=np.uint8)


@pytest.fixture
def raw():
    return ve.from_numpy(DATA, voxel_size=(40, 4, 8), units="nm")


def pixels(figure, k=0):
    return np.asarray(figure.axes[k].images[0].get_array())


def test_labels_keep_their_colour_and_neighbours_differ():
    ids = np.array([[0, 1, 2], [3, (5 << 33) + 1, (5 << 33) + 2]], np.uint64)
    colours = colours_of(ids)
    np.testing.assert_array_equal(colours_of(ids[::-1, ::-1])[::-1, ::-1], colours)
    many = colours_of(np.arange(1, 1000))
    assert np.abs(np.diff(many, axis=0)).max(axis=1).min() > 0.2
    blocks = colours_of(np.arange(1, 200, dtype=np.uint64) << np.uint64(33))  # ids that differ in the block only
    assert len(np.unique(blocks.round(2), axis=0)) > 195


def test_grey_spans_the_values_and_masks_are_black_and_white():
    ramp = np.arange(100.0).reshape(10, 10)
    grey = grey_of(ramp)
    assert (grey.min(), grey.max()) == (0, 1)
    assert grey_of(ramp, (0, 198))[9, 9, 0] == 0.5
    assert set(np.unique(grey_of(ramp > 50))) == {0, 1}
    assert grey_of(np.ones((4, 4), np.uint8)).min() == 1
    assert grey_of(np.full((4, 4), np.nan)).max() == 0


def test_tints_leave_a_line_between_labels():
    labels = np.array([[1, 1, 2, 2]])
    colours = np.ones((1, 4, 3))
    picture = tinted(np.zeros((1, 4, 3)), labels, colours, scale=4, alpha=0.5)
    assert picture.shape == (4, 16, 3)
    np.testing.assert_allclose(picture[0, :, 0], [0.5] * 8 + [0.175] + [0.5] * 7)
    assert tinted(np.zeros((1, 4, 3)), labels, colours, 4, 0.5, outlines=False).min() == 0.5


@pytest.mark.parametrize(
    ("width", "unit", "expected"),
    [
        (5200, "nm", (1000, "1 µm")),
        (900, "nm", (100, "100 nm")),
        (Fraction(13, 2), "um", (1, "1 µm")),
        (11000, "µm", (2000, "2 mm")),
    ],
)
def test_bars_are_round(width, unit, expected):
    assert length_of_bar(Fraction(width), unit) == expected


def test_a_picture_shows_the_section(raw):
    mask = raw > 99
    figure = ve.show([raw, mask], z=2, limits=(0, 255))
    assert [a.get_title() for a in figure.axes] == ["raw", "mask"]
    image = pixels(figure)
    scale = image.shape[0] // 20
    np.testing.assert_allclose(image[::scale, ::scale, 0], DATA[2] / 255)
    np.testing.assert_array_equal(pixels(figure, 1)[::scale, ::scale, 0] > 0.5, DATA[2] > 99)
    assert figure.axes[0].images[0].get_extent() == [0, 240, 80, 0]  # world units: voxels are twice as wide as high
    assert figure._repr_png_()[:4] == b"\x89PNG"


def test_affinities_are_colours_and_middles_are_the_default(raw):
    affs = ve.stack([raw, raw * 0, 255 - raw, raw])
    image = pixels(affs.show(limits=(0, 255)))
    scale = image.shape[0] // 20
    np.testing.assert_allclose(image[::scale, ::scale], np.stack([DATA[3], DATA[3] * 0, 255 - DATA[3]], -1) / 255)
    assert section(affs.node, {"c": 1, "y": 3}) == (affs[1:2, :, 3:4].node.spec.box.shift((1, 0, 0, 0)), (1, 3))


def test_an_overlay_tints_images_and_not_labels(raw):
    labels = ve.from_numpy(DATA.astype(np.uint32) // 64, voxel_size=(40, 4, 8), units="nm")
    figure = ve.show([raw, labels], overlay=labels, z=0, alpha=0.5)
    plain = ve.show([raw, labels], z=0)
    assert (pixels(figure) != pixels(plain)).any()
    np.testing.assert_array_equal(pixels(figure, 1), pixels(plain, 1))
    with pytest.raises(ValueError, match=r"\(10, 30\) voxels, 'raw' one of \(20, 30\); ve.align"):
        raw.show(z=0, overlay=labels[:, :10])


def test_mistakes_say_what_is_there(raw):
    with pytest.raises(TypeError, match="no array has an axis w; the first has z, y, x"):
        raw.show(w=1)
    with pytest.raises(TypeError, match="only 1 is left"):
        raw.show(z=1, y=2)
    with pytest.raises(TypeError, match="nothing to show"):
        ve.show([])
    with pytest.raises(IndexError, match=r"shape \(0, 20, 30\) has nothing to show"):
        raw[:0].show()


def test_panels_share_what_they_need(raw, monkeypatch):
    calls = []
    apply = MapBlocks.apply
    monkeypatch.setattr(MapBlocks, "apply", lambda *args: calls.append(args[2].shape) or apply(*args))
    slow = raw.map_blocks(np.copy)
    ve.show([slow, slow.gaussian(0.2), slow > 3, -slow], z=2)
    assert calls == [(3, 20, 30)]
    assert isinstance(slow.node, ArrayNode)


def test_to_napari_says_where_and_what(raw):
    _, about, kind = raw[2:].to_napari()
    assert (kind, about["name"], about["contrast_limits"]) == ("image", "crop", (0, 255))
    assert (about["scale"], about["translate"]) == ((40, 4, 8), (100, 2, 4))
    assert ve.stack([raw, raw]).to_napari()[1]["translate"] == (0, 20, 2, 4)
    assert (raw > 3).astype("u8").to_napari("cells")[1:] == (
        {"name": "cells", "multiscale": False, "scale": (40, 4, 8), "translate": (20, 2, 4)},
        "labels",
    )
    assert (raw * 0.5).to_napari()[1]["contrast_limits"] == (DATA[3].min() / 2, DATA[3].max() / 2)


FIRST_LOOK = """
import sys, time
import numpy as np
import volara_expr as ve
raw = ve.from_numpy(np.zeros((16, 512, 512), np.uint8), voxel_size=4, units="nm")
cpu = time.process_time()
raw.normalize(0, 255).{op}.threshold(0.5).preview(z=3, y=slice(0, 256), x=slice(100, 356))
print(time.process_time() - cpu, *({{"numba", "duckdb", "pyarrow", "tensorstore", "zarr"}} & set(sys.modules)))
"""


@pytest.mark.parametrize("op", ["clip(0, 1)", "gaussian(1)"])
def test_a_first_look_is_quick_and_loads_no_compiler(op):
    code = FIRST_LOOK.format(op=op)
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(6)
    ]
    assert all(modules == [] for _, *modules in runs)
    assert min(float(seconds) for seconds, *_ in runs) < 0.3
