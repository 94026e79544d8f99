"""Send events to a running server as its clients would, and measure what they see."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

CONNECTIONS = 8
TIMEOUT_S = 30.0


@dataclass
class Replayed:
    """What came back: actions and errors by name, latencies in seconds as a client saw them."""

    actions: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    answers: dict[str, str] = field(default_factory=dict)
    """Action by event id."""
    seconds: float = 0.0

    def percentile_ms(self, q: float) -> float:
        """A percentile of the latency in milliseconds; NaN without answers."""
        return float(np.percentile(self.latencies, q)) * 1_000 if self.latencies else float("nan")


def replay(
    url: str,
    key: str,
    bodies: Sequence[dict[str, Any]],
    advance: Callable[[int], None],
    connections: int = CONNECTIONS,
) -> Replayed:
    """Ask for a decision about each body, in order, over ``connections`` connections at once."""
    return asyncio.run(_replay(url, key, bodies, advance, connections))


async def _replay(
    url: str,
    key: str,
    bodies: Sequence[dict[str, Any]],
    advance: Callable[[int], None],
    connections: int,
) -> Replayed:
    import httpx

    out = Replayed()
    queue = iter(bodies)
    # trust_env=False: a proxy of the environment has no business on this machine's loopback.
    client = httpx.AsyncClient(
        base_url=url,
        headers={"Authorization": f"Bearer {key}"},
        timeout=TIMEOUT_S,
        trust_env=False,
        limits=httpx.Limits(max_connections=connections),
    )

    async def send() -> None:
        for body in queue:
            started = time.perf_counter()
            try:
                answer = await client.post("/v1/decisions", json=body)
            except httpx.HTTPError as e:
                out.errors[type(e).__name__] += 1
                continue
            out.latencies.append(time.perf_counter() - started)
            if answer.status_code == 200:
                action = answer.json()["action"]
                out.actions[action] += 1
                out.answers[body["event_id"]] = action
            else:
                out.errors[f"HTTP {answer.status_code}"] += 1
            advance(1)

    started = time.perf_counter()
    async with client:
        await asyncio.gather(*(send() for _ in range(connections)))
    out.seconds = time.perf_counter() - started
    return out
