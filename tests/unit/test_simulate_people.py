from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from raypipe.clock import DAY_MS, HOUR_MS
from raypipe.simulate import genuine
from raypipe.simulate.catalog import COUNTRIES, choices
from raypipe.simulate.market import Market
from tests.unit import simulate_kit as kit

GENUINE = {"fraud_rate": 0.0, "friendly_share": 0.0}
OFFSETS = {c.code: c.offset for c in COUNTRIES}


@pytest.fixture(scope="module")
def rows() -> dict[str, npt.NDArray[Any]]:
    """Eight whole weeks of honest people."""
    return kit.seen(kit.joined(kit.world(days=56, customers=1_000, **GENUINE).batches()))


def _local_hour(rows: dict[str, npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
    offset = np.array([OFFSETS[c] for c in rows["country"]])
    return (rows["event_time"] // HOUR_MS + offset) % 24


def test_people_shop_by_day_and_sleep_at_night(rows: dict[str, npt.NDArray[Any]]) -> None:
    pos = rows["channel"] == "pos"
    hour = np.bincount(_local_hour(rows)[pos], minlength=24) / pos.sum()
    assert hour[10:20].sum() > 0.6
    assert hour[1:5].sum() < 0.04
    evening = _local_hour(rows)[rows["channel"] == "online"] >= 20
    assert evening.mean() > 1.3 * hour[20:].sum()


def test_every_country_lives_by_its_own_clock() -> None:
    rows = kit.seen(kit.joined(kit.world(customers=4_000, days=21, **GENUINE).batches()))
    pos = rows["channel"] == "pos"
    hour = rows["event_time"] // HOUR_MS % 24
    morning = {
        c: np.mean((hour >= 4) & (hour < 8), where=pos & (rows["country"] == c))
        for c in ("FI", "PT")
    }
    assert morning["FI"] > 1.5 * morning["PT"]


def test_the_week_has_a_rhythm(rows: dict[str, npt.NDArray[Any]]) -> None:
    shopping = rows["channel"] != "recurring"
    weekday = (rows["event_time"][shopping] // DAY_MS + 3) % 7
    per_day = np.bincount(weekday, minlength=7) / shopping.sum() * 7
    assert per_day[5] > 1.1
    assert per_day[6] < 0.9
    assert per_day[:4].max() < per_day[4]


def test_weekend_days_run_later_than_weekdays(rows: dict[str, npt.NDArray[Any]]) -> None:
    pos = rows["channel"] == "pos"
    weekend = (rows["event_time"] // DAY_MS + 3) % 7 >= 5
    early = _local_hour(rows) < 9
    assert early[pos & weekend].mean() < 0.8 * early[pos & ~weekend].mean()


@pytest.mark.parametrize("zipf", [0.7, 1.0, 1.3])
def test_popularity_follows_zipf_inside_a_group(zipf: float) -> None:
    market = Market(kit.config(merchants=6_000, zipf=zipf))
    count = 400_000
    draws = np.random.default_rng(1).random(count)
    zero = np.zeros(count, np.int64)
    sold = np.sort(np.bincount(market.pick(zero, zero, draws)))[::-1]
    ranks = np.arange(3, 200)
    slope, _ = np.polyfit(np.log(ranks + 0.5), np.log(sold[ranks - 1]), 1)
    assert slope == pytest.approx(-zipf, abs=0.06)


def test_popularity_is_skewed_in_the_tables_too(rows: dict[str, npt.NDArray[Any]]) -> None:
    sold = np.sort(list(Counter(rows["merchant_id"]).values()))[::-1]
    assert sold[:15].sum() > 0.2 * sold.sum()
    assert len(sold) > 130


def test_customers_return_to_their_shops_and_stay_in_their_country() -> None:
    found = kit.joined(kit.world(days=56, merchants=5_000, customers=300, **GENUINE).batches())
    rows = kit.seen(found)
    pos = rows["channel"] == "pos"
    pairs = Counter(zip(rows["customer_id"][pos], rows["merchant_id"][pos], strict=True))
    assert sum(n for n in pairs.values() if n >= 3) > 0.4 * pos.sum()
    homes: dict[str, Counter[str]] = {}
    for customer, country in zip(rows["customer_id"][pos], rows["country"][pos], strict=True):
        homes.setdefault(customer, Counter())[country] += 1
    at_home = sum(c.most_common(1)[0][1] for c in homes.values())
    assert 0.93 < at_home / pos.sum() < 0.995, "people are at home, and travel now and then"


def test_spending_habits_differ_among_customers_and_among_categories(
    rows: dict[str, npt.NDArray[Any]],
) -> None:
    grocery = rows["category"] == "grocery"
    log = np.log(rows["amount"][grocery])
    _, who = np.unique(rows["customer_id"][grocery], return_inverse=True)
    size = np.bincount(who)
    mean = np.bincount(who, log) / size
    between = np.var(mean[size >= 10])
    assert between > 3 * np.var(log) / 20, "more than the noise of means alone"
    median = {c: np.median(rows["amount"][rows["category"] == c]) for c in ("electronics", "fuel")}
    assert median["electronics"] > 1.3 * median["fuel"]


def test_devices_belong_to_online_payments_of_one_customer(
    rows: dict[str, npt.NDArray[Any]],
) -> None:
    there = np.array([d is not None for d in rows["device_id"]])
    assert np.array_equal(there, rows["channel"] == "online")
    owners: dict[str, set[str]] = {}
    for device, customer in zip(rows["device_id"][there], rows["customer_id"][there], strict=True):
        owners.setdefault(device, set()).add(customer)
    assert max(map(len, owners.values())) == 1
    each = Counter(next(iter(o)) for o in owners.values())
    assert 1.2 < np.mean(list(each.values())) < 5


def test_devices_stay_apart_when_customers_are_computed_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(genuine, "TOGETHER", 64)
    test_devices_belong_to_online_payments_of_one_customer(
        kit.seen(kit.joined(kit.world(days=15, customers=1_000, **GENUINE).batches()))
    )


def test_cards_belong_to_one_customer_and_get_replaced() -> None:
    found = kit.joined(kit.world(days=400, customers=60, **GENUINE).batches())
    rows = kit.seen(found)
    first: dict[str, int] = {}
    owner: dict[str, set[str]] = {}
    for card, customer, time in zip(
        rows["card_id"], rows["customer_id"], rows["event_time"], strict=True
    ):
        owner.setdefault(card, set()).add(customer)
        first[card] = min(time, first.get(card, time))
    assert max(map(len, owner.values())) == 1
    later = sum(t > kit.MONDAY + 100 * DAY_MS for t in first.values())
    assert later > 20


def test_customers_join_and_leave_slowly() -> None:
    found = kit.joined(
        kit.world(days=120, customers=400, turnover_per_year=0.6, **GENUINE).batches()
    )
    rows = kit.seen(found)
    month = (rows["event_time"] - kit.MONDAY) // (30 * DAY_MS)
    first, last = (set(rows["customer_id"][month == m]) for m in (0, 3))
    expected = 400 * 0.6 * 90 / 365
    assert len(last - first) == pytest.approx(expected, rel=0.5)
    assert len(first - last) == pytest.approx(expected, rel=0.5)
    assert len(last) == pytest.approx(len(first), rel=0.1)


def test_subscriptions_come_every_thirty_days_with_the_same_amount(
    rows: dict[str, npt.NDArray[Any]],
) -> None:
    recurring = rows["channel"] == "recurring"
    assert recurring.mean() == pytest.approx(0.04, abs=0.01)
    bills: dict[tuple[str, str, int], list[int]] = {}
    for customer, merchant, amount, time in zip(
        *(rows[c][recurring] for c in ("customer_id", "merchant_id", "amount", "event_time")),
        strict=True,
    ):
        bills.setdefault((customer, merchant, amount), []).append(int(time))
    twice = [t for t in bills.values() if len(t) > 1]
    assert len(twice) > 0.6 * len(bills)
    gaps = np.array([b - a for a, b in (sorted(t)[:2] for t in twice)])
    assert np.mean(gaps == 30 * DAY_MS) > 0.95, "but for two bills of one amount at one merchant"


def test_honest_people_buy_big_use_new_devices_and_have_busy_days(
    rows: dict[str, npt.NDArray[Any]],
) -> None:
    _, who = np.unique(rows["customer_id"], return_inverse=True)
    mean = np.bincount(who, rows["amount"]) / np.bincount(who)
    assert (rows["amount"] > 8 * mean[who]).sum() > 50
    there = np.array([d is not None for d in rows["device_id"]])
    fresh = [d for d, n in Counter(rows["device_id"][there]).items() if n == 1]
    assert len(fresh) > 0.01 * there.sum()
    daily = np.bincount(who) / 56
    day = (rows["event_time"] - kit.MONDAY) // DAY_MS
    bought = Counter(zip(who.tolist(), day.tolist(), strict=True))
    assert sum(n >= 8 and n > 5 * daily[c] for (c, _), n in bought.items()) > 30


def test_choice_tables_keep_their_shares() -> None:
    table = choices([1, 0, 2, 1])
    assert np.bincount(table, minlength=4).tolist() == [64, 0, 128, 64]
