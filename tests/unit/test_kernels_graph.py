from __future__ import annotations

import mwatershed
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from volara_expr.kernels.graph import components, mutex_watershed


def smallest(parts, n):
    """Smallest member of each node's part, from (node, part) pairs; nodes without one stay alone."""
    part = np.arange(n) + n
    for node, name in parts:
        part[node] = name
    _, first, inverse = np.unique(part, return_index=True, return_inverse=True)
    return first[inverse]


def slow_mutex_watershed(u, v, weights, n):
    segments, apart = {i: {i} for i in range(n)}, []
    for i in sorted(range(len(u)), key=lambda i: -abs(weights[i])):
        a, b = segments[u[i]], segments[v[i]]
        if weights[i] <= 0:
            apart.append((u[i], v[i]))
        elif a is not b and not any({x in a, y in a} == {x in b, y in b} == {True, False} for x, y in apart):
            segments.update(dict.fromkeys(b, a))
            a |= b
    return [min(segments[i]) for i in range(n)]


@st.composite
def graphs(draw, weights):
    n = draw(st.integers(1, 8))
    edge = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1), weights)
    u, v, w = np.array(draw(st.lists(edge, max_size=25)) or np.empty((0, 3))).T
    return u.astype(int), v.astype(int), w, n


@given(graphs(st.integers(-4, 4)) | graphs(st.floats(allow_nan=False)))
@settings(deadline=None, max_examples=300)
def test_mutex_watershed_equals_its_definition(graph):
    u, v, w, n = graph
    result = mutex_watershed(u, v, w, n)
    assert result.dtype == np.uint32
    assert result.tolist() == slow_mutex_watershed(u, v, w, n)
    if np.array_equal(w, np.clip(np.rint(w), -4, 4)):
        w = w.astype(np.int64)
    np.testing.assert_array_equal(mutex_watershed(u.astype(np.uint64), v.astype(np.uint32), w, n), result)


@pytest.mark.parametrize("mean", [-1.0, 0.0, 0.5])
@pytest.mark.parametrize("decimals", [1, 17])
def test_mutex_watershed_equals_mwatershed(mean, decimals):
    """Large enough that the table of mutexes grows and is rebuilt; coarse weights have many ties."""
    rng = np.random.default_rng(1)
    n, m = 8_000, 60_000
    u, v = rng.integers(0, n, (2, m))
    w = rng.normal(mean, 1, m).round(decimals)
    order = np.argsort(-abs(w), kind="stable")
    expected = mwatershed.cluster([(bool(w[e] > 0), int(u[e]), int(v[e])) for e in order])
    np.testing.assert_array_equal(mutex_watershed(u, v, w, n), smallest(expected, n))


def test_large_integers_are_not_rounded():
    """Differences that float64 loses decide."""
    u, v = [0, 0], [1, 1]
    assert mutex_watershed(u, v, [2**60, -(2**60 + 1)], 2).tolist() == [0, 1]
    assert mutex_watershed(u, v, [2**60 + 1, -(2**60)], 2).tolist() == [0, 0]
    assert mutex_watershed(u, v, [-(2**63), 2**63 - 1], 2).tolist() == [0, 1]


def test_ties_zeros_and_infinities():
    u, v = [0, 0], [1, 1]
    assert mutex_watershed(u, v, [0.5, -0.5], 2).tolist() == [0, 0]
    assert mutex_watershed(u, v, [-0.5, 0.5], 2).tolist() == [0, 1]
    assert mutex_watershed(u, v, [0.0, 5e-324], 2).tolist() == [0, 0]
    assert mutex_watershed(u, v, [-0.0, 0.0], 2).tolist() == [0, 1]
    assert mutex_watershed(u, v, [1e308, -np.inf], 2).tolist() == [0, 1]
    assert mutex_watershed([], [], [], 3).tolist() == [0, 1, 2]
    assert mutex_watershed([], [], [], 0).tolist() == []


@given(graphs(st.just(1)))
@settings(deadline=None, max_examples=200)
def test_components(graph):
    u, v, w, n = graph
    reach = np.eye(n, dtype=bool)
    reach[u, v] = reach[v, u] = True
    for _ in range(3):
        reach = reach @ reach
    np.testing.assert_array_equal(components(u, v, n), reach.argmax(axis=1))
    np.testing.assert_array_equal(mutex_watershed(u, v, w, n), reach.argmax(axis=1))


def test_components_of_a_long_chain():
    u = np.random.default_rng(0).permutation(100_000)
    assert not components(u, u + 1, 100_001).any()


@pytest.mark.parametrize(
    ("u", "v", "w", "n", "error", "match"),
    [
        ([0], [1], [np.nan], 2, ValueError, "weight 0 of 1 is NaN"),
        ([0], [2], [1.0], 2, ValueError, "v runs from 2 to 2, nodes from 0 to 1"),
        ([-1], [1], [1.0], 2, ValueError, "u runs from -1"),
        ([0.5], [1], [1.0], 2, TypeError, "u has dtype float64"),
        ([0, 1], [1], [1.0], 2, ValueError, "two ends"),
        ([0], [1], [1.0, 2.0], 2, ValueError, "one weight"),
        ([0], [1], [1.0], 2**31, ValueError, "fewer than 2"),
        ([0], [1], np.array([1], np.uint64), 2, TypeError, "weights have dtype uint64"),
    ],
)
def test_errors(u, v, w, n, error, match):
    with pytest.raises(error, match=match):
        mutex_watershed(u, v, w, n)
