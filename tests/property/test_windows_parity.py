"""Every view of the payments project over a simulated world, against SQL over its raw events."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from features.batch import EntityPass, prepare, run_views
from features.payments import project
from raypipe.simulate.config import WorldConfig
from raypipe.simulate.world import World
from raypipe.windows.spec import WindowView
from tests.property.oracle import STATED, compare, truth

EVENTS = 20_000
PROBES = 5_000
START = 1_780_000_000_000
LATE_MS = 60_000


@pytest.fixture(scope="module")
def events() -> dict[str, pa.Table]:
    """Transactions and chargebacks by type, with the offset of their arrival; 3 % are late."""
    config = WorldConfig(
        seed=11, start_ms=START, days=100, customers=190, merchants=120, late_share=0.03
    )
    kinds = {e.name: e.arrow_schema.names for e in project.events}
    found: dict[str, list[pa.Table]] = {k: [] for k in kinds}
    for batch in World(config).batches():
        for kind, table in (("transaction", batch.transactions), ("chargeback", batch.chargebacks)):
            tenants = pa.array(["default"] * len(table), pa.string())
            found[kind].append(table.append_column("tenant", tenants).select(kinds[kind]))
    tables = {k: pa.concat_tables(v) for k, v in found.items()}
    received = np.concatenate([t["received_at"].to_numpy() for t in tables.values()])
    place = np.empty(len(received), np.int64)
    place[np.argsort(received, kind="stable")] = np.arange(len(received))
    out, at = {}, 0
    for kind, table in tables.items():
        offsets = place[at : at + len(table)]
        at += len(table)
        placed = table.add_column(0, "offset", pa.array(offsets))
        out[kind] = placed.filter(pa.array(offsets < EVENTS)).sort_by("offset")
    times = in_log_order(out, "event_time")
    assert len(times) == EVENTS
    assert np.mean(times < np.maximum.accumulate(times) - LATE_MS) > 0.02
    return out


def in_log_order(events: dict[str, pa.Table], name: str) -> npt.NDArray[np.int64]:
    both = pa.concat_tables([t.select(["offset", name]) for t in events.values()])
    return both.sort_by("offset")[name].to_numpy()


def prepared(events: dict[str, pa.Table], entity: EntityPass) -> pa.Table:
    rows = [prepare(events[kind], entity, kind) for kind in entity.kinds]
    return pa.concat_tables(rows).sort_by("offset")


def probes(kind: str, events: dict[str, pa.Table]) -> list[int]:
    """Sampled offsets and all of the late ones, where the clock matters; of few events, all."""
    times = in_log_order(events, "event_time")
    late = np.flatnonzero(times < np.maximum.accumulate(times) - LATE_MS)
    drawn = np.random.default_rng(5).choice(EVENTS, PROBES, replace=False)
    mine = set(events[kind]["offset"].to_pylist())
    if len(mine) < PROBES:
        return sorted(mine)
    return sorted(mine & {*late.tolist(), *drawn.tolist()})


def raw(view: WindowView, events: dict[str, pa.Table]) -> pa.Table:
    """What the oracle reads: the view's columns of its own and of the deciding events."""
    used = {view.key, *(a.column for a in view.aggregates if a.column)}
    parts = []
    for kind, table in events.items():
        if kind in (view.event, project.decision):
            names = [
                "offset",
                "tenant",
                "event_time",
                *(n for n in used if n in table.schema.names),
            ]
            kinds = pa.array([kind] * len(table), pa.string())
            parts.append(table.select(sorted(names)).append_column("kind", kinds))
    return pa.concat_tables(parts, promote_options="default")


def by_offset(
    offsets: npt.NDArray[np.int64], at: list[int], values: npt.NDArray[np.float64]
) -> dict[int, npt.NDArray[np.float64]]:
    where = dict(zip(offsets.tolist(), range(len(offsets)), strict=True))
    return {o: values[where[o]] for o in at}


@pytest.mark.parametrize("entity", [e.name for e in project.entities])
def test_every_value_of_20k_events_is_what_sql_says(
    entity: str, events: dict[str, pa.Table]
) -> None:
    plan = EntityPass.of(project, entity, 4)
    table = prepared(events, plan)
    offsets = table["offset"].to_numpy()
    results = run_views(table, plan)
    for view in plan.views:
        values, _ = results[view.name]
        reading = probes(project.decision, events)
        true = truth(view, raw(view, events), project.decision, at=reading)
        worst = compare(true, view.column_names, by_offset(offsets, reading, values.before))
        assert worst.values == len(reading) * len(view.columns)
        assert max(worst.mean, worst.std) <= STATED
        newest = dict(zip(offsets.tolist(), values.newest.tolist(), strict=True))
        assert {o: newest[o] for o in reading} == true.newest

        # The state after an event is what a reader right behind it would see.
        own = probes(view.event, events)
        true = truth(view, raw(view, events), project.decision, at=own, after=True)
        keyed = list(true.rows)
        assert len(keyed) > 50
        after = by_offset(offsets, keyed, values.after)
        compare(true, view.column_names, after, since_zero=True)
        clocks = dict(zip(offsets.tolist(), values.clocks.tolist(), strict=True))
        assert {o: clocks[o] for o in keyed} == true.clocks


@pytest.mark.parametrize("entity", [e.name for e in project.entities])
def test_key_ranges_give_the_bits_of_the_whole(entity: str, events: dict[str, pa.Table]) -> None:
    plan = EntityPass.of(project, entity, 5)
    table = prepared(events, plan)
    whole = run_views(table, plan)
    parts = table["part"].to_numpy()
    assert set(np.unique(parts)) == set(range(5))
    asked = table["kind"].to_numpy() == 0
    for part in range(5):
        mine = parts == part
        results = run_views(table.filter(pa.array(mine)), plan)
        for view in plan.views:
            a, b = whole[view.name][0], results[view.name][0]
            assert a.before[mine & asked].tobytes() == b.before[asked[mine]].tobytes()
            assert a.newest[mine & asked].tobytes() == b.newest[asked[mine]].tobytes()
