"""Campaign: a robot tries a card with tiny online payments at few merchants, then buys for real."""

from __future__ import annotations

import numpy as np

from raypipe.clock import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS
from raypipe.simulate import catalog
from raypipe.simulate.catalog import ONLINE, drawn
from raypipe.simulate.rows import Campaign, Rows, payments, serial
from raypipe.simulate.scene import LARGEST, SMALLEST, Scene

LEAST, MORE = 4, 3.0
LARGE = 1.5
MEAN_SIZE = LEAST + MORE + LARGE
SHOPS = 3
TINY = 300
"""A test stays under this amount, minor units."""
LONGEST_MS = 2 * DAY_MS

_TRIED = catalog.choices([1, 0, 2, 3, 1, 3, 1, 1, 4, 0, 12, 2])
_WANTED = catalog.choices([0, 0, 0, 0, 0, 8, 12, 4, 0, 6, 4, 0])


def card_tests(scene: Scene, rng: np.random.Generator, day: int, count: int, first: int) -> Rows:
    """All payments of the ``count`` campaigns that start on ``day``, numbered from ``first``."""
    people = scene.customers
    victims = rng.choice(people.active(day), count)
    card = people.card(victims, rng.random(count) < 0.5, day)
    device = people.fraud_device(day, np.arange(count) + serial(first))
    start = scene.starts(day) + rng.integers(0, DAY_MS, count)

    tests = LEAST + rng.poisson(MORE, count)
    large = 1 + (rng.random(count) < LARGE - 1).astype(np.int64)
    who = np.repeat(np.arange(count), tests + large)
    size = len(who)
    place = np.arange(size) - np.repeat(np.cumsum(tests + large) - tests - large, tests + large)
    tiny = place < tests[who]

    # Mean gap of a robot's tries: seconds for most, a few minutes for the patient ones.
    gap = np.exp(rng.uniform(np.log(8 * SECOND_MS), np.log(3 * MINUTE_MS), count))
    pause = rng.uniform(2 * MINUTE_MS, 8 * HOUR_MS, size)
    steps = np.where(tiny, gap[who] * rng.standard_exponential(size), pause)
    steps[place == 0] = 0.0
    walked = np.cumsum(steps)
    time = start[who] + (walked - walked[place == 0][who]).astype(np.int64)

    shop = rng.integers(0, SHOPS, size)
    tried = scene.market.pick(
        drawn(rng, _TRIED, count * SHOPS),
        drawn(rng, catalog.COUNTRY_CHOICE, count * SHOPS),
        rng.random(count * SHOPS),
    )
    wanted = scene.market.pick(
        drawn(rng, _WANTED, size),
        drawn(rng, catalog.COUNTRY_CHOICE, size),
        rng.random(size),
    )
    merchant = np.where(tiny, tried[who * SHOPS + shop], wanted)
    customer = victims[who]
    price = scene.price(rng, customer, merchant, rng.normal(1.2, 0.4, size))
    amount = np.where(tiny, rng.integers(SMALLEST, TINY, size), np.minimum(price + 5_000, LARGEST))
    return payments(
        time=time,
        customer=customer,
        card=card[who],
        device=device[who],
        merchant=merchant,
        amount=amount,
        channel=np.full(size, ONLINE, np.int8),
        kind=Campaign.CARD_TESTING,
        campaign=first + who,
    )
