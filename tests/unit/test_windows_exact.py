"""128-bit arithmetic of the kernel against Python's integers and fractions."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from raypipe.windows import kernel as exact

WORD = 2**64
EDGES = [
    0,
    1,
    2,
    2**31,
    2**32 - 1,
    2**32,
    2**32 + 1,
    2**53,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
    2**64,
]
EDGES += [2**64 + 1, 2**96, 2**126, 2**127 - 1]
WIDE = st.one_of(
    st.integers(-(2**127), 2**127 - 1),
    st.integers(-(2**65), 2**65),
    st.sampled_from([s * e + d for e in EDGES[:-1] for s in (1, -1) for d in (-1, 0, 1)]),
)
SIGNED = st.one_of(
    st.integers(-(2**63) + 1, 2**63 - 1),
    st.sampled_from([s * e for e in EDGES if e < 2**63 for s in (1, -1)]),
)


def words(value: int) -> tuple[np.int64, np.int64]:
    """A number modulo 2**128 as its low and high int64 words."""
    value %= WORD**2
    return (
        np.uint64(value % WORD).astype(np.int64),
        np.uint64(value // WORD).astype(np.int64),
    )


def number(lo: int, hi: int) -> int:
    return int(hi) * WORD + int(lo) % WORD


def wrapped(value: int) -> int:
    return (value + WORD**2 // 2) % WORD**2 - WORD**2 // 2


@given(WIDE, WIDE)
@example(2**64 - 1, 1)
@example(-1, 1)
@example(-1, -1)
@example(2**127 - 1, 1)
def test_addition_carries(a: int, b: int) -> None:
    assert number(*exact.add(*words(a), *words(b))) == wrapped(a + b)


@given(WIDE)
@example(0)
@example(-(2**127))
def test_negation(a: int) -> None:
    assert number(*exact.negate(*words(a))) == wrapped(-a)


@given(st.integers(0, WORD - 1), st.integers(0, WORD - 1))
@example(WORD - 1, WORD - 1)
@example(2**32, 2**32)
@example(2**40 - 1, 2**40 - 1)
def test_products_of_words(a: int, b: int) -> None:
    lo, hi = exact.multiply(np.uint64(a), np.uint64(b))
    assert int(hi) * WORD + int(lo) == a * b


@given(WIDE, SIGNED)
def test_products_with_a_factor(a: int, factor: int) -> None:
    assert number(*exact.scale(*words(a), np.int64(factor))) == wrapped(a * factor)


@given(WIDE)
@example(2**53 + 1)
@example(-(2**53) - 1)
@example(2**63)
@example(-(2**63) - 1)
@example(1 - 2**127)
def test_floats_are_exact_to_53_bits_and_near_beyond(a: int) -> None:
    assume(a > -(2**127))  # sums stay under 2**104
    found = exact.to_float(*words(a))
    if abs(a) <= 2**53 or -(2**63) <= a < 2**63:
        assert found == float(a)
    assert abs(found - float(a)) <= 2 * math.ulp(float(a))


AMOUNT = st.integers(1 - 2**40, 2**40 - 1)
VALUES = st.one_of(
    st.lists(AMOUNT, min_size=1, max_size=30),
    st.lists(st.integers(-3, 3), min_size=1, max_size=30),
    st.tuples(AMOUNT, st.lists(st.integers(-2, 2), min_size=1, max_size=30)).map(
        lambda p: [p[0] + d for d in p[1]]
    ),
)


def deviation(values: list[int], times: int) -> float:
    """The kernel's, of values that all come the given number of times."""
    total, squares = sum(values) * times, sum(v * v for v in values) * times
    return float(exact.deviation(np.int64(len(values) * times), *words(total), *words(squares)))


def two_passes(values: list[int]) -> float:
    """sqrt(mean of squared distances from the mean), in 60 digits."""
    with localcontext() as context:
        context.prec = 60
        mean = Decimal(sum(values)) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / len(values)
        return float(variance.sqrt())


@given(VALUES, st.sampled_from([1, 2, 1_000, 10**6, 2**30]))
@example([0, 1], 1)
@example([2**40 - 1, 2**40 - 2], 2**30)
@example([1 - 2**40], 2**30)
@example([2**40 - 1, 1 - 2**40], 2**30)
@example([2**31, 2**31 + 1], 2)
@example([0] * 29 + [1], 10**6)
def test_deviation_is_that_of_two_exact_passes(values: list[int], times: int) -> None:
    expected = two_passes(values)
    found = deviation(values, times)
    if len(set(values)) == 1:
        assert found == 0.0
    else:
        assert found == pytest.approx(expected, rel=1e-14, abs=0)


def test_deviation_at_the_border_of_the_short_form() -> None:
    """Sums of squares just under and over 2**62, where 64-bit arithmetic takes over."""
    for root in range(2**31 - 40, 2**31 + 40):
        for values in ([root, 0], [root], [root, root - 1], [-root, root], [1, -root, 7]):
            expected = two_passes(values)
            assert deviation(values, 1) == pytest.approx(expected, rel=1e-14, abs=0)
