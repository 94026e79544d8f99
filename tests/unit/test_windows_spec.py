"""What a window declaration may say, and what the refusal of the rest tells."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.errors import DeclarationError
from raypipe.windows.spec import (
    DEFAULT_SPANS,
    Aggregate,
    Op,
    Sketch,
    Span,
    WindowView,
    count,
    distinct,
    last,
    maximum,
    mean,
    minimum,
    seconds,
    since_last,
    spans,
    std,
    total,
)


def view(*aggregates: Aggregate, name: str = "card", window: tuple = DEFAULT_SPANS) -> WindowView:
    return WindowView(name, "card", "payment", "card_id", aggregates or (count(),), window)


def refused(make: Callable[[], object]) -> DeclarationError:
    with pytest.raises(DeclarationError) as e:
        make()
    return e.value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1s", 1),
        ("90s", 90),
        ("1m", 60),
        ("30m", 1_800),
        ("24h", 86_400),
        ("36h", 129_600),
        ("7d", 604_800),
    ],
)
def test_durations(text: str, expected: int) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "m", "30", "0m", "00m", "01m", "-1m", "+1m", "1.5h", "1 m", " 1m", "1m ", "1m\n"),
        *("1M", "1w", "1y", "1ms", "1m30s", "１m", "1٢m", "1e3s", "0x1s", "inf"),
    ],
)
def test_what_is_no_duration(text: str) -> None:
    error = refused(lambda: seconds(text))
    assert repr(text) in error.detail
    assert "30m" in error.hint


def test_the_default_spans() -> None:
    assert [(s.label, s.length, s.hop) for s in DEFAULT_SPANS] == [
        ("1m", 60, 1),
        ("5m", 300, 5),
        ("1h", 3_600, 60),
        ("1d", 86_400, 1_800),
        ("7d", 604_800, 10_800),
        ("30d", 2_592_000, 43_200),
    ]


@pytest.mark.parametrize("text", ["1h", "1h/", "/1m", "/", "1h/1m/1s", "1h/x", "1h//1m", "1h/1m\n"])
def test_what_is_no_span(text: str) -> None:
    refused(lambda: Span.parse(text))


@pytest.mark.parametrize("text", ["1h/7m", "1h/1h", "1m/1h", "10s/3s", "1d/7h"])
def test_a_length_is_several_hops(text: str) -> None:
    error = refused(lambda: Span.parse(text))
    assert repr(text) in error.detail
    assert "multiple" in error.detail


@pytest.mark.parametrize(
    "texts",
    [
        ("1h/1m", "1m/1s"),
        ("1h/1m", "1h/1m"),
        ("60s/1s", "1m/1s"),
        ("24h/30m", "1d/30m"),
        ("10s/2s", "30s/3s"),
        ("1m/10s", "1h/1m", "1d/45s"),
        ("1h/2m", "1d/1m"),
        # The hops divide, but at times the longer span reaches less far back than the shorter.
        ("10s/1s", "12s/6s"),
        ("1h/1m", "2h/1h", "1d/1h", "25h/5h"),
        ("1d/30m", "25h/150m"),
    ],
)
def test_spans_that_do_not_nest(texts: tuple[str, ...]) -> None:
    error = refused(lambda: spans(*texts))
    assert "don't nest" in error.detail
    assert error.hint


@pytest.mark.parametrize(
    "texts", [("10s/1s", "15s/5s"), ("10s/1s", "14s/2s"), ("10s/5s", "15s/5s"), ("2s/1s", "9s/3s")]
)
def test_spans_that_just_nest(texts: tuple[str, ...]) -> None:
    assert len(spans(*texts)) == len(texts)


@given(
    st.lists(st.tuples(st.integers(2, 12), st.integers(1, 12)), min_size=2, max_size=4),
    st.integers(-(10**6), 10**6),
)
def test_accepted_spans_hold_each_other_at_any_time(pairs: list[tuple[int, int]], now: int) -> None:
    """The oldest second of a longer span is never after that of a shorter one."""
    try:
        window = spans(*(f"{hops * hop}s/{hop}s" for hops, hop in pairs))
    except DeclarationError:
        return
    for shift in range(60):
        oldest = [((now + shift) // s.hop - s.length // s.hop + 1) * s.hop for s in window]
        assert all(b <= a for a, b in pairwise(oldest))


def test_a_label_that_is_not_its_length_is_refused() -> None:
    refused(lambda: view(window=(Span("1d", 3_600, 60),)))
    refused(lambda: view(window=(Span("1h", 3_600, 7),)))


@pytest.mark.parametrize(
    "name", ["", "Card", "1card", "_card", "card-x", "card x", "card\n", "cärd", "a/b"]
)
def test_view_names(name: str) -> None:
    error = refused(lambda: view(name=name))
    assert repr(name) in error.detail
    assert "lower case" in error.hint


def test_a_view_needs_aggregates_and_1_to_16_spans() -> None:
    assert "no aggregate" in refused(lambda: WindowView("v", "e", "p", "k", ())).detail
    assert "1 to 16" in refused(lambda: view(window=())).detail
    many = spans(*(f"{n}s/1s" for n in range(2, 19)))
    assert "1 to 16" in refused(lambda: view(window=many)).detail
    assert len(view(window=many[:16]).columns) == 16


@pytest.mark.parametrize(
    "aggregate",
    [
        count(["2h"]),
        count("1h"),
        total("amount", ["1h", "60m"]),
        count(lags=[("30d", "8d")]),
        count(lags=[("8d", "1d")]),
    ],
)
def test_an_unknown_span_is_refused_with_the_known_ones(aggregate: Aggregate) -> None:
    error = refused(lambda: view(aggregate))
    assert "has no span" in error.detail
    assert "1m, 5m, 1h, 1d, 7d, 30d" in error.hint


@pytest.mark.parametrize("lag", [("1h", "1d"), ("1h", "1h")])
def test_a_lag_is_a_longer_span_less_a_shorter_one(lag: tuple[str, str]) -> None:
    assert f"lag {lag[0]} before {lag[1]}" in refused(lambda: view(count(lags=[lag]))).detail


@pytest.mark.parametrize("op", [Op.MIN, Op.MAX, Op.STD, Op.DISTINCT])
def test_only_count_sum_and_mean_have_lags(op: Op) -> None:
    error = refused(lambda: view(Aggregate(op, "amount", (), (("7d", "1d"),))))
    assert f"amount_{op.name.lower()} can't be a difference" in error.detail
    assert "count, sum and mean" in error.hint


@pytest.mark.parametrize("bits", [0, -64, 1, 32, 63, 65, 96, 192, 1_000])
def test_sketches_are_powers_of_two_from_64_bits(bits: int) -> None:
    error = refused(lambda: view(distinct("shop", bits=bits)))
    assert f"{bits} bits" in error.detail
    assert "power of two" in error.hint


@pytest.mark.parametrize("bits", [64, 128, 4_096])
def test_widths_that_work(bits: int) -> None:
    assert view(distinct("shop", bits=bits)).sketches == (Sketch("shop", bits, 0),)


@pytest.mark.parametrize("registers", [-64, 1, 16, 63, 65, 96, 32_768])
def test_registers_are_powers_of_two_from_64(registers: int) -> None:
    error = refused(lambda: view(distinct("shop", registers=registers)))
    assert f"{registers} registers" in error.detail
    assert "power of two" in error.hint


@pytest.mark.parametrize("registers", [64, 1_024, 16_384])
def test_registers_that_work(registers: int) -> None:
    assert view(distinct("shop", registers=registers)).sketches == (Sketch("shop", 0, registers),)


def test_bits_and_registers_of_one_column_are_two_widths() -> None:
    error = refused(lambda: view(distinct("shop", ["1m"]), distinct("shop", ["1h"], registers=64)))
    assert "two widths for 'shop'" in error.detail


@pytest.mark.parametrize("steps", [(), (0,), (-1,), (1, 0), (65,)])
def test_steps_count_back_from_the_newest(steps: tuple[int, ...]) -> None:
    for make in (lambda: view(last("amount", steps)), lambda: view(since_last(steps))):
        error = refused(make)
        assert str(steps) in error.detail
        assert "the newest event" in error.hint


def test_a_condition_needs_a_name() -> None:
    error = refused(lambda: view(count(where="amount > 5")))
    assert "count where 'amount > 5' needs a name" in error.detail
    assert "name=" in error.hint


@pytest.mark.parametrize("where", ["amount >", "amount > 'a'", "open('x')", "amount in (1, 2)"])
def test_a_condition_outside_the_grammar_is_refused(where: str) -> None:
    assert repr(where) in refused(lambda: view(count(where=where, name="x"))).detail


@pytest.mark.parametrize("name", ["Online", "1st", "on line", "a-b"])
def test_names_of_conditions(name: str) -> None:
    assert repr(name) in refused(lambda: view(count(where="amount > 5", name=name))).detail


def test_equal_names_under_two_conditions_are_refused() -> None:
    error = refused(lambda: view(count(where="a > 1", name="x"), count(where="a > 2", name="x")))
    assert "more than once" in error.detail
    assert "name=" in error.hint


def test_conditions_are_few() -> None:
    many = [count(["1h"], where=f"amount > {i}", name=f"over_{i}") for i in range(33)]
    assert len(view(*many[:32]).filters) == 32
    error = refused(lambda: view(*many))
    assert "33 conditions" in error.detail
    assert "several views" in error.hint


def test_an_aggregate_is_of_an_event_type_that_the_view_counts() -> None:
    error = refused(lambda: view(count(of="login")))
    assert "of 'login'" in error.detail
    assert "payment" in error.hint
    both = WindowView("v", "card", "payment", "card_id", (count(of="login"),), also=("login",))
    assert both.events == ("payment", "login")
    assert both.column_names[0] == "v_login_count_1m"
    error = refused(lambda: WindowView("v", "c", "p", "k", (count(),), also=("login", "p")))
    assert "more than once" in error.detail


def test_columns_of_conditions_and_last_events_are_named() -> None:
    v = view(
        count(["1h"], where="amount > 5", name="large"),
        last("amount", (1, 3)),
        since_last((1, 2)),
        since_last(where="amount > 5", name="large"),
    )
    assert v.column_names == (
        "card_large_count_1h",
        "card_amount_last",
        "card_amount_last_3",
        "card_since_last",
        "card_since_last_2",
        "card_large_since_last",
    )
    assert v.summed_columns == ()
    assert v.value_columns == ("amount",)
    assert len(v.filters) == 1


def test_one_column_has_one_width() -> None:
    error = refused(lambda: view(distinct("shop", ["1m"]), distinct("shop", ["1h"], bits=128)))
    assert "two widths for 'shop'" in error.detail


@pytest.mark.parametrize("op", [Op.SUM, Op.MEAN, Op.MIN, Op.MAX, Op.STD, Op.DISTINCT])
def test_an_operation_on_a_column_needs_one(op: Op) -> None:
    assert "needs a column" in refused(lambda: view(Aggregate(op))).detail


@pytest.mark.parametrize(
    "aggregates",
    [
        (count(), count()),
        (count(["1h"]), count(["1d", "1h"])),
        (count(["1h", "1h"]),),
        (since_last(), since_last()),
        (total("amount"), total("amount", ["1m"])),
        (count(lags=[("7d", "1d"), ("7d", "1d")]),),
        (distinct("a"), distinct("a", ["1m"])),
    ],
)
def test_a_column_is_declared_once(aggregates: tuple[Aggregate, ...]) -> None:
    assert "more than once" in refused(lambda: view(*aggregates)).detail


def test_columns_are_named_in_declared_order() -> None:
    v = view(
        count(["1h"], lags=[("7d", "1d")]),
        total("amount", ["1m"]),
        mean("amount", ["1d"], lags=[("30d", "7d"), ("1h", "1m")]),
        minimum("amount", ["5m"]),
        maximum("other", ["5m"]),
        std("amount", ["30d"]),
        distinct("shop", ["1d", "1m"], bits=128),
        since_last(),
    )
    assert v.column_names == (
        "card_count_1h",
        "card_count_7d_before_1d",
        "card_amount_sum_1m",
        "card_amount_mean_1d",
        "card_amount_mean_30d_before_7d",
        "card_amount_mean_1h_before_1m",
        "card_amount_min_5m",
        "card_other_max_5m",
        "card_amount_std_30d",
        "card_shop_distinct_1d",
        "card_shop_distinct_1m",
        "card_since_last",
    )
    assert v.value_columns == ("amount", "other")
    assert v.sketches == (Sketch("shop", 128, 0),)
    assert v.horizon == 30 * 86_400


def test_the_definition_hash_follows_what_determines_values() -> None:
    base = view(count(), distinct("shop"))
    same = WindowView(
        "card", "card", "payment", "card_id", (count(), distinct("shop")), DEFAULT_SPANS,
        "some words", "an owner", (("a", "b"),),
    )  # fmt: skip
    assert same.definition_hash == base.definition_hash
    others = [
        view(count(), distinct("shop"), name="other"),
        view(distinct("shop"), count()),
        view(count(), distinct("shop", bits=128)),
        view(count(), distinct("place")),
        view(count(), distinct("shop"), window=spans("1m/2s", "5m/10s")),
        WindowView("card", "user", "payment", "card_id", (count(), distinct("shop"))),
        WindowView("card", "card", "refund", "card_id", (count(), distinct("shop"))),
        WindowView("card", "card", "payment", "card", (count(), distinct("shop"))),
        view(count(), distinct("shop", registers=64)),
        view(count(where="amount > 5", name="x"), distinct("shop")),
        view(count(where="amount > 6", name="x"), distinct("shop")),
        view(count(), distinct("shop"), last("amount")),
        view(count(), distinct("shop"), last("amount", (2,))),
        WindowView(
            "card",
            "card",
            "payment",
            "card_id",
            (count(), distinct("shop")),
            also=("login",),
        ),
    ]
    hashes = {v.definition_hash for v in [base, *others]}
    assert len(hashes) == 1 + len(others)
