"""Mapping files: how the columns of somebody's table become the fields of declared events.

Only reads and checks the file; ``convert`` applies it. Reference: docs/reference/mapping-files.md.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from raypipe.errors import ConfigError, DeclarationError
from raypipe.events.row import Refused, field_check
from raypipe.events.schema import EventType, Field, Kind
from raypipe.project import Project
from raypipe.windows.spec import seconds

TIME_UNITS = ("ms", "s", "us", "iso8601", "datetime")
AMBIGUOUS = ("refuse", "earliest", "latest")
AMOUNT_UNITS = ("major", "minor")

STREAM_KEYS = (
    "event", "table", "where", "shift", "time_zone", "time_unit", "ambiguous", "columns",
)  # fmt: skip
COLUMN_OPTIONS: dict[Kind, tuple[str, ...]] = {
    Kind.STRING: ("prefix",),
    Kind.INTEGER: ("scale", "round"),
    Kind.NUMBER: ("scale",),
    Kind.BOOLEAN: (),
    Kind.TIME: ("time_unit", "time_zone", "ambiguous"),
    Kind.AMOUNT: ("unit", "scale", "round"),
    Kind.CURRENCY: (),
    Kind.CHOICE: (),
}


@dataclass(frozen=True, slots=True)
class Times:
    """How times are written. An empty ``unit`` leaves it to the source column's type.

    ``ambiguous`` says which hour is meant when a clock that was put back shows it twice.
    """

    unit: str = ""
    zone: str = "UTC"
    ambiguous: str = "refuse"


@dataclass(frozen=True, slots=True)
class ColumnRule:
    """How one field is filled: from a source column, or with a constant.

    ``unit`` is for amounts, ``times`` for times alone.
    """

    field: Field
    source: str | None = None
    const: Any = None
    prefix: str = ""
    scale: float = 1
    round: bool = False
    unit: str = ""
    times: Times = Times()

    def describe(self) -> dict[str, Any]:
        """Plain data for the load's identity."""
        options = ("source", "const", "prefix", "scale", "round", "unit")
        return {
            "target": self.field.name,
            **{name: getattr(self, name) for name in options},
            "times": [self.times.unit, self.times.zone, self.times.ambiguous],
        }


