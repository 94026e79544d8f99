"""Derived features: columns and a row agree in every bit, and only the whitelist gets through."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.errors import DeclarationError
from raypipe.vector.expressions import ARITY, Derived, compile_columns, compile_row

INPUTS = ("x", "y", "z")
COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")

ODD = [
    *(0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, math.nan, math.inf, -math.inf),
    *(5e-324, -5e-324, 2.2250738585072014e-308, 1.7976931348623157e308, -1.7976931348623157e308),
    *(
        2.0**52 + 0.5,
        2.0**53,
        2.0**63,
        -(2.0**63),
        1e15 + 0.3,
        0.1,
        1 / 3,
        1e-5,
        1_780_000_000_000.0,
    ),
]
FLOATS = st.one_of(st.sampled_from(ODD), st.floats(), st.integers(-9, 9).map(float))
LITERALS = st.one_of(
    st.sampled_from(["0", "1", "7", "0.0", "0.5", "1e-320", "1e308", "1_000", "0x10", "3600000"]),
    st.floats(0, allow_nan=False, allow_infinity=False).map(repr),
    st.integers(0, 2**70).map(str),
)


def _call(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.sampled_from(sorted(ARITY)).flatmap(
        lambda name: st.tuples(*[children] * ARITY[name]).map(lambda a: f"{name}({', '.join(a)})")
    )


def expressions(names: tuple[str, ...]) -> st.SearchStrategy[str]:
    """Any expression of the grammar over some names."""
    return st.recursive(
        st.sampled_from(names) | LITERALS,
        lambda children: st.one_of(
            children.map(lambda a: f"-{a}"),
            st.tuples(children, st.sampled_from("+-*/"), children).map(
                lambda p: "({} {} {})".format(*p)
            ),
            st.tuples(children, st.sampled_from(COMPARISONS), children).map(
                lambda p: "({} {} {})".format(*p)
            ),
            _call(children),
        ),
        max_leaves=12,
    )


def both(
    derived: list[Derived], columns: dict[str, list[float]]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The derived columns, computed as columns and row by row."""
    inputs = tuple(columns)
    arrays = {n: np.array(v, np.float64) for n, v in columns.items()}
    by_column = compile_columns(derived, inputs)(arrays)
    program = compile_row(derived, inputs)
    rows = []
    for values in zip(*columns.values(), strict=True):
        row = dict(zip(inputs, values, strict=True))
        program(row)
        rows.append(row)
    by_row = {d.name: np.array([r[d.name] for r in rows], np.float64) for d in derived}
    return by_column, by_row


def bits(values: np.ndarray) -> list[int]:
    """Bit patterns, with one for all NaNs: the assembler makes them one."""
    return np.where(np.isnan(values), np.nan, values).view(np.uint64).tolist()


def one(expression: str, **values: float) -> float:
    """The value of an expression, asserted to be the same in both forms."""
    by_column, by_row = both([Derived("out", expression)], {n: [v] for n, v in values.items()})
    assert bits(by_column["out"]) == bits(by_row["out"])
    return float(by_row["out"][0])


@given(
    st.lists(expressions(INPUTS), min_size=1, max_size=3),
    expressions((*INPUTS, "d0")),
    st.lists(st.tuples(FLOATS, FLOATS, FLOATS), min_size=1, max_size=12),
)
def test_columns_and_rows_agree_in_every_bit(
    first: list[str], last: str, rows: list[tuple[float, float, float]]
) -> None:
    derived = [Derived(f"d{i}", e) for i, e in enumerate(first)] + [Derived("last", last)]
    columns = {n: [r[i] for r in rows] for i, n in enumerate(INPUTS)}
    by_column, by_row = both(derived, columns)
    assert list(by_column) == [d.name for d in derived]
    for d in derived:
        assert by_column[d.name].dtype == np.float64
        assert by_column[d.name].shape == (len(rows),)
        assert bits(by_column[d.name]) == bits(by_row[d.name]), d.expression


