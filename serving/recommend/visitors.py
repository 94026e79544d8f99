"""What visitors did, up to the newest event that was followed: the version's arrays, and after them
what came since."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from training.recommend.ranking.visitors import KEPT, NOTHING, Done, Visitors

MOST = 200_000
"""Visitors of whom something new is known at once; the one that was quiet longest goes first."""

SESSIONS = 500_000
"""Sessions whose customer is known at once."""


class Event(NamedTuple):
    """One interaction: code, place of its kind, ms UTC, place in the log."""

    item: int
    kind: int
    time: int
    offset: int


@dataclass
class _Recent:
    """New interactions by visitor, the newest KEPT of each."""

    most: int
    of: OrderedDict[str, deque[Event]] = field(default_factory=OrderedDict)
    forgotten: int = 0

    def add(self, visitor: str, event: Event) -> None:
        mine = self.of.get(visitor)
        if mine is None:
            mine = self.of[visitor] = deque(maxlen=KEPT)
            if len(self.of) > self.most:
                self.of.popitem(last=False)
                self.forgotten += 1
        else:
            self.of.move_to_end(visitor)
        mine.append(event)


class Histories:
    """Interactions of customers and of sessions, by id.

    A session belongs to the first customer that it names. From that event on what it did before is
    his, at that event's place in the log, exactly as training joins them
    (``training.recommend.events.Visits.joined``).

    Args:
        users: of customers, as of the version.
        sessions: of sessions that nobody had logged in to by then.
        owners: the customers of the others.
    """

    def __init__(
        self, users: Visitors, sessions: Visitors, owners: dict[str, str], most: int = MOST
    ) -> None:
        self._users, self._sessions = users, sessions
        self._owners: OrderedDict[str, str] = OrderedDict(owners)
        self._by_user, self._by_session = _Recent(most), _Recent(most)

    @property
    def recent(self) -> int:
        """Visitors of whom something came since the version."""
        return len(self._by_user.of) + len(self._by_session.of)

    @property
    def forgotten(self) -> int:
        """How often what came since was dropped for want of room."""
        return self._by_user.forgotten + self._by_session.forgotten

    def add(self, user: str | None, session: str | None, event: Event | None, offset: int) -> None:
        """Follow one event; ``event`` is None where its item is not of this version."""
        if user is not None and session is not None and session not in self._owners:
            self._log_in(session, user, offset)
        if user is None and session is not None:
            user = self._owners.get(session)
        if event is None:
            return
        if user is not None:
            self._by_user.add(user, event)
        elif session is not None:
            self._by_session.add(session, event)

    def of(self, user: str | None, session: str | None) -> Done:
        """A visitor's interactions, the newest KEPT in log order.

        A request that names both says whose session it is, before any event does; one that names a
        session that has logged in gets its customer's.
        """
        owner = None if session is None else self._owners.get(session)
        parts = []
        if user is None:
            user = owner
        if user is not None:
            parts += self._parts(self._users, self._by_user, user)
        if session is not None and owner is None:
            parts += self._parts(self._sessions, self._by_session, session)
        if not parts:
            return NOTHING
        whole = _joined(parts)
        order = np.argsort(whole.offset, kind="stable")[-KEPT:]
        return whole.at(order)

    def owner(self, session: str) -> str | None:
        """The customer that a session named."""
        return self._owners.get(session)

    def _log_in(self, session: str, user: str, offset: int) -> None:
        self._owners[session] = user
        if len(self._owners) > SESSIONS:
            self._owners.popitem(last=False)
        for part in self._parts(self._sessions, self._by_session, session):
            for item, kind, time in zip(part.item, part.kind, part.time, strict=True):
                self._by_user.add(user, Event(int(item), int(kind), int(time), offset))
        self._by_session.of.pop(session, None)

    @staticmethod
    def _parts(base: Visitors, recent: _Recent, visitor: str) -> list[Done]:
        found = base.find(visitor)
        new = recent.of.get(visitor)
        parts = [] if found is None else [found]
        if new:
            item, kind, time, offset = np.array(list(new), np.int64).T
            parts.append(Done(item.astype(np.int32), kind.astype(np.uint8), time, offset))
        return parts


def _joined(parts: list[Done]) -> Done:
    if len(parts) == 1:
        return parts[0]
    return Done(
        np.concatenate([p.item for p in parts]),
        np.concatenate([p.kind for p in parts]),
        np.concatenate([p.time for p in parts]),
        np.concatenate([p.offset for p in parts]),
    )
