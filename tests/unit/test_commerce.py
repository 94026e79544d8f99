"""The shop's declarations: they load, and a small day's events give the values one counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features.commerce import project
from features.profiles.daily import check
from raypipe.clock import HOUR_MS
from raypipe.events.row import RowValidator
from raypipe.log.port import Chunk
from raypipe.project import load_project
from raypipe.vector.assemble import Assembler
from raypipe.windows.engine import WindowEngine

NOON = 1_790_078_400_000
MINUTE_MS = 60_000

VISIT = {"session_id": "s-1", "device_id": "d-1"}
MONEY = {"customer_id": "c-1", "amount": 12_000, "currency": "EUR"}
PAID = MONEY | {"order_id": "o-1", "card_id": "k-1", "merchant_id": "m-1"}
STREAM: list[tuple[int, str, dict[str, Any]]] = [
    (0, "login", {"customer_id": "c-1", "success": False, "new_device": True}),
    (1, "login", {"customer_id": "c-1", "device_id": "d-1", "success": False, "country": "DE"}),
    (2, "login", {"customer_id": "c-1", "device_id": "d-1", "success": True, "new_device": True}),
    (3, "password_change", {"customer_id": "c-1"}),
    (10, "page_view", VISIT | {"page": "/"}),
    (11, "search", {"session_id": "s-1", "query": "red shoes", "results": 3}),
    (12, "page_view", VISIT | {"item_id": "i-1", "customer_id": "c-1"}),
    (12, "page_view", {"session_id": "s-2", "item_id": "i-1"}),
    (13, "cart", {**VISIT, "item_id": "i-1", "action": "add", "quantity": 3, "price": 4_000}),
    (14, "cart", {**VISIT, "item_id": "i-1", "action": "remove", "quantity": 1, "price": 4_000}),
    (20, "order", MONEY | {"order_id": "o-1", "session_id": "s-1", "items": 3}),
    (21, "payment", PAID | {"device_id": "d-1", "approved": False, "method": "card"}),
    (22, "payment", PAID | {"device_id": "d-1", "amount": 8_000, "approved": True}),
    (30, "refund", MONEY | {"order_id": "o-1", "amount": 500, "reason": "goodwill"}),
    (40, "chargeback", {**PAID, "payment_id": "e-12"}),
]


def events() -> list[tuple[str, dict[str, Any]]]:
    """The stream as validated events, in log order."""
    found = []
    for n, (minute, kind, fields) in enumerate(STREAM):
        at = NOON + minute * MINUTE_MS
        body = {k: v for k, v in fields.items() if k in project.event(kind)}
        body |= {"event_id": f"e-{n}", "event_time": at}
        found.append((kind, RowValidator(project.event(kind), "EUR").check(body, "default", at)))
    return found


@pytest.fixture(scope="module")
def engine() -> WindowEngine:
    engine = WindowEngine(project.views, project.decision)
    for offset, (kind, event) in enumerate(events()):
        engine.observe(kind, event, offset)
    return engine


def test_it_is_loaded_by_its_name() -> None:
    assert load_project("features.commerce:project") is project


def test_its_profiles_run_over_its_events() -> None:
    """Among them ``order``, which means something else to SQL."""
    check(project)


@pytest.mark.parametrize(
    ("entity", "key", "expected"),
    [
        (
            "customer",
            "c-1",
            {
                "customer_payment_count_1d": 2,
                "customer_declined_count_1d": 1,
                "customer_order_count_30d": 1,
                "customer_refund_count_30d": 1,
                "customer_spent_amount_sum_1d": 20_000,
                "customer_refund_amount_sum_30d": 500,
                "customer_spent_amount_max_30d": 12_000,
                "customer_payment_card_id_distinct_1d": 1,
                "account_login_count_1d": 3,
                "account_failed_count_1d": 2,
                "account_failed_count_5m": 0,
                "account_new_device_count_1d": 1,
                "account_login_device_id_distinct_1d": 1,
                "account_password_change_since_last": 57 * 60,
                "customer_risk_count_7d": 1,
            },
        ),
        (
            "session",
            "s-1",
            {
                "session_page_view_count_1h": 2,
                "session_search_count_1h": 1,
                "session_added_count_1h": 1,
                "session_removed_count_1h": 1,
                "session_order_count_1h": 1,
                "session_page_view_item_id_distinct_1h": 1,
                "session_since_last": 40 * 60,
            },
        ),
        (
            "item",
            "i-1",
            {
                "item_viewed_count_1d": 2,
                "item_added_count_1d": 1,
                "item_added_quantity_sum_1d": 3,
                "item_cart_price_mean_7d": 4_000,
                "item_session_id_distinct_1d": 2,
            },
        ),
        ("card", "k-1", {"card_count_1h": 2, "card_declined_count_1d": 1}),
        ("merchant", "m-1", {"merchant_amount_mean_1d": 10_000, "merchant_risk_count_7d": 1}),
        (
            "device",
            "d-1",
            {
                "device_payment_count_1d": 2,
                "device_failed_login_count_1d": 1,
                "device_customer_id_distinct_1d": 1,
            },
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_windows_count_what_happened(
    engine: WindowEngine, entity: str, key: str, expected: dict[str, float]
) -> None:
    found = engine.read("default", entity, key, NOON + HOUR_MS)
    assert {n: round(found[n], 1) for n in expected} == expected


def test_columns_and_rows_of_the_stream_give_one_state(engine: WindowEngine) -> None:
    columns = WindowEngine(project.views, project.decision)
    for offset, (kind, event) in enumerate(events()):
        batch = pa.RecordBatch.from_pylist([event], project.event(kind).arrow_schema)
        columns.apply([Chunk(kind, np.array([offset]), batch)])
    assert all(a.equals(b) for a, b in zip(engine.snapshot(), columns.snapshot(), strict=True))


def test_a_payment_sees_the_account_that_was_taken_over() -> None:
    fresh = WindowEngine(project.views, project.decision)
    seen = [
        (event, fresh.observe(kind, event, offset)) for offset, (kind, event) in enumerate(events())
    ]
    event, windows = next((e, w) for e, w in seen if w)
    assembler = Assembler(project, project.model("fraud"))
    vector = assembler.row(event, windows, [math.nan] * len(project.profile_names))
    values = dict(zip(project.model("fraud").features, vector.tolist(), strict=True))
    assert values["pay_after_password_change"] == 1
    assert values["customer_is_new"] == 1
    assert values["failed_share"] == pytest.approx(2 / 3)
    assert values["method"] == 0
    assert math.isnan(values["session_since_last"])
