"""What a simulated shop is made of, as one checked and frozen value."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from raypipe.clock import DAY_MS
from raypipe.errors import ConfigError
from raypipe.events.schema import EARLIEST_MS

_BOUNDS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "start_ms": (EARLIEST_MS, 2**42),
    "days": (1, 5_000),
    "shoppers": (1, 10_000_000),
    "items": (10, 1_000_000),
    "categories": (1, 1_000),
    "brands": (1, 100_000),
    "groups": (1, 1_000),
    "visits_per_day": (1e-6, 50),
    "looks_per_visit": (1, 100),
    "taste": (0, 20),
    "season": (0, 5),
    "anonymous_share": (0, 1),
    "join_per_year": (0, 10),
    "launched_share": (0, 1),
    "fading_share": (0, 1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopConfig:
    """Sizes, rates and the seed of a shop; equal configs make equal shops.

    ``shoppers`` are there at the start and ``join_per_year`` of them join a year. ``groups`` are
    the hidden styles that shoppers and items belong to; ``taste`` is how much they matter, on the
    scale of log-odds: at 0 all people like the same. ``season`` is the same for the time of the
    year, by category. ``launched_share`` of the items appear during the history, the others before;
    ``fading_share`` go out of fashion. ``anonymous_share`` of the visits come without an account
    until they order. Raises ConfigError for a value out of range or of the wrong type.
    """

    seed: int = 7
    start_ms: int
    days: int = 60
    shoppers: int = 5_000
    items: int = 2_000
    categories: int = 20
    brands: int = 100
    groups: int = 12
    visits_per_day: float = 0.15
    looks_per_visit: float = 4.0
    taste: float = 3.0
    season: float = 0.5
    anonymous_share: float = 0.3
    join_per_year: float = 1.0
    launched_share: float = 0.25
    fading_share: float = 0.4

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            low, high = _BOUNDS[field.name]
            kinds = (int,) if field.type == "int" else (int, float)
            if type(value) not in kinds or not low <= value <= high:
                raise ConfigError(
                    f"{field.name} is {value!r}",
                    hint=f"It must be a {'whole ' if kinds == (int,) else ''}number "
                    f"from {low:g} to {high:g}.",
                )

    @property
    def end_ms(self) -> int:
        """First millisecond after the history."""
        return self.start_ms + self.days * DAY_MS

    def describe(self) -> dict[str, Any]:
        """Plain data for hashes and documents."""
        return dataclasses.asdict(self)
