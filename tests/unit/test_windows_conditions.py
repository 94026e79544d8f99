"""Conditions: one meaning for columns and rows, and only the grammar gets through."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.errors import DeclarationError
from raypipe.windows.conditions import Condition

ROWS = [
    {"amount": 5, "channel": "online", "declined": True},
    {"amount": 100, "channel": "pos", "declined": False},
    {"amount": 499, "channel": None, "declined": None},
    {"amount": None, "channel": "online", "declined": True},
    {"amount": -3, "channel": "o'hare", "declined": False},
]
TABLE = pa.Table.from_pylist(
    ROWS,
    pa.schema({"amount": pa.int64(), "channel": pa.string(), "declined": pa.bool_()}),
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("declined", [1, 0, 0, 1, 0]),
        ("declined == 1", [1, 0, 0, 1, 0]),
        ("not declined", [0, 1, 1, 0, 1]),
        ("channel == 'online'", [1, 0, 0, 1, 0]),
        ("'online' == channel", [1, 0, 0, 1, 0]),
        ("channel != 'online'", [0, 1, 0, 0, 1]),
        ('channel == "o\'hare"', [0, 0, 0, 0, 1]),
        ("100 <= amount < 499", [0, 1, 0, 0, 0]),
        ("amount >= 100 or channel == 'online'", [1, 1, 1, 1, 0]),
        ("amount > 0 and channel == 'online' and declined", [1, 0, 0, 0, 0]),
        ("amount != 5", [0, 1, 1, 0, 1]),
        ("is_missing(amount)", [0, 0, 0, 1, 0]),
        ("amount - 5", [0, 1, 1, 0, 1]),
        ("amount / 0 == 1", [0, 0, 0, 0, 0]),
        ("where(channel == 'pos', amount >= 100, amount < 0)", [0, 1, 0, 0, 1]),
        ("1", [1, 1, 1, 1, 1]),
    ],
)
def test_where_a_condition_holds(text: str, expected: list[int]) -> None:
    condition = Condition(text)
    assert condition.of_columns(TABLE).astype(int).tolist() == expected
    assert [int(condition.of_row(r)) for r in ROWS] == expected


def test_no_rows_at_all() -> None:
    for text in ("amount > 1", "channel == 'x'", "1"):
        assert Condition(text).of_columns(TABLE.slice(0, 0)).tolist() == []


def test_a_condition_names_its_columns() -> None:
    condition = Condition("channel == 'a' and (amount > 1 or channel == 'b') and not declined")
    assert condition.columns == ("amount", "declined", "channel")
    assert [t.text for t in condition.tests] == ["a", "b"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "amount >",
        "amount = 5",
        "channel > 'a'",
        "channel in ('a', 'b')",
        "channel.upper() == 'A'",
        "__import__('os')",
        "amount ** 2 > 4",
        "[amount]",
        "lambda: 1",
        "f'{amount}' == 'a'",
        "'a'",
        "amount if declined else 1",
        "amount > 1e999",
        "\0",
        "(" * 300 + "amount" + ")" * 300,
        "not " * 400 + "amount",
    ],
)
def test_what_is_no_condition(text: str) -> None:
    with pytest.raises(DeclarationError) as e:
        Condition(text)
    assert "condition" in e.value.detail


NUMBERS = st.one_of(st.none(), st.integers(-5, 5))
TEXTS = st.one_of(st.none(), st.sampled_from(["a", "b", ""]))
ATOMS = st.sampled_from(
    ["n > 0", "n <= -2", "-1 <= n < 3", "t == 'a'", "t != 'b'", "t == ''", "n == 2", "n"]
)
CONDITIONS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda p: f"({' '.join(p)})"),
        inner.map(lambda c: f"(not {c})"),
    ),
    max_leaves=8,
)


def truth(text: str, n: int | None, t: str | None) -> bool:
    """Python's own meaning, over values for which no comparison holds where one is missing."""
    values = {"n": _Missing() if n is None else n, "t": _NoText() if t is None else t}
    return bool(eval(text, values))


class _NoText:
    """A text that is neither equal nor unequal to any."""

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return False


class _Missing(float):
    """NaN that is not true."""

    def __new__(cls) -> _Missing:
        return super().__new__(cls, "nan")

    def __ne__(self, other: object) -> bool:
        return False

    def __bool__(self) -> bool:
        return False


@given(CONDITIONS, st.lists(st.tuples(NUMBERS, TEXTS), max_size=8))
def test_columns_rows_and_python_agree(
    text: str, values: list[tuple[int | None, str | None]]
) -> None:
    condition = Condition(text)
    table = pa.table(
        {
            "n": pa.array([n for n, _ in values], pa.int64()),
            "t": pa.array([t for _, t in values], pa.string()),
        }
    )
    rows = [condition.of_row({"n": n, "t": t}) for n, t in values]
    assert condition.of_columns(table).tolist() == rows
    assert rows == [truth(text, n, t) for n, t in values]
