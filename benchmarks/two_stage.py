"""A learned order of candidates beside the retriever's own, all items in question, by time.

Without `--data` on the simulated shop, and for newcomers on smaller ones that grow; with it on
UCI's Online Retail, which goes through raypipe's own line: mapping file, quarantine, log. The data
set isn't part of raypipe; name the folder that holds `online_retail.parquet`. The spans of time are
named in `training.recommend.ranking.trial`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness import Result, check
from benchmarks.shop_log import START_MS, TENANT, logged
from raypipe.clock import DAY_MS

if TYPE_CHECKING:
    from training.recommend.events import Tables
    from training.recommend.ranking.choosing import Choose
    from training.recommend.ranking.trial import Plan

SUITE = "two_stage"
SALES = 397_924
"""Lines of Online Retail with a customer and a quantity above 0."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the data set lies, and the seed of the simulated shop."""
    parser.add_argument("--data", type=Path, help="folder with online_retail.parquet")
    parser.add_argument("--seed", type=int, default=7, help="of the simulated shop")
    parser.add_argument("--trials", type=int, default=0, help="tune the ranker by Ray Tune")
    parser.add_argument("--report", type=Path, help="folder for a page of the evaluation")


def run(args: argparse.Namespace) -> Result:
    """Load or simulate, fit both stages, judge them on the newest days."""
    from training.recommend.events import read_interactions
    from training.recommend.ranking import trial

    said: list[str] = []
    plan = _plan(args)
    with _retail(args.data) if args.data else nullcontext(_simulated(args)) as tables:
        interactions = read_interactions(tables)
        if args.data:
            check(len(interactions) == SALES, f"{len(interactions)} sales, not {SALES}")
        with _choosing(args, plan, said.append) as choose:
            found = trial.run(
                interactions, tables, TENANT, plan, choose_order=choose, say=said.append
            )
        newcomers = {} if args.data else _newcomers(args, said.append)
    k = plan.k
    base, two = found.retriever, found.two_stage
    gain = two.gain(base, "ndcg", k)
    check(base.mean("recall", k) < 1, "the retriever finds everything: the future leaked")
    figures = {
        "ndcg_retriever": base.mean("ndcg", k),
        "ndcg_two_stage": two.mean("ndcg", k),
        "ndcg_gain_low": gain.low,
        "ndcg_gain_high": gain.high,
        "ndcg_popularity": found.popular.mean("ndcg", k),
        "recall_retriever": base.mean("recall", k),
        "recall_two_stage": two.mean("recall", k),
        "visits": len(base.users),
        "trees": found.second.order.trees,
        "least_known": found.second.least,
        **newcomers,
    }
    if args.report:
        from raypipe.lake import Place
        from training.recommend.report import write

        write("Two stages", found.evaluations, k, Place.at(args.report))
    where = "Online Retail" if args.data else f"simulated shop, seed {args.seed}"
    return Result(SUITE, figures, {}, [f"{where}: {interactions}", *said])


def _newcomers(args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, float]:
    """Gains over popularity for those of whom next to nothing is known, in shops of their own."""
    from benchmarks.recommendations import newcomers

    count = newcomers.QUICK_SHOPS if args.quick else newcomers.SHOPS
    seeds = range(args.seed + 1, args.seed + 1 + count)
    figures, notes = newcomers.figures(newcomers.judged(seeds, quick=args.quick))
    for note in notes:
        say(note)
    return figures


@contextmanager
def _choosing(
    args: argparse.Namespace, plan: Plan, say: Callable[[str], None]
) -> Iterator[Choose | None]:
    """A sweep in a Ray session of its own, if trials are asked for."""
    if not args.trials:
        yield None
        return
    from raypipe.config import Settings
    from raypipe.lake import Place
    from raypipe.runtime import session
    from training.recommend.ranking.choosing import Chosen
    from training.recommend.ranking.spans import Span

    with tempfile.TemporaryDirectory(prefix="rp-") as home:
        session.start(Settings(home=Path(home)), warm=False)
        try:
            from training.recommend.ranking.tuning import TuningPlan, tuned

            def chosen(learn: Span, choose: Span) -> Chosen:
                wanted = TuningPlan(args.trials, max_rounds=plan.rounds, k=plan.k)
                return tuned(learn, choose, wanted, storage=Place.at(home), trial_ended=say)

            yield chosen
        finally:
            session.stop()


def _plan(args: argparse.Namespace) -> Plan:
    from training.recommend.ranking.trial import Plan

    if not args.data:
        return Plan()
    # A shop that sells to shops: few visits a week.
    return Plan(
        learn_ms=56 * DAY_MS, choose_ms=28 * DAY_MS, judge_ms=28 * DAY_MS, refit_ms=28 * DAY_MS
    )


def _simulated(args: argparse.Namespace) -> Tables:
    from raypipe.simulate.shop.config import ShopConfig
    from raypipe.simulate.shop.world import Shop

    size = {"shoppers": 1_500, "items": 600, "days": 50} if args.quick else {"shoppers": 4_000}
    return logged(
        Shop(ShopConfig(start_ms=START_MS, seed=args.seed, **{"days": 70, "items": 1_500} | size))
    )


@contextmanager
def _retail(folder: Path) -> Iterator[Tables]:
    import polars as pl

    from features.commerce import project
    from features.log_files import open_log
    from raypipe.config import Settings
    from raypipe.events.load import load
    from raypipe.events.mapping import read_mapping
    from raypipe.events.quarantine import Quarantine
    from raypipe.log.sqlite import SqliteLog

    with tempfile.TemporaryDirectory(prefix="raypipe-bench-") as home:
        settings = Settings(home=Path(home), currency="GBP")
        table = Path(home) / "online_retail.parquet"
        pl.read_parquet(folder / table.name).with_row_index("LINE").write_parquet(table)
        with (
            closing(SqliteLog.open(settings.log_url)) as log,
            closing(Quarantine(settings.home / "quarantine.db")) as quarantine,
        ):
            load(
                log,
                project,
                [table],
                read_mapping(Path(__file__).with_name("online_retail.toml"), project),
                tenant=settings.tenant,
                currency=settings.currency,
                quarantine=quarantine,
                staging_dir=settings.home / "staging",
            )
        with open_log(settings, project) as files:
            yield files.table
