"""Quarantined rows are sent again, once, whatever breaks in between."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from raypipe.errors import Unauthenticated, Unavailable, UsageError
from raypipe.events.quarantine import Quarantine, Selection, State
from raypipe.runtime.sender import Sender
from raypipe.sources.batch import Batch, Send, Taken
from raypipe.sources.requeue import Outcome, Requeue, changes_of
from tests.unit.ingest_kit import Service, fault, lines, reading
from tests.unit.serving_kit import PROJECT

ALL = Selection("default")


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def requeue(service: Service, send: Send | None = None, *changes: str) -> Requeue:
    return Requeue(
        service.worker.quarantine,
        PROJECT,
        "default",
        "EUR",
        send or service.sender().send,
        service.clock,
        changes_of(changes, PROJECT),
    )


def retry(
    service: Service, *changes: str, where: Selection = ALL, send: Send | None = None
) -> Outcome:
    again = requeue(service, send, *changes)
    again.resume()
    for _ in again.run(where):
        pass
    return again.outcome


def logged(service: Service) -> dict[str, int]:
    return Counter(name for kind, name in service.logged() if kind in ("reading", "fault"))


def open_rows(service: Service) -> list[str]:
    rows = service.worker.quarantine.oldest(ALL, 0, 1_000)
    return [json.loads(row.body)["event_id"] for row in rows]


def test_a_systematic_mistake_is_mended_in_all_rows(service: Service) -> None:
    wrong = [reading(f"r-{i}", currency="USD") for i in range(5)]
    service.post(lines(*wrong, reading("other", cost="free"), fault("f")))
    outcome = retry(service, "currency=EUR")
    assert (outcome.accepted, outcome.refused, outcome.stayed) == (5, 1, 1)
    assert outcome.reasons == {"/cost: must be an integer of minor units, not a string": 1}
    assert logged(service) == {"f": 1} | {f"r-{i}": 1 for i in range(5)}
    assert open_rows(service) == ["other"]
    settled = service.worker.quarantine.rows(where=Selection("default", ids=(1,), settled=True))
    assert (settled[0].state, settled[0].resolved_at) == (State.RESOLVED, service.clock.now_ms())
    assert retry(service, "currency=EUR").accepted == 0


def test_rows_stay_with_the_reasons_of_today(service: Service) -> None:
    service.post(lines(reading("a", cost="free", currency="USD")))
    outcome = retry(service, "currency=EUR")
    assert (outcome.accepted, outcome.stayed) == (0, 1)
    (row,) = service.worker.quarantine.rows(where=ALL)
    assert row.reasons == ("/cost: must be an integer of minor units, not a string",)
    assert json.loads(row.body)["currency"] == "USD"


def test_only_the_selected_rows_are_sent(service: Service) -> None:
    service.post(lines(reading("a", currency="USD"), reading("b", currency="CHF")))
    where = Selection("default", ids=(2,))
    assert retry(service, "currency=EUR", where=where).accepted == 1
    assert open_rows(service) == ["a"]


def test_a_row_that_came_in_the_meantime_is_a_duplicate(service: Service) -> None:
    service.post(lines(reading("a", currency="USD")))
    service.post(lines(reading("a")))
    outcome = retry(service, "currency=EUR")
    assert (outcome.accepted, outcome.duplicates, outcome.stayed) == (0, 1, 0)
    assert logged(service) == {"a": 1}
    assert open_rows(service) == []


def test_a_type_can_be_given_and_a_field_taken_away(service: Service) -> None:
    service.post(lines(reading("a") | {"type": "raeding"}, reading("b") | {"colour": "red"}))
    assert retry(service).accepted == 0
    mended = Selection("default", reason="type must be")
    assert retry(service, "type=reading", where=mended).accepted == 1
    with pytest.raises(UsageError, match="colour"):
        changes_of(["colour="], PROJECT)
    assert retry(service, "heat=12.5", "ticks=").refused == 1
    assert open_rows(service) == ["b"]


def test_a_type_in_the_row_that_contradicts_the_request_stays(service: Service) -> None:
    service.post(lines(fault("a")), query="?type=reading")
    assert retry(service).refused == 1


def test_text_that_is_no_json_stays(service: Service) -> None:
    service.post(b'{"type": "reading", "event_id": "a", ')
    outcome = retry(service, "currency=EUR")
    assert outcome.refused == 1
    assert "can't be mended" in next(iter(outcome.reasons))


def test_rows_of_tables_are_told_apart(service: Service) -> None:
    service.worker.quarantine.add("load 0123 t", "reading", [('{"no": 1}', ["/cost: bad"])])
    outcome = retry(service)
    assert (outcome.loads, outcome.refused, outcome.stayed) == (1, 0, 1)
    assert service.worker.quarantine.rows()[0].reasons == ("/cost: bad",)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_retry_that_was_killed_counts_nothing_twice(service: Service, moment: str) -> None:
    service.post(lines(*(reading(f"r-{i}", currency="USD") for i in range(20))))
    sender = service.sender()

    def send(batch: Batch) -> Taken:
        if moment == "after":
            sender.send(batch)
        raise Killed

    with pytest.raises(Killed):
        retry(service, "currency=EUR", send=send)
    # Long after, other rows in the same file, and the same id remembered no more.
    service.clock.advance(700_000)
    service.worker.start()
    service.post(lines(reading("new", currency="USD"), reading("late")))
    file = service.worker.quarantine
    service.worker.quarantine = Quarantine(file_of(file), service.clock)
    outcome = retry(service, "currency=EUR")
    assert (outcome.accepted, outcome.resumed, outcome.stayed) == (21, 20, 0)
    assert logged(service) == {f"r-{i}": 1 for i in range(20)} | {"new": 1, "late": 1}


def file_of(quarantine: Quarantine) -> Path:
    return Path(quarantine._db.execute("PRAGMA database_list").fetchone()[2])


def test_a_row_that_the_system_refuses_again_is_in_the_quarantine_once(service: Service) -> None:
    service.post(lines(reading("a", currency="USD")))
    # The clock here is ahead of the server's: what is good here is too early there.
    ahead = service.clock.now_ms() + 100_000

    def send(batch: Batch) -> Taken:
        service.clock.advance(-100_000)
        try:
            return service.sender().send(batch)
        finally:
            service.clock.advance(100_000)

    service.clock.advance(100_000)
    outcome = retry(service, "currency=EUR", f"event_time={ahead}", send=send)
    assert (outcome.accepted, outcome.refused) == (0, 1)
    (row,) = service.worker.quarantine.rows(where=ALL)
    assert row.id != 1
    assert "received_at" in row.reasons[0]
    (first,) = service.worker.quarantine.rows(where=Selection("default", (1,), settled=True))
    assert first.state is State.REPLACED


def test_the_sender_waits_as_it_is_told_and_gives_up_in_the_end(service: Service) -> None:
    pauses: list[float] = []
    told: list[str] = []
    service.worker.failure = Unavailable("away")
    sender = service.sender(
        patience_s=30.0, clock=lambda: sum(pauses), pause=pauses.append, waiting=told.append
    )
    with pytest.raises(Unavailable, match="took no events for 30 s"):
        sender.send(Batch("k", lines(reading("a")), media("lines"), None, 1))
    assert 25 < sum(pauses) <= 30
    assert all(p >= 1.0 for p in pauses)  # Retry-After
    assert set(told) == {"answered 503"}


def test_the_sender_goes_on_when_the_server_does(service: Service) -> None:
    service.worker.failure = Unavailable("away")

    def pause(_: float) -> None:
        service.worker.failure = None

    sender = service.sender(pause=pause)
    assert sender.send(Batch("k", lines(reading("a")), media("lines"), None, 1)).accepted == 1


def test_the_sender_names_what_is_wrong(service: Service) -> None:
    batch = Batch("k", lines(reading("a")), media("lines"), None, 1)
    with pytest.raises(Unauthenticated):
        service.sender("rp_live_nonsense").send(batch)
    service.sender().require()
    gone = Sender("http://127.0.0.1:9", service.key)
    with pytest.raises(Unavailable, match="raypipe up"):
        gone.require()

    def other(request: httpx.Request) -> httpx.Response:
        return httpx.Response(404, text="<html>")

    strange = Sender("http://test", "k", transport=httpx.MockTransport(other))
    with pytest.raises(Exception, match="answered 404"):
        strange.send(batch)


def media(form: str) -> Any:
    from raypipe.ingest.media import Media

    return Media[form.upper()]
