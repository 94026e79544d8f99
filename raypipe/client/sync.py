"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self

import httpx

from raypipe.client import calls
from raypipe.client.answers import (
    Decision,
    DecisionDetail,
    KeyFeatures,
    Outcome,
    Sent,
    TableRows,
)
from raypipe.client.refusals import refused, unreachable
from raypipe.client.retries import Attempts, Retries

TIMEOUT_S = 10.0


class Client:
    """Asks one server. Safe to use from several threads; connections are kept and shared.

    Args:
        url: where the HTTP interface is, "http://127.0.0.1:8000".
        key: an API key; it names the tenant.
        timeout_s: how long a call may take, all its tries together; between two pieces of an
            answer as long again.
        ingest_url: where bulk events go, by default to ``url``; the server at the setting
            ingest_port takes them faster.
        verify: False or a file of certificates, as httpx takes it.
        trust_env: whether proxies and certificates of the environment are used.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        timeout_s: float = TIMEOUT_S,
        retries: Retries | None = None,
        ingest_url: str | None = None,
        verify: bool | str = True,
        trust_env: bool = True,
    ) -> None:
        self._url = url.rstrip("/")
        self._ingest_url = (ingest_url or url).rstrip("/")
        self._timeout_s = timeout_s
        self._retries = retries or Retries()
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {key}"}, verify=verify, trust_env=trust_env
        )

    def decide(
        self, event: calls.Event, *, explain: bool = False, timeout_s: float | None = None
    ) -> Decision:
        """Have an event decided. One without ``event_id`` gets a random one.

        Args:
            explain: with reasons also where it is approved.

        Raises InputError (the event is bad, with all violations), Conflict (its id came with
        another body), Unauthenticated, Forbidden, Overloaded, Unavailable.
        """
        return self._send(calls.decide(event, explain), timeout_s)

    def decide_batch(
        self,
        events: Iterable[calls.Event],
        *,
        explain: bool = False,
        rows: int = calls.BATCH_ROWS,
        timeout_s: float | None = None,
    ) -> list[Outcome]:
        """Have many events decided, ``rows`` a request; an outcome for each, in their order.

        ``timeout_s`` is for each request. Raises as ``decide`` what concerns a request as a whole;
        what concerns one event is in its outcome.
        """
        found: list[Outcome] = []
        for call in calls.decide_batch(events, explain, rows):
            outcomes = self._send(call, timeout_s)
            found += outcomes
        return found

    def send_events(
        self,
        events: Iterable[calls.Event],
        *,
        kind: str | None = None,
        rows: int = calls.EVENT_ROWS,
        key: str | None = None,
        timeout_s: float | None = None,
    ) -> Sent:
        """Report events without asking for decisions, ``rows`` a request.

        Args:
            kind: the type of all events, which then have no member ``type``.
            key: names this call: the same events under the same key count once, also from
                another process. Chunks must then be the same too.
            timeout_s: for each request.
        """
        total = Sent()
        for first, call in calls.send_events(events, kind, rows, key):
            total = calls.add(total, self._send(call, timeout_s, self._ingest_url), first)
        return total

    def decision(self, decision_id: str, *, explain: bool = False) -> DecisionDetail:
        """A recorded decision in full; raises NotFound."""
        return self._send(calls.decision(decision_id, explain))

    def features(self, entity: str, key: str) -> KeyFeatures:
        """Windows and profiles of a key as of now; raises NotFound for an unknown entity."""
        return self._send(calls.features(entity, key))

    def table(self, name: str, *, since: int | None = None, until: int | None = None) -> TableRows:
        """What a table counted in [since, until), ms UTC, by default its last 60 windows."""
        return self._send(calls.table(name, since, until))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _send(
        self, call: calls.Call[calls.A], timeout_s: float | None = None, url: str | None = None
    ) -> calls.A:
        attempts = Attempts(self._retries, self._timeout_s if timeout_s is None else timeout_s)
        to = url or self._url
        while True:
            try:
                answer = self._http.request(
                    call.method,
                    to + call.path,
                    params=call.params,
                    headers=call.headers_within(attempts.left_s),
                    content=call.content,
                    timeout=attempts.left_s,
                )
            except httpx.TransportError as e:
                # A timeout is the whole call's.
                failed = unreachable(to, e, again=not isinstance(e, httpx.TimeoutException))
            else:
                if answer.is_success:
                    return calls.read(call, answer.content)
                failed = refused(answer.status_code, answer.headers, answer.content)
            time.sleep(attempts.pause_s(failed))
