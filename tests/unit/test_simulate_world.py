from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from features.payments import CHARGEBACK, TRANSACTION
from raypipe.clock import DAY_MS, HOUR_MS, MINUTE_MS
from raypipe.errors import UsageError
from raypipe.events.row import RowValidator
from raypipe.simulate.world import World
from tests.unit import simulate_kit as kit


@pytest.fixture(scope="module")
def history() -> Any:
    return kit.joined(kit.world(days=40, customers=800).batches())


def test_equal_configs_make_equal_worlds_and_other_seeds_others() -> None:
    one, two, other = (kit.joined(kit.world(seed=s).batches()) for s in (7, 7, 8))
    assert kit.same(one, two)
    assert not set(one.transactions["event_id"].to_pylist()) & set(
        other.transactions["event_id"].to_pylist()
    )


@pytest.mark.parametrize("size", [1, 997, 10_000_000])
def test_rows_do_not_depend_on_the_size_of_batches(size: int) -> None:
    few = {"days": 4, "customers": 100}
    expected = kit.joined(kit.world(**few).batches(500))
    batches = list(kit.world(**few).batches(size))
    assert kit.same(kit.joined(batches), expected)
    assert all(len(b) == size for b in batches[:-1])
    assert 0 < len(batches[-1]) <= size


def test_a_batch_size_under_one_is_refused() -> None:
    with pytest.raises(UsageError, match="rows_per_batch"):
        next(kit.world().batches(0))


def test_batches_follow_each_other_in_order_of_arrival() -> None:
    latest = 0
    for batch in kit.world().batches(700):
        both = [t["received_at"].to_numpy() for t in (batch.transactions, batch.chargebacks)]
        assert all(np.all(np.diff(times) >= 0) for times in both)
        arrived = np.concatenate(both)
        assert arrived.min() >= latest
        latest = int(arrived.max())


def test_a_day_is_the_same_whatever_was_asked_before() -> None:
    played = kit.world()
    list(played.batches())
    fresh = kit.world().day(17)
    assert kit.same(fresh, played.day(17))
    assert kit.same(fresh, played.day(17))


def test_days_hold_what_the_history_holds(history: Any) -> None:
    day = kit.world(days=40, customers=800).day(25)
    rows, begin = history.transactions, kit.MONDAY + 25 * DAY_MS
    time = rows["event_time"].to_numpy()
    assert rows.filter((time >= begin) & (time < begin + DAY_MS)).equals(day.transactions)


def test_a_longer_world_begins_with_the_shorter_one() -> None:
    short, long = (kit.joined(kit.world(days=d).batches()) for d in (10, 16))
    for name in ("transactions", "chargebacks", "labels"):
        table = getattr(short, name)
        assert getattr(long, name).slice(0, len(table)).equals(table)


def test_live_rows_continue_the_history_as_a_longer_world_does() -> None:
    settings = {"start_ms": kit.MONDAY + HOUR_MS, "fraud_rate": 0.03, "late_share": 0.4}
    short = kit.world(**settings, days=10)
    done = len(kit.joined(short.batches()).transactions)
    longer = kit.joined(kit.world(**settings, days=16).batches())
    live = list(short.live(1_500))
    later = longer.transactions.slice(done, 1_500).to_pylist()
    assert [row.received_at for row in live] == [r.pop("received_at") for r in later]
    assert [row.body for row in live] == [
        {k: v for k, v in r.items() if v is not None} for r in later
    ]
    truth = longer.labels.slice(done, 1_500).to_pylist()
    assert [(t["is_fraud"], t["campaign_id"], t["kind"]) for t in truth] == [
        (row.is_fraud, row.campaign_id, row.kind) for row in live
    ]
    assert any(row.is_fraud for row in live)
    assert min(row.body["event_time"] for row in live) < short.config.end_ms - HOUR_MS, "late ones"


def test_live_rows_are_accepted_by_the_declared_event_and_hide_the_truth() -> None:
    validator = RowValidator(TRANSACTION, "EUR")
    allowed = {f.name for f in TRANSACTION.client_fields}
    for row in kit.world().live(300):
        body = json.loads(json.dumps(row.body))
        assert set(body) <= allowed
        validator.check(body, "default", row.received_at)
        assert ("device_id" in body) == (body["channel"] == "online")


def test_live_asked_for_none_gives_none_and_less_is_refused() -> None:
    assert list(kit.world().live(0)) == []
    with pytest.raises(UsageError, match="count"):
        next(kit.world().live(-1))


def test_a_negative_day_is_refused() -> None:
    with pytest.raises(UsageError, match="day"):
        kit.world().day(-1)


def test_history_lies_between_start_and_end_even_off_midnight() -> None:
    start = kit.MONDAY + 5 * HOUR_MS + 123
    config = kit.config(start_ms=start, days=8)
    found = kit.joined(World(config).batches())
    assert found.transactions["event_time"].to_numpy().min() >= start
    for table in (found.transactions, found.chargebacks):
        received = table["received_at"].to_numpy()
        assert received.max() < config.end_ms
        assert np.all(table["event_time"].to_numpy() <= received)
    assert found.transactions["event_time"].to_numpy().max() > config.end_ms - HOUR_MS


