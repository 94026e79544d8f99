"""Each shipped pattern fires on the story that it is about and is silent on the one beside it."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest

from features import commerce, payments
from raypipe.patterns.reading import read_patterns
from tests.unit.pattern_stories import SHIPPED, Told, shipped, told

MINUTE, HOUR, DAY = 60, 3_600, 86_400
PROJECTS = {"payments.yaml": payments.project, "commerce.yaml": commerce.project}

BERLIN = {"lat": 52.52, "lon": 13.40, "country": "DE"}
MADRID = {"lat": 40.42, "lon": -3.70, "country": "ES"}
"""1,870 km from Berlin: 2 h 5 min at 900 km/h."""


class Case(NamedTuple):
    file: str
    name: str
    story: list[Told]
    reason: str
    events: list[str]
    silent: dict[str, list[Told]]


def tx(seconds: int, amount: int = 1_000, **fields: Any) -> Told:
    return ("transaction", seconds, {"card_id": "c", "amount": amount} | fields)


def pay(seconds: int, amount: int = 1_000, **fields: Any) -> Told:
    return ("payment", seconds, {"card_id": "c", "customer_id": "k", "amount": amount} | fields)


def login(seconds: int, **fields: Any) -> Told:
    return ("login", seconds, {"customer_id": "k", "success": True} | fields)


def password(seconds: int) -> Told:
    return ("password_change", seconds, {"customer_id": "k"})


def order(seconds: int, amount: int = 25_000, **fields: Any) -> Told:
    return ("order", seconds, {"customer_id": "k", "session_id": "s", "amount": amount} | fields)


def refund(day: int, reason: str = "damaged") -> Told:
    return ("refund", day * DAY, {"customer_id": "k", "amount": 5_000, "reason": reason})


def cart(seconds: int, action: str = "add", **fields: Any) -> Told:
    about = {"session_id": "s", "item_id": "lamp", "quantity": 2, "action": action}
    return ("cart", seconds, about | fields)


def declined(seconds: int, amount: int = 100, **fields: Any) -> Told:
    return pay(seconds, amount, approved=False, **fields)


def failed(seconds: int) -> Told:
    return login(seconds, success=False)


TAKEOVER = [login(0, new_device=True, device_id="d7"), password(600), order(DAY)]

CASES = [
    Case(
        "payments.yaml",
        "card_velocity",
        # The first ones are too old when the tenth comes; ten others are not.
        [tx(0), tx(1), *(tx(10 * MINUTE + 2 + 60 * i, 1_500) for i in range(10))],
        "10 payments in 9 min, 150.00 in all",
        [f"e{i}" for i in range(2, 12)],
        {
            "nine": [tx(i) for i in range(9)],
            "a second too slow": [*(tx(i) for i in range(9)), tx(10 * MINUTE + 1)],
            "two cards": [tx(i, card_id=f"c{i % 2}") for i in range(18)],
            "two tenants": [tx(i, tenant=f"t{i % 2}") for i in range(18)],
        },
    ),
    Case(
        "payments.yaml",
        "card_testing",
        [tx(0, 100), tx(30, 4_000), tx(60, 499), tx(90, 250), tx(120, 20_000, merchant_id="m")],
        "3 payments up to 4.99, then 200.00 at m",
        ["e0", "e2", "e3", "e4"],
        {
            "two small ones": [tx(0, 100), tx(60, 499), tx(120, 20_000)],
            "not big enough": [tx(0, 100), tx(60, 499), tx(90, 250), tx(120, 19_999)],
            "big before small": [tx(0, 20_000), tx(60, 499), tx(90, 250), tx(120, 100)],
            "after an hour": [tx(0, 100), tx(60, 499), tx(90, 250), tx(HOUR + 1, 20_000)],
        },
    ),
    Case(
        "payments.yaml",
        "dormant_wake_up",
        [tx(-DAY, 9_000), tx(0, 5_000), tx(90 * DAY + 1, 25_001)],
        "250.01; the payment before was 50.00 at 2026-05-29T12:00:00+00:00",
        ["e1", "e2"],
        {
            "ninety days": [tx(0, 5_000), tx(90 * DAY, 25_001)],
            "a small payment between": [tx(0, 5_000), tx(DAY, 100), tx(90 * DAY + 1, 25_001)],
            "its usual amount": [tx(0, 5_001), tx(90 * DAY + 1, 25_000)],
        },
    ),
    Case(
        "payments.yaml",
        "two_countries",
        [
            tx(0, channel="pos", country="DE"),
            tx(60, channel="online", country="US"),
            tx(600, channel="pos", country="FR"),
        ],
        "at terminals in DE and, 10 min later, in FR",
        ["e0", "e2"],
        {
            "online": [tx(0, channel="pos", country="DE"), tx(60, channel="online", country="FR")],
            "unknown": [tx(0, channel="pos", country="DE"), tx(60, channel="pos", country=None)],
            "later": [
                tx(0, channel="pos", country="DE"),
                tx(30 * MINUTE + 1, channel="pos", country="FR"),
            ],
        },
    ),
    Case(
        "commerce.yaml",
        "card_testing",
        [*map(declined, range(5)), pay(9 * MINUTE, 20_001, approved=True)],
        "5 declined payments up to 1.00, then 200.01",
        [f"e{i}" for i in range(6)],
        {
            "four": [*map(declined, range(4)), pay(9 * MINUTE, 20_001, approved=True)],
            "not yet answered": [
                *(pay(i, 100, approved=None) for i in range(5)),
                pay(9 * MINUTE, 20_001, approved=True),
            ],
            "declined, too": [*map(declined, range(5)), declined(9 * MINUTE, 20_001)],
            "another card": [*map(declined, range(5)), pay(9, 20_001, approved=True, card_id="d")],
        },
    ),
    Case(
        "commerce.yaml",
        "payment_velocity",
        [pay(i * MINUTE, card_id=f"c{i}") for i in range(10)],
        "10 payments in 9 min, 100.00 in all",
        [f"e{i}" for i in range(10)],
        {
            "nine": [pay(i) for i in range(9)],
            "others": [pay(i, customer_id=f"k{i}") for i in range(20)],
        },
    ),
    Case(
        "commerce.yaml",
        "guessed_password",
        [*map(failed, range(11)), login(60, country="US")],
        "login from US after 11 failed ones",
        [*(f"e{i}" for i in range(8)), "e11"],
        {
            "seven": [*map(failed, range(7)), login(60)],
            "much later": [*map(failed, range(8)), login(15 * MINUTE + 1)],
        },
    ),
    Case(
        "commerce.yaml",
        "impossible_travel",
        [login(0, **BERLIN), login(HOUR, success=False), login(2 * HOUR, **MADRID)],
        "login from ES 120 min after one from DE",
        ["e0", "e2"],
        {
            "in time for a flight": [login(0, **BERLIN), login(2 * HOUR + 20 * MINUTE, **MADRID)],
            "no place": [login(0, **BERLIN), login(60, country="ES")],
            "next town": [login(0, **BERLIN), login(60, lat=52.40, lon=13.06)],
            "failed": [login(0, **BERLIN), login(60, **MADRID | {"success": False})],
        },
    ),
    Case(
        "commerce.yaml",
        "account_takeover",
        TAKEOVER,
        "order of 250.00 1440 min after a login from new device d7",
        ["e0", "e1", "e2"],
        {
            "known device": [login(0, new_device=False), *TAKEOVER[1:]],
            "same password": [TAKEOVER[0], TAKEOVER[2]],
            "password first": [password(-1), TAKEOVER[0], TAKEOVER[2]],
            "small order": [*TAKEOVER[:2], order(700, 19_999)],
            "a day later": [*TAKEOVER[:2], order(DAY + 1)],
        },
    ),
    Case(
        "commerce.yaml",
        "dormant_wake_up",
        [pay(0), pay(180 * DAY + 1, 20_000)],
        "200.00 after a rest since 2026-05-29T12:00:00+00:00",
        ["e0", "e1"],
        {
            "awake": [pay(0), pay(DAY), pay(180 * DAY + 1, 20_000)],
            "small": [pay(0), pay(181 * DAY)],
        },
    ),
    Case(
        "commerce.yaml",
        "refund_abuse",
        [
            *(refund(0), refund(9, "not_received"), refund(10, "returned")),
            *(refund(20, "goodwill"), refund(30)),
        ],
        "4 refunds, 200.00 in all",
        ["e0", "e1", "e3", "e4"],
        {
            "honest": [refund(day, "returned") for day in range(6)],
            "seldom": [refund(day) for day in range(0, 100, 11)],
        },
    ),
    Case(
        "commerce.yaml",
        "cart_abandonment",
        [cart(0), ("page_view", 60, {"session_id": "s"}), order(120, session_id="other")],
        "2 of lamp left in the cart",
        ["e0"],
        {
            "ordered": [cart(0), order(HOUR)],
            "taken out": [cart(0), cart(60, "remove")],
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.file}-{c.name}")
def test_fires_on_its_story(case: Case) -> None:
    project = PROJECTS[case.file]
    [alert] = told(shipped(case.file, case.name), project.events, case.story)
    assert (alert.pattern, alert.reason) == (case.name, case.reason)
    assert json.loads(alert.events) == case.events


@pytest.mark.parametrize(
    ("case", "near"),
    [(c, n) for c in CASES for n in c.silent],
    ids=lambda v: v if isinstance(v, str) else v.name,
)
def test_is_silent_on_a_near_miss(case: Case, near: str) -> None:
    project = PROJECTS[case.file]
    assert told(shipped(case.file, case.name), project.events, case.silent[near]) == []


def test_an_abandoned_cart_alerts_once_an_hour_after_it_was_last_touched() -> None:
    pattern = shipped("commerce.yaml", "cart_abandonment")
    [alert] = told(pattern, commerce.project.events, [cart(0), cart(30 * MINUTE, item_id="vase")])
    assert alert.reason == "2 of vase left in the cart"
    assert alert.event_time - alert.first_time == HOUR * 1_000


def test_every_shipped_pattern_has_a_story_and_an_owner() -> None:
    found = [(f.name, p) for f in sorted(SHIPPED.glob("*.yaml")) for p in read_patterns(f)]
    assert {(f, p.name) for f, p in found} == {(c.file, c.name) for c in CASES}
    assert all(p.owner and p.description for _, p in found)
