"""A home with a simulated history, and the requests that come after it.

The requests are the world's own next payments, at their own times: a card pays as often as cards
do, however fast the load sends them. So the history ends in the past, by as much as they take.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.harness import check
from raypipe.clock import DAY_MS, SystemClock
from raypipe.config import Settings

DAYS = 40
TX_PER_CUSTOMER_DAY = 1.2
SPARE = 1.3
"""How much longer the world's future is than the requests need: days differ."""

SEED = 31


def load_history(settings: Settings, events: int, requests: int) -> dict[str, Any]:
    """Write about ``events`` payments and their chargebacks into the home's empty log.

    Returns the world's configuration, after whose end there are at least ``requests`` payments
    that have happened by now. `raypipe up` goes on from here.
    """
    from raypipe.events.load import load
    from raypipe.events.mapping import read_mapping
    from raypipe.events.quarantine import QUARANTINE_FILE, Quarantine
    from raypipe.log.opening import open_log
    from raypipe.project import load_project
    from raypipe.simulate.write import CHARGEBACKS, MAPPING, TRANSACTIONS, write

    a_day = events / DAYS
    config = {
        "seed": SEED,
        "start_ms": SystemClock().now_ms()
        - (DAYS + math.ceil(requests * SPARE / a_day) + 1) * DAY_MS,
        "days": DAYS,
        "customers": max(1, round(a_day / TX_PER_CUSTOMER_DAY)),
        "merchants": max(20, round(a_day / TX_PER_CUSTOMER_DAY * 0.4)),
        "tx_per_customer_day": TX_PER_CUSTOMER_DAY,
    }
    home, out = settings.home, settings.home / "world"
    home.mkdir(parents=True, exist_ok=True)
    write(_world(config), out)
    (home / "up.json").write_text(json.dumps({"world": config, "replayed": 0}))
    project = load_project(settings.project)
    with (
        closing(open_log(settings.log_url, settings.log_cache)) as log,
        closing(Quarantine(home / QUARANTINE_FILE, limit_rows=1_000)) as quarantine,
    ):
        load(
            log,
            project,
            [out / TRANSACTIONS, out / CHARGEBACKS],
            read_mapping(out / MAPPING, project),
            tenant=settings.tenant,
            currency=settings.currency,
            quarantine=quarantine,
            staging_dir=home / "staging",
        )
    return config


def bodies(config: dict[str, Any], count: int) -> list[bytes]:
    """The first ``count`` payments after the history, as request bodies with ids of their own."""
    now = SystemClock().now_ms()
    rows = list(itertools.islice(_bodies(config, now, count), count))
    check(len(rows) == count, f"the world has {len(rows)} payments by now, {count} are needed")
    return rows


def _bodies(config: dict[str, Any], now: int, count: int) -> Iterator[bytes]:
    for number, row in enumerate(_world(config).live(round(count * SPARE))):
        if row.body["event_time"] <= now:
            yield json.dumps(row.body | {"event_id": event_id(number)}).encode()


def event_id(number: int) -> str:
    """Ids by which ``stored`` knows the benchmark's own events."""
    return f"bench-{number}"


def policy_file() -> Path:
    """The policy that comes with the project of payments."""
    import features

    return Path(str(features.__file__)).with_name("policies") / "payments.yaml"


def _world(config: dict[str, Any]) -> Any:
    from raypipe.simulate.config import WorldConfig
    from raypipe.simulate.world import World

    return World(WorldConfig(**config))


def model_folder(home: Path, reference: str) -> Path:
    """Where a model version of a home lies."""
    name, _, version = reference.partition("@")
    return home / "models" / name / version
