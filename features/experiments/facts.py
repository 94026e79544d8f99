"""From rows of the log to facts about units: who was exposed, what was decided, what happened.

Two steps of pure functions over tables, so that one process or many tasks can run them. ``prepare``
reduces the rows of one kind to what an experiment reads, with a part by event id. ``decided`` gets
all rows of a part and joins each decided event with its decision and its label.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.experiments.checks import VALUE, condition, key_column, source_of, value_program
from raypipe.experiments.spec import EVENT, Experiment, Metric
from raypipe.ledger.exposure import EXPOSURE
from raypipe.ledger.record import LOG_KIND
from raypipe.log.port import OFFSET
from raypipe.project import Project
from raypipe.windows.hashing import hash_column

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

ASKED, ANSWERED, LABELLED, EXPOSED, HAPPENED = range(5)
"""What a row is: a decision event, a decision, a label event, an exposure, another event."""

PART = "part"
APPROVE = "approve"


@dataclass(frozen=True)
class Plan:
    """An experiment over one log: what is read, and as of when.

    Args:
        as_of_ms: what happened later is not known.
        until_ms: exposures from then on don't count.
        parts: of the units, each of which one task works on as a whole.
        since_ms: instead of those who were exposed, take all who would have been from then on, as
            in the control arm; None: those who were.
    """

    experiment: Experiment
    project: Project
    tenant: str
    as_of_ms: int
    until_ms: int
    parts: int
    since_ms: int | None = None

    @cached_property
    def built_in(self) -> tuple[Metric, ...]:
        """Metrics of the decisions themselves."""
        return tuple(m for m in self.experiment.metrics if m.built_in)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of rows that it reads."""
        others = [m.of for m in self.experiment.metrics if not m.built_in]
        exposed = [EXPOSURE] if self.since_ms is None else []
        kinds = (*exposed, LOG_KIND, self.project.decision, self.project.label.event, *others)
        return tuple(dict.fromkeys(kinds))

    @cached_property
    def fact_schema(self) -> pa.Schema:
        """Facts about units; a metric's column is NaN where the fact is none of its rows."""
        return pa.schema(
            [
                (PART, pa.int32()),
                ("unit", pa.string()),
                ("what", pa.int8()),
                ("time", pa.int64()),
                (OFFSET, pa.int64()),
                ("event_id", pa.string()),
                ("arm", pa.string()),
                *((f"s:{name}", pa.string()) for name in self.experiment.segments),
                *((f"v:{m.name}", pa.float64()) for m in self.experiment.metrics),
            ]
        )

    @cached_property
    def asked_schema(self) -> pa.Schema:
        """Facts, and what has to be joined to them first."""
        joined = [("approved", pa.float64()), ("latency", pa.float64())]
        return pa.schema([*self.fact_schema, *(pa.field(n, t) for n, t in joined)])

    def columns(self, kind: str) -> list[str]:
        """The columns of a kind that it reads."""
        if kind == EXPOSURE:
            return ["event_time", "decided_event_id", "experiment", "arm", "unit"]
        if kind == LOG_KIND:
            return ["event_id", "action", "decided_at"]
        event = self.project.event(kind)
        wanted = {"event_id", "event_time", "received_at"}
        if kind == self.project.label.event:
            wanted.add(self.project.label.reference)
        if kind == self.project.decision:
            wanted |= {key_column(self.experiment, self.project), *self.experiment.segments}
            if self.since_ms is not None and self.experiment.eligible:
                wanted |= set(condition(self.experiment.eligible, event).columns)
        for m in self.experiment.metrics:
            if source_of(m, self.project).name == kind:
                wanted |= {m.key or self.experiment.unit} - {EVENT} if not m.built_in else set()
                wanted |= set(condition(m.where, event).columns) if m.where else set()
                wanted |= {n.id for n in ast.walk(ast.parse(m.value)) if isinstance(n, ast.Name)}
        return [f.name for f in event.all_fields if f.name in wanted]


