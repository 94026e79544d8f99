"""Bulk events over HTTP, down to a real log and a real quarantine."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pyarrow as pa
import pytest

from raypipe.errors import Conflict, Unavailable
from raypipe.events.quarantine import Quarantine
from tests.unit.ingest_kit import ARROW, DECLARED, LIMIT, LINES, Service, fault, lines, reading
from tests.unit.serving_kit import NOW, body


@pytest.fixture
def service(tmp_path: Path) -> Service:
    return Service(tmp_path)


def test_rows_of_several_types_are_logged_in_order(service: Service) -> None:
    answer = service.post(lines(reading("a"), fault("b"), reading("c"), fault("d")))
    assert answer.status_code == 200
    assert answer.json() == {
        "accepted": 4,
        "duplicates": 0,
        "refused": 0,
        "first_offset": DECLARED,
        "exceptions": [],
    }
    kinds = ["reading", "fault", "reading", "fault"]
    assert service.logged() == list(zip(kinds, "abcd", strict=True))


def test_every_row_gets_its_result(service: Service) -> None:
    service.post(lines(reading("known")))
    sent = [
        reading("a"),
        reading("b", cost="free"),
        reading("known"),
        reading("a"),
        {"type": "nothing"},
        reading("c"),
    ]
    answer = service.post(lines(*sent))
    assert answer.status_code == 207
    said = answer.json()
    assert (said["accepted"], said["duplicates"], said["refused"]) == (2, 2, 2)
    assert said["first_offset"] == DECLARED + 1
    assert [(e["row"], e["outcome"]) for e in said["exceptions"]] == [
        (1, "refused"),
        (2, "duplicate"),
        (3, "duplicate"),
        (4, "refused"),
    ]
    assert said["exceptions"][0]["reasons"] == [
        "/cost: must be an integer of minor units, not a string"
    ]
    assert [name for _, name in service.logged()] == ["known", "a", "c"]
    kept = service.worker.quarantine.rows()
    assert {(r.event_type, r.source, r.tenant) for r in kept} == {
        ("reading", "/v1/events", "default"),
        ("", "/v1/events", "default"),
    }


def test_accepted_rows_are_in_the_windows(service: Service) -> None:
    service.post(lines(*(reading(f"r-{i}") for i in range(5))))
    values = service.worker.core.read("default", "sensor", "s-1", NOW)
    assert values["sensor_count_1h"] == 5


def test_a_type_in_the_url_needs_none_in_the_rows(service: Service) -> None:
    row = reading("a")
    del row["type"]
    assert service.post(lines(row), query="?type=reading").status_code == 200
    answer = service.post(lines(row), query="?type=reeding")
    assert answer.status_code == 422
    assert "reading, fault" in answer.json()["hint"]
    assert service.post(lines(reading("b")), query="?type=reading").json()["refused"] == 1


@pytest.mark.parametrize("packing", ["gzip", "zstd"])
@pytest.mark.parametrize("form", ["lines", "array", "arrow"])
def test_forms_and_packings(service: Service, form: str, packing: str) -> None:
    rows = [reading(f"r-{i}") for i in range(3)]
    if form == "lines":
        plain, media = lines(*rows), LINES
    elif form == "array":
        plain, media = json.dumps(rows).encode(), "application/json; charset=utf-8"
    else:
        table = pa.Table.from_pylist(rows)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        plain, media = sink.getvalue().to_pybytes(), ARROW
    packed = gzip.compress(plain) if packing == "gzip" else pa.compress(plain, packing, True)
    answer = service.post(packed, media, Content_Encoding=packing)
    assert answer.json()["accepted"] == 3, answer.text
    assert service.post(plain, media).json()["duplicates"] == 3
    assert service.post(packed[:-5], media, Content_Encoding=packing).status_code == 400


@pytest.mark.parametrize(
    ("content", "media", "status", "code"),
    [
        (b"", LINES, 400, "malformed_body"),
        (b"\n\n", LINES, 400, "malformed_body"),
        (b"[]", "application/json", 400, "malformed_body"),
        (b"[{}", "application/json", 400, "malformed_body"),
        (b"nonsense", ARROW, 400, "malformed_body"),
        (b"{}", "text/csv", 415, "unsupported_media_type"),
        (b"{}", "application/json; charset=latin-1", 415, "unsupported_media_type"),
    ],
)
def test_bodies_that_cannot_be_read(
    service: Service, content: bytes, media: str, status: int, code: str
) -> None:
    answer = service.post(content, media)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert service.logged() == []


def test_a_bomb_is_refused(service: Service) -> None:
    answer = service.post(gzip.compress(b" " * 50_000_000), Content_Encoding="gzip")
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")
    assert service.post(b" " * (LIMIT + 1)).status_code == 413
    deep = b"[" * 30_000 + b"]" * 30_000
    assert service.post(deep, "application/json").json()["code"] == "malformed_body"
    assert service.post(b'{"a":' * 5_000 + b"1" + b"}" * 5_000).json()["refused"] == 1


def test_keys_need_the_scope_and_tenants_are_apart(service: Service) -> None:
    assert service.post(lines(reading("a")), key=service.reader).status_code == 403
    assert service.post(lines(reading("a")), key="rp_live_x").status_code == 401
    assert service.post(lines(reading("a"))).json()["accepted"] == 1
    assert service.post(lines(reading("a")), key=service.other).json()["accepted"] == 1
    values = service.worker.core.read("other", "sensor", "s-1", NOW)
    assert values["sensor_count_1h"] == 1
    tenants = [
        t
        for c in service.worker.log.read(0, DECLARED, 9)
        for t in c.batch.column("tenant").to_pylist()
    ]
    assert tenants == ["default", "other"]
    mine = service.post(lines(reading("b") | {"tenant": "other"}))
    assert mine.json()["exceptions"][0]["reasons"] == ["/tenant: is not a field of this event"]


def test_a_retry_with_a_key_gets_the_first_answer(service: Service) -> None:
    ahead = reading("ahead", event_time=NOW + 61_000)
    sent = lines(reading("a"), ahead, reading("b"), reading("a"))
    first = service.post(sent, Idempotency_Key="load-1")
    service.clock.advance(2_000)
    again = service.post(sent, Idempotency_Key="load-1")
    assert first.json()["refused"] == 1
    assert again.json() == first.json()
    assert [name for kind, name in service.logged() if kind == "reading"] == ["a", "b"]
    assert len(service.worker.quarantine) == 1
    service.worker.start()
    assert service.post(sent, Idempotency_Key="load-1").json() == first.json()
    other = service.post(lines(reading("c")), Idempotency_Key="load-1")
    assert (other.status_code, other.json()["code"]) == (409, "conflict")
    assert service.post(sent, key=service.other, Idempotency_Key="load-1").json()["accepted"] == 3


def test_ids_are_known_again_after_a_restart(service: Service) -> None:
    service.post(lines(*(reading(f"r-{i}") for i in range(50))))
    service.worker.start()
    answer = service.post(lines(*(reading(f"r-{i}") for i in range(60))))
    assert (answer.json()["accepted"], answer.json()["duplicates"]) == (10, 50)
    for minute in range(11):  # a pause counts as one minute at most
        service.clock.advance(60_000)
        service.post(lines(reading(f"at-{minute}")))
    late = [reading(f"r-{i}", event_time=NOW) for i in range(5)]
    assert service.post(lines(reading("new"), *late)).json()["accepted"] == 6


def test_an_event_that_came_in_bulk_gets_no_decision(service: Service) -> None:
    service.post(lines(reading("a")))
    event = {"tenant": "default", "received_at": NOW, **body(event_id="a"), "a/b~c": None}
    event |= {"ticks": None, "tampered": None, "noticed": None}
    with pytest.raises(Conflict, match="bulk"):
        service.worker.core.observe(event, b"0" * 32)
    service.worker.core.observe(event | {"event_id": "b"}, b"0" * 32)
    assert service.post(lines(reading("b"))).json()["duplicates"] == 1


def test_too_much_in_work_is_429_and_recovers(service: Service) -> None:
    async def flood() -> list[httpx.Response]:
        service.worker.gate = asyncio.Event()
        padding = b" " * (LIMIT - 2_000)
        calls = [
            asyncio.ensure_future(service.call(lines(reading(f"r-{i}")) + padding))
            for i in range(4)
        ]
        while sum(call.done() for call in calls) < 2:
            await asyncio.sleep(0)
        service.worker.gate.set()
        return [await call for call in calls]

    answers = asyncio.run(flood())
    assert sorted(a.status_code for a in answers) == [200, 200, 429, 429]
    refused = next(a for a in answers if a.status_code == 429)
    assert refused.json()["code"] == "overloaded"
    assert refused.headers["retry-after"] == "1"
    assert service.events.waiting_bytes == 0
    assert service.post(lines(reading("after"))).status_code == 200


def test_a_worker_that_is_away_is_503(service: Service) -> None:
    service.worker.failure = Unavailable("away")
    answer = service.post(lines(reading("a")))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert service.events.waiting_bytes == 0


def test_a_full_quarantine_is_counted(service: Service, tmp_path: Path) -> None:
    service.worker.quarantine = Quarantine(tmp_path / "small.db", limit_rows=1)
    service.worker.start()
    answer = service.post(lines(*(reading(f"r-{i}", cost="free") for i in range(3))))
    assert answer.json()["refused"] == 3
    stats = service.worker.core.stats()
    assert (stats["refused"], stats["refused_unkept"]) == (3, 2)


def test_metrics_tell_the_workers_figures_and_whether_it_answers(service: Service) -> None:
    async def metrics() -> str:
        transport = httpx.ASGITransport(service.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.get("/metrics")).text

    service.post(lines(reading("a")))
    text = asyncio.run(metrics())
    assert 'raypipe_worker_up{replica="ingest"} 1.0' in text
    assert 'raypipe_worker_events{replica="ingest"} 1.0' in text
    service.worker.failure = Unavailable("away")
    assert 'raypipe_worker_up{replica="ingest"} 0.0' in asyncio.run(metrics())


def test_an_unfit_media_type_is_refused_before_the_body_is_read(service: Service) -> None:
    async def body() -> AsyncIterator[bytes]:
        raise AssertionError("read")
        yield b""

    answer = asyncio.run(service.call(body(), "text/csv"))
    assert answer.status_code == 415
