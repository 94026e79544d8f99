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
"""What is exactly true in one window: n, and for columns sum, squares, least, most, different; of
all events or of those under one condition."""

SINGLE = (Op.SINCE_LAST, Op.LAST)


@dataclass(frozen=True, slots=True)
class Output:
    """One expected column: which operation over which column and window."""

    name: str
    op: Op
    column: str
    bits: int
    registers: int
    window: Window
    condition: str
    """SQL over an own event j; empty for all."""
    step: int = 1


@dataclass(frozen=True, slots=True)
class Truth:
    """What is true at some events, by offset; a value is None where the key is missing."""

    outputs: tuple[Output, ...]
    rows: dict[int, dict[Window, Facts] | None]
    newest: dict[int, int]
    clocks: dict[int, int]
    since: dict[int, int | None]
    lasts: dict[tuple[str, int], dict[int, dict[str, Any]]]
    """By condition and step, by offset: columns of the event, and how long ago it was in ms."""


def outputs(view: WindowView) -> tuple[Output, ...]:
    """Every column that a view declares, in declared order, from its aggregates alone."""
    spans = {s.label: (s.hop, s.length // s.hop) for s in view.spans}
    out: list[Output] = []
    for a in view.aggregates:
        if a.op in SINGLE:
            for step in a.steps:
                suffix = "" if step == 1 else str(step)
                out.append(_output(view, a, suffix, (0, 0, 0, 0), step))
            continue
        for label in a.over or tuple(spans):
            out.append(_output(view, a, label, (*spans[label], 0, 0)))
        for long, short in a.lags:
            out.append(_output(view, a, f"{long}_before_{short}", (*spans[long], *spans[short])))
    return tuple(out)


def _output(view: WindowView, a: Aggregate, suffix: str, window: Window, step: int = 1) -> Output:
    words = [view.name, a.name or a.of, a.column, a.op.name.lower(), suffix]
    name = "_".join(w for w in words if w)
    conditions = [f"j.kind = '{a.of}'"] if a.of else []
    # Conditions of these tests are SQL but for one sign.
    conditions += [f"({a.where.replace('==', '=')})"] if a.where else []
    condition = " and ".join(conditions)
    return Output(name, a.op, a.column, a.bits, a.registers, window, condition, step)


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
    windows = {o.window for o in declared if o.op not in SINGLE}
    wanted = pa.table({"o": events["offset"] if at is None else pa.array(at, pa.int64())})
    before = "<=" if after else "<"
    mine = ", ".join(f"'{kind}'" for kind in view.events)
    asks = f"r.kind in ({mine})" if after else f"r.kind = '{decision}'"
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
            from events where kind in ({mine}) and {view.key} is not null;
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
        result = Truth(declared, {}, {}, {}, {}, {})
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
        for condition, step in {(o.condition, o.step) for o in declared if o.op in SINGLE}:
            found = con.sql(
                f"""
                select i.o as reader, i.clock - j.t as since, j.* from reading i
                join own j on j.tenant = i.tenant and j.k = i.k and j.o {before} i.o
                where {condition or "true"}
                qualify row_number() over (partition by i.o order by j.t desc, j.o desc) = {step}
                """
            ).to_arrow_table()
            result.lasts[condition, step] = {r["reader"]: r for r in found.to_pylist()}
    return result


def _facts(declared: Iterable[Output]) -> dict[str, str]:
    """SQL of every fact that an operation needs. Sums are of 128 bits."""
    out = {"n": "count(*)"}
    for o in declared:
        if o.op in SINGLE:
            continue
        wide = f"j.{o.column}::hugeint"
        only, under = "", o.condition
        if under:
            only = f" filter (where {under})"
            out["n" + under] = f"count(*){only}"
        if o.op in (Op.SUM, Op.MEAN, Op.STD):
            out[f"sum {o.column}{under}"] = f"coalesce(sum({wide}){only}, 0)"
        if o.op is Op.STD:
            out[f"squares {o.column}{under}"] = f"sum({wide} * {wide}){only}"
        if o.op is Op.MIN:
            out[f"least {o.column}{under}"] = f"min(j.{o.column}){only}"
        if o.op is Op.MAX:
            out[f"most {o.column}{under}"] = f"max(j.{o.column}){only}"
        if o.op is Op.DISTINCT:
            out[f"different {o.column}{under}"] = f"count(distinct j.{o.column}){only}"
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
            if o.op in SINGLE and (o.op is Op.LAST or o.condition or o.step > 1):
                event = true.lasts[o.condition, o.step].get(offset)
                if event is None:
                    assert math.isnan(got), where
                else:
                    exact = event[o.column] if o.op is Op.LAST else event["since"] / 1000
                    assert got == exact, f"{where} not {exact}"
            elif o.op is Op.SINCE_LAST:
                since = true.since[offset]
                if since is None:
                    assert math.isnan(got), where
                else:
                    assert got == (0.0 if since_zero else since / 1000), f"{where} not {since} ms"
            elif at_windows is None:
                assert math.isnan(got), f"{where} for a missing key"
            else:
                _check(o, got, at_windows[o.window], where, worst)
    return worst


def _check(o: Output, got: float, facts: Facts, where: str, worst: Worst) -> None:
    n, name = facts["n" + o.condition], o.column + o.condition
    if o.op is Op.COUNT:
        assert got == n, f"{where} not {n}"
    elif o.op is Op.SUM:
        assert got == float(facts[f"sum {name}"]), f"{where} not {facts}"
    elif o.op is Op.DISTINCT:
        different = facts[f"different {name}"]
        if o.registers:
            assert_registers(got, different, o.registers, where)
        else:
            assert_estimate(got, different, o.bits, where)
    elif n == 0:
        assert math.isnan(got), f"{where} of nothing"
    elif o.op is Op.MIN:
        assert got == facts[f"least {name}"], f"{where} not {facts}"
    elif o.op is Op.MAX:
        assert got == facts[f"most {name}"], f"{where} not {facts}"
    elif o.op is Op.MEAN:
        worst.mean = max(worst.mean, _error(got, facts[f"sum {name}"] / n, where))
    else:
        exact = deviation(n, facts[f"sum {name}"], facts[f"squares {name}"])
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


def assert_registers(estimate: float, n: int, registers: int, where: str = "") -> None:
    """A HyperLogLog estimate within six times the stated error; nothing is exactly 0.

    Of few values, two may have met in one register.
    """
    if n == 0:
        assert estimate == 0.0, where
    else:
        assert abs(estimate - n) < 2.5 + n * 6 * 1.04 / registers**0.5, f"{where} not {n}"


def stated_error(n: int, bits: int) -> float:
    """Relative standard error of the estimate for n values, as spec.distinct states it."""
    load = n / bits
    return math.sqrt(bits * (math.exp(load) - load - 1)) / n
