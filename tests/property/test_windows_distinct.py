"""Distinct counts have the error that is stated for them, no more and hardly less."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.windows import kernel
from raypipe.windows.hashing import hash_column, key_seed
from raypipe.windows.inputs import VALUE_SEED
from raypipe.windows.spec import WindowView, distinct, spans
from raypipe.windows.state import Rows, ViewState
from tests.property.oracle import (
    assert_estimate,
    bits_set,
    every_estimate,
    occupancy,
    stated_error,
)

NOW = 1_780_000_000_000
SAMPLES = 4_000
READER = kernel.READ | kernel.UPDATE


def estimates(
    bits: int,
    different: int,
    form: str,
    repeats: int = 1,
    samples: int = SAMPLES,
    registers: int = 0,
) -> np.ndarray:
    """Estimates of many keys that saw so many different values, each key its own ones."""
    sketch = distinct("value", bits=bits, registers=registers)
    view = WindowView("v", "k", "e", "k", (sketch,), spans("1h/1m"))
    n = samples * different
    keys = hash_column(pa.array([f"key-{i}" for i in range(samples)]), key_seed("t", "k"))
    texts = pa.array([form.format(i) for i in range(n)])
    state = ViewState(view)
    for _ in range(repeats):
        state.process(
            Rows(
                np.repeat(keys, different),
                np.full(n, NOW),
                np.arange(n),
                np.full(n, kernel.UPDATE, np.uint8),
                np.zeros((n, 0), np.int64),
                hash_column(texts, VALUE_SEED).reshape(-1, 1),
                np.zeros(n, np.int64),
            )
        )
    readers = Rows(
        keys,
        np.full(samples, NOW),
        np.arange(n, n + samples),
        np.full(samples, kernel.READ, np.uint8),
        np.zeros((samples, 0), np.int64),
        np.zeros((samples, 1), np.int64),
        np.zeros(samples, np.int64),
    )
    return state.process(readers).before[:, 0]


@pytest.mark.parametrize("form", ["merchant-{:07d}", "{}", "{:x}-0000-0000"])
@pytest.mark.parametrize(
    ("bits", "different"), [(64, 2), (64, 5), (64, 20), (64, 64), (128, 40), (256, 20), (256, 200)]
)
def test_the_stated_error_is_the_error(bits: int, different: int, form: str) -> None:
    found = estimates(bits, different, form)
    for estimate in np.unique(found):
        assert_estimate(float(estimate), different, bits)
    # Expected value and spread of the estimate if hashes were dice, from the exact probabilities.
    chances, values = occupancy(bits, different), every_estimate(bits)
    expected = float(chances @ values)
    spread = math.sqrt(float(chances @ (values - expected) ** 2))
    assert abs(found.mean() - expected) < 5 * spread / SAMPLES**0.5
    assert found.std() == pytest.approx(spread, rel=0.1)
    # And that is what the declaration states: a little less for few values, never more by 5 %.
    error = math.sqrt(((found / different - 1) ** 2).mean())
    assert 0.65 < error / stated_error(different, bits) < 1.05
    if different >= bits / 4:
        assert error == pytest.approx(stated_error(different, bits), rel=0.05)


@pytest.mark.parametrize("bits", [64, 256])
def test_a_full_sketch_says_the_most_it_can(bits: int) -> None:
    found = estimates(bits, bits * 14, "{}", samples=200)
    assert found.max() == pytest.approx(bits * math.log(2 * bits), rel=1e-15)
    assert (found == found.max()).mean() > 0.95


def test_seeing_a_value_again_changes_nothing() -> None:
    assert estimates(64, 20, "{}").tobytes() == estimates(64, 20, "{}", repeats=3).tobytes()


@pytest.mark.parametrize(
    ("registers", "different"),
    [(64, 40), (64, 1_000), (256, 100), (256, 600), (256, 3_000), (1_024, 5_000)],
)
def test_registers_have_the_stated_error_for_any_number(registers: int, different: int) -> None:
    samples = 400_000 // different if different < 1_000 else 300
    found = estimates(64, different, "card-{}", samples=samples, registers=registers)
    stated = 1.04 / registers**0.5
    error = math.sqrt(((found / different - 1) ** 2).mean())
    # Of so many samples, an error of the error of 3 / sqrt(2 samples) is unlikely.
    assert error < stated * (1.05 + 3 / (2 * samples) ** 0.5)
    assert abs(found.mean() / different - 1) < 4 * stated / samples**0.5 + 1.3 / registers


def test_registers_of_few_values_are_nearly_exact() -> None:
    assert (estimates(64, 0, "{}", samples=20, registers=256) == 0.0).all()
    for different in (1, 2, 5):
        found = estimates(64, different, "{}", samples=2_000, registers=256)
        assert np.median(found) == pytest.approx(different, rel=0.02)
        assert found.max() < different + 0.1


def test_registers_merge_as_if_seen_by_one() -> None:
    """Tiles of one key that are merged, in halves and at once, and values seen twice."""
    sketch = distinct("value", ["1d"], registers=256)
    view = WindowView("v", "k", "e", "k", (sketch,), spans("1h/1m", "1d/30m"))
    n = 4_000
    hashes = hash_column(pa.array([str(i % 1_500) for i in range(n)]), VALUE_SEED)
    rows = [
        Rows(
            np.full(n, 5),
            NOW + np.arange(n) * step,
            np.arange(n),
            np.full(n, READER, np.uint8),
            np.zeros((n, 0), np.int64),
            hashes.reshape(-1, 1),
            np.zeros(n, np.int64),
        )
        for step in (0, 10_000)
    ]
    at_once, spread = (ViewState(view).process(r).before[-1, 0] for r in rows)
    assert at_once == spread
    assert at_once == pytest.approx(1_500, rel=4 * 1.04 / 16)


TEXTS = st.lists(st.one_of(st.none(), st.text(max_size=4)), max_size=40)


@given(TEXTS, st.sampled_from([64, 128, 1_024]))
def test_0_and_1_are_exact_and_more_values_are_never_less(
    values: list[str | None], bits: int
) -> None:
    view = WindowView("v", "k", "e", "k", (distinct("value", bits=bits),), spans("1h/1m"))
    n = len(values) + 1
    hashes = hash_column(pa.array([*values, None], pa.string()), VALUE_SEED)
    rows = Rows(
        np.full(n, 77),
        np.full(n, NOW),
        np.arange(n),
        np.full(n, READER, np.uint8),
        np.zeros((n, 0), np.int64),
        hashes.reshape(-1, 1),
        np.zeros(n, np.int64),
    )
    found = ViewState(view).process(rows).before[:, 0].tolist()
    assert found == sorted(found)
    seen: set[str] = set()
    one = bits * math.log(bits / (bits - 1))
    for estimate, value in zip(found, [*values, None], strict=True):
        if len(seen) < 2:
            assert estimate == (one if seen else 0.0)
        else:
            assert one <= estimate
            assert bits_set(estimate, bits) <= len(seen)
        seen |= {value} if value is not None else set()
