"""`raypipe recommend fit` on Ray: profiles from the daily job, and a sweep that is interrupted."""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.commerce import ITEM, project
from features.commerce_profiles import SHOPPER_PROFILE as PROFILE
from features.log_files import open_log
from features.pipeline import compute
from features.profiles.daily import update
from features.profiles.lookup import ProfileReader
from features.profiles.made import values_folders
from features.profiles.online import materialize
from features.store.registry import apply
from features.store.repo import open_store
from raypipe.clock import DAY_MS, HOUR_MS
from raypipe.config import Settings
from raypipe.errors import UsageError
from raypipe.log.sqlite import SqliteLog
from raypipe.project import Model
from raypipe.runtime.progress import Quiet
from tests.unit import recommend_home as home_kit
from training import registry
from training.recommend.events import read_interactions
from training.recommend.ranking import artefact
from training.recommend.ranking.job import run
from training.recommend.ranking.profiles import LoggedProfile

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_session")]

ROOT = Path(__file__).parents[2]
SMALL = replace(project, views=(ITEM,), derived=(), models=(Model("m", ("amount",)),))
"""What the daily job needs of the shop, and no more windows than it must have."""

TRIALS = 4

SCRIPT = """
import sys
import ray
from raypipe.runtime.progress import reporter
from tests.unit import recommend_home as kit
from training.recommend.ranking import job
from pathlib import Path
ray.init(
    address="local", num_cpus=2, object_store_memory=100_000_000, include_dashboard=False,
    log_to_driver=False, configure_logging=False, _temp_dir=sys.argv[2],
)
job.run(kit.settings(Path(sys.argv[1])), reporter(), trials=4, plan=kit.PLAN)
print("not killed")
"""


