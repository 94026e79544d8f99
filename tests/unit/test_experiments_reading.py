"""Experiment files: what is read, what is refused and where, and publishing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from features import payments
from raypipe.clock import DAY_MS
from raypipe.errors import Conflict, DeclarationError, IntegrityError, NotFound
from raypipe.experiments import registry
from raypipe.experiments.checks import check, maturity_ms
from raypipe.experiments.reading import parse_experiment
from raypipe.experiments.registry import EXPERIMENTS
from raypipe.experiments.spec import Arm, Cap, Direction, Experiment, Kind
from raypipe.lake import Place
from tests.domains.greenhouse import project

NOW = 1_790_000_000_000

FILE = """
name: less_water
version: 2
description: does a stricter limit keep the floor dry?
owner: garden
unit: gardener
layer: limits
start: 0.25
arms:
  control: {share: 0.25}
  strict: {share: 0.125, policy: water@3}
  new_model: {share: 0.125, policy: water@3, model: flooding@7}
holdout: 0.05
eligible: mode in ('drip', 'spray') and litres >= 10
segments: [mode]
metrics:
  - {name: opened, of: conversion}
  - {name: floods, of: flood, kind: share, direction: down, within: 7d, maturity: 1d}
  - {name: lost, of: fraud_loss, value: litres / 10, cap: {quantile: 0.99}, within: 7d}
  - {name: latency, of: latency, where: litres < 500}