def test_tables_have_the_declared_columns_and_nothing_of_the_truth(history: Any) -> None:
    for table, event in ((history.transactions, TRANSACTION), (history.chargebacks, CHARGEBACK)):
        wanted = event.arrow_schema.remove(event.arrow_schema.get_field_index("tenant"))
        assert table.schema.names == wanted.names
        for field in wanted:
            assert table.schema.field(field.name).equals(field), field.name
        assert not {"is_fraud", "campaign_id", "kind"} & set(table.schema.names)


def test_ids_are_unique(history: Any) -> None:
    for table in (history.transactions, history.chargebacks):
        assert len(set(table["event_id"].to_pylist())) == len(table)
    assert not set(history.transactions["event_id"].to_pylist()) & set(
        history.chargebacks["event_id"].to_pylist()
    )


def test_the_wanted_share_arrives_minutes_to_hours_late(history: Any) -> None:
    rows = kit.columns(history.transactions)
    delay = rows["received_at"] - rows["event_time"]
    late = delay >= 2 * MINUTE_MS
    assert late.mean() == pytest.approx(0.03, abs=0.004)
    assert delay[~late].max() < 30_000
    assert delay[late].max() < 9 * HOUR_MS
    assert np.quantile(delay[late], 0.8) > HOUR_MS


def test_chargebacks_name_their_transaction_and_come_in_the_wanted_days(history: Any) -> None:
    rows = {r["event_id"]: r for r in history.transactions.to_pylist()}
    delays = []
    for back in history.chargebacks.to_pylist():
        row = rows[back["transaction_id"]]
        keys = ("card_id", "customer_id", "merchant_id", "device_id", "amount", "currency")
        assert [back[k] for k in keys] == [row[k] for k in keys]
        delays.append((back["event_time"] - row["event_time"]) / DAY_MS)
    assert len(delays) > 100
    assert min(delays) >= 2
    assert max(delays) <= 7
    assert max(delays) - min(delays) > 4


def test_matured_frauds_are_reported_but_for_a_small_share_and_few_others_are() -> None:
    settings = {"days": 40, "customers": 1_500, "unreported_share": 0.1, "friendly_share": 0.001}
    found = kit.joined(kit.world(**settings).batches())
    rows = kit.seen(found)
    told = np.isin(rows["event_id"], found.chargebacks["transaction_id"].to_pylist())
    mature = rows["event_time"] < kit.MONDAY + 32 * DAY_MS
    fraud = rows["is_fraud"] & mature
    assert told[fraud].mean() == pytest.approx(0.9, abs=0.05)
    assert told[mature & ~rows["is_fraud"]].mean() == pytest.approx(0.001, abs=0.0006)


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, 1.0), (10.0, 20.0)], ids=["a day sharp", "ten to twenty"]
)
def test_the_delay_of_chargebacks_can_be_chosen(low: float, high: float) -> None:
    settings = {"days": 45, "chargeback_min_days": low, "chargeback_max_days": high}
    found = kit.joined(kit.world(**settings).batches())
    time = dict(
        zip(
            found.transactions["event_id"].to_pylist(),
            found.transactions["event_time"].to_pylist(),
            strict=True,
        )
    )
    delays = [
        (b["event_time"] - time[b["transaction_id"]]) / DAY_MS
        for b in found.chargebacks.to_pylist()
    ]
    assert delays
    assert min(delays) >= low
    assert max(delays) <= high


@pytest.mark.parametrize(
    "settings",
    [
        {"customers": 1, "merchants": 1},
        {"customers": 3, "merchants": 5, "turnover_per_year": 10.0},
        {"customers": 50, "merchants": 4_000, "days": 1},
        {"tx_per_customer_day": 15.0, "customers": 60, "zipf": 0.0},
        {"turnover_per_year": 0.0, "zipf": 2.5},
    ],
)
def test_worlds_of_odd_sizes_have_the_rows_that_were_asked_for(settings: dict[str, Any]) -> None:
    config = kit.config(**settings)
    found = kit.joined(World(config).batches())
    if config.customers >= 50:
        assert len(found.transactions) == pytest.approx(config.expected_rows, rel=0.35)
    assert len(set(found.transactions["merchant_id"].to_pylist())) <= config.merchants


def test_the_number_of_rows_follows_the_sizes() -> None:
    def count(**settings: Any) -> int:
        found = kit.joined(kit.world(**settings).batches())
        return len(found.transactions)

    base = count()
    assert base == pytest.approx(kit.config().expected_rows, rel=0.1)
    assert count(days=40) == pytest.approx(2 * base, rel=0.1)
    assert count(customers=1_200) == pytest.approx(3 * base, rel=0.15)
    assert count(tx_per_customer_day=4.8) == pytest.approx(4 * base, rel=0.1)


def test_no_fraud_when_none_is_wanted() -> None:
    found = kit.joined(kit.world(fraud_rate=0.0, friendly_share=0.0).batches())
    assert not found.labels["is_fraud"].to_numpy(zero_copy_only=False).any()
    assert len(found.chargebacks) == 0


def test_the_fraud_rate_is_about_the_wanted_one() -> None:
    for rate in (0.008, 0.05):
        found = kit.joined(kit.world(days=80, customers=2_000, fraud_rate=rate).batches())
        fraud = found.labels["is_fraud"].to_numpy(zero_copy_only=False)
        assert fraud.mean() == pytest.approx(rate, rel=0.2)
