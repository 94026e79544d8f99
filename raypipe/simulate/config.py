"""What a simulated world is made of, as one checked and frozen value."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from raypipe.clock import DAY_MS
from raypipe.errors import ConfigError
from raypipe.events.schema import EARLIEST_MS

RECURRING_SHARE = 0.04
"""Part of the genuine payments that are subscriptions, as far as four a customer can carry it."""
SUBSCRIPTION_SLOTS = 4
BILLING_DAYS = 30

_BOUNDS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "start_ms": (EARLIEST_MS, 2**42),
    "days": (1, 20_000),
    "customers": (1, 10_000_000),
    "merchants": (1, 50_000_000),
    "tx_per_customer_day": (1e-6, 1_000),
    "fraud_rate": (0, 0.5),
    "stolen_card_share": (0, 1),
    "compromised_merchant_share": (0, 1),
    "late_share": (0, 1),
    "unreported_share": (0, 1),
    "friendly_share": (0, 1),
    "chargeback_min_days": (1, 365),
    "chargeback_max_days": (1, 365),
    "zipf": (0, 4),
    "turnover_per_year": (0, 10),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldConfig:
    """Sizes, rates and the seed of a world; equal configs make equal worlds.

    Rates are shares in [0, 1] unless they name a unit. ``customers`` is the number at the start;
    about as many join as leave, ``turnover_per_year`` of them a year. ``fraud_rate`` is the part
    of all transactions that is fraudulent, on average over a long world; of it,
    ``stolen_card_share`` and ``compromised_merchant_share`` go to these campaigns and the rest to
    card testing. Raises ConfigError for a value out of range, NaN, or of the wrong type.
    """

    seed: int = 7
    start_ms: int
    days: int = 60
    customers: int = 5_000
    merchants: int = 2_000
    tx_per_customer_day: float = 1.2
    fraud_rate: float = 0.008
    stolen_card_share: float = 0.45
    compromised_merchant_share: float = 0.3
    late_share: float = 0.03
    unreported_share: float = 0.02
    friendly_share: float = 0.0002
    chargeback_min_days: float = 2.0
    chargeback_max_days: float = 7.0
    zipf: float = 1.0
    turnover_per_year: float = 0.25

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check(field.name, getattr(self, field.name), whole=field.type == "int")
        if self.chargeback_min_days > self.chargeback_max_days:
            raise ConfigError(
                f"chargeback_min_days {self.chargeback_min_days} is over "
                f"chargeback_max_days {self.chargeback_max_days}"
            )
        if self.stolen_card_share + self.compromised_merchant_share > 1:
            raise ConfigError(
                "stolen_card_share + compromised_merchant_share is over 1",
                hint="They are parts of all fraud; the rest is card testing.",
            )
        if self.customers * (1 + self.turnover_per_year * (1 + self.days / 365)) >= 10**8:
            raise ConfigError("customers with turnover_per_year over these days reach 10**8 ids")
        if self.expected_rows / self.days > 2**27:
            raise ConfigError(
                f"{self.expected_rows / self.days:.0f} transactions a day are over {2**27}",
                hint="Lower customers or tx_per_customer_day.",
            )

    @classmethod
    def ending(cls, end_ms: int, *, days: int = 60, **settings: Any) -> WorldConfig:
        """A world whose history ends at ``end_ms``: what arrives from then on is live."""
        _check("days", days, whole=True)
        return cls(start_ms=end_ms - days * DAY_MS, days=days, **settings)

    @property
    def end_ms(self) -> int:
        """First millisecond after the history."""
        return self.start_ms + self.days * DAY_MS

    @property
    def tx_per_day(self) -> float:
        """Expected genuine transactions a day."""
        return self.customers * self.tx_per_customer_day

    @property
    def expected_rows(self) -> int:
        """Expected transactions of the history, for progress and planning."""
        return round(self.tx_per_day * self.days / (1 - self.fraud_rate))

    @property
    def subscription_chance(self) -> float:
        """Chance that one of a customer's subscription slots is taken."""
        wanted = RECURRING_SHARE * self.tx_per_customer_day * BILLING_DAYS
        return min(0.5, wanted / SUBSCRIPTION_SLOTS)

    def describe(self) -> dict[str, Any]:
        """Plain data for hashes and documents."""
        return dataclasses.asdict(self)


def _check(name: str, value: object, *, whole: bool) -> None:
    low, high = _BOUNDS[name]
    if type(value) is not int and (whole or type(value) is not float):
        raise ConfigError(
            f"{name} is {value!r} ({type(value).__name__})",
            hint=f"It must be a {'whole ' if whole else ''}number from {low:g} to {high:g}.",
        )
    if not isinstance(value, (int, float)) or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}", hint=f"It must be from {low:g} to {high:g}.")
