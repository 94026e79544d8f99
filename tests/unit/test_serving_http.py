from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import math
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import xgboost
from hypothesis import given
from hypothesis import strategies as st

from features.parity_report import Cause, FeatureParity, Report, store
from features.profiles.lookup import Profiles
from raypipe.clock import HOUR_MS
from raypipe.errors import IntegrityError, Unavailable
from raypipe.events.body import MAX_DEPTH
from raypipe.events.row import RowValidator
from raypipe.events.schema import EventType, Field, Kind
from raypipe.lake import Place
from raypipe.ledger.record import DecisionRecord
from serving.decide import Decider
from serving.scoring import load_judge
from tests.unit.serving_kit import (
    BODY_LIMIT,
    FEATURES,
    HOT,
    NOW,
    PROFILED,
    PROJECT,
    READING,
    Service,
    body,
    ids,
    pointers,
    train,
)

PROBLEM = "application/problem+json"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    train(folder)
    return folder


@pytest.fixture
def service(home: Path, tmp_path: Path) -> Service:
    return Service(home, tmp_path / "tenants.db")


def metric(service: Service, line: str) -> float:
    """The value of the sample that begins with ``line``, 0 when there is none."""
    for sample in service.get("/metrics", key=None).text.splitlines():
        if sample.startswith(line):
            return float(sample.rsplit(" ", 1)[1])
    return 0.0


# A decision


def test_a_quiet_event_is_approved_recorded_and_read_back(service: Service) -> None:
    answer = service.post(body())
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    said = answer.json()
    assert said["action"] == "approve"
    assert said["reasons"] == []
    assert (said["event_id"], said["event_offset"], said["event_time"]) == ("r-1", 0, NOW)
    assert (said["received_at"], said["decided_at"]) == (NOW, NOW)
    assert (said["degraded"], said["replayed"]) == (False, False)
    assert said["definition_hash"] == PROJECT.definition_hash
    assert re.fullmatch(r"fault@\d{8}T\d{6}Z-[0-9a-f]{8}", said["model"])

    read = service.get(f"/v1/decisions/{said['decision_id']}")
    assert read.status_code == 200
    whole = read.json()
    del said["replayed"]
    assert {k: whole[k] for k in said} == said
    row = np.array([20.5, 100, np.nan, 0, 100 / 20.5, 0], np.float32)
    assert base64.b64decode(whole["feature_bytes"]) == row.tobytes()
    assert whole["features"] == {
        n: None if math.isnan(v) else v for n, v in zip(FEATURES, row.tolist(), strict=True)
    }
    assert whole["policy_sha256"] == service.judge.policy.sha256
    assert whole["model_sha256"] == service.judge.model_sha256
    assert whole["rule_hits"] == []


def test_the_score_is_the_model_files_own_over_the_recorded_bytes(
    service: Service, home: Path
) -> None:
    said = service.post(body(**HOT)).json()
    whole = service.get(f"/v1/decisions/{said['decision_id']}").json()
    name, version = whole["model"].split("@")
    booster = xgboost.Booster(model_file=home / "models" / name / version / "model.ubj")
    row = np.frombuffer(base64.b64decode(whole["feature_bytes"]), "<f4").reshape(1, -1)
    matrix = xgboost.DMatrix(row, feature_names=list(FEATURES))
    assert said["score"] == float(booster.predict(matrix)[0])


def test_what_is_not_approved_carries_its_strongest_reasons(service: Service) -> None:
    said = service.post(body(**HOT)).json()
    assert said["action"] == "review"
    shares = [r["contribution"] for r in said["reasons"]]
    assert 0 < len(shares) <= 4
    assert shares == sorted(shares, reverse=True)
    assert min(shares) > 0
    assert {r["feature"] for r in said["reasons"]} >= {"heat", "cost"}
    assert all(r["code"] == r["feature"].upper() for r in said["reasons"])


def test_windows_see_what_came_before_and_not_the_event_itself(service: Service) -> None:
    counts = []
    for n in range(3):
        said = service.post(body(event_id=f"r-{n}")).json()
        whole = service.get(f"/v1/decisions/{said['decision_id']}").json()
        counts.append(whole["features"]["sensor_count_1h"])
    assert counts == [0, 1, 2]


# Profiles


class Told:
    """An online store of profiles that says one thing."""

    def __init__(self, said: Profiles | None) -> None:
        self._said = said

    async def read(self, event: object) -> Profiles | None:
        return self._said


@pytest.fixture(scope="module")
def profiled_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profiled")
    train(folder, project=PROFILED)
    return folder


@pytest.fixture
def profiled(profiled_home: Path, tmp_path: Path) -> Service:
    return Service(profiled_home, tmp_path / "tenants.db", PROFILED)