guardrails: {latency: 0.1, lost: 0.02}
minimum_effect: 0.03
horizon: 28d
before: 14d
"""


def read(*changes: tuple[str, str]) -> Experiment:
    text = FILE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    found = parse_experiment(text, "less_water.yaml")
    check(found, project)
    return found


def test_a_file_is_read_with_what_it_leaves_out() -> None:
    found = read()
    assert found.id == "less_water@2"
    assert found.arms == (
        Arm("control", 0.25),
        Arm("strict", 0.125, None, "water@3"),
        Arm("new_model", 0.125, "flooding@7", "water@3"),
    )
    assert (found.control.name, found.primary.name, found.share) == ("control", "opened", 0.5)
    assert (found.horizon_ms, found.before_ms) == (28 * DAY_MS, 14 * DAY_MS)
    assert (found.alpha, found.power, found.arm_salt) == (0.05, 0.8, "less_water")
    opened, floods, lost, _ = found.metrics
    assert (opened.kind, opened.direction) == (Kind.RATIO, Direction.UP)
    assert (floods.kind, floods.direction) == (Kind.SHARE, Direction.DOWN)
    assert lost.cap == Cap(quantile=0.99)
    assert [maturity_ms(m, project) for m in found.metrics] == [0, DAY_MS, DAY_MS, 0]


def test_the_canonical_form_is_the_same_experiment() -> None:
    found = read()
    again = parse_experiment(found.text)
    assert again == found
    assert again.sha256 == found.sha256
    bare = read(("layer: limits\n", ""), ("before: 14d\n", ""), ("owner: garden\n", ""))
    assert parse_experiment(bare.text) == bare
    assert bare.layer_name == "=less_water"


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("unit: gardener", "unit: gardner", "Did you mean 'gardener'"),
        ("unit: gardener", "unit: litres", "no key"),
        ("unit: gardener", "unit: event", "name the column that has its event_id"),
        ("control: {share: 0.25}", "control: {}", "lacks 'share'"),
        ("control: {share: 0.25}", "Control: {share: 0.25}", "Lower-case"),
        ("control: {share: 0.25}", "control: {share: 0}", "Above 0"),
        ("control: {share: 0.25}", "control: {share: 0.6}", "the arms take 0.85 of the layer"),
        ("policy: water@3}", "policy: water}", "Write NAME@VERSION"),
        ("start: 0.25", "start: 1", "from 0 to below 1"),
        ("holdout: 0.05", "holdout: -0.1", "holdout is -0.1"),
        ("litres >= 10", "litre >= 10", "Did you mean 'litres'"),
        ("litres >= 10", "score >= 0.5", "reads the score"),
        ("litres >= 10", "worker_away", "reads worker_away"),
        ("litres >= 10", "thirst >= 1", "unknown 'thirst'"),
        ("'drip', 'spray'", "'drop', 'spray'", "Did you mean 'drip'"),
        ("segments: [mode]", "segments: [colour]", "has no field 'colour'"),
        ("segments: [mode]", "segments: [lost]", "named twice, or as something else"),
        ("of: conversion", "of: flooded, kind: mean, direction: up", "unknown event type"),
        ("of: conversion", "of: flood", "lacks 'kind'"),
        ("of: conversion", "of: conversion, value: litres", "has a value"),
        ("value: litres / 10, ", "", "lacks a value"),
        ("value: litres / 10", "value: liters", "Did you mean 'litres'"),
        ("where: litres < 500", "where: litres <", "can't be read"),
        ("kind: share", "kind: median", "Known: mean, share, ratio"),
        ("{quantile: 0.99}", "{quantile: 1.5}", "From 0.5 to below 1"),
        ("{quantile: 0.99}", "{quantile: 0.9, value: 3}", "has 2 rules"),
        ("cap: {quantile: 0.99}", "maturity: 1h", "before its labels are"),
        ("name: floods", "name: opened", "a name twice: opened"),
        ("name: floods", "name: floods__of", "a column of the table of units"),
        ("direction: down", "direction: sideways", "direction is 'sideways'"),
        ("{latency: 0.1,", "{latenzy: 0.1,", "Did you mean 'latency'"),
        ("lost: 0.02", "lost: 2", "0.02 is two percent"),
        ("minimum_effect: 0.03", "minimum_effect: 0", "Above 0"),
        ("horizon: 28d", "horizon: 4 weeks", "Write a whole number and s, m, h or d"),
        ("horizon: 28d", "horizon: 400d", "366 days at most"),
        ("horizon: 28d", "horizont: 28d", "Did you mean 'horizon'"),
    ],
)
def test_what_is_wrong_is_refused_with_its_line(old: str, new: str, says: str) -> None:
    with pytest.raises(DeclarationError) as refused:
        read((old, new))
    assert says in f"{refused.value.detail} {refused.value.hint}"
    assert "less_water.yaml:" in refused.value.detail


def test_one_arm_is_no_experiment() -> None:
    text = FILE.replace("  strict: {share: 0.125, policy: water@3}\n", "")
    text = text.replace("  new_model: {share: 0.125, policy: water@3, model: flooding@7}\n", "")
    with pytest.raises(DeclarationError, match="there is 1 arm"):
        parse_experiment(text)


def test_an_event_can_be_its_own_unit() -> None:
    found = read(
        ("unit: gardener", "unit: event"),
        ("of: flood,", "of: flood, key: opening_id,"),
    )
    assert found.metric("floods").key == "opening_id"
    with pytest.raises(DeclarationError, match="no metric 'flods'"):
        found.metric("flods")
    with pytest.raises(DeclarationError, match="no arm 'loose'"):
        found.arm("loose")


def test_a_published_version_never_changes(tmp_path: Path) -> None:
    lake = Place.at(tmp_path)
    found = read()
    manifest, new = registry.publish(lake, found, FILE.encode(), project, NOW)
    assert new
    assert registry.publish(lake, found, b"# again", project, NOW + 1) == (manifest, False)
    other = read(("horizon: 28d", "horizon: 21d"))
    with pytest.raises(Conflict, match="write version: 3") as refused:
        registry.publish(lake, other, b"", project, NOW)
    assert "less_water@2" in refused.value.detail
    assert registry.load_experiment(lake, "less_water", project) == found
    with pytest.raises(NotFound, match="no version '3'"):
        EXPERIMENTS.read(lake, "less_water@3")
    file = tmp_path / "experiments/less_water/2/experiment.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"alpha": 0.2}))
    with pytest.raises(IntegrityError, match="sha256"):
        EXPERIMENTS.read(lake, "less_water@2")


def test_what_does_not_fit_is_not_published(tmp_path: Path) -> None:
    lake = Place.at(tmp_path)
    stranger = parse_experiment(FILE.replace("unit: gardener", "unit: card"))
    with pytest.raises(DeclarationError):
        registry.publish(lake, stranger, b"", project, NOW)
    assert EXPERIMENTS.names(lake) == []


def test_the_experiment_of_the_documents_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/experiments.md").read_text()
    found = parse_experiment(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0], "page")
    check(found, payments.project)
    assert parse_experiment(found.text) == found
