"""From a table of units to findings, a verdict and a page."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from raypipe.clock import DAY_MS
from raypipe.errors import StageError, UsageError
from raypipe.experiments.results import Analysis, Finding, Guard, Guarding, Ratio, State
from raypipe.experiments.spec import Arm, Cap, Direction, Experiment, Kind, Metric
from raypipe.experiments.verdict import judge
from raypipe.lake import Place
from training.experiments.analysis import analyse
from training.experiments.report import render, write
from training.whiskers import scale

START = 1_790_000_000_000
NOW = START + 14 * DAY_MS
SPENT = Metric("spent", "revenue", Kind.MEAN, Direction.UP, cap=Cap(quantile=0.999))
WRONG = Metric("wrong", "false_positive", Kind.RATIO, Direction.DOWN)
EXPERIMENT = Experiment(
    name="softer",
    version=2,
    unit="buyer_id",
    arms=(Arm("old", 0.5), Arm("new", 0.5)),
    metrics=(SPENT, WRONG),
    horizon_ms=28 * DAY_MS,
    minimum_effect=0.05,
    segments=("country",),
    guardrails={"wrong": 0.2},
)


def table(n: int = 12_000, seed: int = 1, **effect: float) -> pa.Table:
    """Units of two weeks; ``spent`` and ``wrong`` are changed by these factors in ``new``."""
    rng = np.random.default_rng(seed)
    new = rng.random(n) < effect.get("share", 0.5)
    habit = rng.gamma(2.0, 10.0, n)
    day = rng.integers(0, 14 * DAY_MS, n)
    decisions = rng.poisson(4, n).astype(float)
    wrong = rng.binomial(decisions.astype(int), 0.1 * np.where(new, effect.get("wrong", 1.0), 1.0))
    spent = habit * rng.gamma(4.0, 0.25, n) * np.where(new, effect.get("spent", 1.0), 1.0)
    return pa.table(
        {
            "unit": pa.array([f"u{i}" for i in range(n)], pa.string()),
            "arm": pa.array(np.where(new, "new", "old"), pa.string()),
            "exposed_at": START + day,
            "country": pa.array(rng.choice(np.array(["DE", "FR", None], object), n).tolist()),
            "spent": spent,
            "spent__before": np.where(rng.random(n) < 0.2, np.nan, habit),
            "spent__mature": day < 12 * DAY_MS,
            "wrong": wrong.astype(float),
            "wrong__of": decisions,
            "wrong__before": np.full(n, np.nan),
            "wrong__mature": np.ones(n, bool),
        }
    )


def with_column(found: pa.Table, name: str, values: Any) -> pa.Table:
    return found.set_column(found.column_names.index(name), name, pa.array(values))


def test_an_effect_is_shown_with_what_it_was_counted_of() -> None:
    units = table(spent=1.1)
    found = analyse(EXPERIMENT, units, NOW, planned_units=12_000)
    assert found.verdict.state is State.BETTER
    assert found.verdict.arm == "new"
    primary, wrong = found.findings
    assert primary.significant
    assert primary.lift_low is not None
    assert primary.lift_low < 0.1 < (primary.lift_high or 0)
    assert not wrong.significant
    spent = found.counted[0]
    assert spent.variance_ratio is not None
    assert 0.2 < spent.variance_ratio < 0.8
    assert found.counted[1].variance_ratio is None
    arms, mature = np.array(units["arm"].to_pylist()), units["spent__mature"].to_numpy()
    for arm in ("old", "new"):
        assert spent.units[arm] == (mature & (arms == arm)).sum()
        assert spent.immature[arm] == (~mature & (arms == arm)).sum()
    assert sum(spent.above_cap.values()) == pytest.approx(0.001 * mature.sum(), abs=2)
    assert primary.control_units + primary.treated_units == sum(spent.units.values())


def test_the_control_is_as_it_would_be_by_hand() -> None:
    bare = replace(EXPERIMENT, metrics=(replace(SPENT, cap=Cap()), WRONG))
    units = table().drop_columns(["spent__before"])
    found = analyse(bare, units, NOW)
    arms, mature = np.array(units["arm"].to_pylist()), units["spent__mature"].to_numpy()
    spent = units["spent"].to_numpy()
    by_hand = [spent[mature & (arms == a)] for a in ("old", "new")]
    assert found.findings[0].control == pytest.approx(by_hand[0].mean())
    assert found.findings[0].treated == pytest.approx(by_hand[1].mean())
    error = np.sqrt(sum(v.var(ddof=1) / len(v) for v in by_hand))
    middle = (found.findings[0].low + found.findings[0].high) / 2
    assert middle == pytest.approx(by_hand[1].mean() - by_hand[0].mean())
    assert found.findings[0].high - middle > 2.5 * error
    wrong, of = (units[n].to_numpy()[arms == "new"].sum() for n in ("wrong", "wrong__of"))
    assert found.findings[1].treated == pytest.approx(wrong / of)


def test_no_effect_of_the_size_that_was_looked_for() -> None:
    found = analyse(EXPERIMENT, table(60_000), NOW)
    assert found.verdict.state is State.NO_EFFECT
    assert "5 %" in found.verdict.headline


def test_what_nothing_was_shown_of_runs_on_until_the_horizon() -> None:
    narrow = replace(EXPERIMENT, minimum_effect=0.001)
    assert analyse(narrow, table(), NOW).verdict.state is State.RUNNING
    late = analyse(narrow, table(), START + 29 * DAY_MS)
    assert late.over
    assert late.verdict.state is State.UNDECIDED


def test_an_effect_the_wrong_way_is_worse() -> None:
    assert analyse(EXPERIMENT, table(spent=0.9), NOW).verdict.state is State.WORSE


def test_a_broken_guardrail_ends_what_gains() -> None:
    found = analyse(EXPERIMENT, table(spent=1.1, wrong=1.8), NOW)
    assert found.verdict.state is State.HARMFUL
    assert found.guards[0].state is Guarding.BROKEN
    assert "wrong" in found.verdict.headline
    assert any("lost more than 20 %" in s for s in found.verdict.sentences)


def test_a_guardrail_is_kept_only_when_the_loss_is_known_to_be_smaller() -> None:
    assert analyse(EXPERIMENT, table(40_000), NOW).guards[0].state is Guarding.KEPT
    assert analyse(EXPERIMENT, table(1_200), NOW).guards[0].state is Guarding.OPEN


@pytest.mark.parametrize(
    ("factor", "state"), [(0.8, Guarding.BROKEN), (1.2, Guarding.KEPT), (0.95, Guarding.OPEN)]
)
def test_what_should_be_high_is_guarded_against_falling(factor: float, state: Guarding) -> None:
    guarded = replace(EXPERIMENT, guardrails={"spent": 0.05})
    assert analyse(guarded, table(spent=factor), NOW).guards[0].state is state


def test_lost_units_make_every_figure_void() -> None:
    found = analyse(EXPERIMENT, table(spent=1.3, share=0.45), NOW)
    assert found.ratio.mismatch
    assert found.verdict.state is State.INVALID
    assert "were expected" in found.verdict.sentences[0]


@pytest.mark.parametrize("n", [0, 150])
def test_too_few_units_say_nothing(n: int) -> None:
    found = analyse(EXPERIMENT, table(n), NOW)
    assert found.verdict.state is State.RUNNING
    assert not found.findings
    assert found.guards[0].state is Guarding.OPEN
    assert "Too few units" in render(found)


def test_segments_are_corrected_together_and_missing_values_are_in_none() -> None:
    found = analyse(EXPERIMENT, table(spent=1.15), NOW)
    assert [(f.segment, f.value) for f in found.segments] == [("country", "DE"), ("country", "FR")]
    assert len({f.level for f in found.segments}) == 1
    assert sum(f.control_units + f.treated_units for f in found.segments) < 9_000
    assert all(f.adjusted >= f.p for f in found.segments)


def test_of_two_arms_each_is_judged_at_its_step() -> None:
    three = replace(
        EXPERIMENT, arms=(Arm("old", 0.5), Arm("new", 0.25), Arm("idle", 0.25)), segments=()
    )
    units = table(20_000, spent=1.2)
    arms = np.array(units["arm"].to_pylist(), object)
    arms[np.flatnonzero(arms == "new")[::2]] = "idle"
    spent = units["spent"].to_numpy() / np.where(arms == "idle", 1.2, 1.0)
    found = analyse(
        three, with_column(with_column(units, "arm", arms), "spent", spent), NOW
    ).findings
    assert [(f.arm, f.significant, f.level) for f in found[:2]] == [
        ("new", True, 0.025),
        ("idle", False, 0.05),
    ]
    assert {f.metric for f in found[2:]} == {"wrong"}


def test_looks_close_in_on_the_last_one() -> None:
    found = analyse(EXPERIMENT, table(spent=1.1), NOW)
    widths = [look.high - look.low for look in found.looks]
    assert len(widths) == 14
    assert widths[-1] < widths[2] / 2
    last, primary = found.looks[-1], found.findings[0]
    assert (last.difference, last.low) == pytest.approx((primary.difference, primary.low))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.drop_columns(["wrong__of", "country"]), "lacks country, wrong__of"),
        (lambda t: with_column(t, "arm", ["newer"] * len(t)), "newer"),
        (lambda t: with_column(t, "arm", [None] * len(t)), "None"),
        (lambda t: pa.concat_tables([t, t.slice(0, 1)]), "two rows"),
        (lambda t: with_column(t, "spent", [float("nan")] * len(t)), "is no number"),
    ],
)
def test_a_table_of_something_else_is_refused(change: Any, words: str) -> None:
    with pytest.raises(StageError, match=words):
        analyse(EXPERIMENT, change(table(2_000)), NOW)


def test_a_plan_without_units_is_refused() -> None:
    with pytest.raises(UsageError, match="0 units"):
        analyse(EXPERIMENT, table(500), NOW, planned_units=0)


def test_the_page_needs_nothing_else_and_shows_what_the_json_has(tmp_path: Path) -> None:
    found = analyse(EXPERIMENT, table(spent=1.1), NOW)
    write(found, Place(str(tmp_path)))
    page = html.unescape((tmp_path / "report.html").read_text())
    assert not re.search(r"<script|https?://|src=|@import", page)
    assert found.verdict.headline in page
    for sentence in found.verdict.sentences:
        assert sentence in page
    assert page.count("<svg") == 3
    data = json.loads((tmp_path / "report.json").read_text())
    assert msgspec.convert(data, Analysis) == found


def test_the_page_shows_arms_without_a_lift() -> None:
    units = table(2_000)
    nothing = with_column(units, "wrong", np.zeros(len(units)))
    found = analyse(EXPERIMENT, nothing, NOW)
    assert found.findings[1].lift is None
    assert not found.findings[1].significant
    assert "–" in render(found)


RIGHT = Ratio({"old": 500, "new": 500}, {"old": 500.0, "new": 500.0}, 1.0, 1.0, False)


def finding(arm: str, lift: float, half: float) -> Finding:
    shown = abs(lift) > half
    return Finding(
        metric="spent",
        arm=arm,
        direction=Direction.UP,
        control=10.0,
        treated=10.0 * (1 + lift),
        control_units=500,
        treated_units=500,
        difference=10.0 * lift,
        low=10.0 * (lift - half),
        high=10.0 * (lift + half),
        lift=lift,
        lift_low=lift - half,
        lift_high=lift + half,
        p=0.01,
        adjusted=0.01,
        level=0.05,
        significant=shown,
    )


@pytest.mark.parametrize(
    ("findings", "state", "arm"),
    [
        ([finding("a", 0.1, 0.05), finding("b", 0.2, 0.05)], State.BETTER, "b"),
        ([finding("a", -0.1, 0.05), finding("b", 0.2, 0.05)], State.BETTER, "b"),
        ([finding("a", -0.1, 0.05), finding("b", 0.0, 0.05)], State.RUNNING, ""),
        ([finding("a", -0.1, 0.05), finding("b", 0.0, 0.01)], State.NO_EFFECT, ""),
        ([finding("a", -0.1, 0.05), finding("b", -0.2, 0.05)], State.WORSE, "b"),
    ],
)
def test_several_arms_have_one_verdict(findings: list[Finding], state: State, arm: str) -> None:
    found = judge(RIGHT, findings, [], minimum_effect=0.02, over=False)
    assert (found.state, found.arm) == (state, arm)


def test_words_say_which_way_is_good() -> None:
    lower = msgspec.structs.replace(finding("a", -0.1, 0.05), direction=Direction.DOWN)
    guard = Guard("late", "a", Direction.DOWN, 0.03, 0.0, -0.01, 0.01, 0.05, Guarding.KEPT)
    found = judge(RIGHT, [lower], [guard], minimum_effect=0.02, over=False)
    assert found.headline == "a is better on spent."
    assert found.sentences == (
        "spent of a is 10 % lower than the control's, from -15.00 % to -5.00 % with 95 % "
        "confidence, at any look: shown, and good: higher is not wanted.",
        "Guardrail late of a is safe from a loss of 3 %: from -1.00 % to +1.00 % with 95 % "
        "confidence.",
    )


def test_an_axis_holds_its_ends() -> None:
    for low, high in ((0.0, 0.0), (-3.0, 1e-9), (12.0, 12.5), (-1e6, 3e7)):
        axis = scale(low, high)
        assert axis.low <= low
        assert axis.high >= high
        assert 2 <= len(axis.ticks) <= 7
