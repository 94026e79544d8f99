"""A domain of forty lines goes the whole line: nothing on it knows payments."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

import raypipe
from raypipe.clock import DAY_MS, HOUR_MS, MINUTE_MS, SystemClock
from raypipe.events.load import SOURCE
from raypipe.events.quarantine import Quarantine
from raypipe.lake import Place
from raypipe.ledger.record import decode
from raypipe.log.sqlite import SqliteLog
from tests.contract.log_kit import runs
from tests.domains import greenhouse as declared
from tests.domains.greenhouse_line import DIRTY, OPENINGS, Line, Served
from training import artefact, registry

pytest_plugins = ["tests.domains.greenhouse_line"]
pytestmark = [pytest.mark.ray, pytest.mark.slow]

PAYMENTS = re.compile(r"\b(card|customer|merchant)s?(_id)?\b", re.IGNORECASE)


@pytest.fixture
def client(greenhouse: Served) -> Iterator[httpx.Client]:
    with greenhouse.client() as client:
        yield client


def opening(event_id: str, /, **changes: Any) -> dict[str, Any]:
    """A good body; a change to ``...`` leaves the field out."""
    whole = {
        "event_id": event_id,
        "event_time": SystemClock().now_ms(),
        "valve": "v-3",
        "gardener": "ann",
        "litres": 120,
        "mode": "drip",
    } | changes
    return {name: value for name, value in whole.items() if value is not ...}


def decide(client: httpx.Client, body: dict[str, Any], **options: Any) -> dict[str, Any]:
    answer = client.post("/v1/decisions", json=body, **options)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def detail(client: httpx.Client, decision_id: str) -> dict[str, Any]:
    answer = client.get(f"/v1/decisions/{decision_id}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_the_declaration_is_at_most_forty_lines() -> None:
    lines = Path(declared.__file__).read_text().splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100


def test_the_engine_never_names_a_card_a_customer_or_a_merchant() -> None:
    root = Path(raypipe.__file__).parent
    simulated = {root / "simulate", root / "cli" / "simulate.py"}
    named = [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in sorted(root.rglob("*"))
        if path.suffix in (".py", ".txt", ".toml", ".yaml", ".j2")
        and not simulated & {path, *path.parents}
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if PAYMENTS.search(line)
    ]
    assert named == []


def test_dirty_rows_are_refused_counted_and_kept(greenhouse_line: Line) -> None:
    loaded, floods = greenhouse_line.loaded, len(greenhouse_line.floods)
    dirty = sum(map(len, DIRTY.values())) + 1  # and a flood of no opening
    assert loaded["accepted"] == {"opening": OPENINGS, "flood": floods}
    assert loaded["duplicates"] == {"opening": 1}
    assert loaded["rejected"] == dirty
    assert loaded["read"] == OPENINGS + 1 + floods + dirty
    with closing(Quarantine(greenhouse_line.settings.home / "quarantine.db")) as quarantine:
        everything = quarantine.rows(10_000, tenant="default")
    rows = [r for r in everything if r.source.startswith(SOURCE)]  # others come over HTTP
    assert len(rows) == dirty
    fields = {"no": "event_id", "opened": "event_time", "valve_no": "valve"}
    fields |= {"cubic_metres": "litres", "how": "mode"}
    refused = sorted(
        (json.loads(r.body)["no"] or "900000", *(x.partition(":")[0] for x in r.reasons))
        for r in rows
        if r.event_type == "opening"
    )
    columns = [column for column, changes in DIRTY.items() for _ in changes]
    assert refused == [(str(900_000 + i), f"/{fields[c]}") for i, c in enumerate(columns)]
    [orphan] = [r for r in rows if r.event_type == "flood"]
    assert orphan.reasons == ("/opening_id: is required",)


def test_the_log_holds_what_the_tables_said(greenhouse_line: Line) -> None:
    log = SqliteLog.open(greenhouse_line.settings.log_url)
    by_id = {f"o-{o.number}": o for o in greenhouse_line.openings}
    arrived = []
    for chunk in runs(log.read(0, 0, OPENINGS + len(greenhouse_line.floods))):
        for row in chunk.batch.to_pylist():
            arrived.append(row["received_at"])
            if chunk.kind == "opening":
                o = by_id.pop(row["event_id"])
                assert (row["event_time"], row["valve"]) == (o.at_ms, o.valve)
                assert (row["gardener"], row["litres"], row["mode"]) == (
                    o.gardener, o.litres, o.mode,
                )  # fmt: skip
    assert by_id == {}
    assert arrived == sorted(arrived)
    log.close()


def test_feast_knows_its_views_and_services(greenhouse_line: Line) -> None:
    from features.store.registry import registered
    from features.store.repo import open_store

    store = open_store(greenhouse_line.settings.home)
    assert [e.name for e in registered(store)] == [
        "floods_at_event", "floods_state",
        "gardener_at_event", "gardener_state",
        "valve_at_event", "valve_state",
    ]  # fmt: skip
    services = sorted(s.name for s in store.list_feature_services())
    assert services == ["flooding_online", "flooding_v1"]
    valve = max(greenhouse_line.openings, key=lambda o: o.at_ms).valve
    online = store.get_online_features(
        features=["valve_state:valve_count_2d"], entity_rows=[{"valve": valve}]
    ).to_dict()
    assert online["valve_count_2d"][0] >= 1


def test_the_sweep_left_a_model_that_tells_floods(greenhouse_line: Line) -> None:
    report = greenhouse_line.report
    home = greenhouse_line.settings.home
    model = artefact.load(registry.locate(Place.at(home) / "models", "flooding"), declared.project)
    assert model.reference == f"flooding@{report['version']}"
    assert len(report["sweep"]) == 2
    assert report["test"]["average_precision"] > 10 * report["test"]["base_rate"]
    assert Path(report["directory"], "report.html").is_file()


def test_ready_means_this_greenhouse(greenhouse: Served, client: httpx.Client) -> None:
    answer = client.get("/readyz")
    assert answer.status_code == 200
    ready = answer.json()
    assert ready["definition_hash"] == declared.project.definition_hash
    assert ready["model"] == greenhouse.model == f"flooding@{greenhouse.line.report['version']}"
    assert client.get("/healthz").json() == {"status": "ok"}


def test_decisions_see_history_and_each_other(greenhouse: Served, client: httpx.Client) -> None:
    """The window values of a decision, against plain counts over what was loaded and sent."""
    now = SystemClock().now_ms()
    floods, openings = greenhouse.line.floods, greenhouse.line.openings
    wet = openings[max(floods, key=lambda n: floods[n])].valve
    horizon = now // HOUR_MS - 48
    known = sum(openings[n].valve == wet and at // HOUR_MS > horizon for n, at in floods.items())
    assert known > 0
    seen = sum(o.valve == wet and o.at_ms // HOUR_MS > horizon for o in openings)
    for i in range(3):
        body = opening(f"see-{i}", event_time=now + i, valve=wet, gardener="new-here", litres=300)
        answer = decide(client, body)
        record = detail(client, answer["decision_id"])
        values = record["features"]
        assert list(values) == list(declared.INPUTS)
        assert values["litres"] == 300
        assert values["mode"] == 0
        assert values["valve_count_2d"] == seen + i
        assert values["floods_count_2d"] == known
        assert values["alone"] == (i == 0)
        assert values["thirst"] == pytest.approx(300 / _mean(openings, wet, horizon, i), rel=1e-6)
        assert {n: record[n] for n in answer if n != "replayed"} == {
            n: v for n, v in answer.items() if n != "replayed"
        }


def _mean(openings: list[Any], valve: str, horizon: int, sent: int) -> float:
    litres = [o.litres for o in openings if o.valve == valve and o.at_ms // HOUR_MS > horizon]
    litres += [300] * sent
    return sum(litres) / len(litres)


def test_much_water_by_spray_is_flagged_with_reasons(client: httpx.Client) -> None:
    calm = decide(client, opening("calm-1", litres=100, mode="drip"))
    wild = decide(client, opening("wild-1", litres=45_000, mode="spray"))
    assert (calm["action"], calm["reasons"]) == ("approve", [])
    assert wild["action"] in ("review", "block")
    assert wild["score"] > calm["score"]
    assert {r["feature"] for r in wild["reasons"]} <= set(declared.INPUTS)
    assert wild["reasons"][0]["feature"] in ("litres", "mode", "thirst")


def test_a_decision_is_recorded_once_however_often_it_is_asked(
    greenhouse: Served, client: httpx.Client
) -> None:
    body = opening("once-1", mode=..., gardener=None)
    first = decide(client, body)
    again = decide(client, dict(reversed(body.items())))
    assert (first["replayed"], again["replayed"]) == (False, True)
    assert again == first | {"replayed": True}
    log = SqliteLog.open(greenhouse.settings.log_url)
    found = log.find(0, "decision", "default", first["decision_id"])
    event = log.find(0, "opening", "default", "once-1")
    log.close()
    assert found is not None
    assert event is not None
    record = decode(found[1].column("record")[0].as_py())
    assert (record.event_id, record.action, record.score) == (
        "once-1", first["action"], first["score"],
    )  # fmt: skip
    assert (record.event_offset, record.degraded) == (event[0], False)
    assert event[1].column("valve")[0].as_py() == "v-3"
    assert event[1].column("gardener")[0].as_py() is None


NOW = "now"
BAD = [
    ({"valve": ...}, 422, ["/valve"]),
    ({"valve": ""}, 422, ["/valve"]),
    ({"valve": 7, "litres": "7"}, 422, ["/valve", "/litres"]),
    ({"litres": -1}, 422, ["/litres"]),
    ({"litres": 1.5}, 422, ["/litres"]),
    ({"litres": 10**30}, 422, ["/litres"]),
    ({"litres": True}, 422, ["/litres"]),
    ({"mode": "hose"}, 422, ["/mode"]),
    ({"colour": "green"}, 422, ["/colour"]),
    ({"card_id": "c-1"}, 422, ["/card_id"]),
    ({"event_id": ...}, 422, ["/event_id"]),
    ({"event_id": "x" * 200}, 422, ["/event_id"]),
    ({"event_time": 10 * DAY_MS}, 422, ["/event_time"]),
    ({"event_time": NOW}, 422, ["/event_time"]),
    ({"event_id": "calm\n1"}, 422, ["/event_id"]),
]


@pytest.mark.parametrize(("changes", "status", "places"), BAD)
def test_bad_openings_are_refused_by_their_own_names(
    client: httpx.Client, changes: dict[str, Any], status: int, places: list[str]
) -> None:
    if changes.get("event_time") == NOW:
        changes = {"event_time": SystemClock().now_ms() + 5 * MINUTE_MS}
    answer = client.post("/v1/decisions", json=opening("bad-1", **changes))
    problem = _problem(answer, status)
    assert [e["pointer"] for e in problem["errors"]] == places
    if "card_id" not in changes:
        assert not PAYMENTS.search(answer.text)
    assert "valve" in problem["hint"]


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b'{"litres": NaN}', 400, "malformed_body"),
        (b'{"litres": 1', 400, "malformed_body"),
        (b'{"litres": 1, "litres": 2}', 400, "malformed_body"),
        (b"\xff", 400, "malformed_body"),
        (b"", 400, "malformed_body"),
        (b"[]", 422, "invalid_event"),
        (b" " * 70_000, 413, "body_too_large"),
    ],
)
def test_bad_bodies_are_problems_and_never_a_500(
    client: httpx.Client, content: bytes, status: int, code: str
) -> None:
    answer = client.post(
        "/v1/decisions", content=content, headers={"Content-Type": "application/json"}
    )
    assert _problem(answer, status)["code"] == code


def test_who_may_ask_and_for_what(greenhouse: Served, client: httpx.Client) -> None:
    body = opening("who-1")
    wrong = greenhouse.key[:-1] + ("0" if greenhouse.key[-1] != "0" else "1")
    for header in (None, "Bearer", f"Bearer {wrong}", f"Basic {greenhouse.key}"):
        headers = {} if header is None else {"Authorization": header}
        asked = httpx.post(
            f"{greenhouse.url}/v1/decisions", json=body, headers=headers, trust_env=False
        )
        assert _problem(asked, 401)["code"] == "unauthenticated"
        assert asked.headers["www-authenticate"].startswith("Bearer")
    decide(client, body)
    other = client.post("/v1/decisions", json=body | {"litres": 121})
    assert _problem(other, 409)["code"] == "conflict"
    mismatch = client.post("/v1/decisions", json=body, headers={"Idempotency-Key": "who-2"})
    assert [e["pointer"] for e in _problem(mismatch, 422)["errors"]] == ["/event_id"]
    _problem(client.get("/v1/decisions/dec_none"), 404)
    _problem(client.get("/v1/decisions"), 405)
    _problem(client.get("/v1/nothing"), 404)
    plain = client.post("/v1/decisions", content=json.dumps(body))
    assert _problem(plain, 415)["code"] == "unsupported_media_type"


def _problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert problem["request_id"]
    return problem


def test_an_event_that_came_in_bulk_is_no_request(client: httpx.Client) -> None:
    answer = client.post("/v1/decisions", json=opening("o-17"))
    assert _problem(answer, 409)["code"] == "conflict"


def test_the_openapi_document_is_about_openings(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert document["info"]["title"] == "raypipe: greenhouse"
    schema = document["components"]["schemas"]["Opening"]
    assert list(schema["properties"]) == [
        "event_id", "event_time", "valve", "gardener", "litres", "mode",
    ]  # fmt: skip
    assert schema["required"] == ["event_id", "event_time", "valve", "litres"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["litres"] == {
        "type": "integer", "format": "int64", "minimum": 0, "maximum": 1_000_000,
    }  # fmt: skip
    assert schema["properties"]["mode"]["enum"] == ["drip", "spray", None]
    assert not PAYMENTS.search(json.dumps(document))
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "litres" in page.text
    # What it shows as an example is accepted.
    assert decide(client, schema["examples"][0])["event_id"] == "opening-1"


def test_metrics_count_what_was_decided(client: httpx.Client) -> None:
    decide(client, opening("metric-1"))
    text = client.get("/metrics").text
    assert re.search(r"^raypipe_decisions_total\{.*\} [1-9]", text, re.MULTILINE), text[:2_000]
    assert not PAYMENTS.search(text)
