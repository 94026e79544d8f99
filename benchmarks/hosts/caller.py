"""A client that wants each of its decisions: it asks at a fixed rate, goes to the next host when
one doesn't answer, and asks again until it has a decision.

Reads one JSON object from the file that it is called with: ``urls``, ``key``, ``bodies``, ``rate``
(a second), ``patience_s``. Writes a JSON line for each decision when it is there, and for each that
never came.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

CONNECT_S = 1.0
SHUNNED_S = 5.0
"""A host that couldn't be reached is tried last for so long, as a load balancer does it."""

ATTEMPT_S = 8.0
PAUSE_S = 0.1


async def call(plan: dict[str, Any]) -> None:
    """Ask for every decision; the n-th begins n / rate seconds after the first."""
    timeout = httpx.Timeout(ATTEMPT_S, connect=CONNECT_S)
    headers = {"Authorization": f"Bearer {plan['key']}"}
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(
        headers=headers, timeout=timeout, limits=limits, trust_env=False
    ) as client:
        began = time.monotonic()
        shunned: dict[str, float] = dict.fromkeys(plan["urls"], began)
        async with asyncio.TaskGroup() as tasks:
            for number, body in enumerate(plan["bodies"]):
                due = began + number / plan["rate"]
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                tasks.create_task(_want(client, plan, number, body, due, shunned))


async def _want(
    client: httpx.AsyncClient,
    plan: dict[str, Any],
    number: int,
    body: dict[str, Any],
    due: float,
    shunned: dict[str, float],
) -> None:
    failures: Counter[str] = Counter()
    urls = list(shunned)
    attempt = 0
    answer: dict[str, Any] | None = None
    while answer is None and (now := time.monotonic()) - due < plan["patience_s"]:
        turns = urls[(number + attempt) % len(urls) :] + urls
        url = next((u for u in turns if shunned[u] <= now), turns[0])
        attempt += 1
        try:
            got = await client.post(f"{url}/v1/decisions", json=body)
        except httpx.HTTPError as e:
            failures[type(e).__name__] += 1
            if isinstance(e, httpx.ConnectError | httpx.ConnectTimeout):
                shunned[url] = time.monotonic() + SHUNNED_S
        else:
            if got.status_code == 200:
                answer = got.json()
                break
            failures[str(got.status_code)] += 1
        await asyncio.sleep(PAUSE_S)
    line = {
        "event_id": body["event_id"],
        "answer": answer,
        "failures": failures,
        # From the moment at which it was due: a stall is paid by all that wait behind it.
        "seconds": time.monotonic() - due,
    }
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    asyncio.run(call(json.loads(Path(sys.argv[1]).read_text())))
