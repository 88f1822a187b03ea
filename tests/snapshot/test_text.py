"""Texts that people read: plans, reprs and the trees in ledgers. `python tests/snapshot/test_text.py` takes over a change."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

import volara_expr as ve
from executors import Serial
from volara_expr.expr.show import tree

SNAPSHOT = Path(__file__).with_name("text.txt")


def text() -> str:
    """Plan, reprs and tree of the main job and of a chain of filters, for a machine of a given size."""
    offsets = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (4, 0, 0), (0, 8, 0), (0, 0, 8)]
    stored = ve.from_numpy(np.zeros((6, 100, 120, 130), np.uint8), voxel_size=(40, 4, 4), units="nm", neighborhood=offsets)
    raw = ve.from_numpy(np.zeros((100, 120, 130), np.uint8), voxel_size=(40, 4, 4), units="nm")
    affs = stored.normalize(0, 255)
    frags = affs.watershed(bias=[-0.5] * 3 + [-0.6] * 3, strides=[(1, 1, 1)] * 3 + [(3, 3, 3)] * 3, block_size=(32, 64, 64))
    graph = frags.agglomerate(affs, scores={"direct": slice(0, 3), "long": slice(3, 6)}, mean_of={"raw": raw})
    lut = graph.mutex_watershed({"direct": (1.0, -0.6), "long": (1.0, -0.7)})
    seg = frags.relabel(lut)
    smooth = raw.normalize(0, 255).gaussian(1.5)
    masked = ve.where(raw > 10, smooth, 0)[:50, ::2]
    executor = Serial(block=(64, 64, 64), memory="4GB", threads=2)
    parts = [
        repr(raw),
        repr(affs),
        repr(graph),
        repr(lut),
        repr(seg),
        repr(masked),
        tree([seg.node]),
        tree([masked.node]),
        seg.plan(executor=executor).explain(),
        masked.plan(executor=executor).explain(),
    ]
    return re.sub(r"[\d.]+ MB per worker", "# MB per worker", "\n\n".join(parts) + "\n")  # its bound is tested elsewhere


def test_texts_are_as_they_were():
    assert text() == SNAPSHOT.read_text(), "if the new text is better, run `python tests/snapshot/test_text.py`"


if __name__ == "__main__":
    SNAPSHOT.write_text(text())
