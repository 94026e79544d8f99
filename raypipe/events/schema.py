"""Event types declared as data: what a column is, not how it is read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import pyarrow as pa

from raypipe.errors import DeclarationError

AMOUNT_LIMIT = 2**40
"""Exclusive bound of |amount| in minor units: squares and sums stay exact in 128 bits."""

EARLIEST_MS = 946_684_800_000
"""2000-01-01 UTC. Earlier times are almost always seconds sent as milliseconds."""

FUTURE_TOLERANCE_MS = 60_000
"""How far event_time may run ahead of received_at (clock skew of the sender)."""


class Kind(StrEnum):
    """What a value means; the physical type follows from it."""

    STRING = "string"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    TIME = "time"
    AMOUNT = "amount"
    CURRENCY = "currency"
    CHOICE = "choice"


class Tag(StrEnum):
    """What a column means for keys and for privacy."""

    KEY = "key"
    SUBJECT = "subject"
    PERSONAL = "personal"


ARROW_TYPES: dict[Kind, pa.DataType] = {
    Kind.STRING: pa.string(),
    Kind.INTEGER: pa.int64(),
    Kind.NUMBER: pa.float64(),
    Kind.BOOLEAN: pa.bool_(),
    Kind.TIME: pa.int64(),
    Kind.AMOUNT: pa.int64(),
    Kind.CURRENCY: pa.string(),
    Kind.CHOICE: pa.string(),
}


@dataclass(frozen=True, slots=True)
class Field:
    """One column of an event type.

    Strings are 1 to ``max_length`` characters of valid UTF-8 without control characters.
    A CHOICE is one of ``choices``; its number for a model is its place there (0, 1, ...), so
    choices are only ever appended.
    """

    name: str
    kind: Kind
    required: bool = True
    tags: frozenset[Tag] = frozenset()
    choices: tuple[str, ...] = ()
    max_length: int = 128
    minimum: float | None = None
    maximum: float | None = None
    description: str = ""

    @property
    def arrow_type(self) -> pa.DataType:
        """The physical column type in logs and Parquet."""
        return ARROW_TYPES[self.kind]

    @property
    def numeric(self) -> bool:
        """Whether an expression may read it as a number."""
        return self.kind not in (Kind.STRING, Kind.CURRENCY)


ENVELOPE: tuple[Field, ...] = (
    Field("tenant", Kind.STRING, description="whose event it is; set by the credential"),
    Field("event_id", Kind.STRING, description="unique per tenant; a retry sends it again"),
    Field("event_time", Kind.TIME, description="when it happened, ms UTC"),
    Field("received_at", Kind.TIME, description="when raypipe took it in, ms UTC"),
)
SERVER_FIELDS = frozenset({"tenant", "received_at"})
"""Envelope fields that a client never sends."""


@dataclass(frozen=True)
class EventType:
    """A named, versioned list of fields on top of the common envelope."""

    name: str
    fields: tuple[Field, ...]
    description: str = ""
    version: int = 1

    def __post_init__(self) -> None:
        names = [f.name for f in self.all_fields]
        doubled = sorted({n for n in names if names.count(n) > 1})
        if doubled:
            raise DeclarationError(f"event {self.name!r} declares {doubled} more than once")
        for f in self.fields:
            if (f.kind is Kind.CHOICE) != bool(f.choices):
                raise DeclarationError(
                    f"field {self.name}.{f.name}: choices go with kind 'choice' and only there"
                )

    @property
    def all_fields(self) -> tuple[Field, ...]:
        """Envelope first, then the type's own fields."""
        return ENVELOPE + self.fields

    @property
    def client_fields(self) -> tuple[Field, ...]:
        """What a client sends: all but what the server sets."""
        return tuple(f for f in self.all_fields if f.name not in SERVER_FIELDS)

    @cached_property
    def arrow_schema(self) -> pa.Schema:
        """Columns of a validated batch, in declared order."""
        return pa.schema(
            [pa.field(f.name, f.arrow_type, nullable=not f.required) for f in self.all_fields]
        )

    def field(self, name: str) -> Field:
        """The field of that name; raises DeclarationError with the known names otherwise."""
        for f in self.all_fields:
            if f.name == name:
                return f
        raise DeclarationError(
            f"event {self.name!r} has no field {name!r}",
            hint="It has: " + ", ".join(f.name for f in self.all_fields),
        )

    def __contains__(self, name: object) -> bool:
        return any(f.name == name for f in self.all_fields)

    def describe(self) -> dict[str, Any]:
        """Plain data for hashes, documents and manifests."""
        return {
            "name": self.name,
            "version": self.version,
            "fields": [
                {
                    "name": f.name,
                    "kind": f.kind.value,
                    "required": f.required,
                    "tags": sorted(t.value for t in f.tags),
                    "choices": list(f.choices),
                    "max_length": f.max_length,
                    "minimum": f.minimum,
                    "maximum": f.maximum,
                }
                for f in self.all_fields
            ],
        }

    @cached_property
    def definition_hash(self) -> str:
        """sha256 of the canonical declaration."""
        return hashlib.sha256(canonical_json(self.describe())).hexdigest()


# json.dumps would make an encoder for each value.
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def canonical_json(value: object) -> bytes:
    """One byte string for one value: sorted keys, no spaces, no NaN."""
    return _CANONICAL(value).encode()