def test_profiles_reach_the_vector_and_their_times_the_record(profiled: Service) -> None:
    profiled.use(profiled.judge, profiles=Told(Profiles((41.5,), (NOW - HOUR_MS,))))
    said = profiled.post(body()).json()
    assert (said["action"], said["degraded"]) == ("approve", False)
    whole = profiled.get(f"/v1/decisions/{said['decision_id']}").json()
    assert whole["features"]["sensor_year_age"] == 41.5
    [record] = profiled.worker.records.values()
    assert np.frombuffer(record.features, "<f4")[-1] == 41.5
    assert record.profile_times == (NOW - HOUR_MS,)


def test_a_key_without_profiles_is_a_missing_value_and_no_error(profiled: Service) -> None:
    profiled.use(profiled.judge, profiles=Told(Profiles((math.nan,), (-1,))))
    said = profiled.post(body()).json()
    assert (said["action"], said["degraded"]) == ("approve", False)
    whole = profiled.get(f"/v1/decisions/{said['decision_id']}").json()
    assert whole["features"]["sensor_year_age"] is None
    [record] = profiled.worker.records.values()
    assert record.profile_times == (-1,)


@pytest.mark.parametrize("on_error", ["review", "block"])
def test_an_online_store_that_is_away_is_on_error_and_no_score(
    profiled: Service, on_error: str
) -> None:
    models = Place.at(profiled.home) / "models"
    judge = load_judge(models, PROFILED, "fault", None, on_error)
    profiled.use(judge, profiles=Told(None))
    said = profiled.post(body()).json()
    assert (said["action"], said["degraded"], said["score"]) == (on_error, True, None)
    assert said["reasons"] == []
    whole = profiled.get(f"/v1/decisions/{said['decision_id']}").json()
    assert (whole["feature_bytes"], whole["features"]) == ("", None)
    assert whole["rule_hits"] == ["on_error"]
    [record] = profiled.worker.records.values()
    assert record.profile_times == ()
    assert metric(profiled, "raypipe_decisions_degraded_total") == 1
    # The decision stands, also when the store is back.
    profiled.use(judge, profiles=Told(Profiles((1.0,), (NOW,))))
    assert profiled.post(body()).json() == said | {"replayed": True}


# Retries


def test_a_repeated_event_gets_the_stored_decision_and_counts_once(service: Service) -> None:
    first = service.post(body(**HOT)).json()
    service.clock.advance(5_000)
    again = json.dumps(dict(reversed(body(**HOT).items())), indent=3).encode()
    second = service.raw(again).json()
    assert second == first | {"replayed": True}
    assert len(service.worker.seen) == len(service.worker.records) == 1


def test_an_absent_optional_field_and_null_are_the_same_event(service: Service) -> None:
    service.post(body(side=...))
    assert service.post(body(side=None)).json()["replayed"] is True


def test_another_body_for_an_event_id_is_a_conflict(service: Service) -> None:
    first = service.post(body()).json()
    other = service.post(body(cost=101))
    assert (other.status_code, other.json()["code"]) == (409, "conflict")
    assert other.json()["hint"]
    assert service.post(body()).json() == first | {"replayed": True}


def test_simultaneous_requests_for_one_event_agree_on_one_decision(service: Service) -> None:
    headers = {"Authorization": f"Bearer {service.key}"}

    async def race() -> list[Any]:
        calls = (
            service.call("POST", "/v1/decisions", json=body(**HOT), headers=headers)
            for _ in range(8)
        )
        return [a.json() for a in await asyncio.gather(*calls)]

    answers = asyncio.run(race())
    for answer in answers:
        answer.pop("replayed")
    assert all(a == answers[0] for a in answers)
    assert len(service.worker.records) == 1


def test_when_another_replica_was_first_its_decision_is_the_answer(service: Service) -> None:
    alone = service.worker.record

    async def beaten(record: DecisionRecord, windows: bytes) -> DecisionRecord:
        first = msgspec.structs.replace(record, action="block", decided_at=NOW + 7)
        await alone(first, windows)
        return await alone(record, windows)

    service.worker.record = beaten  # type: ignore[method-assign]
    said = service.post(body()).json()
    assert (said["action"], said["decided_at"], said["replayed"]) == ("block", NOW + 7, True)


def test_a_field_declared_later_leaves_the_hash_of_a_retry_as_it_was(service: Service) -> None:
    newer = EventType("reading", (*READING.fields, Field("fresh", Kind.INTEGER, required=False)))
    hashes = set()
    for event in (READING, newer):
        validator = RowValidator(event, "EUR")
        decider = Decider(event, validator, service.worker, service.judge, service.clock, 1.0)
        hashes.add(decider.body_hash(validator.check(body(), "default", NOW)))
    assert len(hashes) == 1


