"""An experiment checked against a project: what it reads is there, and can be counted."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa

from raypipe.errors import DeclarationError
from raypipe.events.schema import EventType, Kind
from raypipe.experiments.spec import EVENT, Experiment, Metric
from raypipe.policy.names import Names, read_condition
from raypipe.project import Project
from raypipe.vector.expressions import ColumnProgram, Derived, compile_columns
from raypipe.windows.conditions import Condition
from raypipe.yaml_nodes import nearest

VALUE = "value"
"""What a compiled value is called."""

R = TypeVar("R")


def check(experiment: Experiment, project: Project) -> None:
    """Check everything that an experiment reads; raises DeclarationError with the place."""
    event = project.decision_event
    key_column(experiment, project)
    if experiment.eligible:
        _at(experiment, "eligible", lambda: condition(experiment.eligible, event))
    for name in experiment.segments:
        _at(experiment, "segments", lambda name=name: event.field(name))  # type: ignore[misc]
    for metric in experiment.metrics:
        _check_metric(experiment, metric, project)


def key_column(experiment: Experiment, project: Project) -> str:
    """The column of the decision event that names its unit."""
    if experiment.unit == EVENT:
        return "event_id"
    event = project.decision_event
    known = [f.name for f in event.fields if f.kind is Kind.STRING]
    if experiment.unit not in known:
        experiment.fail(
            "unit",
            f"the unit {experiment.unit!r} is no key of {event.name!r}",
            nearest(experiment.unit, (*known, EVENT)),
        )
    return experiment.unit


def source_of(metric: Metric, project: Project) -> EventType:
    """The events whose columns a metric reads."""
    return project.decision_event if metric.built_in else project.event(metric.of)


def maturity_ms(metric: Metric, project: Project) -> int:
    """How long after a row happened it is complete."""
    if metric.maturity_ms is not None:
        return metric.maturity_ms
    known = metric.built_in
    return project.label.horizon_ms if known is not None and known.labelled else 0


def condition(text: str, event: EventType) -> Condition:
    """A condition on an event's own columns, in the grammar of policies.

    Raises DeclarationError for anything else, a score or a feature too: which arm a unit has must
    not depend on what an arm does.
    """
    when = read_condition(text, Names(event, (), ()))
    if not when.independent or when.reads_away:
        raise DeclarationError(
            f"condition {text!r} reads {'worker_away' if when.independent else 'the score'}",
            hint="Only the event's own columns are known.",
        )
    return Condition(ast.unparse(when.tree))


def value_program(text: str, event: EventType) -> ColumnProgram:
    """An expression of an event's numeric columns; its result is called VALUE."""
    numeric = [f.name for f in event.all_fields if f.arrow_type not in (pa.string(),)]
    return compile_columns((Derived(VALUE, text),), [n for n in numeric if n != VALUE])


def _check_metric(experiment: Experiment, metric: Metric, project: Project) -> None:
    part = f"metrics.{metric.name}"
    if metric.built_in is None:
        source = _at(experiment, f"{part}.of", lambda: project.event(metric.of))
        key = metric.key or experiment.unit
        if key == EVENT:
            experiment.fail(
                part,
                f"metric {metric.name!r} of {metric.of!r} has no key",
                "The unit is a decision: name the column that has its event_id.",
            )
        if _at(experiment, part, lambda: source.field(key)).kind is not Kind.STRING:
            experiment.fail(f"{part}.key", f"{key!r} of {metric.of!r} is no key", "Keys are text.")
    event = source_of(metric, project)
    if metric.where:
        _at(experiment, f"{part}.where", lambda: condition(metric.where, event))
    if metric.value:
        _at(experiment, f"{part}.value", lambda: value_program(metric.value, event))
    known, horizon = metric.built_in, project.label.horizon_ms
    if known is not None and known.labelled and maturity_ms(metric, project) < horizon:
        experiment.fail(
            f"{part}.maturity",
            f"metric {metric.name!r} is taken for complete before its labels are",
            f"{project.label.event!r} comes up to {horizon // 3_600_000} hours later: "
            "leave the maturity out.",
        )


def _at(experiment: Experiment, part: str, do: Callable[[], R]) -> R:
    """What ``do`` gives, its refusal with the place in the file."""
    try:
        return do()
    except DeclarationError as e:
        experiment.fail(part, e.detail, e.hint)
