"""An A/B test in the simulated shop: popular items against both stages, then months without a fit.

Shoppers click by hidden preference, so what every list is worth is known: the truth beside the
experiment's estimate. The first experiment runs right after the fit. The second runs weeks later,
with the fit of then and with a new one: items have come and gone, and the season has moved.
What is shown changes nothing else that shoppers do, so every arm's lists exist for every visit.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.harness import Result, check
from benchmarks.shop_log import START_MS, TENANT, logged
from raypipe.clock import DAY_MS

if TYPE_CHECKING:
    from raypipe.experiments.results import Analysis, Finding
    from raypipe.simulate.shop.world import Shop
    from training.recommend.interactions import Interactions
    from training.recommend.intervals import Interval
    from training.recommend.ranking.choosing import SecondStage
    from training.recommend.ranking.moments import Moments
    from training.recommend.ranking.spans import History, Retrievers
    from training.recommend.rows import Rows

SUITE = "uplift"
LENGTH = 10
POPULAR, KEPT, RENEWED = "popular", "two_stages", "renewed"

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sizes:
    """Days of history, of each experiment and between them; and how big the shop is."""

    shoppers: int = 5_000
    items: int = 800
    history: int = 45
    days: int = 14
    gap: int = 35
    learn: int = 10
    choose: int = 3
    candidates: int = 80
    rounds: int = 150


QUICK = Sizes(
    shoppers=3_000, items=500, history=30, days=10, gap=25, learn=7, choose=3, candidates=50,
    rounds=60,
)  # fmt: skip


@dataclass(frozen=True)
class Fit:
    """Both stages, as of a day."""

    retrievers: Retrievers
    second: SecondStage


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The seed of the shop."""
    parser.add_argument("--seed", type=int, default=7, help="of the simulated shop")


def run(args: argparse.Namespace) -> Result:
    """Learn, run both experiments, compare with the truth."""
    found = measure(QUICK if args.quick else Sizes(), args.seed)
    low = found.figures["low"]
    check(isinstance(low, float) and low > 0.0, f"no uplift is found: {dict(found.figures)}")
    return found


def measure(sizes: Sizes, seed: int) -> Result:
    """Figures of a shop of these sizes."""
    from training.recommend.intervals import bootstrap

    street = Street(sizes, seed)
    early = sizes.history
    late = early + sizes.days + sizes.gap
    first = street.fit(early)
    before = Trial(street, early, {POPULAR: None, KEPT: first})
    after = Trial(street, late, {POPULAR: None, KEPT: first, RENEWED: street.fit(late)})
    found = before.finding(KEPT)
    kept, renewed = after.finding(KEPT), after.finding(RENEWED)
    extra: Interval = bootstrap(after.worth[RENEWED] - after.worth[KEPT])
    figures = {
        "uplift_true": before.true_lift(KEPT),
        "uplift_estimate": found.lift,
        "low": found.lift_low,
        "high": found.lift_high,
        "uplift_after_retrain": renewed.lift,
        "uplift_after_retrain_low": renewed.lift_low,
        "uplift_after_retrain_high": renewed.lift_high,
        "uplift_after_retrain_true": after.true_lift(RENEWED),
        "uplift_without_retrain": kept.lift,
        "uplift_without_retrain_low": kept.lift_low,
        "uplift_without_retrain_high": kept.lift_high,
        "uplift_without_retrain_true": after.true_lift(KEPT),
        "retrain_gain_clicks_low": extra.low,
        "retrain_gain_clicks_high": extra.high,
        "units": sum(before.analysis.ratio.units.values()),
        "lists": len(before.at),
    }
    return Result(
        SUITE,
        figures,
        {},
        (
            f"{street.shop}; {street.interactions}; lists of {LENGTH}, seed {seed}",
            f"first experiment: days {early} to {early + sizes.days}: "
            f"{before.analysis.verdict.headline}",
            f"second one: days {late} to {late + sizes.days}, with the fit of day {early} and "
            f"with one of day {late}",
            "the popular items are renewed every week in all; nothing off the shelf is shown",
            "lifts are of clicks a shopper, from intervals that hold at any look; *_true are of "
            "the chances that the simulator clicks by, over the same shoppers",
        ),
    )


class Street:
    """A shop with its log, and what is fitted on it."""

    def __init__(self, sizes: Sizes, seed: int) -> None:
        from features.commerce_ranking import DEMAND, SHOPPER
        from raypipe.simulate.shop.config import ShopConfig
        from raypipe.simulate.shop.world import Shop
        from training.recommend.events import read_interactions
        from training.recommend.fit import Options
        from training.recommend.ranking.spans import FirstStage, History

        self.sizes = sizes
        # Fashion: much of the catalogue comes within the history, and most of it goes.
        self.shop: Shop = Shop(
            ShopConfig(
                start_ms=START_MS,
                seed=seed,
                days=sizes.history + 2 * sizes.days + sizes.gap,
                shoppers=sizes.shoppers,
                items=sizes.items,
                launched_share=0.6,
                fading_share=0.7,
                season=1.0,
            )
        )
        tables = logged(self.shop)
        self.interactions: Interactions = read_interactions(tables)
        self.history: History = History(
            self.interactions,
            tables,
            TENANT,
            FirstStage(Options(attributes=()), candidates=sizes.candidates),
            item_views=(DEMAND,),
            user_views=(SHOPPER,),
        )
        self.shoppers = _numbers(self.interactions.users, "shopper_")
        self.items = _numbers(self.interactions.items, "item_")

    def fit(self, day: int) -> Fit:
        """Both stages on what came before a day."""
        from training.recommend.ranking.choosing import plainly, second_stage

        choose = day - self.sizes.choose
        learn = choose - self.sizes.learn
        (learned, _), (chosen, _) = (
            self.history.visits(_ms(start), _ms(stop))
            for start, stop in ((learn, choose), (choose, day))
        )
        second = second_stage(plainly(self.sizes.rounds), learned, chosen, LENGTH)
        return Fit(self.history.retrievers(_ms(day)), second)


