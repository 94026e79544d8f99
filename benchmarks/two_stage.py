"""A learned order of candidates beside the retriever's own, all items in question, by time.

Without `--data` on the simulated shop, with it on UCI's Online Retail, which goes through raypipe's
own line: mapping file, quarantine, log. The data set isn't part of raypipe; name the folder that
holds `online_retail.parquet`. The spans of time are named in `training.recommend.ranking.trial`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from benchmarks.harness import Result, check
from raypipe.clock import DAY_MS

if TYPE_CHECKING:
    from training.recommend.events import Tables
    from training.recommend.ranking.trial import Plan

SUITE = "two_stage"
START_MS = 1_790_035_200_000
TENANT = "default"
SALES = 397_924
"""Lines of Online Retail with a customer and a quantity above 0."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the data set lies, and the seed of the simulated shop."""
    parser.add_argument("--data", type=Path, help="folder with online_retail.parquet")
    parser.add_argument("--seed", type=int, default=7, help="of the simulated shop")


def run(args: argparse.Namespace) -> Result:
    """Load or simulate, fit both stages, judge them on the newest days."""
    from features.commerce_ranking import DEMAND, SHOPPER
    from training.recommend.events import read_interactions
    from training.recommend.ranking import trial

    said: list[str] = []
    with _retail(args.data) if args.data else _simulated(args) as tables:
        interactions = read_interactions(tables)
        if args.data:
            check(len(interactions) == SALES, f"{len(interactions)} sales, not {SALES}")
        found = trial.run(
            interactions,
            tables,
            TENANT,
            _plan(args),
            item_views=(DEMAND,),
            user_views=(SHOPPER,),
            say=said.append,
        )
    k = _plan(args).k
    base, two = found.retriever, found.two_stage
    gain = two.gain(base, "ndcg", k)
    check(base.mean("recall", k) < 1, "the retriever finds everything: the future leaked")
    figures = {
        "ndcg_retriever": base.mean("ndcg", k),
        "ndcg_two_stage": two.mean("ndcg", k),
        "ndcg_gain_low": gain.low,
        "ndcg_gain_high": gain.high,
        "recall_retriever": base.mean("recall", k),
        "recall_two_stage": two.mean("recall", k),
        "visits": len(base.users),
        "trees": found.ranker.booster.num_boosted_rounds(),
    }
    where = "Online Retail" if args.data else f"simulated shop, seed {args.seed}"
    return Result(SUITE, figures, {}, [f"{where}: {interactions}", *said])


def _plan(args: argparse.Namespace) -> Plan:
    from training.recommend.ranking.trial import Plan

    if not args.data:
        return Plan()
    # A shop that sells to shops: few visits a week.
    return Plan(learn_ms=42 * DAY_MS, choose_ms=14 * DAY_MS, judge_ms=28 * DAY_MS)


@contextmanager
def _simulated(args: argparse.Namespace) -> Iterator[Tables]:
    import pyarrow.dataset as ds

    from raypipe.simulate.shop.config import ShopConfig
    from raypipe.simulate.shop.tables import events
    from raypipe.simulate.shop.world import Shop

    size = {"shoppers": 1_500, "items": 600, "days": 50} if args.quick else {"shoppers": 4_000}
    shop = Shop(
        ShopConfig(start_ms=START_MS, seed=args.seed, **{"days": 70, "items": 1_500} | size)
    )
    days = [events(shop, day) for day in range(shop.config.days)]
    whole = {kind: pa.concat_tables([d[kind] for d in days]) for kind in days[0]}
    received = np.concatenate([t["received_at"].to_numpy() for t in whole.values()])
    place = np.empty(len(received), np.int64)
    place[np.argsort(received, kind="stable")] = np.arange(len(received))
    log, at = {}, 0
    for kind, table in whole.items():
        offsets = pa.array(place[at : at + len(table)])
        at += len(table)
        tenants = pa.repeat(pa.scalar(TENANT), len(table))
        placed = table.append_column("offset", offsets).append_column("tenant", tenants)
        log[kind] = ds.dataset(placed.sort_by("offset"))
    yield log.__getitem__


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
