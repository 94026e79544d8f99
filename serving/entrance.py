"""What a request for a decision must pass before its body is read: deadline, key, a free place."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import NamedTuple, Self

from raypipe.errors import Unavailable
from raypipe.tenancy.keys import Credential, Scope
from serving.auth import Keys, authorize, permit, shown_key
from serving.deadlines import Budget, budget_of
from serving.decide import deadline
from serving.fairness import Gate
from serving.presence import Presence

KEPT_BACK = 0.5
"""Share of a budget that verifying a key may take: the rest decides."""


class Entrance:
    """Lets requests into one replica.

    Args:
        limit_ms: the longest budget, and that of a request that brings none.
        presence: whether the worker, which verifies keys, is there; None: it is waited for.
    """

    def __init__(
        self, keys: Keys, gate: Gate, limit_ms: int, presence: Presence | None = None
    ) -> None:
        self._keys = keys
        self._limit_ms = limit_ms
        self._presence = presence
        self.gate = gate

    async def enter(
        self, authorization: str | None, deadline_ms: str | None, scope: Scope
    ) -> Admission:
        """Whose request it is and its budget, with a place that must be left: use it in ``with``.

        Raises MalformedBody, Unauthenticated, Forbidden, Overloaded (429) and Unavailable (503).
        """
        return await self.place(await self.admit(authorization, deadline_ms, scope))

    async def admit(
        self, authorization: str | None, deadline_ms: str | None, scope: Scope
    ) -> Admitted:
        """The same without a place: a batch takes one for each row."""
        budget = budget_of(deadline_ms, self._limit_ms)
        return Admitted(await self._credential(authorization, scope, budget), budget)

    async def place(self, admitted: Admitted) -> Admission:
        """A place for one decision; raises Overloaded and Unavailable."""
        tenant, budget = admitted.credential.tenant, admitted.budget
        turn = self.gate.enter(tenant)
        if turn is not None:
            await self.gate.wait(tenant, turn, budget.left)
        return Admission(self.gate, *admitted)

    async def _credential(
        self, authorization: str | None, scope: Scope, budget: Budget
    ) -> Credential:
        known = self._keys.fresh(shown_key(authorization))
        if known is not None:
            return permit(known, scope)
        if self._presence is None:
            async with deadline(budget.left):
                return await authorize(authorization, scope, self._keys)
        if self._presence.worth_asking:
            try:
                async with asyncio.timeout(budget.left * KEPT_BACK) as limit:
                    with self._presence.asking(limit):
                        return await authorize(authorization, scope, self._keys)
            except (TimeoutError, Unavailable):
                self._presence.in_vain()
        return await authorize(authorization, scope, self._keys.remembered)


class Admitted(NamedTuple):
    """Whose request it is, and how long it may take."""

    credential: Credential
    budget: Budget


class Admission:
    """A place in a replica, given back at the end of a ``with`` block."""

    __slots__ = ("_gate", "budget", "credential")

    def __init__(self, gate: Gate, credential: Credential, budget: Budget) -> None:
        self._gate = gate
        self.credential = credential
        self.budget = budget

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._gate.leave(self.credential.tenant)
