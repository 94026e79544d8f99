"""Fixed facts of the world: countries, merchant categories, daily and weekly rhythms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raypipe.clock import DAY_MS, HOUR_MS

CHANNELS = ("pos", "online", "recurring")
POS, ONLINE, RECURRING = range(3)
SLOTS = 256
"""Resolution of the choice tables: one byte of randomness picks an entry."""
QUANTILES = 1_024


@dataclass(frozen=True, slots=True)
class Country:
    """Where people live and shops are; the offset is of its clocks from UTC, in hours."""

    code: str
    share: float
    offset: int


@dataclass(frozen=True, slots=True)
class Category:
    """A kind of shop: median price in minor units, spread of its log, weights by channel."""

    name: str
    median: int
    sigma: float
    pos: float
    online: float
    recurring: float = 0.0


@dataclass(frozen=True, slots=True)
class Lifestyle:
    """A type of customer: when and how they shop. Hour weights are of local time, 0 to 23."""

    name: str
    share: float
    online: float
    weekday: str
    weekend: str
    week: tuple[float, ...]


COUNTRIES = (
    Country("DE", 0.26, 1),
    Country("FR", 0.19, 1),
    Country("IT", 0.15, 1),
    Country("ES", 0.13, 1),
    Country("NL", 0.08, 1),
    Country("BE", 0.05, 1),
    Country("AT", 0.05, 1),
    Country("PT", 0.04, 0),
    Country("FI", 0.03, 2),
    Country("IE", 0.02, 0),
)
CATEGORIES = (
    Category("grocery", 2_300, 0.65, 34, 3),
    Category("fuel", 4_600, 0.35, 9, 0),
    Category("restaurant", 2_100, 0.60, 19, 5),
    Category("transport", 750, 0.80, 9, 6),
    Category("pharmacy", 1_400, 0.60, 8, 3),
    Category("fashion", 4_900, 0.65, 7, 22),
    Category("electronics", 9_500, 0.90, 4, 14),
    Category("home", 5_200, 0.80, 6, 13),
    Category("leisure", 2_400, 0.70, 5, 8, 2),
    Category("travel", 16_000, 0.80, 1, 7),
    Category("digital", 600, 0.75, 0, 21, 6),
    Category("services", 3_200, 0.60, 2, 4, 3),
)
# One digit an hour, from midnight: the relative number of payments in it.
LIFESTYLES = (
    Lifestyle(
        "worker", 0.50, 0.30,
        "100001356445876557998643", "111000123578998887776542",
        (0.92, 0.92, 0.95, 1.0, 1.15, 1.22, 0.84),
    ),
    Lifestyle(
        "young", 0.22, 0.48,
        "321100112345776678899975", "654310011235677888899998",
        (0.85, 0.85, 0.90, 1.0, 1.25, 1.30, 0.85),
    ),
    Lifestyle(
        "home", 0.28, 0.18,
        "000000137998866778653211", "000000125789887766542211",
        (1.02, 1.05, 1.05, 1.05, 1.12, 1.05, 0.66),
    ),
)  # fmt: skip
_ONLINE_HOURS = "421000112334455555678987"

WEEK = np.array([[f * 7 / sum(s.week) for f in s.week] for s in LIFESTYLES])
"""Factor of activity, [lifestyle, weekday], Monday first; each lifestyle's mean is 1."""


def choices(weights: list[float], slots: int = SLOTS) -> npt.NDArray[np.uint8]:
    """A table of ``slots`` entries in which each choice fills its share.

    >>> choices([1, 3], slots=8).tolist()
    [0, 0, 1, 1, 1, 1, 1, 1]
    """
    edges = np.cumsum(weights) / np.sum(weights) * slots
    return np.searchsorted(edges, np.arange(slots) + 0.5).astype(np.uint8)


def drawn(
    rng: np.random.Generator, table: npt.NDArray[np.uint8], count: int
) -> npt.NDArray[np.uint8]:
    """``count`` random entries of a table from `choices`."""
    out: npt.NDArray[np.uint8] = table[rng.integers(0, SLOTS, count, np.uint8)]
    return out


COUNTRY_CHOICE = choices([c.share for c in COUNTRIES])
LIFESTYLE_CHOICE = choices([s.share for s in LIFESTYLES])
CATEGORY_CHOICE = np.stack(
    [
        choices([c.pos for c in CATEGORIES]),
        choices([c.online for c in CATEGORIES]),
        choices([c.recurring for c in CATEGORIES]),
    ]
)
"""Category by [channel, byte]."""
OFFSETS = np.array([c.offset for c in COUNTRIES])
_OFFSET_COUNT = int(OFFSETS.max()) + 1


def _quantiles(hours: str, channel: int, offset: int) -> npt.NDArray[np.float64]:
    weights = np.array([int(h) for h in hours], np.float64)
    weights /= weights.sum()
    if channel == ONLINE:
        online = np.array([int(h) for h in _ONLINE_HOURS], np.float64)
        weights = 0.5 * weights + 0.5 * online / online.sum()
    weights = np.roll(weights, -offset) + 1e-4
    cumulated = np.concatenate([[0.0], np.cumsum(weights) / weights.sum()])
    out: npt.NDArray[np.float64] = np.interp(
        np.linspace(0, 1, QUANTILES + 1), cumulated, np.arange(25.0) * HOUR_MS
    )
    return out


class Rhythm:
    """Time of day by inverse distribution tables, [lifestyle, weekend, offset, channel]."""

    def __init__(self) -> None:
        self._edges = np.concatenate(
            [
                _quantiles(hours, channel, offset)
                for style in LIFESTYLES
                for hours in (style.weekday, style.weekend)
                for offset in range(_OFFSET_COUNT)
                for channel in (POS, ONLINE)
            ]
        )

    def times(
        self,
        random: npt.NDArray[np.float64],
        lifestyle: npt.NDArray[np.integer],
        country: npt.NDArray[np.integer],
        channel: npt.NDArray[np.integer],
        weekday: int,
    ) -> npt.NDArray[np.int64]:
        """Milliseconds into the UTC day for uniform random numbers in [0, 1)."""
        weekend = int(weekday >= 5)
        table = (lifestyle * 2 + weekend) * _OFFSET_COUNT + OFFSETS[country]
        scaled = random * QUANTILES
        cell = scaled.astype(np.int64)
        at = (table * 2 + channel) * (QUANTILES + 1) + cell
        start = self._edges[at]
        time = start + (scaled - cell) * (self._edges[at + 1] - start)
        out: npt.NDArray[np.int64] = np.minimum(time.astype(np.int64), DAY_MS - 1)
        return out
