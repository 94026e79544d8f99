"""Profiles declared as data: slow features of an entity, made once a day. Nothing here computes.

A profile is SQL in two steps. ``facts`` sum up an entity's events of one day, by event type; they
are made once and kept. ``values`` sum up the facts of the days within the lookback, so a new day
costs its own events and the facts, however long the history is. A day is a UTC day of arrival:
what arrived later is of a later day, so a day's values never change and never know the future.

The SQL is DuckDB's. Facts may use every field of the event type. Values may use the facts and
``age``: 0 on the day itself, 1 for the day before it. A fact of another event type is null.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from raypipe.clock import DAY_MS
from raypipe.errors import DeclarationError
from raypipe.events.schema import EventType, canonical_json
from raypipe.windows.spec import seconds

AGE = "age"
KEY = "key"
DAY = "day"
RESERVED = frozenset({AGE, KEY, DAY, "tenant"})
"""Names that facts can't have."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_DAY_S = DAY_MS // 1_000


@dataclass(frozen=True, slots=True)
class Facts:
    """What is kept of one day's events of one type: (name, SQL aggregate) pairs."""

    event: str
    columns: tuple[tuple[str, str], ...]


def facts(event: str, **columns: str) -> Facts:
    """Facts by name.

    >>> facts("payment", payments="count(*)").columns
    (('payments', 'count(*)'),)
    """
    return Facts(event, tuple(columns.items()))


@dataclass(frozen=True, slots=True)
class Value:
    """One feature of a profile: an SQL aggregate over facts of several days, a number or null."""

    name: str
    sql: str
    description: str = ""


@dataclass(frozen=True)
class Profile:
    """Slow features of an entity, stamped with the midnight (UTC) that ends their day.

    Args:
        lookback: how many days of facts count, as "90d".
        ttl: how old values may be and still be used, from that midnight.
        delay: how long after that midnight the values are surely there. A training row uses them
            no earlier, whenever they were really computed.
    """

    name: str
    entity: str
    key: str
    facts: tuple[Facts, ...]
    values: tuple[Value, ...]
    lookback: str = "365d"
    ttl: str = "7d"
    delay: str = "1h"
    description: str = ""
    owner: str = ""

    def __post_init__(self) -> None:
        if not self.facts or not self.values or not all(f.columns for f in self.facts):
            raise DeclarationError(f"profile {self.name!r} has no facts or no values")
        names = [name for f in self.facts for name, _ in f.columns]
        for what, found in (("fact", names), ("value", [v.name for v in self.values])):
            wrong = [n for n in (self.name, *found) if not _NAME.fullmatch(n)]
            if wrong or len(set(found)) < len(found):
                raise DeclarationError(
                    f"profile {self.name!r}: {what} names {wrong or found}",
                    hint="Names are lower case (a-z, 0-9, _), and each occurs once.",
                )
        taken = sorted(RESERVED & set(names))
        if taken:
            raise DeclarationError(f"profile {self.name!r}: facts can't be called {taken}")
        events = [f.event for f in self.facts]
        if len(set(events)) < len(events):
            raise DeclarationError(f"profile {self.name!r} has several facts of one event type")
        if seconds(self.lookback) % _DAY_S:
            raise DeclarationError(
                f"profile {self.name!r}: the lookback {self.lookback!r} is not whole days"
            )
        _ = self.ttl_ms, self.delay_ms

    @property
    def lookback_days(self) -> int:
        """Days of facts that count, the newest included."""
        return seconds(self.lookback) // _DAY_S

    @property
    def ttl_ms(self) -> int:
        """How old values may be, from the midnight that ended their day."""
        return seconds(self.ttl) * 1_000

    @property
    def delay_ms(self) -> int:
        """How long after that midnight a training row may know them."""
        return seconds(self.delay) * 1_000

    @property
    def events(self) -> tuple[str, ...]:
        """Event types that it is made of."""
        return tuple(f.event for f in self.facts)

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        """Feature names in order: the profile's and the value's."""
        return tuple(f"{self.name}_{v.name}" for v in self.values)

    def fact_columns(self, event: EventType) -> tuple[str, ...]:
        """Fields of an event type that its facts' SQL speaks of."""
        mine = " ".join(sql for f in self.facts if f.event == event.name for _, sql in f.columns)
        words = set(re.findall(r"\w+", mine))
        return tuple(f.name for f in event.all_fields if f.name in words)

    def facts_sql(self, events: Collection[str]) -> str:
        """Facts by key and day, from a table of each event type's name that has both."""
        return " UNION ALL BY NAME ".join(
            f"(SELECT {KEY}, {DAY}, "  # noqa: S608 - the SQL is the declaration
            + ", ".join(f"{sql} AS {name}" for name, sql in f.columns)
            + f' FROM "{f.event}" GROUP BY {KEY}, {DAY})'
            for f in self.facts
            if f.event in events
        )

    def values_sql(self) -> str:
        """Values of the days ``$first`` to ``$last`` from a table ``facts``, by key and day.

        A key has values on each day that has one of its facts within the lookback.
        """
        columns = ", ".join(
            f"({v.sql}) + 0::DOUBLE AS {name}"  # a sum refuses at once what is no number
            for v, name in zip(self.values, self.column_names, strict=True)
        )
        return f"""
            WITH seen AS (
              SELECT * EXCLUDE ({DAY}), {DAY} AS fact_day, unnest(range(
                greatest({DAY}, $first), least({DAY} + {self.lookback_days - 1}, $last) + 1
              )) AS {DAY} FROM facts
            )
            SELECT {KEY}, {DAY}, {columns}
            FROM (SELECT * EXCLUDE (fact_day), {DAY} - fact_day AS {AGE} FROM seen)
            GROUP BY {KEY}, {DAY} ORDER BY {KEY}, {DAY}
        """  # noqa: S608 - the SQL is the declaration

    def describe(self) -> dict[str, Any]:
        """Plain data for hashes and documents; text that changes no value is left out."""
        return {
            "name": self.name,
            "entity": self.entity,
            "key": self.key,
            "facts": [[f.event, [list(c) for c in f.columns]] for f in self.facts],
            "values": [[v.name, v.sql] for v in self.values],
            "lookback_days": self.lookback_days,
            "ttl_ms": self.ttl_ms,
            "delay_ms": self.delay_ms,
        }

    @cached_property
    def definition_hash(self) -> str:
        """sha256 of what determines the values."""
        return hashlib.sha256(canonical_json(self.describe())).hexdigest()


def check_profile(profile: Profile, events: Mapping[str, EventType]) -> None:
    """Refuse a profile whose SQL doesn't run over the declared events.

    Raises:
        DeclarationError: what DuckDB says to it.
    """
    import duckdb

    with duckdb.connect() as con:
        step = "facts"
        try:
            for name in profile.events:
                con.register("given", events[name].arrow_schema.empty_table())
                con.execute(
                    f'CREATE TABLE "{name}" AS SELECT *, {profile.key} AS {KEY}, 0::BIGINT AS {DAY}'  # noqa: S608
                    " FROM given"
                )
            con.execute(f"CREATE TABLE facts AS {profile.facts_sql(profile.events)}")
            step = "values"
            con.execute(profile.values_sql(), {"first": 0, "last": 0})
        except duckdb.Error as e:
            raise DeclarationError(
                f"profile {profile.name!r}: its {step} don't run: {e}",
                hint="Facts are SQL aggregates over event fields, values over facts and age.",
            ) from e
