"""POST /v1/decisions:batch: rows as if each had come alone, in their order."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from raypipe.errors import Unavailable
from tests.unit.serving_kit import BODY_LIMIT, HOT, Service, body, train
from tests.unit.test_serving_http import metric

BATCH = "/v1/decisions:batch"
LINES = "application/x-ndjson"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    train(folder)
    return folder


@pytest.fixture
def service(home: Path, tmp_path: Path) -> Service:
    return Service(home, tmp_path / "tenants.db")


def rows(count: int, **changes: Any) -> list[dict[str, Any]]:
    return [body(event_id=f"b-{n}", **changes) for n in range(count)]


def lines(events: list[Any]) -> bytes:
    return b"\n".join(json.dumps(e).encode() for e in events) + b"\n"


def test_a_batch_decides_what_single_requests_decide_and_records_the_same(
    home: Path, tmp_path: Path
) -> None:
    events = [e | (HOT if n % 3 == 0 else {}) for n, e in enumerate(rows(12))]
    one, many = Service(home, tmp_path / "a.db"), Service(home, tmp_path / "b.db")
    single = [one.post(e).json() for e in events]
    answer = many.post(events, path=BATCH)
    assert answer.status_code == 200
    said = answer.json()
    assert (said["decided"], said["failed"]) == (12, 0)
    assert [r["status"] for r in said["results"]] == [200] * 12
    assert [r["decision"] for r in said["results"]] == single
    assert many.worker.records == one.worker.records


def test_json_lines_are_decided_like_an_array(home: Path, tmp_path: Path) -> None:
    one, many = Service(home, tmp_path / "a.db"), Service(home, tmp_path / "b.db")
    array = one.post(rows(3), path=BATCH).json()
    text = lines(rows(3)).replace(b"\n", b"\r\n\n")
    assert many.raw(text, path=BATCH, Content_Type=LINES).json() == array
    packed = gzip.compress(lines(rows(3)))
    again = many.raw(packed, path=BATCH, Content_Type=LINES, Content_Encoding="gzip").json()
    assert [r["decision"]["replayed"] for r in again["results"]] == [True] * 3


def test_windows_see_the_rows_before_in_order(service: Service) -> None:
    service.post(rows(20), path=BATCH)
    offsets = [service.worker.seen["default", f"b-{n}"].offset for n in range(20)]
    assert offsets == list(range(20))


def test_a_bad_row_has_a_problem_in_its_place_and_the_others_their_decisions(
    service: Service,
) -> None:
    service.post(body(event_id="taken"))
    events = [
        json.dumps(body(event_id="ok-1")),
        '{"event_id": "x", "event_id": "y"}',
        json.dumps(body(event_id="bad", cost="1")),
        "17",
        json.dumps(body(event_id="taken", cost=5)),
        json.dumps(body(event_id="long", **{"a/b~c": "x" * BODY_LIMIT})),
        json.dumps(body(event_id="ok-2")),
    ]
    answer = service.raw(f"[{','.join(events)}]".encode(), path=BATCH, X_Request_Id="req")
    assert answer.status_code == 207
    said = answer.json()
    assert (said["decided"], said["failed"]) == (2, 5)
    found = [(r["status"], r.get("problem", {}).get("code")) for r in said["results"]]
    assert found == [
        (200, None),
        (400, "malformed_body"),
        (422, "invalid_event"),
        (422, "invalid_event"),
        (409, "conflict"),
        (413, "body_too_large"),
        (200, None),
    ]
    problem = said["results"][2]["problem"]
    assert problem["errors"][0]["pointer"] == "/cost"
    assert problem["request_id"] == "req/2"
    whole = json.loads(service.get("/openapi.json", key=None).content)
    jsonschema.validate(said, whole | {"$ref": "#/components/schemas/DecidedBatch"})
    by_lines = service.raw("\n".join(events).encode(), path=BATCH, Content_Type=LINES).json()
    assert [r["status"] for r in by_lines["results"]] == [r["status"] for r in said["results"]]
    approved = 'raypipe_decisions_total{action="approve",replayed="false"'
    assert metric(service, approved) == 3


def test_an_event_sent_twice_in_a_batch_counts_once(service: Service) -> None:
    event = body(event_id="twice")
    said = service.post([event, event, body(event_id="other")], path=BATCH).json()
    first, second, _ = (r["decision"] for r in said["results"])
    assert first | {"replayed": None} == second | {"replayed": None}
    assert len(service.worker.seen) == len(service.worker.records) == 2


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "malformed_body"),
        (b"[]", 400, "malformed_body"),
        (b"{}", 400, "malformed_body"),
        (b"[{}", 400, "malformed_body"),
        (b"[" * 50_000, 413, "body_too_large"),
        (b"[" * 10_000, 400, "malformed_body"),
        (lines([{}] * 21), 413, "body_too_large"),
    ],
)
def test_a_body_that_is_no_batch_is_refused_as_a_whole(
    service: Service, content: bytes, status: int, code: str
) -> None:
    media = LINES if b"\n" in content else "application/json"
    answer = service.raw(content, path=BATCH, Content_Type=media)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert not service.worker.seen


def test_other_forms_keys_and_callers_are_refused(service: Service) -> None:
    def refused(**headers: str) -> tuple[int, str]:
        answer = service.raw(lines(rows(1)), path=BATCH, **{"Content_Type": LINES} | headers)
        return answer.status_code, answer.json()["code"]

    assert refused(Content_Type="text/csv") == (415, "unsupported_media_type")
    arrow = "application/vnd.apache.arrow.stream"
    assert refused(Content_Type=arrow) == (415, "unsupported_media_type")
    assert refused(Idempotency_Key="k") == (400, "usage")
    assert refused(Authorization="Bearer rp_live_x") == (401, "unauthenticated")
    assert service.post(rows(1), path=f"{BATCH}?explain=yes").status_code == 400
    assert not service.worker.seen


def test_the_deadline_is_the_batchs_and_what_it_cuts_off_is_unavailable(service: Service) -> None:
    observe, asked = service.worker.observe, []

    async def half(event: dict[str, Any], body_hash: bytes) -> Any:
        asked.append(event["event_id"])
        if len(asked) > 10:
            await asyncio.get_running_loop().create_future()
        return await observe(event, body_hash)

    service.worker.observe = half  # type: ignore[method-assign]
    said = service.post(rows(20), path=BATCH, X_Deadline_Ms="1000").json()
    assert (said["decided"], said["failed"]) == (10, 10)
    assert {r["problem"]["code"] for r in said["results"][10:]} == {"unavailable"}


def test_a_worker_that_is_away_is_every_rows_problem(service: Service) -> None:
    service.worker.failure = Unavailable("the worker is away")
    answer = service.post(rows(3), path=BATCH)
    assert [r["problem"]["code"] for r in answer.json()["results"]] == ["unavailable"] * 3


def test_reasons_come_on_request(service: Service) -> None:
    plain = service.post(rows(2, heat=400), path=BATCH).json()
    assert [r["decision"]["reasons"] for r in plain["results"]] == [[], []]
    explained = service.post(rows(2, heat=400), path=f"{BATCH}?explain=true").json()
    assert all(r["decision"]["reasons"] for r in explained["results"])