@dataclass(frozen=True, slots=True)
class StreamRule:
    """One event for each row of a table that passes ``where``.

    ``shift_ms`` is added to event_time, and to received_at where that is mapped.
    """

    name: str
    event: EventType
    table: str | None
    where: tuple[tuple[str, Any], ...]
    shift_ms: int
    columns: tuple[ColumnRule, ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """Columns of the table that are read."""
        used = [c.source for c in self.columns if c.source is not None]
        return tuple(dict.fromkeys([*used, *(name for name, _ in self.where)]))

    def describe(self) -> dict[str, Any]:
        """Plain data for the load's identity; the table is known by its content instead."""
        return {
            "event": self.event.name,
            "where": [list(w) for w in self.where],
            "shift_ms": self.shift_ms,
            "columns": [c.describe() for c in self.columns],
        }


@dataclass(frozen=True, slots=True)
class Mapping:
    """A checked mapping file."""

    name: str
    streams: tuple[StreamRule, ...]


def read_mapping(path: Path, project: Project) -> Mapping:
    """Read a mapping file; raises ConfigError that names the line and what it may say."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"mapping file {path} can't be read: {e}") from e
    return parse_mapping(text, project, path.name)


def parse_mapping(text: str, project: Project, name: str = "mapping") -> Mapping:
    """Check a mapping given as TOML text; raises ConfigError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{name} is not TOML: {e}") from e
    top = _Place(name)
    top.known(document, ("stream",))
    streams = document.get("stream")
    if not isinstance(streams, list) or not streams:
        top.fail("describes no stream", "Add [[stream]] with `event` and [stream.columns].")
    return Mapping(
        name,
        tuple(_stream(_Place(f"{name}: stream[{i}]"), s, project) for i, s in enumerate(streams)),
    )


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the file something is, for error texts."""

    path: str

    def fail(self, what: str, hint: str = "") -> NoReturn:
        raise ConfigError(f"{self.path} {what}", hint=hint)

    def of(self, key: str) -> _Place:
        return _Place(f"{self.path}.{key}")

    def known(self, found: Iterable[str], known: tuple[str, ...]) -> None:
        for key in found:
            if key not in known:
                near = get_close_matches(key, known, 1)
                meant = f"Did you mean {near[0]!r}? " if near else ""
                self.of(key).fail("is unknown", f"{meant}Known: " + ", ".join(known))

    def one_of(
        self, table: dict[str, Any], key: str, allowed: tuple[str, ...], default: str
    ) -> str:
        value = table.get(key, default)
        if key in table and value not in allowed:
            self.of(key).fail(f"is {value!r}", "It is one of: " + ", ".join(allowed))
        return str(value)

    def typed(self, table: dict[str, Any], key: str, kind: type, default: Any) -> Any:
        value = table.get(key, default)
        if key in table and type(value) is not kind:
            self.of(key).fail(f"is {value!r}", f"A TOML {_TOML[kind]} is expected.")
        return value


_TOML = {str: "string", bool: "boolean", dict: "table"}


def _stream(at: _Place, raw: Any, project: Project) -> StreamRule:
    if not isinstance(raw, dict):
        at.fail("is not a table", "Write it as [[stream]].")
    at.known(raw, STREAM_KEYS)
    events = tuple(e.name for e in project.events)
    if "event" not in raw:
        at.fail("names no `event`", "Declared: " + ", ".join(events))
    event = project.event(at.one_of(raw, "event", events, ""))
    times = _times(at, raw, Times())
    where = at.typed(raw, "where", dict, {})
    for column, value in where.items():
        if type(value) not in (str, int, float, bool) or value != value:  # noqa: PLR0124 - NaN
            at.of("where").of(column).fail(f"is {value!r}", "Only equality with a value is known.")
    fields = {f.name: f for f in event.all_fields if f.name != "tenant"}
    columns = at.typed(raw, "columns", dict, {})
    at.of("columns").known(columns, tuple(fields))
    rules = tuple(
        _column(at.of("columns").of(f.name), columns[f.name], f, times)
        for f in fields.values()
        if f.name in columns
    )
    for field in fields.values():
        if field.required and field.name not in columns and field.name != "received_at":
            at.of("columns").fail(
                f"lacks {field.name!r}, which every {event.name} must have",
                f'Write {field.name} = "SOURCE COLUMN" or {{ const = VALUE }}.',
            )
    return StreamRule(
        at.path,
        event,
        at.typed(raw, "table", str, None),
        tuple(where.items()),
        _shift(at, raw),
        rules,
    )


def _shift(at: _Place, raw: dict[str, Any]) -> int:
    text = at.typed(raw, "shift", str, "")
    try:
        return seconds(text) * 1000 if text else 0
    except DeclarationError as e:
        at.of("shift").fail(f"is {text!r}", e.hint)


def _times(at: _Place, raw: dict[str, Any], inherited: Times) -> Times:
    zone = str(at.typed(raw, "time_zone", str, inherited.zone))
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        at.of("time_zone").fail(f"is {zone!r}", "An IANA name is expected: 'Europe/Berlin'.")
    return Times(
        at.one_of(raw, "time_unit", TIME_UNITS, inherited.unit),
        zone,
        at.one_of(raw, "ambiguous", AMBIGUOUS, inherited.ambiguous),
    )


def _column(at: _Place, raw: Any, field: Field, times: Times) -> ColumnRule:
    if isinstance(raw, str):
        raw = {"from": raw}
    if not isinstance(raw, dict):
        at.fail(f"is {raw!r}", 'Write "SOURCE COLUMN", { from = "SOURCE" } or { const = VALUE }.')
    at.known(raw, ("from", "const", *COLUMN_OPTIONS[field.kind]))
    if ("from" in raw) == ("const" in raw):
        at.fail("needs either `from` or `const`")
    if "const" in raw:
        return ColumnRule(field, const=_const(at, raw, field))
    if field.kind is Kind.AMOUNT and ("unit" in raw) == ("scale" in raw):
        at.fail(
            "needs either `unit` or `scale`",
            'unit = "major" reads 57.16, unit = "minor" reads 5716; scale gives the factor.',
        )
    scale = raw.get("scale", 1)
    if type(scale) not in (int, float) or not 0 < scale < 2**53:
        at.of("scale").fail(f"is {scale!r}", "A number above 0 is expected.")
    return ColumnRule(
        field,
        source=at.typed(raw, "from", str, None),
        prefix=at.typed(raw, "prefix", str, ""),
        scale=scale,
        round=at.typed(raw, "round", bool, False),
        unit=at.one_of(raw, "unit", AMOUNT_UNITS, ""),
        times=_times(at, raw, times) if field.kind is Kind.TIME else Times(),
    )


def _const(at: _Place, raw: dict[str, Any], field: Field) -> Any:
    value = raw["const"]
    if len(raw) > 1:
        at.fail("has a `const`, which goes with nothing else")
    if field.name == "event_id":
        at.fail("can't be constant: it tells events apart")
    try:
        # The tenant's currency is only known when the mapping is used; see ``convert``.
        return field_check(field, currency=value)(value)
    except Refused as e:
        at.of("const").fail(f"is {value!r}: {e.reason}")