@pytest.mark.parametrize("name", sorted(ARITY))
def test_every_function_agrees_on_every_odd_number(name: str) -> None:
    arity = ARITY[name]
    grid = np.meshgrid(*[ODD] * arity)
    columns = {n: g.ravel().tolist() for n, g in zip(INPUTS, grid, strict=False)}
    by_column, by_row = both([Derived("out", f"{name}({', '.join(columns)})")], columns)
    assert bits(by_column["out"]) == bits(by_row["out"])


@pytest.mark.parametrize("operator", [*"+-*/", *COMPARISONS])
def test_every_operator_agrees_on_every_odd_pair(operator: str) -> None:
    x, y = (g.ravel().tolist() for g in np.meshgrid(ODD, ODD))
    by_column, by_row = both([Derived("out", f"x {operator} y")], {"x": x, "y": y})
    assert bits(by_column["out"]) == bits(by_row["out"])


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("expression", "values", "expected"),
    [
        ("x + y * z", {"x": 1, "y": 2, "z": 3}, 7),
        ("(x + y) * z", {"x": 1, "y": 2, "z": 3}, 9),
        ("x - y - z", {"x": 1, "y": 2, "z": 3}, -4),
        ("x / y / z", {"x": 12, "y": 2, "z": 3}, 2),
        ("-x + y", {"x": 1, "y": 2}, 1),
        ("x / y", {"x": 1, "y": 0.0}, NAN),
        ("x / y", {"x": 0, "y": -0.0}, NAN),
        ("x / y", {"x": 1, "y": INF}, 0.0),
        ("x / y", {"x": 1e308, "y": 1e-308}, INF),
        ("x * y", {"x": 1e308, "y": 1e308}, INF),
        ("x - y", {"x": INF, "y": INF}, NAN),
        ("x < y", {"x": 1, "y": 2}, 1),
        ("x < y", {"x": 2, "y": 2}, 0),
        ("x <= y", {"x": 2, "y": 2}, 1),
        ("x > y", {"x": 2, "y": 1}, 1),
        ("x >= y", {"x": 2, "y": 3}, 0),
        ("x == y", {"x": 0.0, "y": -0.0}, 1),
        ("x != y", {"x": 1, "y": 2}, 1),
        ("x != y", {"x": 2, "y": 2}, 0),
        ("x < y", {"x": NAN, "y": 1}, 0),
        ("x >= y", {"x": NAN, "y": 1}, 0),
        ("x == y", {"x": NAN, "y": NAN}, 0),
        ("x != y", {"x": NAN, "y": 1}, 0),
        ("x != y", {"x": NAN, "y": NAN}, 0),
        ("x != y", {"x": INF, "y": -INF}, 1),
        ("x != y", {"x": INF, "y": INF}, 0),
        ("where(x, y, z)", {"x": 1, "y": 2, "z": 3}, 2),
        ("where(x, y, z)", {"x": 0.0, "y": 2, "z": 3}, 3),
        ("where(x, y, z)", {"x": NAN, "y": 2, "z": 3}, 3),
        ("where(x < y, y, z)", {"x": 1, "y": 2, "z": 3}, 2),
        ("coalesce(x, y)", {"x": NAN, "y": 2}, 2),
        ("coalesce(x, y)", {"x": 1, "y": 2}, 1),
        ("is_missing(x)", {"x": NAN}, 1),
        ("is_missing(x)", {"x": INF}, 0),
        ("minimum(x, y)", {"x": 1, "y": 2}, 1),
        ("maximum(x, y)", {"x": 1, "y": 2}, 2),
        ("minimum(x, y)", {"x": 1, "y": NAN}, NAN),
        ("maximum(x, y)", {"x": NAN, "y": 1}, NAN),
        ("absolute(x)", {"x": -3}, 3),
        ("floor(x)", {"x": -1.5}, -2),
        ("floor(x)", {"x": INF}, INF),
        ("floor(x)", {"x": 1e300}, 1e300),
        ("floor(x)", {"x": -0.0}, -0.0),
        ("sqrt(x)", {"x": 9}, 3),
        ("sqrt(x)", {"x": -1}, NAN),
        ("1 + 2 * 3", {"x": 0}, 7),
        ("1 / 0", {"x": 0}, NAN),
        ("where(1 < 2, 5, 6)", {"x": 0}, 5),
    ],
)
def test_meaning(expression: str, values: dict[str, float], expected: float) -> None:
    found = one(expression, **values)
    assert np.array([found]).view(np.uint64) == np.array([expected], np.float64).view(
        np.uint64
    ) or (math.isnan(found) and math.isnan(expected))


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIMES = st.integers(-62_135_596_800_000, 253_402_300_799_999)


