"""Sparse rows and their products against dense NumPy, and whatever way they are divided."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.errors import StageError, UsageError
from tests.unit.recommend_kit import lists, ranked, rows_of, tastes
from training.recommend.products import Product, gathered, in_process, on_ray
from training.recommend.rows import Rows, empty

shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.integers(0, 9999))


def dense(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Few different small values: sums are exact, and many are equal."""
    return rng.integers(0, 3, shape).astype(np.float32) * (rng.random(shape) < 0.5)


@given(shapes, st.integers(1, 14), st.booleans())
def test_the_best_of_each_row_are_those_of_the_dense_product(
    shape: tuple[int, int, int, int], k: int, scaled: bool
) -> None:
    n, inner, width, seed = shape
    rng = np.random.default_rng(seed)
    a, b, bars = dense(rng, n, inner), dense(rng, inner, width), dense(rng, n, width)
    left, right, gain = rng.random(n), rng.random(width), rng.random(width)
    full = a.astype(np.float64) @ b
    if scaled:
        full = full * gain / (left[:, None] * right + 0.5)
    product = Product.of(
        rows_of(a),
        rows_of(b),
        k,
        skip=rows_of(bars),
        norms=(left, right) if scaled else None,
        gain=gain if scaled else None,
        shrink=0.5,
    )
    found = gathered(product)
    assert lists(found) == ranked(full, bars > 0, k)
    assert np.array_equal(found.values, full[found.row_of, found.columns].astype(np.float32))


@given(shapes, st.integers(1, 9))
def test_chunks_cover_all_rows_once_and_change_no_bit(
    shape: tuple[int, int, int, int], parts: int
) -> None:
    n, inner, width, seed = shape
    rng = np.random.default_rng(seed)
    product = Product.of(
        rows_of(rng.random((n, inner)).astype("f4")), rows_of(rng.random((inner, width))), 5
    )
    chunks = product.chunks(parts)
    assert [r for first, last in chunks for r in range(first, last)] == list(range(n))
    cut = Rows.joined([product.rows(*c) for c in chunks])
    whole = product.rows(0, n)
    assert cut.starts.tolist() == whole.starts.tolist()
    assert cut.columns.tolist() == whole.columns.tolist()
    assert cut.values.tobytes() == whole.values.tobytes()


def test_chunks_have_about_equal_work() -> None:
    users = np.zeros((200, 50), np.float32)
    users[:, 0] = 1
    users[:10] = 1  # ten rows with fifty times the work of the others
    product = Product.of(rows_of(users), rows_of(np.ones((50, 30))), 5)
    chunks = product.chunks(8)
    assert len(chunks) == 8
    assert chunks[0][1] - chunks[0][0] < 4 < chunks[-1][1] - chunks[-1][0]


@pytest.mark.parametrize(("n", "k"), [(0, 3), (2, 0)])
def test_empty_products_and_impossible_ones(n: int, k: int) -> None:
    if k == 0:
        with pytest.raises(UsageError, match="best 0"):
            Product.of(empty(n, 4), empty(4, 4), k)
    else:
        assert len(gathered(Product.of(empty(n, 4), empty(4, 4), k))) == 0
    with pytest.raises(UsageError, match="can't be"):
        Product.of(empty(2, 4), empty(5, 4), 1)


def test_rows_are_what_numpy_says() -> None:
    rng = np.random.default_rng(3)
    dense_ = tastes(20, 12)
    rows = rows_of(dense_)
    assert np.array_equal(rows.dense(), dense_)
    assert np.array_equal(rows.transposed().dense(), dense_.T)
    some = rng.integers(0, 20, 31)
    assert np.array_equal(rows.take(some).dense(), dense_[some])
    assert np.array_equal(Rows.joined([rows, rows]).dense(), np.vstack([dense_, dense_]))
    weights = rng.integers(-2, 3, dense_.shape)
    best = rows_of(weights).best(3)
    for r, line in enumerate(weights):
        expected = sorted((c for c in range(12) if line[c]), key=lambda c, v=line: (-v[c], c))[:3]
        assert best.row(r)[0].tolist() == expected


def test_rows_can_not_be_written_and_know_their_width() -> None:
    rows = rows_of(tastes())
    with pytest.raises(ValueError, match="read-only"):
        rows.values[0] = 2
    with pytest.raises(StageError, match="has 40 items, the retriever knows 41"):
        rows.require_width(41, "it")


@pytest.mark.ray
def test_tasks_give_the_bits_of_one_process(ray_session: None) -> None:
    rng = np.random.default_rng(0)
    product = Product.of(rows_of(rng.random((300, 80))), rows_of(rng.random((80, 120))), 20)
    here, there = gathered(product, in_process), gathered(product, on_ray)
    assert here.columns.tobytes() == there.columns.tobytes()
    assert here.values.tobytes() == there.values.tobytes()