class Trial:
    """An experiment that begins on a day, with every arm's list at every visit."""

    def __init__(self, street: Street, day: int, arms: dict[str, Fit | None]) -> None:
        from raypipe.simulate.shop.clicks import clicks, expected
        from training.recommend.ranking.moments import arrivals

        self.street, self.day = street, day
        stop = day + street.sizes.days
        self.at: Moments = arrivals(street.interactions, _ms(day), _ms(stop))
        self.units, self._unit = np.unique(self.at.user, return_inverse=True)
        visit_day = (self.at.time - START_MS) // DAY_MS
        who = street.shoppers[self.at.user]
        self.worth: dict[str, Floats] = {}
        self.clicked: dict[str, Floats] = {}
        for number, (name, fit) in enumerate(arms.items()):
            shown = self._shown(self._popular() if fit is None else self._ordered(fit), visit_day)
            worth, clicked = np.zeros(len(who)), np.zeros(len(who))
            for one in np.unique(visit_day):
                rows = np.flatnonzero(visit_day == one)
                asked = (street.shop, int(one), who[rows], shown[rows])
                worth[rows] = expected(*asked).sum(axis=1)
                clicked[rows] = clicks(*asked, name=number).sum(axis=1)
            self.worth[name] = self._by_unit(worth)
            self.clicked[name] = self._by_unit(clicked)
        self.analysis: Analysis = self._analysed(list(arms))

    def true_lift(self, arm: str) -> float:
        """Of the chances of clicks of all units, had they all been in the arm."""
        return float(self.worth[arm].sum() / self.worth[POPULAR].sum() - 1.0)

    def finding(self, arm: str) -> Finding:
        """What the experiment says of an arm."""
        return next(f for f in self.analysis.findings if f.arm == arm)

    def _popular(self) -> Rows:
        """What most people took lately; renewed each week."""
        from training.recommend.fit import Options
        from training.recommend.popularity import popular_in_window
        from training.recommend.ranking.moments import histories
        from training.recommend.rows import Rows

        street, options, parts = self.street, Options(), []
        week = (self.at.time - _ms(self.day)) // (7 * DAY_MS)
        known = histories(street.interactions, self.at, options.weights)
        for n in np.unique(week):  # moments stand in log order: weeks one after the other
            since = _ms(self.day) + int(n) * 7 * DAY_MS
            popular, _ = popular_in_window(street.history.before(since), since, options.windows_ms)
            parts.append(popular.retrieve(known.take(np.flatnonzero(week == n)), 4 * LENGTH))
        return Rows.joined(parts)

    def _ordered(self, fit: Fit) -> Rows:
        span = self.street.history.span(self.at, fit.retrievers)
        return fit.second.ordered(span, 4 * LENGTH)

    def _shown(self, ranked: Rows, day: Ints) -> Ints:
        """The first ones that are on the shelf, by their numbers; -1 where nothing is left."""
        shelf = np.stack([self.street.shop.items.on_shelf(d) for d in range(int(day.max()) + 1)])
        row, item = ranked.row_of, self.street.items[ranked.columns]
        there = shelf[day[row], item]
        row, item = row[there], item[there]
        sizes = np.bincount(row, minlength=len(ranked))
        place = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        top = place < LENGTH
        out = np.full((len(ranked), LENGTH), -1, np.int64)
        out[row[top], place[top]] = item[top]
        return out

    def _by_unit(self, values: Floats) -> Floats:
        found: Floats = np.bincount(self._unit, values, len(self.units)).astype(np.float64)
        return found

    def _analysed(self, arms: list[str]) -> Analysis:
        """Each unit in the arm that its id hashes to, as an experiment of the project has it."""
        from features.commerce import project
        from raypipe.experiments.assignment import Assignment
        from raypipe.experiments.spec import Arm, Direction, Experiment, Kind, Metric
        from training.experiments.analysis import analyse

        street = self.street
        experiment = Experiment(
            name=f"lists-of-day-{self.day}",
            version=1,
            unit="customer_id",
            arms=tuple(Arm(name, 1 / len(arms)) for name in arms),
            metrics=(Metric("clicks", "click", Kind.MEAN, Direction.UP),),
            horizon_ms=street.sizes.days * DAY_MS,
            minimum_effect=0.05,
        )
        ids = street.interactions.users.take(pa.array(self.units))
        arm = Assignment(experiment, project).arms_of(TENANT, ids)
        first = np.full(len(self.units), np.iinfo(np.int64).max)
        np.minimum.at(first, self._unit, self.at.time)
        table = pa.table(
            {
                "unit": ids,
                "arm": np.array(arms)[arm],
                "exposed_at": first,
                "clicks": np.choose(arm, [self.clicked[name] for name in arms]),
                "clicks__before": self._before(),
                "clicks__mature": np.ones(len(ids), np.bool_),
            }
        )
        now = _ms(self.day + street.sizes.days)
        return analyse(experiment, table, now, planned_units=len(ids))

    def _before(self) -> Floats:
        """How much each did in the four weeks before: who comes often clicks often."""
        past = self.street.interactions.between(_ms(self.day - 28), _ms(self.day))
        count = np.bincount(past.user, minlength=past.shape[0])
        found: Floats = count[self.units].astype(np.float64)
        return found


def _ms(day: int) -> int:
    return START_MS + day * DAY_MS


def _numbers(ids: pa.StringArray, prefix: str) -> Ints:
    return np.array([int(i.removeprefix(prefix)) for i in ids.to_pylist()], np.int64)