@given(TIMES)
def test_hour_and_day_are_those_of_the_calendar(ms: int) -> None:
    when = EPOCH + timedelta(milliseconds=ms)
    midnight = when.replace(hour=0, minute=0, second=0, microsecond=0)
    assert one("hour_of_day(x)", x=float(ms)) == (when - midnight) / timedelta(hours=1)
    assert one("day_of_week(x)", x=float(ms)) == when.weekday()


@pytest.mark.parametrize(
    "day", [datetime(2026, 11, 23, tzinfo=UTC), datetime(1969, 12, 29, tzinfo=UTC)]
)
def test_a_monday_is_0_and_its_edges_are_sharp(day: datetime) -> None:
    ms = (day - EPOCH) // timedelta(milliseconds=1)
    assert one("day_of_week(x)", x=ms - 1) == 6
    assert one("day_of_week(x)", x=ms) == 0
    assert one("hour_of_day(x)", x=ms) == 0
    assert one("hour_of_day(x)", x=ms - 1) == pytest.approx(24, abs=1e-6)
    assert one("hour_of_day(x)", x=ms - 1) < 24


def test_a_constant_is_a_column_of_its_length() -> None:
    by_column, by_row = both([Derived("c", "2 * 3")], {"x": [1.0, 2.0, 3.0]})
    assert by_column["c"].tolist() == by_row["c"].tolist() == [6.0, 6.0, 6.0]


def test_no_rows_give_no_values() -> None:
    by_column, _ = both([Derived("c", "x + 1"), Derived("d", "7")], {"x": []})
    assert by_column["c"].shape == by_column["d"].shape == (0,)


def test_nothing_derived_is_no_work() -> None:
    assert compile_columns([], INPUTS)({"x": np.zeros(1)}) == {}
    row = {"x": 1.0}
    compile_row([], INPUTS)(row)
    assert row == {"x": 1.0}


def test_inputs_are_left_alone() -> None:
    x = np.array([1.0, math.nan])
    x.setflags(write=False)
    found = compile_columns([Derived("a", "x"), Derived("b", "-a")], ("x",))({"x": x})
    assert list(found) == ["a", "b"]
    assert x[0] == 1.0


def test_a_name_may_be_that_of_a_function() -> None:
    assert one("where + v", where=1.0, v=2.0) == 3.0


def refusal(expression: str, inputs: tuple[str, ...] = INPUTS) -> DeclarationError:
    """The error of both compilers, which must be the same."""
    errors = []
    for compiler in (compile_columns, compile_row):
        with pytest.raises(DeclarationError) as e:
            compiler([Derived("bad", expression)], inputs)
        errors.append(e.value)
    assert str(errors[0]) == str(errors[1])
    assert "'bad'" in errors[0].detail
    assert errors[0].hint
    return errors[0]


