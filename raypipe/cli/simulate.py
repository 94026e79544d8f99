"""``raypipe simulate``: write a synthetic world of payments to disk."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raypipe.cli import _options, _output
from raypipe.cli._options import Config, Home, Json, Quiet, Set
from raypipe.errors import UsageError

if TYPE_CHECKING:
    from raypipe.simulate.config import WorldConfig

MERCHANTS_PER_CUSTOMER = 0.4


def simulate(
    events: Annotated[
        int, typer.Option("--events", metavar="N", min=1, help="Transactions, about.")
    ] = 200_000,
    days: Annotated[int, typer.Option("--days", metavar="N", min=1, help="Days of history.")] = 60,
    fraud_rate: Annotated[
        float | None,
        typer.Option("--fraud-rate", metavar="SHARE", help="Share of fraud in all transactions."),
    ] = None,
    late_share: Annotated[
        float | None, typer.Option("--late-share", metavar="SHARE", help="Share that arrives late.")
    ] = None,
    end: Annotated[
        str | None,
        typer.Option("--end", metavar="TIME", help="End of history, ms UTC or ISO 8601 [now]."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where to [HOME/world].")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Seed of the world (setting seed).")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Write a synthetic world of payments to disk.

    Customers, merchants and fraudsters as tables for `raypipe load`; the truth about them lies
    apart. Equal flags and --end write equal files.
    """
    settings = _options.settings(home, config, set_, seed=seed)
    progress = _options.progress(quiet)
    from raypipe.simulate.world import World
    from raypipe.simulate.write import CHARGEBACKS, MAPPING, TRANSACTIONS, write

    rates = {"fraud_rate": fraud_rate, "late_share": late_share}
    chosen = {name: rate for name, rate in rates.items() if rate is not None}
    world = World(sized(events, days, _end_ms(end), seed=settings.seed, **chosen))
    folder = out or settings.home / "world"
    with progress.stage("simulate", total=events, unit="events") as stage:
        report = write(world, folder, stage.reach)
        stage.reach(report.counts.transactions, report.counts.transactions)
    counts = report.counts
    files = [str(folder / name) for name in (TRANSACTIONS, CHARGEBACKS, MAPPING)]
    command = f"raypipe load {shlex.join(files[:2])} --map {shlex.quote(files[2])}"
    if home is not None:
        command += f" --home {shlex.quote(str(home))}"
    _output.write(
        {"directory": report.directory, "hash": report.hash, **counts.describe()},
        as_json=json,
        text=f"{counts.transactions:,} transactions ({counts.frauds:,} fraudulent, "
        f"{counts.late:,} late), {counts.chargebacks:,} chargebacks\n"
        f"Next: {command}",
    )
    return 0


def sized(events: int, days: int, end_ms: int, *, seed: int, **rates: float) -> WorldConfig:
    """A world of about so many transactions: its customers and merchants follow from that."""
    from raypipe.simulate.config import WorldConfig

    like = WorldConfig.ending(end_ms, days=days, seed=seed, **rates)
    genuine = events * (1 - like.fraud_rate)
    customers = max(1, round(genuine / (days * like.tx_per_customer_day)))
    return WorldConfig.ending(
        end_ms,
        days=days,
        seed=seed,
        customers=customers,
        merchants=max(20, round(customers * MERCHANTS_PER_CUSTOMER)),
        **rates,
    )


def _end_ms(end: str | None) -> int:
    from raypipe.clock import SystemClock
    from raypipe.config import moment

    if end is None:
        return SystemClock().now_ms()
    try:
        return int(str(moment(end)))
    except ValueError as e:
        raise UsageError(f"--end {end!r}: {e}", hint="As in 2026-01-31T00:00:00Z.") from e
