"""One question to the worker on this machine, from a process outside of its Ray session."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from raypipe.errors import Unavailable
from raypipe.runtime.worker import reach
from raypipe.runtime.worker.actor import socket_path
from raypipe.runtime.worker.client import WorkerClient

ANSWER_S = 30.0

_Answer = TypeVar("_Answer")


def ask(
    home: Path, question: Callable[[WorkerClient], Awaitable[_Answer]], partition: int = 0
) -> _Answer:
    """The answer of the worker of a home folder; raises Unavailable when none runs here."""
    return asyncio.run(_ask(str(socket_path(home, partition)), question))


async def _ask(path: str, question: Callable[[WorkerClient], Awaitable[_Answer]]) -> _Answer:
    client = WorkerClient(lambda: reach.unix(path))
    try:
        async with asyncio.timeout(ANSWER_S):
            if not Path(path).exists():
                raise Unavailable("no worker runs here", hint="Start it: `raypipe up`.")
            return await question(client)
    except TimeoutError:
        raise Unavailable(
            f"the worker did not answer within {ANSWER_S:g} s", hint="`raypipe status` shows it."
        ) from None
    finally:
        await client.close()
