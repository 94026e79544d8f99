"""Who asks for lists, and what is right about an answer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from benchmarks.recommendations.home import World

K = 10
NEW_SHARE = 0.1
"""Of requests: sessions of which nothing is known."""


class Item(msgspec.Struct):
    """Of an answer, as much as is checked."""

    item_id: str
    propensity: float = 1.0


class Answer(msgspec.Struct):
    """A list. The peer's has items alone."""

    items: list[Item]
    explored: bool = False
    history: int = -1
    degraded: bool = False


@dataclass
class Visits:
    """Visitors in the order in which they come: as often as in the history, some of them new."""

    world: World
    seed: int
    users: list[str] = field(init=False)
    _rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        self.users = self.world.pairs["user"].to_pylist()

    def take(self, count: int) -> list[str | None]:
        """So many; None is somebody new."""
        drawn = self._rng.integers(0, len(self.users), count)
        new = self._rng.random(count) < NEW_SHARE
        return [None if n else self.users[d] for d, n in zip(drawn.tolist(), new, strict=True)]


def bodies(visitors: Sequence[str | None], first: int) -> list[bytes]:
    """Requests to raypipe; whoever is new has a session, numbered from ``first``."""
    return [
        json.dumps({"session": f"new-{n}"} if user is None else {"user": user}).encode()
        for n, user in enumerate(visitors, first)
    ]


def peer_bodies(visitors: Sequence[str | None]) -> list[bytes]:
    """The same visitors, asking the peer."""
    return [json.dumps({"user": user, "k": K}).encode() for user in visitors]


@dataclass
class Judge:
    """A load.Verdict on a turn's answers: K known items in stock, none twice and none bought.

    ``strict`` is for a server that knows stock and orders; the peer's items must be known.
    """

    world: World
    visitors: Sequence[str | None]
    strict: bool
    explored: int = 0
    histories: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    _decoder: msgspec.json.Decoder[Answer] = field(
        default_factory=lambda: msgspec.json.Decoder(Answer)
    )

    def __call__(self, index: int, status: int, body: bytes) -> str:
        """What is wrong, "" for nothing."""
        if status != 200:
            return f"status {status}"
        try:
            answer = self._decoder.decode(body)
        except msgspec.DecodeError as e:
            return f"no answer: {e}"
        self.explored += answer.explored
        self.histories += answer.history > 0
        return self.fault(answer, self.visitors[index])

    def fault(self, answer: Answer, user: str | None) -> str:
        """What is wrong with a list for somebody."""
        ids = [i.item_id for i in answer.items]
        if len(ids) != K:
            return f"{len(ids)} items"
        if len(set(ids)) != K:
            return "an item twice"
        if not self.world.known.issuperset(ids):
            return "an unknown item"
        if not self.strict:
            return ""
        if answer.degraded:
            return "degraded"
        if not self.world.in_stock.issuperset(ids):
            return "an item out of stock"
        if user is not None and not self.world.bought.get(user, frozenset()).isdisjoint(ids):
            return "an item that was bought"
        if user is not None and answer.history < 1:
            return "a known visitor without a history"
        if any(not 0.0 < i.propensity <= 1.0 for i in answer.items):
            return "a propensity that is none"
        return ""
