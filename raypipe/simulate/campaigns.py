"""When fraud campaigns start, and the fraud of one day. Any day can be asked for on its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np

from raypipe.clock import DAY_MS
from raypipe.simulate import card_testing, compromised_merchant, stolen_card
from raypipe.simulate.compromised_merchant import LEAK_DAYS, LONGEST_DAYS, Leaks, Visits
from raypipe.simulate.draws import Purpose, generator
from raypipe.simulate.genuine import genuine_day
from raypipe.simulate.rows import SERIAL_BITS, Campaign, Rows, no_rows, together
from raypipe.simulate.scene import Scene

T = TypeVar("T")

_SPAN = max(stolen_card.LONGEST_MS, card_testing.LONGEST_MS) // DAY_MS
_BACK = LEAK_DAYS + LONGEST_DAYS
_KIND_BITS = SERIAL_BITS - 2


class ByDay(Generic[T]):
    """Remembers a pure function of the day for the newest days asked for, within ``keep``."""

    def __init__(self, compute: Callable[[int], T], keep: int) -> None:
        self._compute, self._keep = compute, keep
        self._known: dict[int, T] = {}

    def __call__(self, day: int) -> T:
        """The value of ``day``, computed at most once while it is remembered."""
        if day not in self._known:
            value = self._compute(day)
            self._known = {d: v for d, v in self._known.items() if abs(d - day) < self._keep}
            self._known[day] = value
        return self._known[day]


class Fraud:
    """All campaigns of a world."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        config = scene.config
        daily = config.tx_per_day * config.fraud_rate / (1 - config.fraud_rate)
        testing = 1 - config.stolen_card_share - config.compromised_merchant_share
        self._starts = {
            Campaign.STOLEN_CARD: daily * config.stolen_card_share / stolen_card.MEAN_SIZE,
            Campaign.COMPROMISED_MERCHANT: daily
            * config.compromised_merchant_share
            / compromised_merchant.MEAN_SIZE,
            Campaign.CARD_TESTING: daily * max(testing, 0.0) / card_testing.MEAN_SIZE,
        }
        self.genuine = ByDay(lambda day: genuine_day(scene, day), 1)
        self._direct = ByDay(self._direct_fraud, _SPAN + 2)
        self._leaks = ByDay(self._new_leaks, _BACK + LEAK_DAYS)
        self._visits = ByDay(self._visits_at_leaks, _BACK + LEAK_DAYS)
        self._exploits = ByDay(self._exploits_of, _BACK + 1)

    def day(self, day: int) -> Rows:
        """The fraudulent payments of a day, in no order of time."""
        self._visits(day)
        since = max(0, day - _SPAN)
        parts = [self._direct(start) for start in range(since, day + 1)]
        leaked = range(max(0, day - _BACK), day - LEAK_DAYS + 1)
        parts += [self._exploits(start) for start in leaked]
        rows = together(parts)
        begin = self._scene.starts(day)
        return rows.take(np.flatnonzero((rows.time >= begin) & (rows.time < begin + DAY_MS)))

    def _begin(
        self, kind: Campaign, purpose: Purpose, day: int
    ) -> tuple[np.random.Generator, int, int]:
        rng = generator(self._scene.config.seed, purpose, day)
        someone = len(self._scene.customers.active(day)) > 0
        count = int(rng.poisson(self._starts[kind])) if someone else 0
        return rng, min(count, 2**_KIND_BITS), (day << SERIAL_BITS) + (kind << _KIND_BITS)

    def _direct_fraud(self, day: int) -> Rows:
        rng, count, first = self._begin(Campaign.STOLEN_CARD, Purpose.STOLEN_CARD_DAY, day)
        stolen = stolen_card.stolen_cards(self._scene, rng, day, count, first)
        rng, count, first = self._begin(Campaign.CARD_TESTING, Purpose.CARD_TESTING_DAY, day)
        tested = card_testing.card_tests(self._scene, rng, day, count, first)
        return together([stolen, tested])

    def _new_leaks(self, day: int) -> Leaks:
        kind, purpose = Campaign.COMPROMISED_MERCHANT, Purpose.COMPROMISE_DAY
        rng, count, first = self._begin(kind, purpose, day)
        return compromised_merchant.leaks(self._scene, rng, day, count, first)

    def _visits_at_leaks(self, day: int) -> Visits:
        leaking = [self._leaks(d).merchant for d in range(max(0, day - LEAK_DAYS + 1), day + 1)]
        return compromised_merchant.visits(
            self.genuine(day), np.concatenate(leaking), self._scene.config.merchants
        )

    def _exploits_of(self, day: int) -> Rows:
        found = self._leaks(day)
        if not len(found.merchant):
            return no_rows()
        seen = [self._visits(d) for d in range(day, day + LEAK_DAYS)]
        rng = generator(self._scene.config.seed, Purpose.EXPLOIT_DAY, day)
        return compromised_merchant.exploits(self._scene, rng, found, seen)