def prepare(rows: pa.Table, plan: Plan, kind: str) -> pa.Table:
    """Rows of one kind, with ``offset``, as rows of Plan.asked_schema by event id."""
    made = []
    if kind == EXPOSURE:
        made.append(_exposures(rows, plan))
    elif kind == LOG_KIND:
        made.append(_decisions(rows, plan))
    if kind == plan.project.decision:
        made.append(_asked(rows, plan))
        if plan.since_ms is not None:
            made.append(_would_be(rows, plan, plan.since_ms))
    if kind == plan.project.label.event:
        made.append(_labels(rows, plan))
    made += [
        _happened(rows, plan, m) for m in plan.experiment.metrics if not m.built_in and m.of == kind
    ]
    return pa.concat_tables(made)


def _exposures(rows: pa.Table, plan: Plan) -> pa.Table:
    mine = pc.and_(
        pc.equal(rows["experiment"], plan.experiment.id),
        pc.less(rows["event_time"], plan.until_ms),
    )
    rows = rows.filter(mine)
    return _table(
        plan,
        EXPOSED,
        rows,
        {
            "unit": rows["unit"],
            "time": rows["event_time"],
            "event_id": rows["decided_event_id"],
            "arm": rows["arm"],
        },
    )


def _would_be(rows: pa.Table, plan: Plan, since_ms: int) -> pa.Table:
    """Exposures of all events that would have been eligible."""
    time = rows["event_time"].to_numpy()
    mine = (time >= since_ms) & (time < plan.until_ms)
    if plan.experiment.eligible:
        mine &= condition(plan.experiment.eligible, plan.project.decision_event).of_columns(rows)
    rows = rows.filter(pa.array(mine))
    unit = rows[key_column(plan.experiment, plan.project)]
    control = pa.array([plan.experiment.control.name] * rows.num_rows, pa.string())
    found = {"unit": unit, "time": rows["event_time"], "event_id": rows["event_id"], "arm": control}
    return _table(plan, EXPOSED, rows, found)


def _decisions(rows: pa.Table, plan: Plan) -> pa.Table:
    approved = pc.equal(rows["action"], APPROVE).cast(pa.float64())
    found = {"event_id": rows["event_id"], "time": rows["decided_at"], "approved": approved}
    return _table(plan, ANSWERED, rows, found)


def _labels(rows: pa.Table, plan: Plan) -> pa.Table:
    rows = rows.filter(pc.less_equal(rows["event_time"], plan.as_of_ms))
    found = {"event_id": rows[plan.project.label.reference], "time": rows["event_time"]}
    return _table(plan, LABELLED, rows, found)


def _asked(rows: pa.Table, plan: Plan) -> pa.Table:
    unit = key_column(plan.experiment, plan.project)
    found = {
        "event_id": rows["event_id"],
        "unit": rows[unit],
        "time": rows["event_time"],
        # What it took is known with the answer; until then the column has when it began.
        "latency": rows["received_at"].cast(pa.float64()),
    }
    found |= {f"s:{n}": rows[n].cast(pa.string()) for n in plan.experiment.segments}
    found |= {f"v:{m.name}": _values(rows, m, plan.project) for m in plan.built_in}
    return _table(plan, ASKED, rows, found)


def _happened(rows: pa.Table, plan: Plan, metric: Metric) -> pa.Table:
    rows = rows.filter(pc.less_equal(rows["event_time"], plan.as_of_ms))
    unit = metric.key or plan.experiment.unit
    found = {"unit": rows[unit], "event_id": rows["event_id"], "time": rows["event_time"]}
    found[f"v:{metric.name}"] = _values(rows, metric, plan.project)
    made = _table(plan, HAPPENED, rows, found)
    return made.filter(pc.is_finite(made[f"v:{metric.name}"]))


def _values(rows: pa.Table, metric: Metric, project: Project) -> pa.Array:
    """The value of each row, NaN where it doesn't count or has none."""
    event = source_of(metric, project)
    values = np.ones(rows.num_rows)
    if metric.value:
        numbers = {
            f.name: rows[f.name].cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
            for f in event.all_fields
            if f.name in rows.column_names and not pa.types.is_string(f.arrow_type)
        }
        values = value_program(metric.value, event)(numbers)[VALUE]
    if metric.where:
        values = np.where(condition(metric.where, event).of_columns(rows), values, np.nan)
    return pa.array(values)


