from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from raypipe.clock import DAY_MS, HOUR_MS, MINUTE_MS
from tests.unit import simulate_kit as kit

Columns = dict[str, npt.NDArray[Any]]


@pytest.fixture(scope="module")
def rows() -> Columns:
    settings = {"days": 50, "customers": 2_500, "merchants": 800, "fraud_rate": 0.02}
    return kit.seen(kit.joined(kit.world(**settings).batches()))


def _campaigns(rows: Columns, kind: str) -> list[Columns]:
    """Rows of each campaign of a kind that began well inside the world, by event time."""
    where = np.flatnonzero(rows["kind"] == kind)
    out = []
    for campaign in np.unique(rows["campaign_id"][where]):
        own = where[rows["campaign_id"][where] == campaign]
        own = own[np.argsort(rows["event_time"][own], kind="stable")]
        time = rows["event_time"][own]
        if time[-1] < kit.MONDAY + 46 * DAY_MS:
            out.append({name: column[own] for name, column in rows.items()})
    assert len(out) >= 10
    return out


def test_the_truth_names_every_fraud_and_no_other(rows: Columns) -> None:
    fraud = rows["is_fraud"].astype(bool)
    for name in ("campaign_id", "kind"):
        assert np.array_equal(np.array([v is not None for v in rows[name]]), fraud)
    kinds = {k: (rows["kind"] == k).sum() / fraud.sum() for k in set(rows["kind"][fraud])}
    assert kinds == pytest.approx(
        {"stolen_card": 0.45, "compromised_merchant": 0.3, "card_testing": 0.25}, abs=0.08
    )


def test_shares_of_the_campaigns_can_be_chosen() -> None:
    only = kit.joined(
        kit.world(stolen_card_share=0, compromised_merchant_share=0, fraud_rate=0.05).batches()
    )
    assert set(only.labels["kind"].to_pylist()) == {None, "card_testing"}


def test_a_stolen_card_is_used_hard_for_at_most_three_days(rows: Columns) -> None:
    usual = dict(_mean_by(rows["customer_id"], rows["amount"], ~rows["is_fraud"].astype(bool)))
    dearer, lengths, counts = [], [], []
    for c in _campaigns(rows, "stolen_card"):
        assert len(set(c["card_id"])) == 1
        assert len(set(c["device_id"])) == 1
        length = (c["event_time"][-1] - c["event_time"][0]) / DAY_MS
        assert length <= 3
        lengths.append(length)
        counts.append(len(c["amount"]))
        dearer.append(c["amount"].mean() / usual.get(c["customer_id"][0], np.nan))
    assert np.median(lengths) > 0.5
    assert 7 < np.mean(counts) < 13
    assert np.nanmedian(dearer) > 3


def test_a_thief_brings_a_new_device_but_not_always(rows: Columns) -> None:
    known = {
        (c, d)
        for c, d, f in zip(rows["customer_id"], rows["device_id"], rows["is_fraud"], strict=True)
        if d is not None and not f
    }
    online = [c for c in _campaigns(rows, "stolen_card") if c["channel"][0] == "online"]
    new = [(c["customer_id"][0], c["device_id"][0]) not in known for c in online]
    assert 0.85 < np.mean(new) < 1


def test_card_testing_is_many_tiny_payments_at_few_shops_and_then_a_large_one(
    rows: Columns,
) -> None:
    took = []
    for c in _campaigns(rows, "card_testing"):
        assert set(c["channel"]) == {"online"}
        assert len(set(c["card_id"])) == len(set(c["device_id"])) == 1
        tiny = c["amount"] < 300
        first_large = int(np.argmin(tiny))
        assert first_large >= 4
        assert not tiny[first_large:].any()
        assert 1 <= len(tiny) - first_large <= 2
        assert c["amount"][first_large:].min() >= 5_000
        assert len(set(c["merchant_id"][tiny])) <= 3
        took.append((c["event_time"][first_large - 1] - c["event_time"][0]) / MINUTE_MS)
        assert 0 < c["event_time"][first_large] - c["event_time"][first_large - 1] < 9 * HOUR_MS
    assert np.median(took) < 15
    assert max(took) < 120


