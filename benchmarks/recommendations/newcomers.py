"""Visitors of whom next to nothing is known: both stages beside popularity, in shops that grow.

The retrievers are as old as the span that is judged; popularity is counted anew every midnight, so
that it has nothing to complain about. Sizes: the difference of one moment's NDCG@20 has a standard
deviation of about .1, so 1,500 visitors show a gain of .0085 in nine of ten tries (two-sided, 5 %).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from benchmarks.shop_log import START_MS, TENANT, logged
from raypipe.clock import DAY_MS

if TYPE_CHECKING:
    from training.recommend.intervals import Interval
    from training.recommend.ranking.moments import Moments
    from training.recommend.ranking.spans import History
    from training.recommend.rows import Rows

SHOPS, QUICK_SHOPS = 5, 1
SIZE: Mapping[str, Any] = {"shoppers": 1_200, "items": 600, "days": 50, "join_per_year": 8.0}
QUICK: Mapping[str, Any] = {"shoppers": 500, "items": 200, "days": 45, "join_per_year": 8.0}
MOST = 1_000
"""Moments of a shop that are judged, of each kind."""

CUSTOMER, FIRST_LOOK, SESSION, NOBODY = "cold_start", "first_look", "session", "unknown"
"""A customer with one or two items, at the beginning of a visit or after its first item; a visit
without an account after one item, and after two; nothing known at all."""

KINDS = (CUSTOMER, FIRST_LOOK, SESSION, NOBODY)
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """NDCG of each visitor, the mean of his moments, float64 [n], by what ordered the items."""

    popular: Doubles
    retriever: Doubles
    two_stage: Doubles

    def gain(self, base: str = "popular") -> Interval:
        """Of both stages over popularity, or over the retriever alone."""
        from training.recommend.intervals import bootstrap

        return bootstrap(self.two_stage - getattr(self, base))


def judged(seeds: Sequence[int], *, quick: bool) -> list[Mapping[str, Judged]]:
    """Of each shop its newcomers by kind."""
    return [_shop(seed, QUICK if quick else SIZE) for seed in seeds]


def figures(shops: Sequence[Mapping[str, Judged]]) -> tuple[dict[str, float], list[str]]:
    """Gains over popularity by kind of newcomer, over the visitors of all shops; and notes."""
    found: dict[str, float] = {}
    notes = []
    for kind in KINDS:
        whole = Judged(
            *(
                np.concatenate([getattr(shop[kind], name) for shop in shops])
                for name in ("popular", "retriever", "two_stage")
            )
        )
        gain, second = whole.gain(), whole.gain("retriever")
        found |= {
            f"{kind}_gain_low": gain.low,
            f"{kind}_gain_high": gain.high,
            f"{kind}_over_retriever_low": second.low,
            f"{kind}_over_retriever_high": second.high,
            f"{kind}_visitors": gain.users,
        }
        each = ", ".join(f"{shop[kind].gain().mean:+.4f}" for shop in shops)
        notes.append(
            f"{kind}: popularity {whole.popular.mean():.4f}, retriever "
            f"{whole.retriever.mean():.4f}, two stages {whole.two_stage.mean():.4f}, "
            f"gain {gain.low:+.4f} to {gain.high:+.4f}; by shop {each}; over the retriever "
            f"{second.low:+.4f} to {second.high:+.4f}"
        )
    return found, notes


def _shop(seed: int, size: Mapping[str, Any]) -> Mapping[str, Judged]:
    from features.commerce_ranking import DEMAND, SHOPPER
    from raypipe.simulate.shop.config import ShopConfig
    from raypipe.simulate.shop.world import Shop
    from training.recommend.events import read_interactions
    from training.recommend.measures import by_user
    from training.recommend.ranking.choosing import plainly, second_stage
    from training.recommend.ranking.spans import History
    from training.recommend.ranking.trial import Plan

    plan = Plan()
    tables = logged(Shop(ShopConfig(start_ms=START_MS, seed=seed, **size)))
    known = read_interactions(tables, joined=True, guests=True)
    history = History(known, tables, TENANT, plan, item_views=(DEMAND,), user_views=(SHOPPER,))
    end = int(known.time[-1]) + 1
    judge = end - plan.judge_ms
    choose = judge - plan.choose_ms
    learn = choose - plan.learn_ms
    learned, chosen = (
        history.visits(start, stop)[0] for start, stop in ((learn, choose), (choose, judge))
    )
    second = second_stage(plainly(plan.rounds), learned, chosen, plan.k)
    fitted = history.retrievers(judge)
    out = {}
    for kind, at in _newcomers(history, judge, end).items():
        span = history.span(at, fitted)

        def ndcg(ranked: Rows, at: Moments = at) -> Doubles:
            return _by_visitor(at, by_user(ranked, at.truth, plan.k)["ndcg"])

        out[kind] = Judged(
            ndcg(_popular(history, at, span.known, plan.k)),
            ndcg(span.table.candidates),
            ndcg(second.ordered(span, plan.k)),
        )
    return out


def _newcomers(history: History, start: int, end: int) -> Mapping[str, Moments]:
    """Moments by kind, at most MOST of each, drawn."""
    from training.recommend.events import guests_of
    from training.recommend.interactions import SHOP
    from training.recommend.ranking.moments import histories, moments

    interactions = history.interactions
    is_guest = guests_of(interactions)
    rng = np.random.default_rng(0)
    found: dict[str, list[Moments]] = {kind: [] for kind in KINDS}
    for after in (0, 1, 2):
        at = moments(interactions, start, end, after=after)
        size = histories(interactions, at, SHOP).sizes
        guest = is_guest[at.user]
        chosen = {
            CUSTOMER: ~guest & (size >= 1) & (size <= 2) & (after < 2),
            FIRST_LOOK: guest & (size == 1),
            SESSION: guest & (size == 2),
            NOBODY: size == 0,
        }
        for kind, mask in chosen.items():
            if mask.any():
                found[kind].append(at.at(np.flatnonzero(mask)))
    return {kind: _drawn(rng, parts) for kind, parts in found.items()}


def _drawn(rng: np.random.Generator, parts: Sequence[Moments]) -> Moments:
    from training.recommend.ranking.moments import Moments

    whole = Moments.joined(parts).in_log_order()
    if len(whole) <= MOST:
        return whole
    return whole.at(np.sort(rng.choice(len(whole), MOST, replace=False)))


def _popular(history: History, at: Moments, known: Rows, k: int) -> Rows:
    """What is popular as of the midnight before each moment, in the moments' order."""
    from training.recommend.fit import Options
    from training.recommend.popularity import popular_in_window
    from training.recommend.rows import Rows

    windows = Options().windows_ms
    day = (at.time - START_MS) // DAY_MS
    parts, order = [], []
    for number in np.unique(day):
        rows = np.flatnonzero(day == number)
        midnight = START_MS + int(number) * DAY_MS
        popular, _ = popular_in_window(history.before(midnight), midnight, windows)
        parts.append(popular.retrieve(known.take(rows), k))
        order.append(rows)
    return Rows.joined(parts).take(np.argsort(np.concatenate(order)))


def _by_visitor(at: Moments, values: Doubles) -> Doubles:
    """The mean of each visitor's moments: what one person does is not independent."""
    _, which = np.unique(at.user, return_inverse=True)
    out: Doubles = np.bincount(which, values) / np.bincount(which)
    return out