def test_a_retry_after_a_lost_record_uses_the_first_windows_and_times(service: Service) -> None:
    service.worker.failure_of_record = Unavailable("the worker is restarting")
    assert service.post(body()).status_code == 503
    service.worker.failure_of_record = None
    service.post(body(event_id="r-2"))
    service.clock.advance(9_000)
    said = service.post(body()).json()
    assert (said["event_offset"], said["received_at"]) == (0, NOW)
    assert said["decided_at"] == NOW + 9_000
    whole = service.get(f"/v1/decisions/{said['decision_id']}").json()
    assert whole["features"]["sensor_count_1h"] == 0


def test_the_idempotency_key_stands_for_a_missing_event_id(service: Service) -> None:
    first = service.post(body(event_id=...), Idempotency_Key="order-7")
    assert first.json()["event_id"] == "order-7"
    quoted = service.post(body(event_id=...), Idempotency_Key='"order-7"')
    assert quoted.json()["replayed"] is True
    assert service.post(body(event_id="order-7"), Idempotency_Key="order-7").json()["replayed"]


def test_an_idempotency_key_that_contradicts_the_body_is_refused(service: Service) -> None:
    answer = service.post(body(), Idempotency_Key="other")
    assert (answer.status_code, pointers(answer)) == (422, ["/event_id"])
    answer = service.post(body(cost="1"), Idempotency_Key="other")
    assert (answer.status_code, pointers(answer)) == (422, ["/cost", "/event_id"])
    assert not service.worker.seen


# Bad input


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"colour": "red"}, ["/colour"]),
        ({"tenant": "other"}, ["/tenant"]),
        ({"received_at": NOW}, ["/received_at"]),
        ({"x/y~z": 1}, ["/x~1y~0z"]),
        ({"a/b~c": 1}, ["/a~1b~0c"]),
        ({"sensor_id": ...}, ["/sensor_id"]),
        ({"event_id": ...}, ["/event_id"]),
        ({"event_time": ...}, ["/event_time"]),
        ({"sensor_id": None}, ["/sensor_id"]),
        ({"sensor_id": ""}, ["/sensor_id"]),
        ({"sensor_id": "s" * 17}, ["/sensor_id"]),
        ({"sensor_id": "s\u0007"}, ["/sensor_id"]),
        ({"sensor_id": "\ud800"}, ["/sensor_id"]),
        ({"sensor_id": 7}, ["/sensor_id"]),
        ({"event_id": ["r"]}, ["/event_id"]),
        ({"cost": "100"}, ["/cost"]),
        ({"cost": 100.0}, ["/cost"]),
        ({"cost": True}, ["/cost"]),
        ({"cost": -1}, ["/cost"]),
        ({"cost": 2**40}, ["/cost"]),
        ({"cost": 10**400}, ["/cost"]),
        ({"ticks": 2**63}, ["/ticks"]),
        ({"ticks": {"n": 1}}, ["/ticks"]),
        ({"heat": "hot"}, ["/heat"]),
        ({"heat": 1e6}, ["/heat"]),
        ({"tampered": 1}, ["/tampered"]),
        ({"side": "up"}, ["/side"]),
        ({"currency": "USD"}, ["/currency"]),
        ({"currency": "eur"}, ["/currency"]),
        ({"event_time": NOW // 1000}, ["/event_time"]),
        ({"event_time": NOW + 60_001}, ["/event_time"]),
        ({"event_time": "2025-10-09T08:53:20Z"}, ["/event_time"]),
        ({"event_time": float(NOW)}, ["/event_time"]),
        (
            {"cost": None, "heat": [], "currency": "USD", "b": 1, "a": 2, "event_time": 0},
            ["/event_time", "/cost", "/currency", "/heat", "/b", "/a"],
        ),
    ],
)
def test_a_broken_rule_is_a_422_that_points_at_every_place(
    service: Service, change: dict[str, Any], where: list[str]
) -> None:
    answer = service.post(body(**change))
    assert answer.status_code == 422
    assert answer.headers["content-type"] == PROBLEM
    assert pointers(answer) == where
    assert answer.json()["code"] == "invalid_event"
    assert not service.worker.seen


def test_a_minute_ahead_is_still_the_senders_clock(service: Service) -> None:
    assert service.post(body(event_time=NOW + 60_000)).status_code == 200


@pytest.mark.parametrize("value", [[], "x", 7, None, True, [{"event_id": "r"}]])
def test_json_that_is_no_object_is_refused_at_the_root(service: Service, value: object) -> None:
    answer = service.post(value)
    assert (answer.status_code, pointers(answer)) == (422, [""])


