from __future__ import annotations

import numpy as np
import pytest

from raypipe.simulate.ids import constant, decimal, opaque, scramble


def test_scrambling_is_one_to_one_on_48_bits() -> None:
    numbers = np.concatenate([np.arange(300_000), 2**48 - 1 - np.arange(300_000)])
    out = scramble(numbers, key=0xDEADBEEFCAFEBABE)
    assert len(np.unique(out)) == len(numbers)
    assert out.min() >= 0
    assert out.max() < 2**48
    assert abs(np.corrcoef(np.arange(300_000), out[:300_000])[0, 1]) < 0.01


def test_other_keys_scramble_otherwise() -> None:
    numbers = np.arange(1_000)
    assert not np.any(scramble(numbers, key=1) == scramble(numbers, key=2))


def test_ids_are_formatted_as_python_would() -> None:
    numbers = np.array([0, 7, 9_999, 10_000, 12_345_678])
    assert decimal("m_", numbers).to_pylist() == [f"m_{n:08d}" for n in numbers]
    assert decimal("c_", numbers * 10_000, words=3).to_pylist() == [
        f"c_{n * 10_000:012d}" for n in numbers
    ]
    wide = np.array([0, 255, 2**32 + 1, 2**48 - 1])
    assert opaque("d_", wide).to_pylist() == [f"d_{n:012x}" for n in wide]


@pytest.mark.parametrize("numbers", [[], [-1], [-1, 5, -1, -1, 2**40], [3, -1]])
def test_negative_numbers_are_null(numbers: list[int]) -> None:
    out = opaque("d_", np.array(numbers, np.int64))
    out.validate(full=True)
    assert out.to_pylist() == [None if n < 0 else f"d_{n:012x}" for n in numbers]


def test_a_constant_repeats() -> None:
    assert constant("EUR", 3).to_pylist() == ["EUR"] * 3
    assert constant("EUR", 0).to_pylist() == []
