"""What honest customers buy on one day."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from raypipe.clock import HOUR_MS
from raypipe.simulate import catalog
from raypipe.simulate.catalog import RECURRING
from raypipe.simulate.config import BILLING_DAYS, SUBSCRIPTION_SLOTS
from raypipe.simulate.draws import Ints, Purpose, generator, key_of, mix, uniform
from raypipe.simulate.rows import Rows, no_rows, payments, together
from raypipe.simulate.scene import Scene

ROUTINES = catalog.choices([0.5**i for i in range(8)])
ROUTINE_SHARE = 0.62
HOME_ONLINE = 0.78
SPREE_CHANCE = 0.012
SPREE_FACTOR = 5.0
BIG_CHANCE = 0.02
SECOND_CARD_SHARE = 0.2
GUEST_DEVICE_SHARE = 0.015
TOGETHER = 2**15
"""Customers computed at a time: their columns stay in the processor's cache."""

_DEVICE_SLOT = catalog.choices([74, 19, 7])


def genuine_day(scene: Scene, day: int) -> Rows:
    """All genuine payments of a day, in no order of time."""
    rng = generator(scene.config.seed, Purpose.GENUINE_DAY, day)
    active = scene.customers.active(day)
    parts, guests = [no_rows()], 0
    for at in range(0, len(active), TOGETHER):
        some = active[at : at + TOGETHER]
        bought = _shopping(scene, rng, some, day, guests)
        guests += len(bought)
        parts += [bought, _subscriptions(scene, some, day)]
    return together(parts)


def _shopping(scene: Scene, rng: np.random.Generator, active: Ints, day: int, guests: int) -> Rows:
    """``guests`` is the first free number of a device that is used once."""
    people, config = scene.customers, scene.config
    factor = catalog.WEEK[people.lifestyle[active], scene.weekday(day)]
    spree = rng.random(len(active), np.float32) < SPREE_CHANCE
    factor = np.where(spree, SPREE_FACTOR, factor)
    factor /= 1 + SPREE_CHANCE * (SPREE_FACTOR - 1)
    counts = rng.poisson(people.rate[active] * factor)
    who = np.repeat(active, counts)
    away = np.repeat(people.abroad(active, day), counts)
    size = len(who)

    online = rng.random(size, np.float32) < people.online[who]
    channel = online.astype(np.int8)
    home = people.country[who]
    elsewhere = catalog.COUNTRY_CHOICE[rng.integers(0, 256, size, np.uint8)]
    near = rng.random(size, np.float32) < HOME_ONLINE
    country = np.where(online, np.where(near, home, elsewhere), np.where(away >= 0, away, home))

    # A routine is a shop that the customer comes back to; anything else is a fresh choice.
    routine = ROUTINES[rng.integers(0, 256, size, np.uint8)] * 2 + channel
    bits = np.where(
        rng.random(size, np.float32) < ROUTINE_SHARE,
        mix(key_of(config.seed, Purpose.ROUTINE), who, routine),
        rng.integers(0, 2**64, size, np.uint64),
    )
    category = catalog.CATEGORY_CHOICE[channel, bits & np.uint64(255)]
    merchant = scene.market.pick(category, country, uniform(bits))

    big = rng.random(size, np.float32) < BIG_CHANCE
    extra = np.where(big, rng.uniform(0.6, 2.2, size), 0.0)
    time = scene.rhythm.times(
        rng.random(size), people.lifestyle[who], home, channel, scene.weekday(day)
    )
    second = rng.random(size, np.float32) < SECOND_CARD_SHARE
    return payments(
        time=time + scene.starts(day),
        customer=who,
        card=people.card(who, second, day),
        device=_devices(scene, rng, who, online, day, guests),
        merchant=merchant,
        amount=scene.price(rng, who, merchant, extra),
        channel=channel,
    )


def _devices(
    scene: Scene,
    rng: np.random.Generator,
    who: Ints,
    online: npt.NDArray[np.bool_],
    day: int,
    guests: int,
) -> Ints:
    out = np.full(len(who), -1, np.int64)
    users = who[online]
    slot = _DEVICE_SLOT[rng.integers(0, 256, len(users), np.uint8)].astype(np.int64)
    own = scene.customers.device(users, slot, day)
    guest = np.flatnonzero(rng.random(len(users), np.float32) < GUEST_DEVICE_SHARE)
    own[guest] = scene.customers.guest_device(day, guests + guest)
    out[online] = own
    return out


def _subscriptions(scene: Scene, active: Ints, day: int) -> Rows:
    """Monthly bills: the same amount at the same merchant at the same time of day."""
    name = key_of(scene.config.seed, Purpose.SUBSCRIPTION)
    bits = np.concatenate([mix(name, active, slot) for slot in range(SUBSCRIPTION_SLOTS)])
    who = np.tile(active, SUBSCRIPTION_SLOTS)
    due = (bits >> np.uint64(8)) % np.uint64(BILLING_DAYS) == np.uint64(day % BILLING_DAYS)
    due &= uniform(bits) < scene.config.subscription_chance
    who, bits = who[due], mix(name, bits[due].astype(np.int64), SUBSCRIPTION_SLOTS)

    category = catalog.CATEGORY_CHOICE[RECURRING, bits & np.uint64(255)]
    merchant = scene.market.pick(category, scene.customers.country[who], uniform(bits))
    bits = mix(name, bits.astype(np.int64), SUBSCRIPTION_SLOTS + 1)
    median = np.array([c.median for c in catalog.CATEGORIES])[category]
    amount = (median * np.exp(uniform(bits) - 0.5) / 100).astype(np.int64) * 100 + 99
    night = (HOUR_MS + uniform(mix(name, who)) * 4 * HOUR_MS).astype(np.int64)
    nothing = np.full(len(who), -1, np.int64)
    return payments(
        time=scene.starts(day) + night,
        customer=who,
        card=scene.customers.card(who, np.zeros(len(who), bool), day),
        device=nothing,
        merchant=merchant,
        amount=amount,
        channel=np.full(len(who), RECURRING, np.int8),
    )