def test_an_infinite_number_is_out_of_range(service: Service) -> None:
    text = json.dumps(body()).replace("20.5", "1e999").encode()
    answer = service.raw(text)
    assert (answer.status_code, pointers(answer)) == (422, ["/heat"])


GOOD = json.dumps(body()).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"   ",
        b"{",
        GOOD[:-1],
        GOOD[: len(GOOD) // 2],
        GOOD + b"}",
        GOOD + GOOD,
        GOOD.replace(b"20.5", b"NaN"),
        GOOD.replace(b"20.5", b"Infinity"),
        GOOD.replace(b"20.5", b"-Infinity"),
        GOOD.replace(b"20.5", b"020.5"),
        GOOD.replace(b"20.5", b"'x'"),
        GOOD.replace(b'"s-1"', b'"\xff"'),
        GOOD.replace(b'"s-1"', b'"a\nb"'),
        GOOD.replace(b'"s-1"', b'"\\x41"'),
        b"\xef\xbb\xbf" + GOOD,
        GOOD.decode().encode("utf-16"),
        GOOD[:-1] + b', "cost": 100}',
        GOOD[:-1] + b', "cost": 5}',
        GOOD[:-1] + b', "side": {"a": 1, "a": 2}}',
        GOOD[:-1] + b', "x": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
        b"[" * 2000,
        b'{"a":' * 700,
        b"<event/>",
    ],
)
def test_an_unreadable_body_is_a_400(service: Service, content: bytes) -> None:
    answer = service.raw(content)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["code"] == "malformed_body"
    assert not service.worker.seen


def test_a_number_of_thousands_of_digits_is_a_400(home: Path, tmp_path: Path) -> None:
    service = Service(home, tmp_path / "tenants.db", body_limit=10_000)
    assert service.raw(GOOD.replace(b"20.5", b"9" * 5000)).status_code == 400


def test_brackets_within_strings_and_nesting_up_to_the_limit_are_json(service: Service) -> None:
    assert service.post(body(**{"a/b~c": "[{" * 40})).status_code == 200
    deep = b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1)
    answer = service.raw(GOOD[:-1] + b', "x": ' + deep + b"}")
    assert (answer.status_code, pointers(answer)) == (422, ["/x"])


@pytest.mark.parametrize(
    "media",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/jsonx",
        "application/problem+json",
        "application/json; charset=latin-1",
        "",
    ],
)
def test_another_media_type_is_a_415(service: Service, media: str) -> None:
    answer = service.raw(GOOD, Content_Type=media)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("media", ["application/json;charset=UTF-8", "Application/JSON"])
def test_json_may_name_its_charset(service: Service, media: str) -> None:
    assert service.raw(GOOD, Content_Type=media).status_code == 200


def test_a_compressed_body_is_a_415(service: Service) -> None:
    assert service.raw(GOOD, Content_Encoding="gzip").status_code == 415


def test_a_body_over_the_limit_is_a_413_whether_declared_or_streamed(service: Service) -> None:
    padding = b" " * (BODY_LIMIT - len(GOOD))
    assert service.raw(GOOD + padding).status_code == 200
    declared = service.raw(GOOD + padding + b" ")
    assert (declared.status_code, declared.json()["code"]) == (413, "body_too_large")

    async def stream() -> AsyncIterator[bytes]:
        yield GOOD
        for _ in range(100):
            yield b" " * 100

    streamed = service.raw(stream())
    assert (streamed.status_code, streamed.json()["code"]) == (413, "body_too_large")


def test_a_declared_length_over_the_limit_is_refused_before_a_byte_is_read(
    service: Service,
) -> None:
    for length in (str(BODY_LIMIT + 1).encode(), b"9" * 5_000):
        sent = _bare_post(service, [], {b"content-length": length})
        assert sent[0]["status"] == 413


