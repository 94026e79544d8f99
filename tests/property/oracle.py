"""Window values by plain SQL: each reading event joined with all that its windows may hold.

It follows the definition of raypipe.windows.spec word for word and knows nothing of tiles: DuckDB
does the join, sums in 128-bit integers, and Python's integers and decimals do the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import cache
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe.windows.spec import Aggregate, Op, WindowView

STATED = 1e-12
"""The relative error that mean and std may have."""

UNLIKELY = 1e-9
"""Two-sided probability at which a distinct estimate counts as outside its stated error."""


Window = tuple[int, int, int, int]
"""Hop and number of hops of a span, and of the span that is left out of it (hop 0: none)."""

Facts = dict[str, Any]
"""What is exactly true in one window: n, and for columns sum, squares, least, most, different."""


@dataclass(frozen=True, slots=True)
class Output:
    """One expected column: which operation over which column and window."""

    name: str
    op: Op
    column: str
    bits: int
    window: Window


@dataclass(frozen=True, slots=True)
class Truth:
    """What is true at some events, by offset; a value is None where the key is missing."""

    outputs: tuple[Output, ...]
    rows: dict[int, dict[Window, Facts] | None]
    newest: dict[int, int]
    clocks: dict[int, int]
    since: dict[int, int | None]


def outputs(view: WindowView) -> tuple[Output, ...]:
    """Every column that a view declares, in declared order, from its aggregates alone."""
    spans = {s.label: (s.hop, s.length // s.hop) for s in view.spans}
    out: list[Output] = []
    for a in view.aggregates:
        if a.op is Op.SINCE_LAST:
            out.append(Output(f"{view.name}_since_last", a.op, "", 0, (0, 0, 0, 0)))
            continue
        for label in a.over or tuple(spans):
            out.append(_output(view, a, label, (*spans[label], 0, 0)))
        for long, short in a.lags:
            out.append(_output(view, a, f"{long}_before_{short}", (*spans[long], *spans[short])))
    return tuple(out)


def _output(view: WindowView, a: Aggregate, suffix: str, window: Window) -> Output:
    words = [view.name, a.column, a.op.name.lower(), suffix]
    return Output("_".join(w for w in words if w), a.op, a.column, a.bits, window)


_SETUP = """
create macro slot(a, b) as (a - ((a % b) + b) % b) // b;
create table win (hop bigint, hops bigint, less_hop bigint, less_hops bigint)
"""
# Floored division for negative numbers too: the remainder takes the sign of the divisor.


def truth(
    view: WindowView,
    events: pa.Table,
    decision: str,
    *,
    at: Sequence[int] | None = None,
    after: bool = False,
) -> Truth:
    """Facts at reading events, or after each of the view's own events.

    Args:
        events: offset, kind, tenant, event_time, the key and every used column.
        decision: event type whose events read.
        at: offsets of the events to look at (all when None).
        after: look at the view's own events that have a key; each counts in its own value.
    """
    declared = outputs(view)
    windows = {o.window for o in declared if o.op is not Op.SINCE_LAST}
    wanted = pa.table({"o": events["offset"] if at is None else pa.array(at, pa.int64())})
    before = "<=" if after else "<"
    asks = f"r.kind = '{view.event if after else decision}'"
    keyed = f"and r.{view.key} is not null" if after else ""
    facts = _facts(declared)
    with duckdb.connect(config={"threads": 2}) as con:
        con.register("events", events)
        con.register("wanted", wanted)
        con.execute(_SETUP)
        if windows:
            con.executemany("insert into win values (?, ?, ?, ?)", [list(w) for w in windows])
        con.execute(
            f"""
            create table own as
            select *, "offset" as o, {view.key} as k, event_time as t,
                slot(event_time, 1000) as second
            from events where kind = '{view.event}' and {view.key} is not null;
            create table reading as
            select r."offset" as o, r.tenant, r.{view.key} as k,
                greatest(r.event_time, coalesce(max(j.t), r.event_time)) as clock,
                slot(clock, 1000) as now, max(j.t) as last, coalesce(max(j.o), -1) as newest
            from events r left join own j
              on j.tenant = r.tenant and j.k = r.{view.key} and j.o {before} r."offset"
            where {asks} and r."offset" in (select o from wanted) {keyed}
            group by r."offset", r.tenant, r.{view.key}, r.event_time
            """
        )
        looked = con.execute("select o, k is null, newest, clock, clock - last from reading")
        result = Truth(declared, {}, {}, {}, {})
        for o, missing, newest, clock, since in looked.fetchall():
            result.rows[o] = None if missing else {w: dict.fromkeys(facts, 0) for w in windows}
            result.newest[o], result.clocks[o], result.since[o] = newest, clock, since
        found = con.execute(
            f"""
            select i.o, hop, hops, less_hop, less_hops, {", ".join(facts.values())}
            from reading i join own j on j.tenant = i.tenant and j.k = i.k and j.o {before} i.o
            join win on slot(j.second, hop) > slot(i.now, hop) - hops and (
                less_hop = 0 or not slot(j.second, less_hop) > slot(i.now, less_hop) - less_hops)
            group by i.o, hop, hops, less_hop, less_hops
            """
        )
        for o, *row in found.fetchall():
            at_window = result.rows[o]
            assert at_window is not None
            at_window[tuple(row[:4])] = dict(zip(facts, row[4:], strict=True))
    return result


def _facts(declared: Iterable[Output]) -> dict[str, str]:
    """SQL of every fact that an operation needs. Sums are of 128 bits."""
    out = {"n": "count(*)"}
    for o in declared:
        wide = f"j.{o.column}::hugeint"
        if o.op in (Op.SUM, Op.MEAN, Op.STD):
            out[f"sum {o.column}"] = f"sum({wide})"
        if o.op is Op.STD:
            out[f"squares {o.column}"] = f"sum({wide} * {wide})"
        if o.op is Op.MIN:
            out[f"least {o.column}"] = f"min(j.{o.column})"
        if o.op is Op.MAX:
            out[f"most {o.column}"] = f"max(j.{o.column})"
        if o.op is Op.DISTINCT:
            out[f"different {o.column}"] = f"count(distinct j.{o.column})"
    return out


@dataclass(slots=True)
class Worst:
    """The largest relative errors that a comparison met."""

    mean: float = 0.0
    std: float = 0.0
    values: int = 0


def compare(
    true: Truth,
    names: Sequence[str],
    values: Mapping[int, npt.NDArray[np.float64]],
    *,
    since_zero: bool = False,
) -> Worst:
    """Assert that the rows of ``values`` (by offset) are what is true; returns the worst errors.

    Args:
        since_zero: time since last is 0, for values after an event.
    """
    assert [o.name for o in true.outputs] == list(names)
    assert values.keys() == true.rows.keys()
    worst = Worst()
    for offset, row in values.items():
        at_windows = true.rows[offset]
        for o, got in zip(true.outputs, row.tolist(), strict=True):
            where = f"{o.name} at offset {offset}: {got!r}"
            worst.values += 1
            if o.op is Op.SINCE_LAST:
                since = true.since[offset]
                if since is None:
                    assert math.isnan(got), where
                else:
                    assert got == (0.0 if since_zero else since / 1000), f"{where} not {since} ms"
                continue
            if at_windows is None:
                assert math.isnan(got), f"{where} for a missing key"
            else:
                _check(o, got, at_windows[o.window], where, worst)
    return worst


def _check(o: Output, got: float, facts: Facts, where: str, worst: Worst) -> None:
    n = facts["n"]
    if o.op is Op.COUNT:
        assert got == n, f"{where} not {n}"
    elif o.op is Op.SUM:
        assert got == float(facts[f"sum {o.column}"]), f"{where} not {facts}"
    elif o.op is Op.DISTINCT:
        assert_estimate(got, facts[f"different {o.column}"], o.bits, where)
    elif n == 0:
        assert math.isnan(got), f"{where} of nothing"
    elif o.op is Op.MIN:
        assert got == facts[f"least {o.column}"], f"{where} not {facts}"
    elif o.op is Op.MAX:
        assert got == facts[f"most {o.column}"], f"{where} not {facts}"
    elif o.op is Op.MEAN:
        worst.mean = max(worst.mean, _error(got, facts[f"sum {o.column}"] / n, where))
    else:
        exact = deviation(n, facts[f"sum {o.column}"], facts[f"squares {o.column}"])
        worst.std = max(worst.std, _error(got, exact, where))


def _error(got: float, exact: float, where: str) -> float:
    if exact == 0.0:
        assert got == 0.0, f"{where} not 0"
        return 0.0
    error = abs(got - exact) / abs(exact)
    assert error <= STATED, f"{where} not {exact!r}"
    return error


def deviation(n: int, total: int, squares: int) -> float:
    """Population standard deviation from exact integers, in 60 decimal digits, then rounded."""
    with localcontext() as context:
        context.prec = 60
        return float(Decimal(n * squares - total * total).sqrt() / n)


def occupancy(bits: int, n: int) -> npt.NDArray[np.float64]:
    """Probability that n different values, hashed evenly, set k of the bits; k = 0 to bits."""
    for done in range(0, n, 200):  # so that the recursion is never deeper
        _occupancy(bits, done)
    return _occupancy(bits, n)


@cache
def _occupancy(bits: int, n: int) -> npt.NDArray[np.float64]:
    if n == 0:
        return np.eye(1, bits + 1)[0]
    fewer = _occupancy(bits, n - 1)
    k = np.arange(bits + 1)
    out = fewer * (k / bits)
    out[1:] += fewer[:-1] * ((bits - k[:-1]) / bits)
    return out


def every_estimate(bits: int) -> npt.NDArray[np.float64]:
    """The estimate for 0 to all bits set."""
    k = np.arange(bits)
    return np.append(bits * np.log(bits / (bits - k)), bits * math.log(2 * bits))


def bits_set(estimate: float, bits: int) -> int:
    """How many bits a linear-counting estimate speaks of; asserts that it is one."""
    if math.isclose(estimate, bits * math.log(2 * bits), rel_tol=1e-12):
        return bits
    k = round(bits - bits * math.exp(-estimate / bits))
    assert 0 <= k < bits
    assert math.isclose(estimate, bits * math.log(bits / (bits - k)), rel_tol=1e-12), estimate
    return k


def assert_estimate(estimate: float, n: int, bits: int, where: str = "") -> None:
    """The estimate is one that n different values give with a probability over UNLIKELY.

    0 and 1 values have one estimate whatever the hash is.
    """
    k = bits_set(estimate, bits)
    assert min(n, 1) <= k <= min(n, bits), f"{where}: {k} bits for {n} values"
    chances = occupancy(bits, n)
    either = min(chances[: k + 1].sum(), chances[k:].sum())
    assert either > UNLIKELY, f"{where}: {k} of {bits} bits for {n} values ({either:.1e})"


def stated_error(n: int, bits: int) -> float:
    """Relative standard error of the estimate for n values, as spec.distinct states it."""
    load = n / bits
    return math.sqrt(bits * (math.exp(load) - load - 1)) / n
