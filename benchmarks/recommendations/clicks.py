"""How long until a click is in the answers: clicks come on time, whatever the server does.

Somebody looks at a list, clicks on an item that he had not met, and asks again until the answer
knows one interaction more and its items or their scores are others. The time counts from the moment
for which the click was planned to the arrival of that answer, so it holds the click's way into the
log, and a stall is paid by all clicks behind it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from raypipe.clock import SystemClock

PAUSE_S = 0.005
"""Between an answer that does not know the click and the next question."""
PATIENCE_S = 5.0
TRIES = 5
"""A list that chance had a say in is asked for again: it differs by itself."""


@dataclass(frozen=True)
class Click:
    """A visitor, and the item that is clicked on. ``id`` is the click's own. ``new``: a session of
    which nothing is known."""

    id: str
    name: str
    item: str
    new: bool

    @property
    def asks(self) -> dict[str, str]:
        """The request for his list."""
        return {"session": self.name} if self.new else {"user": self.name}

    def event(self) -> dict[str, Any]:
        """The click."""
        visit = self.name if self.new else f"visit-{self.id}"
        return {
            "type": "page_view",
            "event_id": self.id,
            "event_time": SystemClock().now_ms(),
            "session_id": visit,
            "item_id": self.item,
            **({} if self.new else {"customer_id": self.name}),
        }


@dataclass
class Clicked:
    """What was measured: seconds by click."""

    seconds: list[float] = field(default_factory=list)
    ingested: list[float] = field(default_factory=list)
    """Of these, until the event was acknowledged."""
    questions: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def percentile_ms(self, q: float) -> float:
        """A percentile (0 to 100) of the clicks that changed an answer."""
        return float(np.percentile(self.seconds, q) * 1e3)


async def probe(url: str, events: str, key: str, clicks: Sequence[Click], rate: float) -> Clicked:
    """Send the clicks to ``events``, ``rate`` a second, and ask for lists at ``url``."""
    found = Clicked()
    headers = {"Authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=32, max_keepalive_connections=32)
    async with httpx.AsyncClient(
        base_url=url, headers=headers, limits=limits, timeout=PATIENCE_S
    ) as client:
        before = [await _plain(client, c) for c in clicks]
        start = asyncio.get_running_loop().time()
        await asyncio.gather(
            *(
                _one(client, events, found, click, before[number], start + number / rate)
                for number, click in enumerate(clicks)
            )
        )
    return found


async def _one(
    client: httpx.AsyncClient,
    events: str,
    found: Clicked,
    click: Click,
    before: dict[str, Any],
    due: float,
) -> None:
    clock = asyncio.get_running_loop().time
    await asyncio.sleep(due - clock())
    try:
        answer = await client.post(events, json=[click.event()])
        if answer.status_code != 200 or answer.json()["accepted"] != 1:
            found.errors[f"event: {answer.status_code} {answer.text[:200]}"] += 1
            return
        acknowledged = clock() - due
        while clock() - due < PATIENCE_S:
            now = await _asked(client, click)
            found.questions += 1
            if now["history"] > before["history"] and _shown(now) != _shown(before):
                found.seconds.append(clock() - due)
                found.ingested.append(acknowledged)
                return
            await asyncio.sleep(PAUSE_S)
        found.errors["no other list came"] += 1
    except (httpx.HTTPError, KeyError, ValueError) as e:
        found.errors[f"{type(e).__name__}: {e}"] += 1


async def _plain(client: httpx.AsyncClient, click: Click) -> dict[str, Any]:
    """A list that chance had no say in, if one comes soon."""
    for _ in range(TRIES):
        answer = await _asked(client, click)
        if not answer["explored"]:
            break
    return answer


async def _asked(client: httpx.AsyncClient, click: Click) -> dict[str, Any]:
    answer = await client.post("/v1/recommendations", json=click.asks)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def _shown(answer: dict[str, Any]) -> list[tuple[str, float]]:
    return [(i["item_id"], i["score"]) for i in answer["items"]]