def test_a_connection_that_ends_within_the_body_is_answered_and_counted(service: Service) -> None:
    parts = [
        {"type": "http.request", "body": GOOD[:20], "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent = _bare_post(service, parts, {})
    assert sent[0]["status"] == 400
    assert not service.worker.seen


def _bare_post(
    service: Service, parts: list[dict[str, Any]], headers: dict[bytes, bytes]
) -> list[dict[str, Any]]:
    """Call the application without a client; reading past ``parts`` fails."""
    sent: list[dict[str, Any]] = []
    coming = iter(parts)

    async def receive() -> Any:
        return next(coming)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/decisions",
        "headers": [
            (b"content-type", b"application/json"),
            (b"authorization", b"Bearer " + service.key.encode()),
            *headers.items(),
        ],
    }
    asyncio.run(service.app(scope, receive, send))
    return sent


# Keys


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "Bearer rp_live_nope", "Bearer \xff"],
)
def test_no_or_a_wrong_key_is_a_401(service: Service, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    answer = service.raw(GOOD, key=None, **headers)  # type: ignore[arg-type]
    assert answer.status_code == 401
    assert answer.json()["code"] == "unauthenticated"
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert service.get("/v1/decisions/dec_x", key=None).status_code == 401
    assert not service.worker.seen


def test_a_good_key_under_another_scheme_is_a_401(service: Service) -> None:
    for header in (f"Basic {service.key}", service.key, f"Token {service.key}"):
        assert service.raw(GOOD, key=None, Authorization=header).status_code == 401
    assert service.raw(GOOD, key=None, Authorization=f"bearer {service.key}").status_code == 200


def test_a_key_without_the_scope_is_a_403(service: Service) -> None:
    reader = service.keys.create("default", ["decisions:read", "admin"])
    writer = service.keys.create("default", ["decisions:write"])
    answer = service.post(body(), key=reader)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert "decisions:write" in answer.json()["detail"]
    written = service.post(body(), key=writer).json()["decision_id"]
    assert service.get(f"/v1/decisions/{written}", key=writer).status_code == 403
    assert service.get(f"/v1/decisions/{written}", key=reader).status_code == 200


def test_a_revoked_key_ends_at_the_next_request(service: Service) -> None:
    assert service.post(body()).status_code == 200
    service.keys.revoke(service.key.split("_")[2])
    assert service.post(body()).status_code == 401


def test_tenants_do_not_see_each_others_events_or_decisions(service: Service) -> None:
    other = service.keys.create("other", ["decisions:write", "decisions:read"])
    mine = service.post(body()).json()
    theirs = service.post(body(cost=7), key=other)
    assert theirs.status_code == 200  # the same event id, another tenant: no conflict
    assert theirs.json()["decision_id"] != mine["decision_id"]
    foreign = service.get(f"/v1/decisions/{mine['decision_id']}", key=other)
    unknown = service.get("/v1/decisions/dec_unknown", key=other)
    for answer in (foreign, unknown):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert foreign.json()["detail"] == unknown.json()["detail"]


def test_a_worker_that_answers_with_a_foreign_record_is_not_believed(service: Service) -> None:
    mine = service.post(body()).json()["decision_id"]
    other = service.keys.create("other", ["decisions:read"])
    service.worker.records["other", mine] = service.worker.records["default", mine]
    assert service.get(f"/v1/decisions/{mine}", key=other).status_code == 404


# Routes and headers


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/decisions", 405, "method_not_allowed"),
        ("DELETE", "/v1/decisions/dec_x", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1/decisions/", 404, "not_found"),
        ("GET", "/v1/decisions/a/b", 404, "not_found"),
        ("POST", "/v2/decisions", 404, "not_found"),
        ("GET", "/v1/decisions/%00", 404, "not_found"),
        ("GET", "/v1/decisions/%ff%fe", 404, "not_found"),
        ("GET", "/v1/features/sensor/%ff%fe", 404, "not_found"),
    ],
)
def test_an_unknown_route_or_method_is_a_problem_too(
    service: Service, method: str, path: str, status: int, code: str
) -> None:
    answer = service.get(path, method=method)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == PROBLEM
    if status == 405:
        assert answer.headers["allow"]


def test_a_key_may_have_the_sign_of_a_character_that_is_none(service: Service) -> None:
    answer = service.get("/v1/features/sensor/%EF%BF%BD")
    assert (answer.status_code, answer.json()["key"]) == (200, "\ufffd")


def test_a_problem_has_all_members_and_a_type_that_the_docs_explain(service: Service) -> None:
    answer = service.post(body(cost="1"))
    said = answer.json()
    assert said["status"] == answer.status_code == 422
    assert said["request_id"] == answer.headers["x-request-id"]
    assert all(said[member] for member in ("title", "detail", "hint", "code"))
    page, _, anchor = said["type"].partition("#")
    assert f'id="{anchor}"' in service.get(page, key=None).text


def test_a_request_id_is_echoed_when_it_is_fit_and_made_otherwise(service: Service) -> None:
    assert service.post(body(), X_Request_Id="abc-1").headers["x-request-id"] == "abc-1"
    made = {
        service.post(body(), X_Request_Id=bad).headers["x-request-id"]
        for bad in ("", "two words", "x" * 129)
    }
    assert len(made) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", m) for m in made)


def test_a_server_that_adds_the_request_id_itself_gets_none(home: Path, tmp_path: Path) -> None:
    service = Service(home, tmp_path / "t.db", echo_request_id=False)
    assert "x-request-id" not in service.post(body()).headers
    refused = service.post({}, X_Request_Id="abc-1")
    assert "x-request-id" not in refused.headers
    assert refused.json()["request_id"] == "abc-1"


