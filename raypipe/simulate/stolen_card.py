"""Campaign: a thief uses one card for one to three days.

Most thieves buy dear things online from a device that the customer never used; some shop with the
plastic card; the careful ones stay near normal amounts and places, a few of them on the customer's
own hijacked device.
"""

from __future__ import annotations

import numpy as np

from raypipe.clock import DAY_MS
from raypipe.simulate import catalog
from raypipe.simulate.catalog import ONLINE, POS
from raypipe.simulate.rows import Campaign, Rows, payments, serial
from raypipe.simulate.scene import Scene

LEAST, MORE = 4, 6.0
MEAN_SIZE = LEAST + MORE
LONGEST_MS = 3 * DAY_MS

_PLASTIC = 0.28
_CAREFUL = 0.2
_HIJACKED = 0.25
_RING = 0.30
_WANTED = catalog.choices([2, 2, 2, 2, 1, 20, 30, 8, 3, 14, 14, 0])
"""Category by byte: goods that sell on, in the order of `catalog.CATEGORIES`."""


def stolen_cards(scene: Scene, rng: np.random.Generator, day: int, count: int, first: int) -> Rows:
    """All payments of the ``count`` campaigns that start on ``day``, numbered from ``first``."""
    people = scene.customers
    victims = rng.choice(people.active(day), count)
    plastic = rng.random(count) < _PLASTIC
    careful = rng.random(count) < _CAREFUL
    hijacked = careful & (rng.random(count) < _HIJACKED)
    length = DAY_MS * rng.uniform(0.3, 3.0, count)
    card = people.card(victims, rng.random(count) < 0.5, day)
    # Gangs share a device among cards for a week; others buy a new one for each card.
    ring = rng.random(count) < _RING
    gang = 2**27 + rng.integers(0, max(1, count // 3), count)
    device = np.where(
        ring,
        people.fraud_device(day // 7, gang),
        people.fraud_device(day, np.arange(count) + serial(first)),
    )
    own = people.device(victims, np.zeros(count, np.int64), day)
    device = np.where(plastic, -1, np.where(hijacked, own, device))

    who = np.repeat(np.arange(count), LEAST + rng.poisson(MORE, count))
    size = len(who)
    customer, quiet = victims[who], careful[who]
    home = people.country[customer]
    channel = np.where(plastic[who], POS, ONLINE).astype(np.int8)
    # Thieves can't tell how long a card lives: they hurry at first.
    elapsed = (length[who] * rng.random(size) ** 1.7).astype(np.int64)
    start = rng.integers(0, DAY_MS, count)[who] + elapsed
    waking = scene.rhythm.times(
        rng.random(size), people.lifestyle[customer], home, channel, scene.weekday(day)
    )
    waking += elapsed // DAY_MS * DAY_MS
    time = scene.starts(day) + np.where(quiet | plastic[who], waking, start)

    foreign = catalog.COUNTRY_CHOICE[rng.integers(0, 256, size, np.uint8)]
    stays = np.where(quiet | plastic[who], 0.9, 0.5)
    country = np.where(rng.random(size) < stays, home, foreign)
    taste = rng.integers(0, 256, size, np.uint8)
    wanted = np.where(
        quiet & (rng.random(size) < 0.6), catalog.CATEGORY_CHOICE[channel, taste], _WANTED[taste]
    )
    merchant = scene.market.pick(wanted, country, rng.random(size))
    extra = np.where(quiet, rng.normal(0.25, 0.3, size), rng.normal(1.2, 0.5, size))
    return payments(
        time=time,
        customer=customer,
        card=card[who],
        device=device[who],
        merchant=merchant,
        amount=scene.price(rng, customer, merchant, extra),
        channel=channel,
        kind=Campaign.STOLEN_CARD,
        campaign=first + who,
    )
