"""What notebooks show. `python tests/snapshot/test_html.py` takes over a change; look at the file in a browser before."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings

import volara_expr as ve
from executors import Serial
from volara_expr.expr import ArrayNode, BlockTable
from volara_expr.run.progress import StageReport, as_html
from volara_expr.testing.strategies import pipelines
from volara_expr.view.summary import inferred_halo

SNAPSHOT = Path(__file__).with_name("summaries.html")
OFFSETS = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 8, 0), (0, 0, 8)]


def page() -> str:
    """Summaries of the kinds of expressions, without the figures that depend on the machine."""
    raw = ve.from_numpy(np.zeros((100, 120, 130), np.uint8), voxel_size=(40, 4, 4), units="nm")
    stored = ve.from_numpy(np.zeros((5, 100, 120, 130), np.uint8), voxel_size=(40, 4, 4), units="nm", neighborhood=OFFSETS)
    affs = stored.normalize(0, 255)
    frags = affs.watershed(bias=[-0.5] * 3 + [-0.6] * 2, block_size=(32, 64, 64), context=(4, 8, 8))
    graph = frags.agglomerate(affs, scores={"direct": slice(0, 3), "long": slice(3, 5)}, mean_of={"raw": raw})
    lut = graph.mutex_watershed({"direct": (1.0, -0.6), "long": (1.0, -0.7)})
    seg = frags.relabel(lut)
    smooth = raw.gaussian(1.5)
    masked = ve.where(raw > 10, smooth, 0)[:50, ::2]
    given = ve.Lut({1: 7})
    shown = [x._repr_html_() for x in (raw, seg, masked, graph, lut, given, raw.plan(executor=Serial(threads=2)))]
    shown.append(
        as_html([StageReport("frags <1>", 12, 12, seconds=4.0), StageReport("seg", 90, 30, 2, 1, seconds=10.0)], "run: running")
    )
    head = "<!doctype html><meta charset='utf-8'><style>:root{color-scheme:light dark;font-family:sans-serif}</style>"
    return (
        re.sub(r"[\d.]+ [KMGT]?B(?=</b> per worker| per worker|\)</p>|</td></tr>)", "N", "\n<hr>\n".join([head, *shown])) + "\n"
    )


def test_summaries_are_as_they_were():
    assert page() == SNAPSHOT.read_text(), "if the new page is better, run `python tests/snapshot/test_html.py`"


def test_nothing_computes_in_a_summary(monkeypatch):
    calls = []

    def spy(original):
        return lambda *args, **kwargs: calls.append(args) or original(*args, **kwargs)

    for kind, method in ((ArrayNode, "apply"), (BlockTable, "rows")):
        classes = [kind]
        for c in classes:
            classes += c.__subclasses__()
            if method in vars(c):
                monkeypatch.setattr(c, method, spy(getattr(c, method)))
    page()
    assert calls == []
    (ve.from_numpy(np.zeros(3)) + 1).preview()
    assert calls  # the spies were in place


def test_names_are_those_of_variables_now():
    first = ve.from_numpy(np.zeros((4, 6), np.uint8))
    both = first.gaussian(1) + first
    assert both.tree().splitlines()[0].startswith("both = add")
    assert "first = numpy" in both.tree()
    renamed, digest = first, both.key
    del first
    assert "renamed = numpy" in both.tree()
    assert "first" not in both.tree()
    assert (renamed.gaussian(1) + renamed).key == digest


def test_names_and_labels_are_escaped():
    array = ve.from_numpy(np.zeros((4, 6), np.uint8)).map_blocks(lambda x: x)
    assert "&lt;lambda&gt;" in array._repr_html_()
    assert "<lambda>" not in array._repr_html_()


def test_a_long_expression_is_cut_short():
    x = ve.from_numpy(np.zeros((4, 6), np.float32))
    for _ in range(500):
        x = x + 1
    assert len(x.tree().splitlines()) < 100
    assert "more nodes" in x.tree()


def test_the_halo_is_that_of_all_channels_and_of_whole_blocks():
    raw = ve.from_numpy(np.zeros((50, 60, 70), np.uint8), voxel_size=4, units="nm")
    assert inferred_halo(raw.node) == {}
    chain = raw.gaussian(1).median(3)  # 4 and 1
    assert inferred_halo(chain.node) == {"z": (5, 5), "y": (5, 5), "x": (5, 5)}
    assert inferred_halo(ve.stack([raw, raw.uniform((1, 5, 1)), raw.uniform((1, 1, 3))]).node) == {"y": (2, 2), "x": (1, 1)}
    assert inferred_halo(chain[:, ::2].node) == {"z": (5, 5), "x": (5, 5)}  # y has other voxels
    affs = ve.stack([raw, raw], neighborhood=[(0, 1, 0), (0, 0, 1)]).normalize(0, 255)
    frags = affs.watershed(bias=-0.5, block_size=16, context=(2, 3, 4))
    assert inferred_halo(frags.node) == {"z": (2, 2), "y": (3, 3), "x": (4, 4)}


@given(pipelines())
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_every_pipeline_has_a_summary(pipeline):
    array = pipeline.array
    assert array.tree().splitlines()[0].startswith(f"array = {array.node.label}")
    assert "to write it" in array._repr_html_()


def test_what_write_would_refuse_is_said(monkeypatch):
    monkeypatch.setattr(ve.config, "memory_bytes", 1 << 20)
    assert "memory" in ve.from_numpy(np.zeros((100, 100, 100))).gaussian(2)._repr_html_()


if __name__ == "__main__":
    SNAPSHOT.write_text(page())