def _table(
    plan: Plan, what: int, rows: pa.Table, found: Mapping[str, pa.ChunkedArray | pa.Array]
) -> pa.Table:
    """Rows of Plan.asked_schema, null where nothing is given, in a part by event id."""
    size = rows.num_rows
    given = {
        **found,
        "what": pa.array(np.full(size, what, np.int8)),
        OFFSET: rows[OFFSET],
        PART: part_of(found["event_id"], plan.parts),
    }
    arrays = [
        given[f.name] if f.name in given else pa.nulls(size, f.type) for f in plan.asked_schema
    ]
    return pa.table(arrays, schema=plan.asked_schema)


def part_of(column: pa.ChunkedArray | pa.Array, parts: int) -> pa.Array:
    """Parts of a text column [n]: what is equal is in one."""
    hashes = hash_column(column, 0).view(np.uint64)
    return pa.array((hashes % np.uint64(parts)).astype(np.int32))


def decided(rows: pa.Table, plan: Plan) -> pa.Table:
    """Facts about units, in a part by unit, from all rows of some event ids.

    An event that nobody decided about is none; of several rows of one id the first in the log
    counts.
    """
    what = rows["what"].to_numpy()
    joined = rows.filter(pa.array(what <= LABELLED)).sort_by(OFFSET)
    others = rows.filter(pa.array(what > LABELLED)).select(plan.fact_schema.names)
    facts = pa.concat_tables([_joined(joined, plan), others]) if joined.num_rows else others
    facts = facts.filter(pc.is_valid(facts["unit"]))
    place = facts.schema.get_field_index(PART)
    return facts.set_column(place, PART, part_of(facts["unit"], plan.parts))


def _joined(rows: pa.Table, plan: Plan) -> pa.Table:
    ids = rows["event_id"].combine_chunks().dictionary_encode()
    code, size = ids.indices.to_numpy(), len(ids.dictionary)
    what, time = rows["what"].to_numpy(), rows["time"].to_numpy()
    asked, answered = (_firsts(code, what == w, size) for w in (ASKED, ANSWERED))
    label = np.full(size, np.iinfo(np.int64).max)
    labelled = what == LABELLED
    np.minimum.at(label, code[labelled], time[labelled])
    both = (asked >= 0) & (answered >= 0)
    event, answer = asked[both], answered[both]
    facts = rows.take(pa.array(event))
    positive = label[both] <= time[event] + plan.project.label.horizon_ms
    approved = rows["approved"].to_numpy(zero_copy_only=False)[answer] != 0.0
    latency = time[answer] - rows["latency"].to_numpy(zero_copy_only=False)[event]
    for m in plan.built_in:
        name = f"v:{m.name}"
        value = facts[name].to_numpy(zero_copy_only=False)
        found = _built_in(m.of, value, approved, positive, latency)
        at = facts.schema.get_field_index(name)
        facts = facts.set_column(at, name, pa.array(np.where(np.isnan(value), np.nan, found)))
    return facts.select(plan.fact_schema.names)


def _built_in(
    of: str,
    value: Floats,
    approved: npt.NDArray[np.bool_],
    positive: npt.NDArray[np.bool_],
    latency: Floats,
) -> Floats:
    """A built-in metric of decided events [n], as raypipe.experiments.spec.BUILT_IN has them."""
    match of:
        case "conversion":
            return approved.astype(np.float64)
        case "revenue":
            return np.where(approved, value, 0.0)
        case "fraud_loss":
            return np.where(approved & positive, value, 0.0)
        case "false_positive":
            return (~approved & ~positive).astype(np.float64)
        case "latency":
            return latency
    raise ValueError(of)


def _firsts(code: Ints, chosen: npt.NDArray[np.bool_], size: int) -> Ints:
    """The first chosen row of each code, -1 where there is none [size]."""
    out = np.full(size, -1, np.int64)
    rows = np.flatnonzero(chosen)[::-1]
    out[code[rows]] = rows
    return out
