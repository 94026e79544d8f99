"""From facts about units to one row a unit: the table that analysis reads.

Columns: ``unit``, ``arm`` and ``exposed_at`` (ms) of the first exposure; the segments as they were
then; of each metric NAME its value, NAME__of its number of rows (ratios only), NAME__before the
same metric over the time before the exposure (NaN where nothing is looked at, or a ratio had no
rows) and NAME__mature, whether all that counts can be known by now.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.experiments.facts import EXPOSED, Floats, Ints, Plan
from raypipe.experiments.checks import maturity_ms
from raypipe.experiments.spec import Kind, Metric
from raypipe.log.port import OFFSET

Flags = npt.NDArray[np.bool_]


def unit_schema(plan: Plan) -> pa.Schema:
    """The columns of the table of units."""
    fields = [("unit", pa.string()), ("arm", pa.string()), ("exposed_at", pa.int64())]
    fields += [(name, pa.string()) for name in plan.experiment.segments]
    for m in plan.experiment.metrics:
        fields.append((m.name, pa.float64()))
        if m.kind is Kind.RATIO:
            fields.append((f"{m.name}__of", pa.float64()))
        fields += [(f"{m.name}__before", pa.float64()), (f"{m.name}__mature", pa.bool_())]
    return pa.schema(fields)


@dataclass(frozen=True)
class Facts:
    """Those of units that were exposed, in log order; ``of`` is the unit of each [n]."""

    of: Ints
    time: Ints
    rows: pa.Table
    exposed: Ints
    """When each unit was, ms [units]."""

    @property
    def size(self) -> int:
        """How many units there are."""
        return len(self.exposed)


def units(rows: pa.Table, plan: Plan) -> tuple[pa.Table, int]:
    """One row for each exposed unit, sorted by unit, from all facts of these units; and how many
    of them have exposures to several arms, of which the first counts."""
    rows = rows.sort_by(OFFSET)
    code = rows["unit"].combine_chunks().dictionary_encode()
    of, names = code.indices.to_numpy(), code.dictionary.to_pylist()
    what, time = rows["what"].to_numpy(), rows["time"].to_numpy()
    exposures = np.flatnonzero(what == EXPOSED)
    # By unit, then by time; what is earlier in the log first.
    exposures = exposures[np.lexsort((time[exposures], of[exposures]))]
    there, firsts = np.unique(of[exposures], return_index=True)
    if not len(there):
        return unit_schema(plan).empty_table(), 0
    first = exposures[firsts]
    place = np.full(len(names), -1, np.int64)
    place[there] = np.arange(len(there))
    known = (place[of] >= 0) & (what != EXPOSED)
    facts = Facts(place[of[known]], time[known], rows.filter(pa.array(known)), time[first])
    found: dict[str, pa.Array | pa.ChunkedArray] = {
        "unit": rows["unit"].take(pa.array(first)),
        "arm": rows["arm"].take(pa.array(first)),
        "exposed_at": pa.array(time[first]),
    }
    found |= _segments(facts, plan, rows["event_id"].take(pa.array(first)))
    for metric in plan.experiment.metrics:
        found |= _metric(facts, metric, plan)
    arms = rows["arm"].take(pa.array(exposures)).combine_chunks().dictionary_encode()
    pairs = np.unique(of[exposures] * len(arms.dictionary) + arms.indices.to_numpy())
    schema = unit_schema(plan)
    table = pa.table([found[f.name] for f in schema], schema=schema)
    return table.sort_by("unit"), len(pairs) - len(there)


def _segments(facts: Facts, plan: Plan, first_events: pa.ChunkedArray) -> dict[str, pa.Array]:
    """Columns of the event with which each unit was exposed first; null when it is not there."""
    ids = first_events.combine_chunks()
    mine = facts.rows["event_id"].combine_chunks()
    at = pc.index_in(ids, mine)
    return {n: facts.rows[f"s:{n}"].take(at) for n in plan.experiment.segments}


def _metric(facts: Facts, metric: Metric, plan: Plan) -> dict[str, pa.Array]:
    values = facts.rows[f"v:{metric.name}"].to_numpy(zero_copy_only=False)
    counts = np.isfinite(values)
    exposed = facts.exposed[facts.of]
    ripe = maturity_ms(metric, plan.project)
    after = counts & (facts.time >= exposed) & (facts.time <= plan.as_of_ms)
    if metric.within_ms:
        after &= facts.time < exposed + metric.within_ms
        ripe += metric.within_ms
    else:
        after &= (facts.time < plan.until_ms) & (
            facts.time + maturity_ms(metric, plan.project) <= plan.as_of_ms
        )
    value, rows = _summed(facts, metric, values, after)
    found = {metric.name: pa.array(value)}
    if metric.kind is Kind.RATIO:
        found[f"{metric.name}__of"] = pa.array(rows)
    before = np.full(facts.size, np.nan)
    if length := plan.experiment.before_ms:
        past = counts & (facts.time < exposed) & (facts.time >= exposed - length)
        before, rows = _summed(facts, metric, values, past)
        if metric.kind is Kind.RATIO:
            before = np.divide(before, rows, out=np.full(facts.size, np.nan), where=rows > 0)
    found[f"{metric.name}__before"] = pa.array(before)
    found[f"{metric.name}__mature"] = pa.array(facts.exposed + ripe <= plan.as_of_ms)
    return found


def _summed(facts: Facts, metric: Metric, values: Floats, chosen: Flags) -> tuple[Floats, Floats]:
    """The metric's value of each unit over the chosen facts, and their number [units]."""
    of, values = facts.of[chosen], values[chosen]
    rows = np.bincount(of, minlength=facts.size).astype(np.float64)
    if metric.kind is Kind.SHARE:
        some = np.bincount(of, values != 0.0, minlength=facts.size)
        return (some > 0).astype(np.float64), rows
    return np.bincount(of, values, minlength=facts.size).astype(np.float64), rows
