"""A list made in the most obvious way: dictionaries, loops, one item after the other."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any


@dataclass
class Case:
    """One request over a few items; attributes by code, None where unknown."""

    scores: dict[int, float]
    category: dict[int, int | None]
    brand: dict[int, int | None]
    k: int
    barred: set[int] = field(default_factory=set)
    sponsored: list[int] = field(default_factory=list)
    sponsored_places: tuple[int, ...] = ()
    cap_category: int | None = None
    cap_brand: int | None = None
    strict: bool = False
    weight: float = 1.0
    parts: tuple[float, float, float] = (0.6, 0.4, 0.0)
    neighbours: dict[int, dict[int, float]] = field(default_factory=dict)
    share: float = 0.0
    temperature: float = 0.1
    free: tuple[int, ...] = ()

    def likeness(self, listed: int, other: int) -> float:
        """How alike an item is to one of the list."""
        found = 0.0
        for attribute, part in ((self.category, self.parts[0]), (self.brand, self.parts[1])):
            if attribute[listed] is not None and attribute[listed] == attribute[other]:
                found += part
        near = self.neighbours.get(listed, {})
        if near:
            found += self.parts[2] * near.get(other, 0.0) / max(near.values())
        return found

    def next(self, above: list[int]) -> tuple[dict[int, float], int | None]:
        """What may come next with its probability where chance rules, and what comes without."""
        place = len(above) + 1

        def fits(item: int) -> bool:
            for attribute, cap in (
                (self.category, self.cap_category),
                (self.brand, self.cap_brand),
            ):
                same = [
                    a for a in above if attribute[a] is not None and attribute[a] == attribute[item]
                ]
                if cap is not None and len(same) >= cap:
                    return False
            return True

        if place in self.sponsored_places:
            for item in self.sponsored:
                if item not in self.barred and item not in above and fits(item):
                    return {item: 1.0}, item
        allowed = [i for i in self.scores if i not in self.barred]
        left = [i for i in allowed if i not in above]
        may = [i for i in left if fits(i)] or ([] if self.strict else left)
        if not may:
            return {}, None
        low, high = min(self.scores[i] for i in allowed), max(self.scores[i] for i in allowed)

        def value(item: int) -> float:
            good = (self.scores[item] - low) / (high - low) if high > low else 1.0
            alike = max((self.likeness(a, item) for a in above), default=0.0)
            return self.weight * good - (1 - self.weight) * alike

        best = max(may, key=value)  # the first of equal ones
        if self.free and place not in self.free:
            return {best: 1.0}, best
        weights = {i: math.exp(value(i) / self.temperature) for i in may}
        whole = sum(weights.values())
        return {i: w / whole for i, w in weights.items()}, best

    def best_list(self) -> list[int]:
        """Without chance."""
        above: list[int] = []
        while len(above) < self.k:
            _, best = self.next(above)
            if best is None:
                break
            above.append(best)
        return above

    def probability(self, listed: tuple[int, ...]) -> float:
        """Of this list and no longer one, over both kinds of requests."""
        drawn = 1.0
        for place, item in enumerate(listed):
            drawn *= self.next(list(listed[:place]))[0].get(item, 0.0)
        if len(listed) < self.k and self.next(list(listed))[0]:
            return 0.0
        plain = float(list(listed) == self.best_list())
        return self.share * drawn + (1 - self.share) * plain

    def all_lists(self) -> dict[tuple[int, ...], float]:
        """Every list that can come, with its probability."""
        everything = sorted({*self.scores, *self.sponsored})
        found = {}
        for size in range(self.k + 1):
            for listed in permutations(everything, size):
                if (p := self.probability(listed)) > 0:
                    found[listed] = p
        return found


def arguments(case: Case, seed: int = 0) -> dict[str, Any]:
    """The same as what ``choose`` takes."""
    import numpy as np

    from serving.recommend.diversity import Diversity, Neighbours
    from serving.recommend.exploration import Exploration
    from serving.recommend.rules import Caps, Items, Rules, Visitor
    from serving.recommend.selection import Asked, Selection

    size = max(case.category) + 1
    category, brand = (
        np.array([-1 if attribute.get(i) is None else attribute[i] for i in range(size)])
        for attribute in (case.category, case.brand)
    )
    rows = [sorted(case.neighbours.get(i, {}).items(), key=lambda e: -e[1]) for i in range(size)]
    table = (
        np.cumsum([0, *map(len, rows)]),
        np.array([c for r in rows for c, _ in r], np.int32),
        np.array([v for r in rows for _, v in r], np.float32),
    )
    for array in table:
        array.flags.writeable = False
    rules = Rules(
        caps=Caps(case.cap_category or 0, case.cap_brand or 0, case.strict),
        sponsored=case.sponsored_places,
    )
    return {
        "codes": np.array(list(case.scores)),
        "scores": np.array(list(case.scores.values()), np.float32),
        "items": Items(category, brand, np.full(size, 500.0), np.full(size, True)),
        "asked": Asked(
            case.k,
            now_ms=0,
            seed=seed,
            visitor=Visitor(hidden=np.array(sorted(case.barred), np.int64)),
            sponsored=np.array(case.sponsored, np.int64),
        ),
        "selection": Selection(
            rules=rules,
            diversity=Diversity(case.weight, *case.parts),
            exploration=Exploration(case.share, case.temperature, case.free),
        ),
        "neighbours": Neighbours(*table),
    }