# Failures behind the face


class _Failing:
    """A model with a part that fails."""

    def __init__(self, whole: Any, score: object = None, reasons: object = None) -> None:
        self._whole, self._score, self._reasons = whole, score, reasons

    def score(self, row: Any) -> Any:
        if isinstance(self._score, Exception):
            raise self._score
        return self._whole.score(row) if self._score is None else self._score

    def reasons(self, row: Any) -> Any:
        if isinstance(self._reasons, Exception):
            raise self._reasons
        return self._whole.reasons(row)


@pytest.mark.parametrize(
    "score", [RuntimeError("boom"), math.nan, math.inf, -math.inf, xgboost.core.XGBoostError("x")]
)
def test_a_failing_model_is_on_error_degraded_and_counted_never_a_low_score(
    service: Service, score: object
) -> None:
    broken = _Failing(service.judge.scorer, score)
    service.use(dataclasses.replace(service.judge, scorer=broken))
    said = service.post(body()).json()
    assert (said["action"], said["degraded"], said["score"]) == ("review", True, None)
    assert said["reasons"] == []
    whole = service.get(f"/v1/decisions/{said['decision_id']}").json()
    assert whole["rule_hits"] == ["on_error"]
    assert len(base64.b64decode(whole["feature_bytes"])) == 4 * len(FEATURES)
    assert metric(service, "raypipe_decisions_degraded_total") == 1
    service.post(body())
    assert metric(service, "raypipe_decisions_degraded_total") == 1  # replayed: not a new one


def test_a_failing_feature_is_on_error_with_no_feature_bytes(service: Service) -> None:
    class Broken:
        def row(self, event: object, windows: object, profiles: object) -> Any:
            raise ValueError("boom")

    service.use(dataclasses.replace(service.judge, features=Broken()))
    said = service.post(body()).json()
    assert (said["action"], said["degraded"], said["score"]) == ("review", True, None)
    whole = service.get(f"/v1/decisions/{said['decision_id']}").json()
    assert (whole["feature_bytes"], whole["features"]) == ("", None)


def test_reasons_that_fail_leave_the_action_and_are_recorded_as_degraded(
    service: Service,
) -> None:
    broken = _Failing(service.judge.scorer, reasons=RuntimeError("boom"))
    service.use(dataclasses.replace(service.judge, scorer=broken))
    said = service.post(body(**HOT)).json()
    assert (said["action"], said["degraded"], said["reasons"]) == ("review", True, [])
    assert said["score"] > 0.3


def test_reasons_of_an_approved_decision_come_on_request_and_change_no_record(
    service: Service,
) -> None:
    plain = service.post(body(heat=400)).json()
    assert (plain["action"], plain["reasons"]) == ("approve", [])
    path = f"/v1/decisions/{plain['decision_id']}"
    whole = service.get(path + "?explain=true").json()
    assert whole["reasons"]
    row = np.frombuffer(base64.b64decode(whole["feature_bytes"]), np.float32)
    given = {r["feature"]: r["contribution"] for r in whole["reasons"]}
    assert given == {r.feature: r.contribution for r in service.judge.scorer.reasons(row)}
    assert service.get(path).json()["reasons"] == []
    again = service.post(body(heat=400), path="/v1/decisions?explain=true").json()
    assert again == plain | {"replayed": True, "reasons": whole["reasons"]}
    assert service.get(path + "?explain=false").json()["reasons"] == []
    for wrong in ("", "1", "True"):
        answer = service.get(f"{path}?explain={wrong}")
        assert (answer.status_code, answer.json()["code"]) == (400, "usage")


def test_a_decision_is_explained_by_the_version_that_made_it(service: Service, home: Path) -> None:
    plain = service.post(body(heat=400)).json()
    path = f"/v1/decisions/{plain['decision_id']}?explain=true"
    before = service.get(path).json()["reasons"]
    other = dataclasses.replace(
        service.judge, model_sha256="0" * 64, scorer=_Failing(service.judge.scorer)
    )
    service.use(other)  # whatever is current now does not explain it
    found = service.get(path).json()["reasons"]
    assert [r["feature"] for r in found] == [r["feature"] for r in before]
    assert [r["contribution"] for r in found] == pytest.approx(
        [r["contribution"] for r in before], abs=1e-5
    )


def test_a_decision_whose_model_is_gone_can_not_be_explained_but_read(
    tmp_path: Path,
) -> None:
    train(tmp_path)
    service = Service(tmp_path, tmp_path / "tenants.db")
    plain = service.post(body(heat=400)).json()
    service.use(dataclasses.replace(service.judge, model_sha256="0" * 64))
    shutil.rmtree(tmp_path / "models" / "fault" / plain["model"].partition("@")[2])
    answer = service.get(f"/v1/decisions/{plain['decision_id']}?explain=true")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert plain["model"] in answer.json()["detail"]
    assert service.get(f"/v1/decisions/{plain['decision_id']}").status_code == 200
    again = service.post(body(heat=400), path="/v1/decisions?explain=true")
    assert (again.status_code, again.json()["reasons"]) == (200, [])


