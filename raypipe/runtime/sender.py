"""Sends batches to a running system's `POST /v1/events`, again and again until they are durable.

A batch has a key, so it is safe to send it after any failure: a lost answer, a full server, a
worker that was killed.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from raypipe.errors import RaypipeError, Unauthenticated, Unavailable, Violation, error_of
from raypipe.sources.batch import Batch, Taken
from raypipe.tenancy.keys import LOCAL_KEY_FILE, LOCAL_TENANT

if TYPE_CHECKING:
    from raypipe.config import Settings

KEY_VARIABLE = "RAYPIPE_API_KEY"
ANSWER_S = 60.0
"""Longer than the server waits for its worker."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
PATIENCE_S = 300.0

_AGAIN = {429, 502, 503, 504}


class Sender:
    """Posts batches over kept-alive connections. Safe for threads; close it at the end.

    Args:
        patience_s: how long to try a batch that is put off or not answered; None: for ever.
        waiting: told why, before each pause.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        patience_s: float | None = PATIENCE_S,
        waiting: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._url = url
        self._patience_s = patience_s
        self._waiting = waiting
        self._clock = clock
        self._halted = threading.Event()
        self._pause = pause or self._halted.wait
        # trust_env=False: a proxy of the environment has no business between our own processes.
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=ANSWER_S,
            trust_env=False,
            transport=transport,
        )

    @classmethod
    def of(cls, settings: Settings, **options: Any) -> Sender:
        """To the system of the settings, with the tenant's key; options as of the class.

        Raises Unauthenticated where there is no key, Unavailable when nothing runs there.
        """
        sender = cls(settings.ingest_url, _api_key(settings), **options)
        try:
            sender.require()
        except BaseException:
            sender.close()
            raise
        return sender

    def require(self) -> None:
        """Raises Unavailable unless a server of bulk events answers."""
        try:
            answer = self._http.get("/healthz", timeout=5.0)
            found = "" if answer.status_code == 200 else f"it answered {answer.status_code}"
        except httpx.HTTPError as e:
            found = str(e) or type(e).__name__
        if found:
            raise Unavailable(
                f"nothing takes events at {self._url}: {found}",
                hint="Start it with `raypipe up` or `raypipe serve`. If it runs: are http_host and "
                "ingest_port of this call those that it was started with?",
            )

    def send(self, batch: Batch) -> Taken:
        """Post a batch; returns when its rows are durable.

        Raises InputError, Conflict, Unauthenticated and Forbidden as they were answered, and
        Unavailable when patience ends: whether the rows are in is not known then, but sending the
        batch again is safe.
        """
        began, pause_s = self._clock(), FIRST_PAUSE_S
        while True:
            try:
                answer = self._http.post(
                    "/v1/events",
                    content=batch.body,
                    params={"type": batch.kind} if batch.kind else None,
                    headers={"Content-Type": batch.media.value, "Idempotency-Key": batch.key},
                )
            except httpx.TransportError as e:
                why, wait = f"{type(e).__name__}: {e}", 0.0
            else:
                if answer.status_code in (200, 207):
                    return _taken(answer.json())
                if answer.status_code not in _AGAIN:
                    raise _refusal(answer)
                why, wait = f"answered {answer.status_code}", _retry_after(answer)
            wait = max(wait, pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads senders
            if self._halted.is_set():
                raise Unavailable(f"stopped while {self._url} took no events: {why}")
            if self._patience_s is not None and self._clock() - began + wait > self._patience_s:
                raise Unavailable(
                    f"{self._url} took no events for {self._patience_s:g} s: {why}",
                    hint="Send the same again when it does; what was taken is not taken twice.",
                )
            if self._waiting is not None:
                self._waiting(why)
            self._pause(wait)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def halt(self) -> None:
        """Let every batch that waits fail; from any thread."""
        self._halted.set()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


def _api_key(settings: Settings) -> str:
    given = os.environ.get(KEY_VARIABLE)
    if given:
        return given.strip()
    if settings.tenant != LOCAL_TENANT:
        raise Unauthenticated(
            f"the key of this home folder is that of tenant {LOCAL_TENANT}, not {settings.tenant}",
            hint=f"Set {KEY_VARIABLE} to a key of {settings.tenant} with the scope events:write.",
        )
    file: Path = settings.home / LOCAL_KEY_FILE
    try:
        return file.read_text().strip()
    except OSError:
        raise Unauthenticated(
            f"there is no API key: {file} can't be read",
            hint=f"`raypipe up` or `raypipe serve` makes it; or set {KEY_VARIABLE}.",
        ) from None


def _taken(said: dict[str, Any]) -> Taken:
    exceptions = said["exceptions"]
    return Taken(
        said["accepted"],
        frozenset(e["row"] for e in exceptions if e["outcome"] == "duplicate"),
        {e["row"]: tuple(e["reasons"]) for e in exceptions if e["outcome"] == "refused"},
    )


def _refusal(answer: httpx.Response) -> RaypipeError:
    """The error that the problem document is of."""
    try:
        said = answer.json()
        kind = error_of(said["code"])
        found = tuple(Violation(e["pointer"], e["detail"]) for e in said.get("errors", ()))
        return kind(said["detail"], hint=said.get("hint", ""), violations=found)
    except (ValueError, KeyError, TypeError):
        return RaypipeError(
            f"{answer.url} answered {answer.status_code}: {answer.text[:200]}",
            hint="Is it raypipe's server of bulk events that listens there?",
        )


def _retry_after(answer: httpx.Response) -> float:
    said = answer.headers.get("retry-after", "")
    return float(said) if said.isdecimal() and len(said) < 6 else 0.0
