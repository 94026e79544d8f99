"""Patterns by plain lists and loops, one event after the other: what the engine must find.

Shares no code with raypipe.patterns. Slow and memory-hungry on purpose.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Event = dict[str, Any]
Steps = dict[str, list[Event]]
Test = Callable[[Event, "Seen"], bool]


class Seen:
    """The events of a partial match by step: what conditions and reasons look at."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def count(self, step: str) -> int:
        return len(self._steps[step])

    def last(self, step: str, column: str) -> Any:
        newest = self._steps[step][0]
        for event in self._steps[step]:
            if event["event_time"] >= newest["event_time"]:
                newest = event
        return newest[column]

    def first(self, step: str, column: str) -> Any:
        return self._steps[step][0][column]

    def known(self, step: str, column: str) -> list[Any]:
        return [e[column] for e in self._steps[step] if e[column] is not None]

    def most(self, step: str, column: str) -> Any:
        return max(self.known(step, column), default=None)

    def least(self, step: str, column: str) -> Any:
        return min(self.known(step, column), default=None)

    def total(self, step: str, column: str) -> Any:
        return sum(self.known(step, column))


@dataclass
class Step:
    name: str
    kinds: tuple[str, ...]
    test: Test
    least: int = 1
    most: int = 10**9
    negated: bool = False

    def matches(self, event: Event, seen: Seen) -> bool:
        return event["kind"] in self.kinds and self.test(event, seen)


@dataclass
class Partial:
    birth: int
    expire: int
    first: int
    steps: Steps
    step: int = 0
    waits: bool = False

    @property
    def seen(self) -> Seen:
        return Seen(self.steps)

    def newest(self, names: list[str]) -> int:
        return max(e["event_time"] for n in names for e in self.steps.get(n, []))