def test_a_worker_that_is_away_is_a_503_that_says_when_to_retry(service: Service) -> None:
    decided = service.post(body()).json()["decision_id"]
    service.worker.failure = Unavailable("the worker is away")
    for answer in (service.post(body()), service.get(f"/v1/decisions/{decided}")):
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert int(answer.headers["retry-after"]) >= 1


def test_a_worker_that_hangs_is_a_503_at_the_deadline(service: Service) -> None:
    service.worker.hangs = True
    answer = service.post(body(), X_Deadline_Ms="50")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"]


@pytest.mark.parametrize(
    ("failure", "code"),
    [(RuntimeError("secret path /x"), "internal"), (IntegrityError("secret path /x"), "integrity")],
)
def test_an_unexpected_error_is_a_500_problem_without_its_text(
    service: Service, failure: Exception, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    service.worker.failure = failure
    answer = service.post(body(), X_Request_Id="find-me")
    assert (answer.status_code, answer.json()["code"]) == (500, code)
    assert answer.json()["request_id"] == "find-me"
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert "find-me" in caplog.text
    assert "secret path" in caplog.text


def test_before_a_model_is_loaded_nothing_is_ready(service: Service) -> None:
    service.app.decider = None
    for answer in (service.post(body()), service.get("/readyz", key=None)):
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert service.get("/healthz", key=None).status_code == 200


def test_readiness_needs_the_worker_and_health_does_not(service: Service) -> None:
    ready = service.get("/readyz", key=None)
    assert ready.status_code == 200
    assert ready.json() == {
        "status": "ready",
        "model": service.judge.model,
        "policy": service.judge.policy.id,
        "definition_hash": PROJECT.definition_hash,
        "replica": "r1",
        "release": 0,
    }
    service.worker.failure = Unavailable("away")
    assert service.get("/readyz", key=None).status_code == 503
    assert service.get("/healthz", key=None).json() == {"status": "ok"}


# An older model


def test_a_decision_of_a_model_that_is_gone_still_has_its_bytes(service: Service) -> None:
    said = service.post(body()).json()
    key = "default", said["decision_id"]
    old = msgspec.structs.replace(service.worker.records[key], model="fault@20200101T000000Z-0")
    service.worker.records[key] = old
    whole = service.get(f"/v1/decisions/{said['decision_id']}").json()
    assert whole["features"] is None
    assert len(base64.b64decode(whole["feature_bytes"])) == 4 * len(FEATURES)


# Figures


def test_metrics_count_by_route_status_code_and_action(service: Service) -> None:
    service.post(body())
    service.post(body())
    service.post(body(event_id="r-2", **HOT))
    service.post(body(cost="1"))
    service.get("/v1/decisions/dec_a")
    service.get("/nowhere/at/all")
    page = service.get("/metrics", key=None)
    assert page.headers["content-type"].startswith("text/plain")
    route = 'raypipe_http_requests_total{replica="r1",route='
    for line, value in {
        f'{route}"/v1/decisions",status="200"}}': 3,
        f'{route}"/v1/decisions",status="422"}}': 1,
        f'{route}"/v1/decisions/{{decision_id}}",status="404"}}': 1,
        f'{route}"(none)",status="404"}}': 1,
        'raypipe_http_refused_total{code="invalid_event",replica="r1"}': 1,
        'raypipe_decisions_total{action="approve",replayed="false",replica="r1"}': 1,
        'raypipe_decisions_total{action="approve",replayed="true",replica="r1"}': 1,
        'raypipe_decisions_total{action="review",replayed="false",replica="r1"}': 1,
        'raypipe_decisions_degraded_total{replica="r1"}': 0,
        'raypipe_decision_seconds_count{replica="r1"}': 3,
        'raypipe_worker_up{replica="r1"}': 1,
        'raypipe_worker_events{replica="r1"}': 2,
        'raypipe_worker_commit_seconds{replica="r1"}': 0.5,
    }.items():
        assert metric(service, line) == value, line


def test_metrics_are_there_without_the_worker_too(service: Service) -> None:
    service.worker.failure = Unavailable("away")
    text = service.get("/metrics", key=None).text
    assert 'raypipe_worker_up{replica="r1"} 0.0' in text
    assert "raypipe_worker_events" not in text


def test_metrics_tell_the_last_parity_run(service: Service, home: Path) -> None:
    assert "raypipe_parity" not in service.get("/metrics", key=None).text
    report = Report(
        run_at=NOW,
        seconds=0.5,
        tenant="default",
        entity="sensor",
        keys=1,
        since=0,
        end_offset=9,
        decisions=6,
        compared=4,
        version=2,
        featureless=0,
        broken=0,
        features=(
            FeatureParity(feature="heat", compared=4, mismatches={}),
            FeatureParity(feature="cost", compared=4, mismatches={Cause.LATE: 3}),
        ),
    )
    store(Place.at(home), report)
    try:
        for line, value in {
            'raypipe_parity_last_run_timestamp_seconds{replica="r1"}': NOW / 1000,
            'raypipe_parity_decisions{replica="r1",result="compared"}': 4,
            'raypipe_parity_decisions{replica="r1",result="version"}': 2,
            'raypipe_parity_mismatches{cause="late",replica="r1"}': 3,
            'raypipe_parity_feature_mismatches{cause="late",feature="cost",replica="r1"}': 3,
        }.items():
            assert metric(service, line) == value, line
        text = service.get("/metrics", key=None).text
        assert 'raypipe_parity_mismatches{cause="unexplained",replica="r1"} 0.0' in text
        assert 'feature="heat"' not in text
    finally:
        (Place.at(home) / "reports/parity.json").remove()


# Anything at all

_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None))
    | st.sampled_from(["EUR", "left", "s-1", NOW, 20.5]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
_names = st.sampled_from(sorted(f.name for f in PROJECT.decision_event.client_fields))
_mutations = st.dictionaries(_names | st.text(max_size=6), _values | st.just(...), max_size=4)
_bodies = st.one_of(
    _mutations.map(lambda change: json.dumps(body(event_id=next(ids)) | _kept(change)).encode()),
    _values.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=200),
    st.tuples(st.integers(0, len(GOOD)), st.binary(max_size=4)).map(
        lambda cut: GOOD[: cut[0]] + cut[1] + GOOD[cut[0] + 1 :]
    ),
)


