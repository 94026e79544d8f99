from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import norm

from raypipe.cli import _stage
from raypipe.errors import StageError
from raypipe.experiments.reading import read_experiment
from raypipe.experiments.spec import Arm, Direction, Experiment, Kind, Metric
from tests.unit.test_release_cli import Shell
from training.experiments import run
from training.experiments.bandits import arm_values, next_shares

BOUGHT = Metric("bought", "conversion", Kind.SHARE, Direction.UP)
EXPERIMENT = Experiment(
    name="softer",
    version=1,
    unit="buyer_id",
    arms=(Arm("old", 0.25), Arm("new", 0.25)),
    metrics=(BOUGHT,),
    horizon_ms=1,
    minimum_effect=0.05,
)


def table(bought: np.ndarray, new: np.ndarray, **columns: object) -> pa.Table:
    found = {
        "unit": [str(i) for i in range(len(new))],
        "arm": np.where(new, "new", "old"),
        "exposed_at": np.zeros(len(new), np.int64),
        "bought": bought.astype(float),
        "bought__mature": np.ones(len(new), bool),
    }
    return pa.table({**found, **columns})


def test_the_better_arm_gets_what_its_chance_to_be_best_says() -> None:
    rng = np.random.default_rng(1)
    new = rng.random(4_000) < 0.5
    units = table(rng.random(4_000) < np.where(new, 0.33, 0.30), new)
    found = next_shares(EXPERIMENT, units, floor=0.1)
    values = arm_values(EXPERIMENT, units)
    apart = values["new"].value - values["old"].value
    best = norm.cdf(apart / np.hypot(values["new"].error, values["old"].error))
    assert found.best["new"] == pytest.approx(best, abs=1e-9)
    assert found.share["new"] == pytest.approx(0.1 + 0.8 * best)
    fewer = replace(EXPERIMENT, metrics=(replace(BOUGHT, direction=Direction.DOWN),))
    assert next_shares(fewer, units, floor=0.1).best["new"] == pytest.approx(1.0 - best, abs=1e-9)


def test_an_arm_is_not_praised_for_the_week_in_which_it_got_its_units() -> None:
    rng = np.random.default_rng(2)
    late = np.arange(40_000) >= 20_000
    share = np.where(late, 0.9, 0.1)
    new = rng.random(40_000) < share
    bought = rng.random(40_000) < np.where(late, 0.5, 0.2)
    units = table(bought, new, propensity=np.where(new, share, 1.0 - share))
    assert bought[new].mean() > bought[~new].mean() + 0.2
    values = arm_values(EXPERIMENT, units)
    for v in values.values():
        assert v.value == pytest.approx(0.35, abs=4 * v.error)
        assert v.error < 0.02


def test_arms_that_are_not_known_yet_and_ratios_are_refused() -> None:
    new = np.arange(1_000) < 150
    with pytest.raises(StageError, match="new of softer@1 have less than 200"):
        next_shares(EXPERIMENT, table(new, new))
    ratio = replace(EXPERIMENT, metrics=(replace(BOUGHT, kind=Kind.RATIO),))
    with pytest.raises(StageError, match="is a ratio"):
        next_shares(ratio, table(new, new))


def test_the_next_version_is_a_file_with_the_new_shares(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    new = rng.random(4_000) < 0.5
    units = table(rng.random(4_000) < np.where(new, 0.33, 0.30), new)
    made = SimpleNamespace(table=lambda lake: units)
    monkeypatch.setattr(run.units, "run", lambda *given: (EXPERIMENT, made))
    monkeypatch.setattr(_stage, "session", nullcontext)
    file = tmp_path / "next.yaml"
    told = Shell(tmp_path).json(
        "experiment", "reallocate", "softer", "--out", str(file), "--floor", "0.1"
    )
    written = read_experiment(file)
    assert (told["experiment"], written.id) == ("softer@2", "softer@2")
    share = next_shares(EXPERIMENT, units, floor=0.1).share["new"]
    assert {a.name: a.share for a in written.arms} == {
        "old": pytest.approx(0.5 * (1 - share), abs=1e-4),
        "new": pytest.approx(0.5 * share, abs=1e-4),
    }
    assert written.share == pytest.approx(EXPERIMENT.share, abs=1e-9)
    assert replace(written, version=1, arms=EXPERIMENT.arms) == EXPERIMENT
    told = Shell(tmp_path).json("experiment", "reallocate", "softer", "--floor", "0.6", code=2)
    assert "floor of 0.6" in told["error"]["detail"]
