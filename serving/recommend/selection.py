"""From ranked candidates to the list that is shown: rules, diversity and chance in one call."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from raypipe.errors import UsageError
from serving.recommend.diversity import Diversity, Neighbours, relevance
from serving.recommend.exploration import Exploration, propensities
from serving.recommend.rules import (
    Doubles,
    Filters,
    Flags,
    Integers,
    Items,
    Rules,
    Verdict,
    Visitor,
    among,
    judged,
    no_codes,
)
from serving.recommend.slots import fill, uniform

Scores = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Selection:
    """How a shop makes its lists. ``name`` and ``version`` are recorded with each."""

    name: str = "default"
    version: int = 1
    rules: Rules = field(default_factory=Rules)
    diversity: Diversity = field(default_factory=Diversity)
    exploration: Exploration = field(default_factory=Exploration)

    @property
    def reference(self) -> str:
        """``name@version``, as answers record it."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asks for what and when.

    ``seed`` is that of the request's chance (``exploration.seed_of``). ``sponsored`` are codes that
    somebody pays for, the first choice first; they need not be candidates.
    """

    k: int
    now_ms: int
    seed: int
    visitor: Visitor = field(default_factory=Visitor)
    filters: Filters = field(default_factory=Filters)
    sponsored: Integers = field(default_factory=no_codes)

    def __post_init__(self) -> None:
        if self.k < 1:
            raise UsageError(f"a list of {self.k} items", hint="Ask for 1 at least.")


@dataclass(frozen=True, slots=True)
class Shown:
    """The list: columns by place, and what became of the candidates.

    ``codes`` int64; ``candidates`` int64, the number of each among the candidates, -1 for a
    sponsored item that was none; ``sponsored`` bool; ``propensity`` float64 of each, given those
    above; ``explored``: whether chance had a say; ``verdicts`` int8 [candidates].
    """

    codes: Integers
    candidates: Integers
    sponsored: Flags
    propensity: Doubles
    explored: bool
    verdicts: npt.NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def left_out(self) -> dict[str, int]:
        """How many candidates each rule took away, by its name in lower case."""
        counts = np.bincount(self.verdicts, minlength=len(Verdict)).tolist()
        return {v.name.lower(): counts[v] for v in Verdict if v and counts[v]}


def choose(
    codes: npt.NDArray[np.integer],
    scores: Scores,
    items: Items,
    asked: Asked,
    selection: Selection,
    neighbours: Neighbours | None = None,
) -> Shown:
    """The list for a request; shorter than k where there is no more to show.

    Args:
        codes: [n], candidates, each once; of equal values the first is taken.
        scores: [n], larger is better.
        items: the catalogue.
        asked: the request.
        selection: how lists are made.
        neighbours: for ``selection.diversity.neighbours``; without it no items are neighbours.
    """
    pool = _Pool.of(codes, scores, items, asked, selection.rules)
    share = selection.exploration.share
    explored = bool(uniform(np.uint64(asked.seed), 0) < share)
    k = min(asked.k, len(pool.codes))
    slots = _fill(pool, k, selection, neighbours, seed=asked.seed, explored=explored)
    return Shown(
        codes=pool.codes[slots.places],
        candidates=np.where(slots.places < len(codes), slots.places, -1),
        sponsored=slots.paid,
        propensity=propensities(slots.chance, slots.best, share),
        explored=explored,
        verdicts=pool.verdicts[: len(codes)],
    )


def likelihood(
    shown: npt.NDArray[np.integer],
    codes: npt.NDArray[np.integer],
    scores: Scores,
    items: Items,
    asked: Asked,
    selection: Selection,
    neighbours: Neighbours | None = None,
) -> Doubles:
    """How likely a selection shows this list: of each place given those above, [shown].

    What off-policy estimators call the target's probability; 0 from the first place on that it
    never fills so. ``shown`` are codes; other arguments are those of ``choose``.
    """
    pool = _Pool.of(codes, scores, items, asked, selection.rules)
    given = pool.places(np.asarray(shown, np.int64))
    slots = _fill(pool, len(given), selection, neighbours, given=given)
    out = np.zeros(len(given))
    out[: len(slots.chance)] = propensities(slots.chance, slots.best, selection.exploration.share)
    return out


@dataclass(frozen=True, slots=True)
class _Pool:
    """Candidates, then sponsored items that are none: columns [m]."""

    codes: Integers
    verdicts: npt.NDArray[np.int8]
    relevance: Doubles
    organic: Flags
    category: Integers
    brand: Integers
    sponsored: Integers
    """Places of those that pass the rules, the first choice first."""

    @classmethod
    def of(
        cls,
        codes: npt.NDArray[np.integer],
        scores: Scores,
        items: Items,
        asked: Asked,
        rules: Rules,
    ) -> _Pool:
        count = len(codes)
        if len(scores) != count:
            raise UsageError(f"{len(scores)} scores for {count} candidates", hint="Give one each.")
        # A copy: whatever comes, the kernel sees one type.
        whole = np.array(codes, np.int64)
        paid = no_codes()
        if len(asked.sponsored):
            strange = asked.sponsored[~among(asked.sponsored, whole)]
            whole = np.concatenate([whole, strange])
            paid = _places(whole, asked.sponsored)
        verdicts = judged(whole, items, rules, asked.visitor, asked.filters, asked.now_ms)
        allowed = verdicts == Verdict.ALLOWED
        organic, good = allowed.copy(), np.zeros(len(whole))
        organic[count:] = False
        good[:count] = relevance(scores, allowed[:count])
        return cls(
            codes=whole,
            verdicts=verdicts,
            relevance=good,
            organic=organic,
            category=items.category[whole],
            brand=items.brand[whole],
            sponsored=paid[allowed[paid]],
        )

    def places(self, codes: Integers) -> Integers:
        """Of codes in the pool; its length for those that aren't there."""
        return _places(self.codes, codes)