def test_cards_seen_at_a_compromised_merchant_are_abused_later(rows: Columns) -> None:
    honest = ~rows["is_fraud"].astype(bool)
    checked = 0
    for c in _campaigns(rows, "compromised_merchant"):
        where, counts = np.unique(c["merchant_id"], return_counts=True)
        merchant = where[np.argmax(counts)]
        there = c["merchant_id"] == merchant
        assert 0.2 < there.mean() < 0.8
        visits = honest & (rows["merchant_id"] == merchant)
        first_fraud = c["event_time"][0]
        visited: dict[str, int] = {}
        for card, time in zip(rows["card_id"][visits], rows["event_time"][visits], strict=True):
            visited[card] = min(time, visited.get(card, time))
        copies = set(c["card_id"][~there])
        assert copies
        assert all(visited[card] < first_fraud for card in copies)
        checked += len(copies)
        days = (c["event_time"][there] - kit.MONDAY) // DAY_MS
        assert len(set(days)) >= 3
        assert c["event_time"][-1] - first_fraud < 16 * DAY_MS
    assert checked > 50


def test_half_of_the_fakes_at_the_merchant_hit_people_who_were_never_there(rows: Columns) -> None:
    honest = ~rows["is_fraud"].astype(bool)
    fakes = strangers = 0
    for c in _campaigns(rows, "compromised_merchant"):
        where, counts = np.unique(c["merchant_id"], return_counts=True)
        merchant = where[np.argmax(counts)]
        known = set(rows["card_id"][honest & (rows["merchant_id"] == merchant)])
        booked = c["card_id"][c["merchant_id"] == merchant]
        fakes += len(booked)
        strangers += sum(card not in known for card in booked)
    assert 0.25 < strangers / fakes < 0.6


def test_some_fraud_looks_normal_and_some_honest_payments_look_odd(rows: Columns) -> None:
    fraud = rows["is_fraud"].astype(bool)
    usual = dict(_mean_by(rows["customer_id"], rows["amount"], ~fraud))
    ratio = rows["amount"] / np.array([usual.get(c, np.nan) for c in rows["customer_id"]])
    assert np.nanmean(ratio[fraud] < 2) > 0.3
    assert (ratio[~fraud] > 10).sum() > 0.2 * (ratio[fraud] > 10).sum()


@pytest.mark.parametrize("name", ["event_id", "card_id", "customer_id", "merchant_id", "device_id"])
def test_truth_does_not_show_in_ids(rows: Columns, name: str) -> None:
    there = np.array([v is not None for v in rows[name]])
    shares = dict(_mean_by(rows[name], rows["is_fraud"].astype(float), there))
    texts, share = list(shares), np.array(list(shares.values()))
    assert len({len(t) for t in texts}) == 1
    base = 16 if name in ("event_id", "device_id") else 10
    number = np.array([int(t.split("_")[1], base) for t in texts])
    slack = 4 / np.sqrt(len(texts))
    assert (share > 0).sum() > 100
    assert np.corrcoef(np.argsort(np.argsort(number)), share)[0, 1] == pytest.approx(0, abs=slack)
    if name != "card_id":  # its last digit tells a first card from a second one
        assert np.corrcoef(number % base, share)[0, 1] == pytest.approx(0, abs=slack)


def test_truth_does_not_show_in_the_order_of_rows_or_of_equal_times() -> None:
    settings = {"days": 2, "customers": 4_000, "tx_per_customer_day": 60.0, "fraud_rate": 0.3}
    rows = kit.seen(kit.joined(kit.world(**settings, late_share=0.0).batches()))
    fraud = rows["is_fraud"].astype(bool)
    time = rows["received_at"]
    tied = np.flatnonzero(np.diff(time) == 0)
    mixed = tied[fraud[tied] != fraud[tied + 1]]
    assert len(mixed) > 200
    slack = 4 / np.sqrt(4 * len(mixed))
    assert fraud[mixed].mean() == pytest.approx(0.5, abs=slack)


def _mean_by(
    keys: npt.NDArray[Any], values: npt.NDArray[Any], where: npt.NDArray[np.bool_]
) -> list[tuple[str, float]]:
    names, group = np.unique(keys[where].astype(str), return_inverse=True)
    means = np.bincount(group, values[where]) / np.bincount(group)
    return list(zip(names, means, strict=True))
