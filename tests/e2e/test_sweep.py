"""The sweep on a real Ray session: it survives being killed, and a whole run ends in a model."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from raypipe.lake import Place
from raypipe.runtime.progress import Quiet
from tests.unit.training_kit import PROJECT, dataset, world
from training import artefact, registry
from training.pipeline import run
from training.plan import Options, SweepPlan
from training.split import Split, time_split

ROOT = Path(__file__).parents[2]
PLAN = SweepPlan(trials=6, max_rounds=400, grace_rounds=100, report_every=20, concurrency=2)

SCRIPT = """
import sys
import ray
from raypipe.lake import Place
from tests.e2e.test_sweep import PLAN, prepared
from training.tune import sweep
ray.init(
    address="local", num_cpus=2, object_store_memory=100_000_000, include_dashboard=False,
    log_to_driver=False, configure_logging=False, _temp_dir=sys.argv[2],
)
folder = Place.at(sys.argv[1])
tell = lambda line: print(line, flush=True)
sweep(folder / "dataset", prepared(folder), PLAN, storage=folder, trial_ended=tell)
print("not killed")
"""


def prepared(folder: Place) -> Split:
    data = dataset(5_000)
    if not (folder / "dataset").names():
        data.save(folder / "dataset")
    return time_split(data.event_time, data.y, horizon_ms=data.origin.horizon_ms)


def snapshot(folder: Place) -> dict[str, str]:
    """Status of each trial as the killed process had saved it."""
    sweep = folder / "sweep"
    newest = sweep / max(n for n in sweep.names() if n.startswith("experiment_state-"))
    trials = [json.loads(state) for state, _ in json.loads(newest.read())["trial_data"]]
    return {t["trial_id"]: t["status"] for t in trials}


def results(folder: Place, trial: str) -> list[dict[str, Any]]:
    place = folder / "sweep" / trial / "result.json"
    return [json.loads(line) for line in place.read().splitlines()] if place.exists() else []


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("where", ["folder", "s3"])
def test_a_killed_sweep_goes_on_where_it_was(
    tmp_path: Path, ray_session: None, where: str, request: pytest.FixtureRequest
) -> None:
    lake = Place.at(tmp_path)
    if where == "s3":
        lake = Place.at(f"s3://lake/killed-sweep?{request.getfixturevalue('s3_query')}")
    split = prepared(lake)
    # Short on purpose: Unix socket paths inside it must stay under 108 bytes.
    ray_files = tempfile.mkdtemp(prefix="rp-")
    killed = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(lake), ray_files],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAYPIPE_ABORT_AT": "training.trial_ended:4"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    shutil.rmtree(ray_files, ignore_errors=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert "not killed" not in killed.stdout

    before = snapshot(lake)
    finished = [t for t, status in before.items() if status == "TERMINATED"]
    told = killed.stdout.count("trial ")
    assert told == 4
    assert told <= len(finished) < PLAN.trials
    kept = {t: (lake / "sweep" / t / "result.json").read() for t in finished}

    from training.tune import sweep

    notes: list[str] = []
    ended: list[str] = []
    result = sweep(
        lake / "dataset",
        split,
        PLAN,
        storage=lake,
        resume=True,
        note=notes.append,
        trial_ended=ended.append,
    )
    assert notes == [f"resuming the sweep: {len(finished)} of 6 trials are finished"]
    assert len(ended) == 6 - len(finished)
    assert len(result.trials) == 6
    assert set(before) <= {t.id for t in result.trials}
    for trial, bytes_before in kept.items():
        assert (lake / "sweep" / trial / "result.json").read() == bytes_before
    for trial in result.trials:
        rows = results(lake, trial.id)
        assert trial.state == ("finished" if rows[-1]["rounds"] == PLAN.max_rounds else "stopped")
        assert rows[-1]["rounds"] % PLAN.grace_rounds == 0
        assert (trial.metric, trial.rounds) == (rows[-1]["best_aucpr"], rows[-1]["best_rounds"])
        assert trial.metric >= max(r["aucpr"] for r in rows)
    assert result.best.metric == max(t.metric for t in result.trials if t.metric is not None)


def test_a_torn_snapshot_is_not_resumed(tmp_path: Path) -> None:
    from training.sweeps import Study, restored

    study = Study("sweep", PLAN, {}, [], "best", lambda *_: "")
    notes: list[str] = []
    assert restored(Place.at(tmp_path), None, study, notes.append) is None
    for name in ("experiment_state-1.json", "search_gen_state-1.json", "searcher-state-1.pkl"):
        (tmp_path / name).write_bytes(b'{"trial_da')
        assert restored(Place.at(tmp_path), None, study, notes.append) is None
    assert notes == ["the sweep has no intact snapshot to resume from: starting it anew"] * 4


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_ends_in_a_current_model_and_a_report(tmp_path: Path, ray_session: None) -> None:
    world(5_000).write(tmp_path)
    options = Options(trials=3, max_rounds=60, concurrency=2)
    made = run(PROJECT, Place.at(tmp_path), options, Quiet())
    model = artefact.load(registry.locate(Place.at(tmp_path) / "models", "fraud"), PROJECT)
    assert model.reference == f"fraud@{made.version}"
    assert len(made.sweep) == 3
    assert made.sweep[0]["metric"] == max(t["metric"] for t in made.sweep)
    assert model.booster.num_boosted_rounds() == made.sweep[0]["rounds"]
    assert made.test["roc_auc"] > 0.8
    assert made.operating_points["review"]["fpr"] < 0.03
    assert Path(made.directory, "report.html").stat().st_size > 5_000