def _kept(change: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in change.items() if v is not ...}


@pytest.fixture(scope="module")
def fuzzed(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Service:
    return Service(home, tmp_path_factory.mktemp("fuzz") / "tenants.db")


@given(content=_bodies, key=st.none() | st.text(max_size=8))
def test_no_body_and_no_idempotency_key_makes_a_server_error(
    fuzzed: Service, content: bytes, key: str | None
) -> None:
    headers: dict[str, Any] = {} if key is None else {"Idempotency_Key": key.encode()}
    stored = len(fuzzed.worker.records)
    answer = fuzzed.raw(content, **headers)
    assert answer.status_code < 500
    if answer.status_code == 200:
        assert answer.json()["action"] in ("approve", "review", "block")
        assert answer.json()["degraded"] is False
    else:
        assert answer.headers["content-type"] == PROBLEM
        assert answer.json()["status"] == answer.status_code
        assert len(fuzzed.worker.records) == stored


_int64 = st.integers(-(2**63), 2**63 - 1)
_valid = st.fixed_dictionaries(
    {
        "heat": st.floats(-50, 1000) | st.integers(-50, 1000),
        "cost": st.integers(0, 2**40 - 1),
        "event_time": st.integers(946_684_800_000, NOW + 60_000),
        "sensor_id": st.text("abcä€😀 ", min_size=1, max_size=16),
    },
    optional={
        "ticks": st.none() | _int64,
        "side": st.sampled_from([None, "left", "right"]),
        "tampered": st.none() | st.booleans(),
        "noticed": st.integers(946_684_800_000, 2**63 - 1),
        "a/b~c": st.text("abcä€😀 ", min_size=1, max_size=128),
    },
)


@given(change=_valid)
def test_every_event_that_fits_the_declaration_is_decided_on_what_it_says(
    fuzzed: Service, change: dict[str, Any]
) -> None:
    sent = body(event_id=next(ids), side=...) | change
    answer = fuzzed.post(sent)
    assert answer.status_code == 200, answer.text
    assert answer.json()["degraded"] is False
    record = fuzzed.worker.records["default", answer.json()["decision_id"]]
    row = np.frombuffer(record.features, "<f4")
    heat, cost = np.float64(sent["heat"]), np.float64(sent["cost"])
    ticks, side = sent.get("ticks"), {"left": 0, "right": 1}.get(sent.get("side") or "")
    with np.errstate(all="ignore"):
        said = np.array([heat, cost, ticks, side, cost / heat], dtype=np.float64)
        expected = said.astype(np.float32)
    expected[~np.isfinite(expected)] = np.nan  # what has no finite value is missing
    np.testing.assert_array_equal(row[:5], expected)
