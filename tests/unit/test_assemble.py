"""Feature vectors: columns and a row give the same float32 bits, whatever is missing."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.payments import project as payments
from raypipe.clock import DAY_MS
from raypipe.events.schema import AMOUNT_LIMIT, EventType, Field, Kind
from raypipe.profiles import Profile, Value, facts
from raypipe.project import Entity, Label, Model, Project
from raypipe.simulate.config import WorldConfig
from raypipe.simulate.world import World
from raypipe.vector.assemble import Assembler, raw_columns
from raypipe.vector.expressions import Derived
from raypipe.windows.engine import WindowEngine
from raypipe.windows.spec import WindowView, count, mean, since_last, spans, std, total

CANONICAL_NAN = struct.pack("<I", 0x7FC00000)

ORDER = EventType(
    "order",
    (
        Field("buyer", Kind.STRING),
        Field("note", Kind.STRING, required=False),
        Field("amount", Kind.AMOUNT),
        Field("items", Kind.INTEGER, required=False),
        Field("weight", Kind.NUMBER, required=False),
        Field("gift", Kind.BOOLEAN, required=False),
        Field("due", Kind.TIME, required=False),
        Field("channel", Kind.CHOICE, required=False, choices=("shop", "web", "phone")),
        Field("currency", Kind.CURRENCY),
    ),
)
VIEW = WindowView(
    "buyer",
    "buyer",
    "order",
    "buyer",
    (count(), total("amount"), mean("amount"), std("amount"), since_last()),
    spans("1m/1s", "1h/1m"),
)
HABIT = Profile(
    "habit",
    "buyer",
    "buyer",
    (facts("order", orders="count(*)", spent="sum(amount)"),),
    (Value("orders", "sum(orders)"), Value("mean", "sum(spent) / sum(orders)")),
)
DERIVED = (
    Derived("ratio", "amount / buyer_amount_mean_1h"),
    Derived("to_habit", "amount / habit_mean"),
    Derived("z", "(amount - buyer_amount_mean_1h) / buyer_amount_std_1h"),
    Derived("is_new", "is_missing(buyer_since_last)"),
    Derived("each", "weight / items"),
    Derived("sooner", "minimum(due, event_time) - event_time"),
    Derived("negative_zero", "floor(-buyer_count_1m)"),
    Derived("by_phone", "channel == 2"),
    Derived("not_web", "channel != 1"),
    Derived("huge", "amount * amount * amount * amount"),
)
RAW = ("event_time", "amount", "items", "weight", "gift", "due", "channel")
project = Project(
    name="orders",
    events=(ORDER,),
    entities=(Entity("buyer"),),
    views=(VIEW,),
    derived=DERIVED,
    decision="order",
    label=Label("order", "event_id", DAY_MS),
    models=(
        Model("all", (*RAW, *VIEW.column_names, *HABIT.column_names, *(d.name for d in DERIVED))),
        Model("few", ("z", "channel", "buyer_count_1m")),
    ),
    profiles=(HABIT,),
)
ASSEMBLER = Assembler(project, project.model("all"))

INT64 = st.integers(-(2**63), 2**63 - 1)
ORDERS = st.fixed_dictionaries(
    {
        "tenant": st.just("t"),
        "event_id": st.just("e"),
        "event_time": st.integers(0, 2**42),
        "received_at": st.integers(0, 2**42),
        "buyer": st.sampled_from(["a", "b"]),
        "note": st.none() | st.just("n"),
        "amount": st.integers(1 - AMOUNT_LIMIT, AMOUNT_LIMIT - 1),
        "items": st.none() | INT64 | st.sampled_from([0, 2**53 + 1, -(2**53) - 1, 2**24 + 1]),
        "weight": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "gift": st.none() | st.booleans(),
        "due": st.none() | INT64,
        "channel": st.none() | st.sampled_from(["shop", "web", "phone"]),
        "currency": st.just("EUR"),
    }
)
WINDOWS = st.tuples(
    *[st.floats(width=64) | st.integers(0, 99).map(float)]
    * (len(project.window_names) + len(project.profile_names))
)
"""Window values, then profile values."""


def columns_and_rows(
    assembler: Assembler, p: Project, events: list[dict[str, Any]], values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    table = pa.Table.from_pylist(events, p.decision_event.arrow_schema)
    names = (*p.window_names, *p.profile_names)
    by_name = {n: np.ascontiguousarray(values[:, i]) for i, n in enumerate(names)}
    windows = {n: by_name[n] for n in p.window_names}
    profiles = {n: by_name[n] for n in p.profile_names}
    columns = assembler.columns(raw_columns(p.decision_event, table), windows, profiles)
    cut = len(p.window_names)
    rows = [
        assembler.row(e, v[:cut].tobytes(), v[cut:].tolist())
        for e, v in zip(events, values, strict=True)
    ]
    return columns, np.stack(rows)


@given(st.lists(st.tuples(ORDERS, WINDOWS), min_size=1, max_size=10))
def test_columns_and_rows_are_the_same_bytes(
    drawn: list[tuple[dict[str, Any], tuple[float, ...]]],
) -> None:
    events = [e for e, _ in drawn]
    values = np.array([v for _, v in drawn], np.float64)
    columns, rows = columns_and_rows(ASSEMBLER, project, events, values)
    assert columns.dtype == rows.dtype == np.float32
    assert columns.shape == (len(events), len(project.model("all").features))
    assert columns.tobytes() == rows.tobytes()
    missing = columns[~np.isfinite(columns)]
    assert missing.tobytes() == CANONICAL_NAN * len(missing)


def test_simulated_payments_are_the_same_bytes() -> None:
    config = WorldConfig(seed=5, start_ms=1_780_000_000_000, days=20, customers=60)
    table = next(World(config).batches()).transactions
    events = [e | {"tenant": "t"} for e in table.to_pylist()]
    engine = WindowEngine(payments.views, payments.decision)
    windows = np.frombuffer(
        b"".join(engine.observe("transaction", e, i) for i, e in enumerate(events))
    ).reshape(len(events), -1)
    assembler = Assembler(payments, payments.model("fraud"))
    profiles = np.random.default_rng(5).uniform(0, 99, (len(events), len(payments.profile_names)))
    profiles[::7] = np.nan
    values = np.hstack([windows, profiles])
    columns, rows = columns_and_rows(assembler, payments, events, values)
    assert len(events) > 1_000
    assert columns.tobytes() == rows.tobytes()
    assert np.isnan(columns).any(axis=0).sum() < columns.shape[1]
    names = payments.model("fraud").features
    amounts = np.array([e["amount"] for e in events], np.float32)
    assert np.array_equal(columns[:, names.index("amount")], amounts)
    means = columns[:, names.index("card_amount_mean_30d")]
    known = np.isfinite(means) & (means != 0)
    expected = (amounts[known] / means[known]).astype(np.float64)
    found = columns[known, names.index("amount_to_card_30d")]
    assert known.sum() > 100
    assert np.allclose(found, expected, rtol=1e-6)


NO_WINDOWS = [0.0] * len(project.window_names)
NO_PROFILES = [0.0] * len(project.profile_names)


def vector(event: dict[str, Any], windows: list[float] | None = None) -> dict[str, float]:
    """The vector of one order by feature name, the same both ways."""
    full = dict.fromkeys((f.name for f in ORDER.all_fields), None)
    full |= {"tenant": "t", "event_id": "e", "event_time": 0, "received_at": 0}
    full |= {"buyer": "a", "amount": 0, "currency": "EUR"} | event
    values = np.array([[*(windows or NO_WINDOWS), *NO_PROFILES]], np.float64)
    columns, rows = columns_and_rows(ASSEMBLER, project, [full], values)
    assert columns.tobytes() == rows.tobytes()
    return dict(zip(project.model("all").features, rows[0].tolist(), strict=True))


def test_missing_optional_fields_are_missing_numbers() -> None:
    found = vector({})
    for name in ("items", "weight", "gift", "due", "channel", "each", "sooner"):
        assert math.isnan(found[name])
    assert found["by_phone"] == found["not_web"] == 0.0


def test_a_row_may_leave_a_missing_field_out() -> None:
    event = {"event_time": 5, "amount": 7}
    bare = ASSEMBLER.row(event, NO_WINDOWS, NO_PROFILES)
    full = ASSEMBLER.row(
        event | dict.fromkeys(["items", "weight", "gift", "due", "channel"]),
        NO_WINDOWS,
        NO_PROFILES,
    )
    assert bare.tobytes() == full.tobytes()


@pytest.mark.parametrize(("choice", "code"), [("shop", 0.0), ("web", 1.0), ("phone", 2.0)])
def test_a_choice_is_its_place(choice: str, code: float) -> None:
    found = vector({"channel": choice})
    assert found["channel"] == code
    assert found["by_phone"] == (code == 2)
    assert found["not_web"] == (code != 1)


def test_booleans_are_0_and_1() -> None:
    assert vector({"gift": True})["gift"] == 1.0
    assert vector({"gift": False})["gift"] == 0.0


def test_what_float32_cannot_hold_is_missing() -> None:
    assert math.isnan(vector({"weight": 1e39})["weight"])
    assert math.isnan(vector({"amount": AMOUNT_LIMIT - 1})["huge"])
    assert vector({"weight": 1e-50})["weight"] == 0.0
    assert vector({"weight": 3.4e38})["weight"] == pytest.approx(3.4e38, rel=1e-6)


@pytest.mark.parametrize("items", [2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63)])
def test_integers_past_53_bits_are_rounded_not_refused(items: int) -> None:
    assert vector({"items": items})["items"] == np.float32(float(items))


def test_the_features_of_a_model_come_in_its_order() -> None:
    few = Assembler(project, project.model("few"))
    everything = vector({"channel": "web", "amount": 30}, [2, 5, 0, 0, 10, 10, 0, 4, 60])
    found = few.row(
        {"event_time": 0, "amount": 30, "channel": "web"},
        [2, 5, 0, 0, 10, 10, 0, 4, 60],
        NO_PROFILES,
    )
    assert few.features == ("z", "channel", "buyer_count_1m")
    assert found.tolist() == [everything[n] for n in few.features] == [5.0, 1.0, 2.0]


def test_no_event_gives_an_empty_matrix() -> None:
    raw = raw_columns(ORDER, ORDER.arrow_schema.empty_table())
    assert tuple(raw) == RAW
    nothing = {n: np.zeros(0) for n in project.input_names}
    empty = ASSEMBLER.columns(raw, nothing, nothing)
    assert empty.shape == (0, len(project.model("all").features))


def test_chunks_and_slices_of_a_table_are_the_whole() -> None:
    schema = ORDER.arrow_schema
    base = {"tenant": "t", "event_id": "e", "received_at": 0, "buyer": "a", "currency": "EUR"}
    rows = [
        base | {"event_time": i, "amount": i, "items": None if i % 3 else i, "channel": "web"}
        for i in range(9)
    ]
    table = pa.Table.from_pylist(rows, schema)
    chunked = pa.concat_tables([table.slice(0, 2), table.slice(2, 0), table.slice(2)])
    for name, column in raw_columns(ORDER, table).items():
        assert raw_columns(ORDER, chunked)[name].tobytes() == column.tobytes()
        assert raw_columns(ORDER, table.slice(3, 4))[name].tobytes() == column[3:7].tobytes()


@pytest.mark.parametrize("count_", [0, 1, 99])
def test_the_wrong_number_of_window_values_is_refused(count_: int) -> None:
    event = {"event_time": 0, "amount": 0}
    for windows in ([0.0] * count_, np.zeros(count_).tobytes()):
        with pytest.raises(ValueError, match=f"{count_} window values"):
            ASSEMBLER.row(event, windows, NO_PROFILES)


def test_the_wrong_number_of_profile_values_is_refused() -> None:
    with pytest.raises(ValueError, match="1 profile values"):
        ASSEMBLER.row({"event_time": 0, "amount": 0}, NO_WINDOWS, [1.0])


def test_all_inputs_stay_as_they_were() -> None:
    raw = {n: np.ones(2) for n in RAW}
    windows = {n: np.ones(2) for n in project.window_names}
    profiles = {n: np.ones(2) for n in project.profile_names}
    for a in (*raw.values(), *windows.values(), *profiles.values()):
        a.setflags(write=False)
    ASSEMBLER.columns(raw, windows, profiles)
    event = {"event_time": 0, "amount": 0}
    ASSEMBLER.row(event, NO_WINDOWS, NO_PROFILES)
    assert event == {"event_time": 0, "amount": 0}
