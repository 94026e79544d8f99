"""Customers and what they have: homes, habits, cards, devices, trips, all known from the seed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from raypipe.simulate import catalog
from raypipe.simulate.config import BILLING_DAYS, SUBSCRIPTION_SLOTS, WorldConfig
from raypipe.simulate.draws import Bits, Ints, Purpose, key_of, mix, normal, uniform
from raypipe.simulate.ids import scramble

CARD_SLOTS = 2
CARDS_EACH = 100
"""Card numbers set aside for a customer: two slots, fifty generations."""
DEVICE_SLOTS = 3
TRIP_PERIOD = 60
TRIP_CHANCE = 0.2

_TWO_CARDS = 0.35
_CARD_DAYS = (250.0, 1_000.0)
_DEVICE_DAYS = (150.0, 900.0)
_ACTIVITY_SIGMA = 0.6
_LEVEL_SIGMA = 0.45
_TASTE_SIGMA = 0.35

# A device number's top bits say whose it is; scrambling hides them.
_OWNED, _GUEST, _FRAUDSTER = (i << 46 for i in range(3))


class Customers:
    """Columns by customer number, grown when later days need more customers.

    ``day`` is always a day of the world, 0 for the UTC day in which it starts.
    """

    def __init__(self, config: WorldConfig) -> None:
        self._config = config
        self._key = key_of(config.seed, Purpose.CUSTOMER)
        self._trip_key = key_of(config.seed, Purpose.TRIP)
        self._device_key = key_of(config.seed, Purpose.DEVICE)
        self._joins_per_day = config.customers * config.turnover_per_year / 365
        self._draw(self.known(config.days + 1))

    def known(self, day: int) -> int:
        """How many customers have ever joined by the end of ``day``."""
        return self._config.customers + int(self._joins_per_day * (day + 1))

    def _traits(self, trait: int) -> Bits:
        return mix(self._key, self._numbers, trait)

    def _draw(self, count: int) -> None:
        config = self._config
        self._numbers = n = np.arange(count, dtype=np.int64)
        self.lifestyle = catalog.LIFESTYLE_CHOICE[self._traits(0) & np.uint64(255)]
        self.country = catalog.COUNTRY_CHOICE[self._traits(1) & np.uint64(255)]

        subscriptions = config.subscription_chance * SUBSCRIPTION_SLOTS / BILLING_DAYS
        base = config.tx_per_customer_day - subscriptions
        spread = np.exp(_ACTIVITY_SIGMA * normal(self._key, n, 1) - _ACTIVITY_SIGMA**2 / 2)
        self.rate = base * spread
        online = np.array([s.online for s in catalog.LIFESTYLES])[self.lifestyle]
        self.online = np.clip(online * np.exp(0.4 * normal(self._key, n, 2)), 0.02, 0.95)

        level = _LEVEL_SIGMA * normal(self._key, n, 3)
        self.level = np.empty((count, len(catalog.CATEGORIES)), np.float32)
        for i, category in enumerate(catalog.CATEGORIES):
            taste = _TASTE_SIGMA * normal(self._key, n, 10 + i)
            self.level[:, i] = np.log(category.median) + level + taste

        self.second_card = uniform(self._traits(100)) < _TWO_CARDS
        self.devices = catalog.choices([45, 38, 17])[self._traits(101) & np.uint64(255)] + 1

        first = self._config.customers
        self.joined = np.where(n < first, -1, (n - first) / max(self._joins_per_day, 1e-300))
        self.joined = np.floor(self.joined).astype(np.int64)
        stay = -np.log(uniform(self._traits(102)))
        days = stay * 365 / max(config.turnover_per_year, 1e-9)
        self.left = self.joined + 1 + np.minimum(days, 2**40).astype(np.int64)

    def active(self, day: int) -> Ints:
        """Numbers of the customers who have joined by ``day`` and not yet left."""
        count = self.known(day)
        if count > len(self._numbers):
            self._draw(count + count // 8)
        joined, left = self.joined[:count], self.left[:count]
        return np.flatnonzero((joined <= day) & (left > day))

    def card(self, customer: Ints, second: npt.NDArray[np.bool_], day: int) -> Ints:
        """Number of the first or second card in use on ``day``; cards get replaced."""
        slot = (second & self.second_card[customer]).astype(np.int64)
        generation = self._generation(customer, slot, day, _CARD_DAYS)
        return customer * CARDS_EACH + generation % (CARDS_EACH // CARD_SLOTS) * CARD_SLOTS + slot

    def device(self, customer: Ints, slot: Ints, day: int) -> Ints:
        """Number of an own device in use on ``day``; the first slot is used most."""
        slot = np.minimum(slot, self.devices[customer] - 1)
        generation = self._generation(customer, slot + CARD_SLOTS, day, _DEVICE_DAYS)
        own = (customer * DEVICE_SLOTS + slot) * 1_024 + generation
        return scramble(own + _OWNED, self._device_key)

    def guest_device(self, day: int, numbers: Ints) -> Ints:
        """Devices that are used once on ``day``: a friend's phone, a cleared browser."""
        return scramble((day << 28) + numbers + _GUEST, self._device_key)

    def fraud_device(self, day: int, numbers: Ints) -> Ints:
        """Fraudsters' devices; they look like any other. ``numbers`` are below 2**28."""
        return scramble((day << 28) + numbers + _FRAUDSTER, self._device_key)

    def _generation(self, customer: Ints, thing: Ints, day: int, life: tuple[float, float]) -> Ints:
        bits = mix(self._key, customer, thing + 200)
        low, high = life
        period = low + (high - low) * uniform(bits)
        phase = (bits & np.uint64(1023)).astype(np.float64) / 1024
        return (day / period + phase).astype(np.int64)

    def abroad(self, customer: Ints, day: int) -> npt.NDArray[np.int8]:
        """Country where each customer travels on ``day``, -1 at home."""
        shift = mix(self._trip_key, customer) % np.uint64(TRIP_PERIOD)
        now = shift.astype(np.int64) + day
        period = now // TRIP_PERIOD
        bits = mix(self._trip_key, customer, period + 1)
        start = ((bits >> np.uint64(8)) % np.uint64(TRIP_PERIOD - 12)).astype(np.int64)
        length = 2 + ((bits >> np.uint64(20)) % np.uint64(11)).astype(np.int64)
        into = now - period * TRIP_PERIOD - start
        travels = (into >= 0) & (into < length) & (uniform(bits) < TRIP_CHANCE)
        to = catalog.COUNTRY_CHOICE[bits & np.uint64(255)].astype(np.int8)
        return np.where(travels, to, np.int8(-1))