@pytest.mark.parametrize(
    "expression",
    [
        "x.real",
        "x.__class__.__mro__",
        "().__class__",
        "(1).__class__",
        "print(x)",
        "__import__('os')",
        "open('f')",
        "eval('x')",
        "where.__globals__",
        "where(x, y, z)(1)",
        "(lambda: x)()",
        "lambda: x",
        "x[0]",
        "v['x']",
        "'x'",
        "b'x'",
        "f'{x}'",
        "None",
        "True",
        "...",
        "1j",
        "[x]",
        "(x, y)",
        "{x}",
        "{x: y}",
        "[i for i in x]",
        "(i for i in x)",
        "x if y else z",
        "x and y",
        "not x",
        "~x",
        "+x",
        "x ** y",
        "x % y",
        "x // y",
        "x @ y",
        "x | y",
        "x << y",
        "x < y < z",
        "x in y",
        "x is y",
        "(x := 1)",
        "*x",
        "minimum(*x)",
        "minimum(*x, y)",
        "minimum(x, **y)",
        "minimum(x, b=y)",
        "divide(x, y)",
        "flag(x)",
        "log(x)",
        "abs(x)",
        "await x",
        "yield x",
    ],
)
def test_what_is_not_on_the_list_is_refused(expression: str) -> None:
    refusal(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        " ",
        "x +",
        "x y",
        "x; y",
        "x = y",
        "x\ny",
        "import os",
        "(x",
        "x)",
        "x\0",
        "\ud800",
        "1__0",
        "é è",
    ],
)
def test_what_is_no_expression_is_refused(expression: str) -> None:
    refusal(expression)


@pytest.mark.parametrize("name", sorted(ARITY))
def test_a_wrong_number_of_arguments_says_the_right_one(name: str) -> None:
    for n in {0, ARITY[name] - 1, ARITY[name] + 1}:
        assert (
            f"takes {ARITY[name]} arguments, got {n}"
            in refusal(f"{name}({', '.join('x' * n)})").detail
        )


@pytest.mark.parametrize("number", ["1e999", "1" * 400, "1" * 5_000, "0x" + "f" * 300])
def test_a_number_that_no_float_holds_is_refused(number: str) -> None:
    refusal(f"x * {number}")


@pytest.mark.parametrize("depth", [150, 190, 250, 1_000, 5_000, 50_000])
@pytest.mark.parametrize(
    "form",
    [
        lambda n: "-" * n + "x",
        lambda n: "+".join(["x"] * n),
        lambda n: "(" * n + "x" + ")" * n,
        lambda n: "floor(" * n + "x" + ")" * n,
        lambda n: "(1+" * n + "x" + ")" * n,
        lambda n: "[" + "-" * n + "x]",
        lambda n: "x" + " < x" * n,
        lambda n: "x" + ".a" * n,
        lambda n: "f(" + "-" * n + "x)",
    ],
    ids=[
        "minus",
        "sum",
        "parentheses",
        "calls",
        "groups",
        "list",
        "chain",
        "attributes",
        "unknown",
    ],
)
def test_deep_nesting_works_or_is_refused(form: object, depth: int) -> None:
    """Never a RecursionError, MemoryError or SyntaxError of the interpreter."""
    expression = form(depth)  # type: ignore[operator]
    try:
        assert not math.isnan(one(expression, x=1.0))
    except DeclarationError:
        refusal(expression, ("x",))


def test_sums_of_a_hundred_terms_work() -> None:
    assert one("+".join(["x"] * 90), x=1.0) == 90


def test_an_unknown_name_gets_the_nearest_one() -> None:
    error = refusal("amuont / 2", ("amount", "count"))
    assert "unknown name 'amuont'" in error.detail
    assert error.hint == "Did you mean 'amount'?"


def test_only_earlier_derived_features_are_known() -> None:
    derived = [Derived("a", "b + 1"), Derived("b", "x")]
    with pytest.raises(DeclarationError, match="unknown name 'b'"):
        compile_columns(derived, INPUTS)
    with pytest.raises(DeclarationError, match="unknown name 'a'"):
        compile_row([Derived("a", "a")], INPUTS)


@pytest.mark.parametrize("derived", [[Derived("x", "y")], [Derived("a", "x"), Derived("a", "y")]])
def test_a_taken_name_is_refused(derived: list[Derived]) -> None:
    for compiler in (compile_columns, compile_row):
        with pytest.raises(DeclarationError, match="its name is taken"):
            compiler(derived, INPUTS)


def test_nothing_of_the_interpreter_is_in_reach() -> None:
    program = compile_row([Derived("a", "x")], INPUTS)
    assert program.__globals__["__builtins__"] == {}
