"""Campaign: a merchant's payment page or terminal leaks cards, and is then abused itself.

For `LEAK_DAYS` the cards of honest visitors are copied. From the day after, for one to two weeks,
copies are used at other merchants and the merchant itself books payments that nobody made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raypipe.clock import DAY_MS
from raypipe.simulate import catalog
from raypipe.simulate.catalog import ONLINE, POS, drawn
from raypipe.simulate.draws import Ints
from raypipe.simulate.rows import Campaign, Rows, no_rows, payments, serial
from raypipe.simulate.scene import Scene

LEAST, MORE = 15, 30.0
MEAN_SIZE = LEAST + MORE
LEAK_DAYS = 3
LONGEST_DAYS = 15

_AT_MERCHANT = 0.5
_STRANGERS = 0.5
_GIANTS = 0.3
"""The most popular merchants, with this share of the traffic, know how to protect themselves."""
_COUNTRY = catalog.COUNTRY_CHOICE
_WANTED = catalog.choices([6, 3, 4, 3, 2, 18, 20, 8, 3, 8, 12, 1])


@dataclass(frozen=True, slots=True)
class Leaks:
    """The merchants that start to leak on a day; their campaigns are numbered from ``first``."""

    day: int
    first: int
    merchant: Ints
    channel: npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Visits:
    """Honest payments of one day at leaking merchants."""

    merchant: Ints
    customer: Ints
    card: Ints


def leaks(scene: Scene, rng: np.random.Generator, day: int, count: int, first: int) -> Leaks:
    """The merchants that start to leak on ``day``, chosen as customers choose them."""
    channel = np.where(rng.random(count) < 0.5, ONLINE, POS).astype(np.int8)
    category = catalog.CATEGORY_CHOICE[channel, rng.integers(0, 256, count, np.uint8)]
    country = drawn(rng, _COUNTRY, count)
    merchant = scene.market.pick(category, country, rng.uniform(_GIANTS, 1.0, count))
    return Leaks(day, first, merchant, channel)


def visits(honest: Rows, merchants: Ints, merchant_count: int) -> Visits:
    """Who paid at one of ``merchants``."""
    leaking = np.zeros(merchant_count, bool)
    leaking[merchants] = True
    there = np.flatnonzero(leaking[honest.merchant])
    return Visits(honest.merchant[there], honest.customer[there], honest.card[there])


def exploits(scene: Scene, rng: np.random.Generator, found: Leaks, seen: Sequence[Visits]) -> Rows:
    """All fraud that follows from ``found``, given the visits of its `LEAK_DAYS` days.

    A merchant that nobody visited yields none.
    """
    merchant = np.concatenate([v.merchant for v in seen])
    order = np.argsort(merchant, kind="stable")
    begin = np.searchsorted(merchant[order], found.merchant, "left")
    visitors = np.searchsorted(merchant[order], found.merchant, "right") - begin

    sizes = np.where(visitors > 0, LEAST + rng.poisson(MORE, len(visitors)), 0)
    who = np.repeat(np.arange(len(sizes)), sizes)
    if not len(who):
        return no_rows()
    # Each copied card is used about three times; which visitors, the even spread decides.
    robbed = np.clip(sizes // 3, 1, visitors)[who]
    nth = (robbed * rng.random(len(who))).astype(np.int64)
    at = order[begin[who] + visitors[who] * nth // robbed]
    customer = np.concatenate([v.customer for v in seen])[at]
    card = np.concatenate([v.card for v in seen])[at]

    abused = rng.random(len(who)) < _AT_MERCHANT
    customer, card = _strangers(scene, rng, found, who, abused, customer, card)
    channel = np.where(abused, found.channel[who], ONLINE).astype(np.int8)
    # One machine for the merchant's own fakes, up to seven for the copied cards.
    number = (serial(found.first) + who) * 8 + np.where(abused, 0, 1 + nth % 7)
    device = np.where(channel == ONLINE, scene.customers.fraud_device(found.day, number), -1)

    home = scene.customers.country[customer]
    country = np.where(rng.random(len(who)) < 0.7, home, drawn(rng, _COUNTRY, len(who)))
    other = scene.market.pick(drawn(rng, _WANTED, len(who)), country, rng.random(len(who)))
    merchant = np.where(abused, found.merchant[who], other)
    extra = np.where(abused, rng.normal(0.4, 0.4, len(who)), rng.normal(0.9, 0.5, len(who)))

    lasts = rng.integers(7, LONGEST_DAYS + 1, len(sizes))[who]
    after = LEAK_DAYS + (lasts * rng.random(len(who))).astype(np.int64)
    lifestyle = scene.customers.lifestyle[customer]
    moment = scene.rhythm.times(rng.random(len(who)), lifestyle, home, channel, 0)
    return payments(
        time=scene.starts(found.day) + after * DAY_MS + moment,
        customer=customer,
        card=card,
        device=device,
        merchant=merchant,
        amount=scene.price(rng, customer, merchant, extra),
        channel=channel,
        kind=Campaign.COMPROMISED_MERCHANT,
        campaign=found.first + who,
    )


def _strangers(
    scene: Scene,
    rng: np.random.Generator,
    found: Leaks,
    who: Ints,
    abused: npt.NDArray[np.bool_],
    customer: Ints,
    card: Ints,
) -> tuple[Ints, Ints]:
    """Replace the victims of half the merchant's fakes by compatriots who were never there."""
    people = scene.customers
    some = np.flatnonzero(abused & (rng.random(len(who)) < _STRANGERS))
    tries = rng.choice(people.active(found.day), (len(some), 12))
    fits = people.country[tries] == scene.market.country[found.merchant[who[some]]][:, None]
    first = np.argmax(fits, axis=1)
    lucky = fits.any(axis=1)
    chosen = tries[np.arange(len(some)), first][lucky]
    customer, card = customer.copy(), card.copy()
    customer[some[lucky]] = chosen
    card[some[lucky]] = people.card(chosen, np.zeros(len(chosen), bool), found.day + LEAK_DAYS)
    return customer, card
