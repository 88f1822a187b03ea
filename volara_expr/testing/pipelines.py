"""Check many random pipelines: ``python -m volara_expr.testing.pipelines 2000`` prints matches and mismatches."""

from __future__ import annotations

import sys
import time
from collections import Counter

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings

from volara_expr.geometry import BlockGrid
from volara_expr.testing.check import assert_blockwise_equal, random_grids
from volara_expr.testing.strategies import Pipeline, pipelines

__all__ = ["check", "main"]


def check(pipeline: Pipeline, n_grids: int = 2) -> None:
    """Raise AssertionError unless every block of random grids, and the whole, are bit for bit what NumPy and SciPy say."""
    box = pipeline.array.node.spec.box
    grids: list[BlockGrid] = random_grids(box, n_grids, np.random.default_rng(pipeline.seed), most_blocks=30)
    assert_blockwise_equal(pipeline.array, pipeline.reference, grids=grids)


def main(n: int) -> int:
    """Check `n` random pipelines, print what was found, and return the number of mismatches."""
    found: Counter[str] = Counter()
    used: Counter[str] = Counter()

    @settings(max_examples=n, deadline=None, database=None, phases=(Phase.generate,), suppress_health_check=list(HealthCheck))
    @given(pipelines())
    def run(pipeline: Pipeline) -> None:
        used.update(set(pipeline.steps))
        found["deep"] += pipeline.deep
        try:
            check(pipeline)
        except AssertionError as e:
            found["mismatches"] += 1
            print(f"MISMATCH {pipeline!r}\n    {e}")
        else:
            found["matches"] += 1

    start = time.perf_counter()
    run()
    print(f"{found['matches']} matches, {found['mismatches']} mismatches in {time.perf_counter() - start:.0f} s")
    print(f"{found['deep']} with a diamond or three filters and more")
    print("pipelines with each step: " + ", ".join(f"{name} {count}" for name, count in used.most_common()))
    return found["mismatches"]


if __name__ == "__main__":
    sys.exit(min(1, main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)))