@dataclass(frozen=True, slots=True)
class _Slots:
    places: Integers
    chance: Doubles
    best: Flags
    paid: Flags


def _fill(
    pool: _Pool,
    k: int,
    selection: Selection,
    neighbours: Neighbours | None,
    *,
    seed: int = 0,
    explored: bool = False,
    given: Integers | None = None,
) -> _Slots:
    rules, diversity, chance = selection.rules, selection.diversity, selection.exploration
    table = neighbours or Neighbours.none()
    free = _at(chance.places, k) if chance.places else np.ones(k, np.bool_)
    slots = _Slots(
        np.zeros(k, np.int64), np.zeros(k), np.zeros(k, np.bool_), _at(rules.sponsored, k)
    )
    size = fill(
        pool.codes, np.argsort(pool.codes), pool.relevance, pool.organic, pool.category, pool.brand,
        pool.sponsored, slots.paid, free,
        np.array([rules.caps.category, rules.caps.brand]), rules.caps.strict,
        diversity.relevance, np.array([diversity.category, diversity.brand, diversity.neighbours]),
        table.starts, table.columns, table.values,
        chance.temperature, np.uint64(seed), explored,
        no_codes() if given is None else given,
        slots.places, slots.chance, slots.best,
    )  # fmt: skip
    return _Slots(slots.places[:size], slots.chance[:size], slots.best[:size], slots.paid[:size])


def _at(places: tuple[int, ...], k: int) -> Flags:
    """Places from 1 as flags [k]."""
    out = np.zeros(k, np.bool_)
    out[[p - 1 for p in places if p <= k]] = True
    return out


def _places(pool: Integers, codes: Integers) -> Integers:
    if not len(pool):
        return np.zeros(len(codes), np.int64)
    order = np.argsort(pool, kind="stable")
    found = order[np.minimum(np.searchsorted(pool, codes, sorter=order), len(pool) - 1)]
    return np.where(pool[found] == codes, found, len(pool))
