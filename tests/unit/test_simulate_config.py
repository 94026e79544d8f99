from __future__ import annotations

from typing import Any

import pytest

from raypipe.clock import DAY_MS
from raypipe.errors import ConfigError
from raypipe.simulate.config import WorldConfig

START = 1_750_000_000_000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("customers", 0),
        ("customers", -5),
        ("customers", 10.5),
        ("customers", True),
        ("merchants", 0),
        ("days", 0),
        ("days", "60"),
        ("seed", -1),
        ("seed", None),
        ("start_ms", 1_750_000_000),
        ("start_ms", 2**60),
        ("tx_per_customer_day", 0.0),
        ("tx_per_customer_day", -1.2),
        ("tx_per_customer_day", float("nan")),
        ("tx_per_customer_day", float("inf")),
        ("fraud_rate", float("nan")),
        ("fraud_rate", -0.01),
        ("fraud_rate", 1.0),
        ("late_share", 1.1),
        ("unreported_share", -0.1),
        ("friendly_share", 2),
        ("chargeback_min_days", 0),
        ("zipf", -1.0),
        ("turnover_per_year", float("nan")),
    ],
)
def test_a_setting_out_of_range_or_type_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as e:
        WorldConfig(**{"start_ms": START, name: value})
    assert name in e.value.detail
    assert "from" in e.value.hint


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"chargeback_min_days": 8.0}, "chargeback_max_days"),
        ({"stolen_card_share": 0.8, "compromised_merchant_share": 0.3}, "stolen_card_share"),
        ({"customers": 10_000_000, "tx_per_customer_day": 100.0}, "transactions a day"),
        ({"customers": 10_000_000, "turnover_per_year": 10.0}, "turnover_per_year"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        WorldConfig(start_ms=START, **settings)


def test_a_rate_may_be_a_whole_number() -> None:
    assert WorldConfig(start_ms=START, fraud_rate=0, tx_per_customer_day=2).tx_per_day == 10_000


def test_a_history_can_end_at_a_given_time() -> None:
    config = WorldConfig.ending(START, days=30, customers=10)
    assert config.end_ms == START
    assert config.start_ms == START - 30 * DAY_MS


def test_an_end_with_bad_days_is_refused_like_any_other_setting() -> None:
    with pytest.raises(ConfigError, match="days"):
        WorldConfig.ending(START, days=-3)
