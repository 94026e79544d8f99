"""Assignment: uniform, independent between layers, sticky, and the same in line and in columns."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from raypipe.errors import ConfigError
from raypipe.experiments.assignment import NOT_IN, Assignment, Placed, check_together
from raypipe.experiments.reading import parse_experiment
from raypipe.experiments.spec import Experiment
from tests.domains.greenhouse import project

UNITS = 1_000_000


def experiment(
    name: str = "a", shares: Sequence[float] = (0.5, 0.5), more: str = "", unit: str = "gardener"
) -> Experiment:
    arms = "\n".join(f"  arm{i}: {{share: {s!r}}}" for i, s in enumerate(shares))
    return parse_experiment(
        f"name: {name}\nversion: 1\nunit: {unit}\narms:\n{arms}\n{more}\n"
        "metrics: {name: opened, of: conversion}\nminimum_effect: 0.1\nhorizon: 7d\n"
    )


def assigned(
    name: str = "a", shares: Sequence[float] = (0.5, 0.5), more: str = "", units: int = UNITS
) -> npt.NDArray[np.int8]:
    found = Assignment(experiment(name, shares, more), project)
    return found.arms_of("t", million().slice(0, units))


@cache
def million() -> pa.Array:
    return pa.array([f"unit-{i}" for i in range(UNITS)])


def counts(arms: npt.NDArray[np.int8], size: int) -> npt.NDArray[np.int64]:
    return np.bincount(arms + 1, minlength=size + 1)


def test_arms_are_as_large_as_declared_on_a_million_units() -> None:
    shares = (0.4, 0.3, 0.2, 0.05)
    found = counts(assigned(shares=shares), 4)
    expected = np.array([0.05, *shares]) * UNITS
    assert stats.chisquare(found, expected).pvalue > 0.001


def test_layers_are_independent_on_a_million_units() -> None:
    pairs = [assigned(name, (0.5, 0.3), f"layer: {name}") for name in ("a", "b", "c")]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        table = np.zeros((3, 3))
        np.add.at(table, (pairs[one] + 1, pairs[other] + 1), 1)
        assert stats.chi2_contingency(table).pvalue > 0.001


def test_holdout_and_layer_are_independent_of_the_arm() -> None:
    everyone = assigned("a", (0.5, 0.5), "layer: one")
    kept = assigned("b", (0.5, 0.5), "layer: one\nholdout: 0.2")
    table = np.zeros((2, 3))
    np.add.at(table, (everyone, kept + 1), 1)
    assert stats.chi2_contingency(table).pvalue > 0.001
    assert abs(np.mean(kept == NOT_IN) - 0.2) < 0.002


def test_another_arm_or_experiment_elsewhere_changes_nothing() -> None:
    mine = experiment("a", (0.25, 0.25), "layer: one")
    before = Assignment(mine, project).arms_of("t", million())
    check_together([mine, experiment("b", (0.2, 0.2, 0.2), "layer: two"), experiment("c")])
    check_together([mine, experiment("d", (0.25, 0.25), "layer: one\nstart: 0.5")])
    assert (before == Assignment(mine, project).arms_of("t", million())).all()


def test_experiments_of_a_layer_never_meet_and_fill_it() -> None:
    first = assigned("a", (0.2, 0.1), "layer: one")
    second = assigned("b", (0.35, 0.35), "layer: one\nstart: 0.3")
    assert ((first == NOT_IN) ^ (second == NOT_IN)).all()


def test_taking_more_of_the_layer_leaves_every_unit_its_arm() -> None:
    small, large = assigned(shares=(0.05, 0.05)), assigned(shares=(0.4, 0.4))
    there = small != NOT_IN
    assert 0.09 < there.mean() < 0.11
    assert (small[there] == large[there]).all()


def test_a_new_version_keeps_the_arms_and_a_new_salt_mixes_them() -> None:
    mine = experiment("a", (0.5, 0.5), "layer: one")
    later = parse_experiment(mine.text.replace('"version": 1', '"version": 2'))
    other = experiment("a", (0.5, 0.5), "layer: one\nsalt: again")
    units = million().slice(0, 100_000)
    arms, same, mixed = (Assignment(e, project).arms_of("t", units) for e in (mine, later, other))
    assert (arms == same).all()
    assert abs(np.mean(arms == mixed) - 0.5) < 0.01
    assert abs(np.mean(arms == Assignment(mine, project).arms_of("t2", units)) - 0.5) < 0.01


def test_who_is_held_out_of_little_is_held_out_of_much() -> None:
    little = assigned("a", more="holdout: 0.1") == NOT_IN
    much = assigned("b", more="holdout: 0.3") == NOT_IN
    assert (much | ~little).all()


@given(
    units=st.lists(st.none() | st.text(min_size=1, max_size=40), min_size=1, max_size=40),
    shares=st.lists(st.floats(0.001, 0.2), min_size=2, max_size=5),
    holdout=st.sampled_from([0.0, 0.3]),
    start=st.sampled_from([0.0, 0.1 / 3]),
)
def test_a_column_gets_what_each_unit_gets(
    units: list[str | None], shares: list[float], holdout: float, start: float
) -> None:
    units = [None if u is None else u.encode("utf-8", "ignore").decode() for u in units]
    found = Assignment(experiment("a", shares, f"holdout: {holdout}\nstart: {start!r}"), project)
    column = found.arms_of("t", pa.array(units, pa.string()))
    assert column.tolist() == [NOT_IN if u is None else found.arm("t", u) for u in units]


def test_who_is_not_eligible_has_no_arm_in_line_and_in_columns() -> None:
    found = Assignment(
        experiment("a", (0.5, 0.5), "eligible: mode in ('drip',) and litres >= 10"), project
    )
    rows = [
        {"tenant": "t", "gardener": unit, "litres": litres, "mode": mode}
        for unit in ("ann", "bob", None)
        for litres in (9, 10, None)
        for mode in ("drip", "spray", None)
    ]
    placed = [found.place(row) for row in rows]
    columns = found.arms_of_events("t", pa.Table.from_pylist(rows))
    assert [NOT_IN if p is None else p.arm for p in placed] == columns.tolist()
    assert [p is not None for p in placed] == [
        r["gardener"] is not None and r["litres"] == 10 and r["mode"] == "drip" for r in rows
    ]


def test_assignment_is_stable_over_releases_of_this_code() -> None:
    found = Assignment(experiment("limits", (0.3, 0.1), "layer: one\nholdout: 0.25"), project)
    arms = [found.arm("garden", f"u{i}") for i in range(24)]
    assert [i for i, arm in enumerate(arms) if arm == 0] == [1, 6, 8, 10, 18, 20, 23]
    assert [i for i, arm in enumerate(arms) if arm == 1] == [4, 12]
    event = {"tenant": "garden", "gardener": "u4"}
    assert found.place(event) == Placed("limits@1", 1, "arm1", "u4", 0.25)


@pytest.mark.parametrize(
    ("others", "says"),
    [
        ([experiment("a", (0.1, 0.1))], "versions of one experiment"),
        ([experiment("b", more="layer: one\nstart: 0.0", unit="valve")], "by valve"),
        ([experiment("b", (0.3, 0.3), "layer: one\nstart: 0.4")], "0.4 to 1 of layer|b@1 has"),
    ],
)
def test_what_can_not_run_at_once_is_refused(others: list[Experiment], says: str) -> None:
    mine = experiment("a", (0.25, 0.25), "layer: one")
    with pytest.raises(ConfigError, match=says):
        check_together([mine, *others])


def test_two_layers_may_not_change_one_thing() -> None:
    def changing(name: str, part: str) -> Experiment:
        plain = experiment(name)
        return parse_experiment(
            plain.text.replace('"arm1": {"share": 0.5', f'"arm1": {{"share": 0.5, {part}')
        )

    policies = [changing("a", '"policy": "x@1"'), changing("b", '"policy": "x@2"')]
    with pytest.raises(ConfigError, match="both change the policy"):
        check_together(policies)
    check_together([policies[0], changing("b", '"model": "x@2"')])