@dataclass
class Oracle:
    """One pattern. ``reason`` makes the sentence from what was seen, key and duration."""

    name: str
    steps: list[Step]
    within: int
    reason: Callable[[Seen, str], str]
    past_last: bool = True
    strict: bool = False
    most: int = 16
    live: dict[Any, list[Partial]] = field(default_factory=lambda: defaultdict(list))
    rings: dict[Any, tuple[int, list[Event]]] = field(default_factory=dict)
    dropped: int = 0

    def __post_init__(self) -> None:
        self.positive = [s for s in self.steps if not s.negated]
        self.absence = self.steps[-1].negated

    def vetoes(self, place: int) -> list[Step]:
        """The negated steps right after a positive one."""
        at = self.steps.index(self.positive[place]) + 1
        found = []
        while at < len(self.steps) and self.steps[at].negated:
            found.append(self.steps[at])
            at += 1
        return found

    def take(self, event: Event, before: int, now: int) -> list[tuple]:
        if event["key"] is None or event["kind"] not in {k for s in self.steps for k in s.kinds}:
            return []
        key = (event["tenant"], event["key"])
        kept, out = [], []
        for partial in self.live[key]:
            fate = "gone" if partial.expire < before else self.move(partial, event)
            if fate == "match":
                out.append(self.alert(key, partial, now))
                if self.past_last:
                    self.live.pop(key)
                    self.rings.pop(key, None)
                    return out
            elif fate == "kept":
                kept.append(partial)
        self.live[key] = kept
        return out + self.begin(key, event, before, now)

    def move(self, partial: Partial, event: Event) -> str:
        time, names = event["event_time"], [s.name for s in self.positive]
        floor = partial.newest(names[: partial.step]) if partial.step else partial.first
        if time > partial.first + self.within or time < floor:
            return "kept"
        step, seen = self.positive[partial.step], partial.seen
        in_order = time >= partial.newest(names)
        if in_order and len(partial.steps[step.name]) >= step.least:
            if any(v.matches(event, seen) for v in self.vetoes(partial.step)):
                return "gone"
            if partial.step + 1 < len(self.positive):
                following = self.positive[partial.step + 1]
                if following.matches(event, seen):
                    partial.step += 1
                    partial.steps[following.name] = [event]
                    return self.reached(partial)
        if len(partial.steps[step.name]) < step.most and step.matches(event, seen):
            partial.steps[step.name].append(event)
            return self.reached(partial)
        return "gone" if self.strict and in_order else "kept"

    def reached(self, partial: Partial) -> str:
        step = self.positive[partial.step]
        if step is not self.positive[-1] or len(partial.steps[step.name]) != step.least:
            return "kept"
        if not self.absence:
            return "match"
        partial.waits = True
        return "kept"

    def begin(self, key: Any, event: Event, before: int, now: int) -> list[tuple]:
        first, time = self.positive[0], event["event_time"]
        starts = first.matches(event, Seen({}))
        expire = max(time, now) + self.within
        events = [event]
        if first.least > 1:
            until, ring = self.rings.get(key, (0, []))
            if ring and until < before:
                ring = []
            if not starts:
                if self.strict and ring and time >= max(e["event_time"] for e in ring):
                    self.rings.pop(key)
                return []
            if len(ring) == first.least and time < ring[0]["event_time"]:
                return []
            until = max(until, expire) if ring else expire
            ring = sorted([*ring, event], key=lambda e: e["event_time"])[-first.least :]
            self.rings[key] = (until, ring)
            if (
                len(ring) < first.least
                or ring[-1]["event_time"] - ring[0]["event_time"] > self.within
            ):
                return []
            events = list(ring)
            expire = max(ring[0]["event_time"], now) + self.within
        elif not starts:
            return []
        partial = Partial(event["offset"], expire, events[0]["event_time"], {first.name: events})
        if self.reached(partial) == "match":
            if self.past_last:
                self.live.pop(key, None)
                self.rings.pop(key, None)
            return [self.alert(key, partial, now)]
        mine = self.live[key]
        if len(mine) >= self.most:
            same = [p for p in mine if p.step == 0]
            mine.remove(same[-1] if same else mine[0])
            self.dropped += 1
        mine.append(partial)
        return []

    def due(self, now: int) -> list[tuple]:
        """What was awaited until now and did not come, by when it was due."""
        waiting = sorted(
            (p.expire, p.birth, key)
            for key, partials in self.live.items()
            for p in partials
            if p.waits and p.expire <= now
        )
        out = []
        for expire, birth, key in waiting:
            found = [p for p in self.live.get(key, []) if p.birth == birth]
            if found:
                out.append((expire, self.alert(key, found[0], None)))
                if self.past_last:
                    self.live.pop(key)
                    self.rings.pop(key, None)
                else:
                    self.live[key].remove(found[0])
        return out

    def alert(self, key: Any, partial: Partial, now: int | None) -> tuple:
        names = [s.name for s in self.positive]
        events = [e["event_id"] for s in self.positive for e in partial.steps[s.name][: s.least]]
        time = partial.first + self.within if now is None else partial.newest(names)
        return (
            self.name,
            *key,
            time,
            partial.expire if now is None else now,
            partial.first,
            self.reason(partial.seen, key[1]),
            events,
        )


def run(oracles: list[Oracle], log: list[Event]) -> list[tuple]:
    """The alerts of a whole log in order. A clock is an event of kind ``clock``."""
    out, watermark = [], -(2**63)
    for event in log:
        before, watermark = watermark, max(watermark, event["received_at"])
        if event["kind"] != "clock":
            for oracle in oracles:
                out += oracle.take(event, before, watermark)
        fired = [
            (expire, place, i, alert)
            for place, oracle in enumerate(oracles)
            for i, (expire, alert) in enumerate(oracle.due(watermark))
        ]
        out += [alert for *_, alert in sorted(fired, key=lambda f: f[:3])]
    return out


def shown(value: Any) -> str:
    """A value in a reason."""
    return "-" if value is None else str(int(value)) if isinstance(value, float) else str(value)


def km(lat: Any, lon: Any, other_lat: Any, other_lon: Any) -> float | None:
    """Distance by the spherical law of cosines on unit vectors."""
    if None in (lat, lon, other_lat, other_lon):
        return None

    def vector(a: float, b: float) -> tuple[float, float, float]:
        a, b = math.radians(a), math.radians(b)
        return math.cos(a) * math.cos(b), math.cos(a) * math.sin(b), math.sin(a)

    p, q = vector(lat, lon), vector(other_lat, other_lon)
    return 6371.0088 * 2 * math.asin(min(1.0, math.dist(p, q) / 2))
