"""Allow, deny and watch lists: what was on which list, and from when until when.

A list is the fold of its changes. It remembers the past, so that a question about an earlier time
has the answer that it had then.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.errors import IntegrityError

Ints = npt.NDArray[np.int64]

FOREVER = np.iinfo(np.int64).max
"""The end of what does not expire, ms."""


class Kind(StrEnum):
    """What a list is for. What being on it means is said by the rules that read it."""

    ALLOW = "allow"
    DENY = "deny"
    WATCH = "watch"


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One change of one list, for good: an undone change is another change.

    ``at_ms`` is when it was made. An addition of a key that is there replaces its entry.
    """

    list: str
    kind: Kind
    op: Literal["add", "remove"]
    keys: tuple[str, ...]
    who: str
    why: str
    at_ms: int
    expires_ms: int | None = None


class Span(NamedTuple):
    """A key was on a list from ``start`` until before ``end``, ms."""

    start: int
    end: int


class Entry(NamedTuple):
    """A key that is on a list, since when, until when (None: until it is removed), by whom, why."""

    key: str
    since_ms: int
    expires_ms: int | None
    who: str
    why: str


class Lists:
    """The lists of one tenant after some changes: immutable, and named by them.

    >>> add = Change("blocked", Kind.DENY, "add", ("k-1",), "ann", "fraud", 1_000, 5_000)
    >>> lists = Lists([("1", add)])
    >>> [lists.holds("blocked", "k-1", t) for t in (999, 1_000, 4_999, 5_000)]
    [False, True, True, False]
    """

    def __init__(self, changes: Iterable[tuple[str, Change]] = ()) -> None:
        self.kinds: dict[str, Kind] = {}
        """Every list that was ever changed."""
        self._spans: dict[str, dict[str, tuple[Span, ...]]] = {}
        self._last: dict[str, dict[str, Change]] = {}
        self.version = NO_CHANGES
        """How many changes, and the first digits of the hash of them all."""
        for self.version, change in versions(changes):
            self._apply(change)

    def _apply(self, change: Change) -> None:
        kind = self.kinds.setdefault(change.list, change.kind)
        if kind is not change.kind:
            raise IntegrityError(f"list {change.list!r} is of kind {kind}, and of {change.kind}")
        spans = self._spans.setdefault(change.list, {})
        last = self._last.setdefault(change.list, {})
        end = FOREVER if change.expires_ms is None else change.expires_ms
        for key in change.keys:
            known = spans.get(key, ())
            if known and known[-1].end > change.at_ms:
                known = (*known[:-1], Span(known[-1].start, change.at_ms))
            if change.op == "add":
                known = (*known, Span(change.at_ms, end))
                last[key] = change
            spans[key] = known

    def holds(self, name: str, key: str | None, at_ms: int) -> bool:
        """Whether a key was on a list at a time; never for a missing key or an unknown list."""
        spans = self._spans.get(name)
        if spans is None or key is None:
            return False
        found = spans.get(key)
        return found is not None and any(s.start <= at_ms < s.end for s in found)

    def holds_columns(
        self, name: str, keys: pa.Array | pa.ChunkedArray, at: Ints
    ) -> npt.NDArray[np.bool_]:
        """``holds`` of n keys at n times: bool [n]."""
        out = np.zeros(len(keys), np.bool_)
        spans = self._spans.get(name)
        if spans:
            known = pc.is_in(keys, value_set=pa.array(list(spans), pa.string()))
            for i in np.flatnonzero(known.to_numpy(zero_copy_only=False)):
                out[i] = self.holds(name, keys[int(i)].as_py(), int(at[i]))
        return out

    def entries(self, name: str, at_ms: int) -> list[Entry]:
        """What is on a list at a time, by key."""
        found = []
        for key, spans in sorted(self._spans.get(name, {}).items()):
            if spans and spans[-1].start <= at_ms < spans[-1].end:
                by = self._last[name][key]
                found.append(Entry(key, spans[-1].start, by.expires_ms, by.who, by.why))
        return found


NO_CHANGES = "0"
"""The version of lists that nobody has changed yet."""


def versions(changes: Iterable[tuple[str, Change]]) -> Iterator[tuple[str, Change]]:
    """Each change with the version of the lists after it.

    Args:
        changes: with the sha256 of their bytes, in order.
    """
    chain = hashlib.sha256()
    for number, (digest, change) in enumerate(changes, 1):
        chain.update(digest.encode())
        yield f"{number}-{chain.hexdigest()[:12]}", change


EMPTY = Lists()


class Recorded(Lists):
    """The answers that a decision was given, by its record: for deciding again without the lists.

    Args:
        hits: the record's ``list_hits``.
        event: the event that was decided about.
    """

    def __init__(self, hits: Iterable[str], event: Mapping[str, object]) -> None:
        super().__init__()
        self._known = {(n, event[c]) for n, _, c in (h.partition(":") for h in hits)}

    def holds(self, name: str, key: str | None, at_ms: int) -> bool:
        """Whether it was recorded so."""
        return (name, key) in self._known
