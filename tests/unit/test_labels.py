"""Look-up tables, components and masks: equal to NumPy and SciPy on the whole volume."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from volara_expr.array.core import Array
from volara_expr.array.lut import Lut
from volara_expr.expr.node import ArraySpec, Patch
from volara_expr.geometry import Axis, Box, Space
from volara_expr.kernels import BadVoxel
from volara_expr.ops.components import ComponentLut, LocalComponents
from volara_expr.ops.mask import carried_mask
from volara_expr.ops.shape import Slice
from volara_expr.ops.sources import in_memory
from volara_expr.run import tables as tables_module
from volara_expr.run.block import Program, resolve
from volara_expr.run.tables import TableFiles, leaf_table
from volara_expr.store.tables import write_part, write_table

KINDS = {"c": "channel", "t": "time"}


def array(data, names=None, lo=None, origin=None):
    names = names or "zyx"[-data.ndim :]
    axes = tuple(Axis(n, KINDS.get(n, "space")) for n in names)
    size = (Fraction(1),) * data.ndim
    space = Space(axes, size, tuple(map(Fraction, origin or (0,) * data.ndim)))
    return Array(in_memory(data, ArraySpec(Box.of_shape(data.shape, lo), data.dtype, space)))


def evaluate(n, box=None, tables=leaf_table):
    program = Program([n], [])
    read = lambda leaf, b: leaf.data[b.slices(leaf.spec.box.lo)]  # noqa: E731
    return program.evaluate(program.demand({n: box or n.spec.box}), read, tables, [n])[n].data


# ---------------------------------------------------------------- look-up tables


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.uint64])
def test_relabel_looks_labels_up_and_keeps_background(dtype):
    labels = np.random.default_rng(0).integers(0, 9, (6, 7)).astype(dtype)
    table = {1: 70, 3: 2**60, 5: 0, 200: 1}
    for missing in ("keep", "zero"):
        n = array(labels, lo=(3, -2)).relabel(table, missing).node
        assert n.spec.dtype == np.uint64
        expected = np.array([[table.get(v, v if missing == "keep" else 0) for v in row] for row in labels.tolist()], np.uint64)
        np.testing.assert_array_equal(evaluate(n), expected)
        np.testing.assert_array_equal(evaluate(n, Box((4, 0), (7, 3))), expected[1:4, 2:5])


def test_a_label_that_is_missing_is_named_with_its_voxel():
    labels = np.ones((4, 5), np.uint32)
    labels[2, 3] = 9
    with pytest.raises(BadVoxel, match="label 9") as error:
        evaluate(array(labels, lo=(10, 20)).relabel({1: 2}, "error").node)
    assert error.value.voxel == (12, 23)
    assert not evaluate(array(np.zeros((2, 2), np.uint8)).relabel({}, "error").node).any()


def test_relabel_takes_integers_and_tables_only():
    with pytest.raises(TypeError, match="astype"):
        array(np.ones(3)).relabel({1: 2})
    with pytest.raises(ValueError, match="'keep'"):
        array(np.ones(3, int)).relabel({1: 2}, "ignore")
    with pytest.raises(TypeError, match=r"ve\.Lut"):
        array(np.ones(3, int)).relabel([1, 2])


@pytest.mark.parametrize(
    ("ids", "values", "kind", "words"),
    [
        ([1, 2], [3], ValueError, "2 ids but 1 values"),
        ([1, 1], [3, 4], ValueError, "id 1 occurs twice"),
        ([-1], [3], ValueError, "0 to 2"),
        (np.array([-1]), [3], ValueError, "0 to 2"),
        ([1.5], [3], TypeError, "integers"),
        ([[1]], [[3]], ValueError, "2 axes"),
        ({0: 3}, None, ValueError, "stays 0"),
        ([1], None, ValueError, "without values"),
        ({1: 2}, [3], ValueError, "both were given"),
    ],
)
def test_mistakes_in_a_table_are_errors_on_its_line(ids, values, kind, words):
    with pytest.raises(kind, match=words):
        Lut(ids, values)


def test_equal_tables_are_one_node():
    assert Lut({2: 1, 1: 2**64 - 1}).node is Lut(np.array([1, 2]), [2**64 - 1, 1]).node
    assert Lut({1: 2}).node is not Lut({1: 3}).node
    assert repr(Lut({1: 2})) == "Lut(1 ids)"
    assert Lut({}).node.columns == ("id", "value")


@pytest.mark.parametrize("held_rows", [10, 1 << 22])
def test_a_table_in_a_file_gives_the_rows_of_some_ids(tmp_path, monkeypatch, held_rows):
    monkeypatch.setattr(tables_module, "HELD_ROWS", held_rows)
    path = str(tmp_path / "lut.parquet")
    ids = np.arange(2**63, 2**63 + 5000, 5, dtype=np.uint64)
    write_table(path, {"id": ids, "value": ids // np.uint64(3)}, row_group_size=64)
    table = TableFiles(path=path, columns=("id", "value"))
    some = np.array([[0, 2**63 + 30, 2**63 + 30], [0, 2**63 + 13, 2**63 + 4995]], np.uint64)
    rows = table.read_ids("id", some)
    assert {2**63 + 30, 2**63 + 4995} <= set(rows["id"].tolist())
    assert rows["value"].tolist() == [i // 3 for i in rows["id"].tolist()]
    # Row groups hold 64 rows, the last one 40: the first and the last are read. A table that is kept is cut to the range.
    assert len(rows["id"]) == (64 + 40 if held_rows == 10 else 1000 - 3)
    assert len(table.read(["value"])["value"]) == 1000
    assert len(table.read_ids("id", np.zeros(4, np.uint64))["id"]) == 0
    assert len(table.read_ids("id", np.zeros(0, np.uint64))["id"]) == 0
    assert len(table.read_ids("id", np.arange(9, dtype=np.int32))["id"]) == 0


def test_parts_are_read_in_the_order_of_the_ledger(tmp_path):
    paths = [str(tmp_path / f"{k}.parquet") for k in range(2)]
    for k, path in enumerate(paths):
        write_part(path, [{"id": np.array([10 * k + j], np.uint64)} for j in range(3)])
    table = TableFiles(parts=[(paths[1], [2, 0]), (paths[0], [1])], columns=("id",))
    assert table.read()["id"].tolist() == [12, 10, 1]
    assert table.read_ids("id", np.array([10, 1, 0]))["id"].tolist() == [1, 10]
    assert len(TableFiles(columns=("id",)).read()["id"]) == 0


# ---------------------------------------------------------------- components


def components(n, tmp_path):
    """Run the stages of components by hand: cells in reverse, tables in files."""
    lut = n.tables[0]
    labels = n.labels
    assert isinstance(lut, ComponentLut)
    assert isinstance(labels, LocalComponents)
    local = evaluate(labels)
    held = {labels: local}
    opened = []
    for k, table in enumerate(lut.tables):
        groups = []
        for number in reversed(range(table.cells.n_blocks)):
            cell = table.cells.box(number)
            reads = [
                [Patch(b.clip(x.spec.box), cut(x, b.clip(x.spec.box), held)) for x, b in zip(table.arrays, demand, strict=True)]
                for demand in table.demands(cell)
            ]
            groups.append(table.rows(resolve(table.kernel), cell, reads, []))
            assert tuple(groups[-1]) == table.columns
        path = str(tmp_path / f"{k}.parquet")
        write_part(path, groups)
        opened.append(TableFiles(parts=[(path, range(len(groups)))], columns=table.columns))
    out = str(tmp_path / "lut.parquet")
    lut.run(resolve(lut.kernel), opened, out, 1 << 28)
    table = TableFiles(path=out, columns=lut.columns)
    return evaluate(n, tables=lambda t: table)


def cut(x, box, held):
    return held[x][box.slices(x.spec.box.lo)] if x in held else evaluate(x, box)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_components_equal_scipy_for_any_grid(tmp_path_factory, data):
    nd = data.draw(st.integers(1, 3))
    shape = data.draw(st.tuples(*[st.integers(1, 11)] * nd))
    block = data.draw(st.tuples(*[st.integers(1, 6)] * nd))
    lo = data.draw(st.tuples(*[st.integers(-7, 7)] * nd))
    connectivity = data.draw(st.integers(1, nd))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    image = rng.random(shape) < data.draw(st.sampled_from([0.3, 0.5, 0.7]))
    n = array(image, lo=lo).components(connectivity, block_size=block).node
    expected, _ = ndimage.label(image, ndimage.generate_binary_structure(nd, connectivity))
    found = components(n, tmp_path_factory.mktemp("components"))
    assert found.dtype == np.uint64
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("connectivity", [1, 2, 3])
def test_components_of_labels_join_equal_values_only(tmp_path, connectivity):
    image = np.random.default_rng(4).integers(0, 3, (9, 10, 11)).astype(np.int32)
    n = array(image, lo=(2, 0, -3)).components(connectivity, equal=True, block_size=4).node
    structure = ndimage.generate_binary_structure(3, connectivity)
    parts = [ndimage.label(image == v, structure)[0] for v in (1, 2)]
    both = parts[0] + np.where(parts[1], parts[1] + parts[0].max(), 0)
    _, first, inverse = np.unique(both, return_index=True, return_inverse=True)
    rank = np.zeros(len(first), int)
    rank[1:][np.argsort(first[1:])] = np.arange(1, len(first))
    np.testing.assert_array_equal(components(n, tmp_path), rank[inverse].reshape(image.shape))


def test_components_do_not_cross_time_and_number_the_whole_array(tmp_path):
    image = np.random.default_rng(4).random((3, 8, 9)) < 0.5
    n = array(image, "tyx").components(2, block_size=4).node
    assert n.labels.unit == (1, 4, 4)
    expected, top = [], 0
    for plane in image:
        labels, count = ndimage.label(plane, np.ones((3, 3)))
        expected.append(np.where(labels, labels + top, 0))
        top += count
    np.testing.assert_array_equal(components(n, tmp_path), np.stack(expected))


def test_components_leave_out_what_a_mask_leaves_out(tmp_path):
    image = np.random.default_rng(4).random((8, 9)) < 0.7
    m = np.random.default_rng(5).random((8, 9)) < 0.7
    n = array(image).mask(m, fill=True).components(block_size=4).node
    np.testing.assert_array_equal(components(n, tmp_path), ndimage.label(image & m)[0])


def test_components_of_nothing(tmp_path):
    image = np.zeros((5, 6), bool)
    assert not components(array(image).components(block_size=4).node, tmp_path).any()


def test_mistakes_in_components_are_errors_on_their_line():
    with pytest.raises(TypeError, match="threshold"):
        array(np.ones((2, 2))).components()
    with pytest.raises(ValueError, match="1 to 2"):
        array(np.ones((2, 2), bool)).components(3)
    with pytest.raises(ValueError, match="3 entries"):
        array(np.ones((2, 2), bool)).components(block_size=(1, 1, 1))


# ---------------------------------------------------------------- masks


def test_mask_is_where_over_all_axes_or_the_space_axes():
    rng = np.random.default_rng(0)
    image, m = rng.normal(size=(4, 5, 2)).astype(np.float32), rng.random((4, 5)) < 0.5
    image[0, 0, 0] = np.nan
    a = array(image, "yxc", lo=(3, 4, 0), origin=(-3, -4, 0))
    n = a.mask(m, -1).node
    assert n.spec.dtype == np.float32
    expected = np.where(m[..., None], image, np.float32(-1))
    np.testing.assert_array_equal(evaluate(n), expected)
    np.testing.assert_array_equal(evaluate(n, Box((4, 5, 1), (7, 8, 2))), expected[1:4, 1:4, 1:])
    full = rng.integers(0, 2, image.shape)
    np.testing.assert_array_equal(evaluate(a.mask(full).node), np.where(full, image, 0))
    placed = array(m, "yx")  # the same place, counted from its own first voxel
    np.testing.assert_array_equal(evaluate(a.mask(placed, -1).node), expected)


@pytest.mark.parametrize(
    ("dtype", "fill"),
    [
        (np.uint8, 256),
        (np.uint8, -1),
        (np.uint8, 0.5),
        (np.uint8, float("nan")),
        (np.uint8, float("inf")),
        (np.float32, 1j),
        (bool, 2),
        (np.int16, "a"),
    ],
)
def test_a_fill_that_the_type_does_not_have_is_refused(dtype, fill):
    with pytest.raises(ValueError, match="is no value of dtype"):
        array(np.ones((2, 2), dtype)).mask(np.ones((2, 2), bool), fill)


def test_a_mask_elsewhere_is_refused():
    a = array(np.ones((4, 4)))
    with pytest.raises(ValueError, match="should cover"):
        a.mask(np.ones((3, 4), bool))
    with pytest.raises(ValueError, match="lie apart"):
        a.mask(array(np.ones((4, 4), bool), origin=(1, 0)))
    with pytest.raises(TypeError, match="threshold"):
        a.mask(np.ones((4, 4)))


def test_a_mask_is_carried_through_elementwise_operations_and_crops():
    rng = np.random.default_rng(0)
    a = array(rng.normal(size=(6, 7)))
    m, k = (array(rng.random((6, 7)) < 0.7) for _ in range(2))
    masked = a.mask(m)
    assert carried_mask(a.node) is None
    for derived in (masked, masked * 2.0, masked + a, (masked > 0).mask(m)):
        assert carried_mask(derived.node) is m.node
    cropped = Slice((masked * 2.0).node, ((1, 4, 1), (0, 7, 1)))
    assert carried_mask(cropped) is m.node
    both = carried_mask((masked + a.mask(k)).node)
    np.testing.assert_array_equal(evaluate(both), evaluate(m.node) & evaluate(k.node))
    again = carried_mask(Array(cropped).mask(Array(Slice(k.node, ((1, 4, 1), (0, 7, 1))))).node)
    np.testing.assert_array_equal(evaluate(again), (evaluate(m.node) & evaluate(k.node))[1:5])
    flipped = Slice(masked.node, ((5, 6, -1), (0, 7, 1)))
    stepped = Slice(masked.node, ((0, 3, 2), (0, 7, 1)))
    assert carried_mask(flipped) is None
    assert carried_mask(stepped) is None
