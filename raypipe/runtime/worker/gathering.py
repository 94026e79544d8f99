"""How long a commit waits for what will be committed with it: a commit costs as much as the work of
several decisions, whether it is of one or of ten.

An event that was observed waits for its decision: nobody was told that it is durable. A decision
waits for those that are under way, of events that were observed before, but for a shorter time: its
client waits too. One alone doesn't wait.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

HOLD_S = 0.01
"""How long an observed event waits for its decision; after that it isn't expected any more."""

GATHER_S = 0.002
"""How long a decision waits for others, about as long as a commit takes."""

Name = tuple[str, str]
"""Tenant and event id."""


class Gathering:
    """What waits for the next commit of one worker, and what is expected to."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._expected: OrderedDict[Name, float] = OrderedDict()
        """Events without a decision so far, by when they were observed."""
        self._held: float | None = None
        self._asked: float | None = None

    def observed(self, name: Name) -> None:
        """An event came whose decision is to follow."""
        self._expected[name] = self._clock()

    def decided(self, name: Name) -> None:
        """It followed."""
        self._expected.pop(name, None)

    def until(self, *, dirty: bool, asked: bool, patient: bool) -> float:
        """The time before which the commit need not be.

        Args:
            dirty: whether anything waits for it.
            asked: whether somebody waits for it.
            patient: whether those who do may wait for others.
        """
        now = self._clock()
        self._forget(now - HOLD_S)
        if not dirty or (asked and not patient):
            return now
        if self._held is None:
            self._held = now
        if not asked:
            return self._held + HOLD_S
        if self._asked is None:
            self._asked = now
        return self._asked + GATHER_S if self._expected else now

    @property
    def expecting(self) -> bool:
        """Whether decisions are under way."""
        return bool(self._expected)

    def committed(self) -> None:
        """Nothing waits any more."""
        self._held = self._asked = None

    def _forget(self, before: float) -> None:
        """Expect no decision about events that came before then: its replica may be gone."""
        while self._expected and next(iter(self._expected.values())) < before:
            self._expected.popitem(last=False)