@pytest.fixture(scope="module")
def settings(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A shop's log, and its profiles as `raypipe features` makes them."""
    home = tmp_path_factory.mktemp("shop")
    home_kit.append(home, range(home_kit.DAYS))
    made = home_kit.settings(home)
    with closing(SqliteLog(home / "log")) as log:
        build = compute(SMALL, log, made, Quiet())
        update(SMALL, build, home_kit.NOW // DAY_MS)
    return made


def by_hand(settings: Settings) -> dict[tuple[str, int], dict[str, float]]:
    """Some values of each customer at each midnight, counted one event after the other."""
    days: dict[str, dict[int, list[tuple[str, dict[str, Any]]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    with open_log(settings, project) as files:
        for kind in ("page_view", "order", "order_line"):
            for row in files.table(kind).to_table().to_pylist():
                if row["customer_id"] is not None:
                    day = row["received_at"] // DAY_MS
                    days[row["customer_id"]][day].append((kind, row))
    found = {}
    last = max(day for mine in days.values() for day in mine)
    for customer, mine in days.items():
        for day in range(min(mine), last + 1):
            events = [(d, k, r) for d, of_day in mine.items() if d <= day for k, r in of_day]
            orders = [(d, r) for d, k, r in events if k == "order"]
            prices = [r["price"] for _, k, r in events if k == "order_line"]
            visits = {(d, r["session_id"]) for d, k, r in events if k == "page_view"}
            nan = float("nan")
            amounts = [r["amount"] for _, r in orders]
            found[customer, day] = {
                "orders": float(len(orders)),
                "order_value": sum(amounts) / len(orders) if orders else nan,
                "price_median": statistics.median(prices) if prices else nan,
                "tenure_days": float(day - min(mine)),
                "first_order_days": float(day - min(d for d, _ in orders)) if orders else nan,
                "last_order_days": float(day - max(d for d, _ in orders)) if orders else nan,
                "order_rate": (len(orders) + 1) / (len(visits) + 20),
            }
    return found


def test_training_and_requests_have_the_values_of_the_midnight_before(settings: Settings) -> None:
    known = by_hand(settings)
    with open_log(settings, project) as files:
        interactions = read_interactions(files.table, joined=True)
    logged = LoggedProfile(PROFILE, settings.lake, interactions.users)
    rows = np.arange(0, len(interactions), 7)
    user, time = interactions.user[rows], interactions.time[rows]
    found = logged.of_users(user, time, interactions.offset[rows])
    missing = 0
    for place, (code, at) in enumerate(zip(user.tolist(), time.tolist(), strict=True)):
        day = (at - HOUR_MS) // DAY_MS - 1
        wanted = known.get((interactions.users[code].as_py(), day))
        missing += wanted is None
        for name in next(iter(known.values())):
            value = found[f"{PROFILE.name}_{name}"][place]
            expected = float("nan") if wanted is None else wanted[name]
            assert value == pytest.approx(expected, nan_ok=True), (name, at)
    assert 0 < missing < len(rows) / 2

    store = open_store(settings.home)
    folders = values_folders(settings.lake, SMALL)
    with closing(SqliteLog(settings.home / "log")) as log:
        build = compute(SMALL, log, settings, Quiet())
    apply(store, SMALL, build.place, profiles=folders)
    assert materialize(store, SMALL, settings.lake) > 100
    users = np.arange(len(interactions.users), dtype=np.int32)
    last = max(day for _, day in known)
    now = (last + 1) * DAY_MS + HOUR_MS
    later = np.full(len(users), 2**40)
    offline = logged.of_users(users, np.full(len(users), now), later)
    with closing(ProfileReader((PROFILE,), settings.home, None)) as online:
        for code in users.tolist():
            served = online.read({PROFILE.key: interactions.users[code].as_py()}, now)
            trained = [offline[name][code] for name in PROFILE.column_names]
            assert np.array_equal(served.values, trained, equal_nan=True)
            assert served.times == ((last + 1) * DAY_MS,)


class Notes(Quiet):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def test_a_killed_sweep_is_finished_on_the_log_as_it_was(
    settings: Settings, tmp_path: Path
) -> None:
    home = Path(shutil.copytree(settings.home, tmp_path / "home"))
    mine = home_kit.settings(home)
    ray_files = tempfile.mkdtemp(prefix="rp-")  # short: socket paths stay under 108 bytes
    killed = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(home), ray_files],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAYPIPE_ABORT_AT": "training.trial_ended:2"},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    shutil.rmtree(ray_files, ignore_errors=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert killed.stderr.count(" of all items with ") == 2
    assert registry.current(mine.lake / artefact.FOLDER, "shop") is None
    with closing(SqliteLog(home / "log")) as log:
        end = log.end(0)
    home_kit.append(home, range(home_kit.DAYS, home_kit.CONFIG.days))

    with pytest.raises(UsageError, match="sweep of 4 trials can't be told to try 5"):
        run(mine, Quiet(), trials=5, resume=True, plan=home_kit.PLAN)
    notes = Notes()
    told = run(mine, notes, resume=True, plan=home_kit.PLAN)
    assert notes.lines[0].startswith("resuming the sweep: ")
    assert notes.lines[0].endswith(f" of {TRIALS} trials are finished")
    kept = int(notes.lines[0].split()[3])
    assert kept >= 2
    assert len(notes.lines) == 1 + TRIALS - kept
    assert len(told["trials"]) == TRIALS
    assert {t["parameters"]["learner"] for t in told["trials"]} == {"xgboost", "lightgbm"}
    assert told["trials"][0]["metric"] == max(t["metric"] for t in told["trials"])
    version = registry.locate(mine.lake / artefact.FOLDER, "shop")
    manifest = artefact.read_manifest(version)
    assert manifest.reference == told["version"]
    assert manifest.log_end == end
    assert manifest.learner == told["learner"] == told["trials"][0]["parameters"]["learner"]
    assert manifest.training["trees"] == told["trees"] == told["trials"][0]["rounds"]
    assert told["profiles"] == [PROFILE.name]
    assert artefact.load(mine.lake, version, home_kit.PLAN.views, home_kit.PLAN.profiles)
    again = Notes()
    run(mine, again, trials=1, resume=True, plan=home_kit.PLAN)
    assert again.lines[0] == "no interrupted sweep to resume: starting a new one"
