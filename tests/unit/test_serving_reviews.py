from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest

from raypipe.clock import DAY_MS, HOUR_MS, MINUTE_MS, ManualClock
from raypipe.log.port import Chunk
from raypipe.project import Project
from raypipe.runtime.worker.reviews import LAPSE_MS, ReviewQueue
from serving.label_events import LabelEvents
from tests.unit.core_worker import CoreWorker
from tests.unit.serving_kit import HOT, NOW, PROJECT, Service, body, train
from training.labels import labels

SCOPES = ["decisions:write", "decisions:read", "reviews:read", "reviews:write", "outcomes:write"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    train(folder)
    return folder


class Desk:
    """A service over a real worker's core, and people with keys."""

    def __init__(self, home: Path, folder: Path, project: Project = PROJECT) -> None:
        clock = ManualClock(NOW)
        self.worker = CoreWorker(folder, project, clock)
        self.service = Service(home, folder / "keys.db", worker=self.worker)
        self.clock = self.service.clock
        self.worker._clock = self.clock
        self.worker.start()
        self.ann, self.bo = (self.service.keys.create("default", SCOPES) for _ in range(2))
        self.stranger = self.service.keys.create("second", SCOPES)

    def decide(self, n: int, *, hot: bool = True, key: str = "") -> dict[str, Any]:
        event = body(event_id=f"e-{n}", sensor_id=f"s-{n % 3}", **(HOT if hot else {}))
        event["event_time"] = self.clock.now_ms()
        found: dict[str, Any] = self.service.post(event, key or self.ann).json()
        assert found["action"] == ("review" if hot else "approve")
        return found

    def ask(self, method: str, path: str, key: str | None = None, **given: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key or self.ann}", **given.pop("headers", {})}
        return asyncio.run(self.service.call(method, path, headers=headers, **given))

    def page(self, key: str | None = None, **query: Any) -> dict[str, Any]:
        answer = self.ask("GET", "/v1/reviews", key, params=query)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def claim(self, decision: dict[str, Any], key: str, **given: Any) -> httpx.Response:
        return self.ask("POST", f"/v1/reviews/{decision['decision_id']}:claim", key, json=given)

    def verdict(
        self, decision: dict[str, Any], key: str, truth: str, **headers: str
    ) -> httpx.Response:
        said = {"verdict": truth, "reason": "called the owner"}
        path = f"/v1/reviews/{decision['decision_id']}:verdict"
        return self.ask("POST", path, key, json=said, headers=headers)

    def outcome(self, decision: dict[str, Any], key: str = "", **said: Any) -> httpx.Response:
        path = f"/v1/decisions/{decision['decision_id']}/outcome"
        headers = {"Idempotency-Key": said.pop("named")} if "named" in said else {}
        return self.ask("POST", path, key or self.ann, json=said, headers=headers)

    def logged(self, kind: str) -> list[dict[str, Any]]:
        chunks = self.worker.log.read(0, 0, 100_000)
        return [row for c in chunks if c.kind == kind for row in c.batch.to_pylist()]

    def rebuilt(self) -> ReviewQueue:
        """The queue that the log alone makes, row by row."""
        queue = ReviewQueue()
        for chunk in self.worker.log.read(0, 0, 100_000):
            for i in range(len(chunk)):
                row = Chunk(chunk.kind, chunk.offsets[i : i + 1], chunk.batch.slice(i, 1))
                queue.replay([row])
        return queue


@pytest.fixture
def desk(home: Path, tmp_path: Path) -> Desk:
    return Desk(home, tmp_path)


def ids(page: dict[str, Any]) -> list[str]:
    return [r["decision_id"] for r in page["reviews"]]


def test_decisions_to_review_wait_oldest_first_for_their_tenant(desk: Desk) -> None:
    made = []
    for n in range(7):
        made.append(desk.decide(n, hot=n != 3))
        desk.clock.advance(HOUR_MS)
    waiting = [d for d in made if d["action"] == "review"]
    whole = desk.page()
    assert ids(whole) == [d["decision_id"] for d in waiting]
    assert (whole["open"], whole["next"]) == (6, None)
    first = whole["reviews"][0]
    assert {k: first[k] for k in ("event_id", "action", "score", "model", "decided_at")} == {
        k: made[0][k] for k in ("event_id", "action", "score", "model", "decided_at")
    }
    assert first["deadline"] == made[0]["decided_at"] + DAY_MS
    assert (first["overdue"], first["claimed_by"], first["claimed_until"]) == (False, None, None)
    # Pages join without a gap, also when what they ended with has left meanwhile.
    page = desk.page(limit=4)
    assert desk.verdict(waiting[3], desk.ann, "genuine").status_code == 200
    assert ids(page) + ids(desk.page(limit=4, after=page["next"])) == ids(whole)
    assert desk.page(action="block")["reviews"] == []
    assert desk.page(desk.stranger) == {"reviews": [], "open": 0, "next": None}
    desk.clock.advance(20 * HOUR_MS)
    assert [r["overdue"] for r in desk.page()["reviews"]] == [True, True, True, False, False]
    stats = desk.worker.core.stats()
    assert (stats["reviews_open"], stats["reviews_overdue"]) == (5, 3)


def test_a_claim_has_one_holder_and_an_end(desk: Desk) -> None:
    decision = desk.decide(1)
    mine = desk.claim(decision, desk.ann, lease_s=60, reviewer="ann")
    assert mine.status_code == 200
    holder = mine.json()["claimed_by"]
    assert holder.endswith("/ann")
    assert mine.json()["claimed_until"] == NOW + 60_000
    for refused in (
        desk.claim(decision, desk.bo),
        desk.claim(decision, desk.ann),  # the same key, another person
        desk.verdict(decision, desk.bo, "fraud"),
    ):
        assert refused.status_code == 409
        assert holder in refused.json()["detail"]
    assert desk.page(free="true")["reviews"] == []
    assert ids(desk.page(claimed_by=holder)) == [decision["decision_id"]]
    desk.clock.advance(30_000)
    longer = desk.claim(decision, desk.ann, lease_s=60, reviewer="ann").json()
    assert longer["claimed_until"] == NOW + 90_000
    desk.clock.advance(59_999)
    assert desk.claim(decision, desk.bo).status_code == 409
    desk.clock.advance(1)
    assert desk.page()["reviews"][0]["claimed_by"] is None
    assert desk.page(claimed_by=holder)["reviews"] == []
    assert desk.claim(decision, desk.bo).status_code == 200
    assert desk.verdict(decision, desk.bo, "genuine").status_code == 200
    assert desk.claim(decision, desk.bo).status_code == 404
    assert desk.verdict(decision, desk.ann, "fraud").status_code == 404


def test_a_verdict_is_stored_once_and_says_who(desk: Desk) -> None:
    decision = desk.decide(1)
    first = desk.verdict(decision, desk.ann, "fraud")
    assert first.status_code == 200
    desk.clock.advance(5_000)
    again = desk.verdict(decision, desk.ann, "fraud")
    assert again.json() == first.json() | {"replayed": True}
    assert (first.json()["replayed"], first.json()["source"]) == (False, "review")
    (stored,) = desk.logged("outcome")
    assert stored["by"] == desk.ann.split("_")[2]
    assert stored["decided_event_id"] == decision["event_id"]
    assert (stored["action"], stored["model"]) == ("review", decision["model"])
    assert desk.page()["open"] == 0
    assert desk.worker.core.stats()["outcomes_review_fraud"] == 1


def test_fraud_becomes_one_label_event_that_training_and_windows_know(desk: Desk) -> None:
    reviewed, approved, fine = desk.decide(1), desk.decide(2, hot=False), desk.decide(3)
    desk.clock.advance(10 * MINUTE_MS)
    assert desk.verdict(reviewed, desk.ann, "fraud").status_code == 200
    assert desk.verdict(fine, desk.ann, "genuine").status_code == 200
    late = NOW + 2 * HOUR_MS
    desk.clock.advance(3 * HOUR_MS)
    for _ in range(3):
        told = desk.outcome(
            approved, outcome="fraud", source="chargeback", occurred_at=late, named="cb-7"
        )
        assert told.status_code == 200
    # The same decision again from elsewhere: one statement more, and no second label event.
    assert desk.outcome(reviewed, outcome="fraud", source="chargeback").status_code == 200
    assert [o["source"] for o in desk.logged("outcome")] == ["review", "review", "chargeback",
                                                             "chargeback"]  # fmt: skip
    events = desk.logged("fault")
    assert [(e["reading_id"], e["sensor_id"], e["event_time"]) for e in events] == [
        ("e-1", "s-1", NOW + 10 * MINUTE_MS),
        ("e-2", "s-2", late),
    ]
    # As training reads them: what became known within the horizon of an hour is positive.
    decided = [d["event_id"] for d in (reviewed, approved, fine)]
    truths = pa.Table.from_pylist(events).select(["event_time", "reading_id"])
    y, known = labels(
        PROJECT.label,
        pa.chunked_array([decided]),
        pa.array([NOW] * 3).to_numpy(),
        truths,
        as_of_ms=NOW + DAY_MS,
    )
    assert (y.tolist(), known.tolist()) == ([1, 0, 0], [True] * 3)
    stats = desk.worker.core.stats()
    assert {k: v for k, v in stats.items() if k.startswith("outcomes_")} == {
        "outcomes_review_fraud": 2,
        "outcomes_review_genuine": 1,
        "outcomes_approve_fraud": 1,
    }


def test_a_later_statement_corrects_and_both_are_kept(desk: Desk) -> None:
    decision = desk.decide(1)
    assert desk.verdict(decision, desk.ann, "genuine").status_code == 200
    corrected = desk.outcome(decision, desk.bo, outcome="fraud", source="chargeback", reason="x")
    assert corrected.status_code == 200
    assert [(o["outcome"], o["source"]) for o in desk.logged("outcome")] == [
        ("genuine", "review"),
        ("fraud", "chargeback"),
    ]
    assert len(desk.logged("fault")) == 1


def test_one_key_is_one_statement(desk: Desk) -> None:
    decision = desk.decide(1)
    said = {"outcome": "fraud", "source": "chargeback", "named": "k-1"}
    assert desk.outcome(decision, **said).status_code == 200
    other = desk.outcome(decision, **said | {"outcome": "genuine"})
    assert other.status_code == 409
    assert len(desk.logged("outcome")) == 1


@pytest.mark.parametrize(
    ("said", "status", "pointer"),
    [
        ({"outcome": "maybe", "source": "chargeback"}, 422, "/outcome"),
        ({"outcome": "fraud"}, 422, ""),
        ({"outcome": "fraud", "source": "Charge Back"}, 422, "/source"),
        ({"outcome": "fraud", "source": "review"}, 422, "/source"),
        ({"outcome": "fraud", "source": "a", "occurred_at": NOW - 1}, 422, "/occurred_at"),
        ({"outcome": "fraud", "source": "a", "occurred_at": NOW + HOUR_MS}, 422, "/occurred_at"),
        ({"outcome": "fraud", "source": "a", "colour": 1}, 422, ""),
        ({"outcome": "fraud", "source": "a", "reviewer": "a b"}, 422, "/reviewer"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place(
    desk: Desk, said: dict[str, Any], status: int, pointer: str
) -> None:
    answer = desk.outcome(desk.decide(1), **said)
    assert answer.status_code == status, answer.text
    assert [e["pointer"] for e in answer.json()["errors"]] == [pointer]
    assert answer.json()["code"] == "invalid_request"
    assert desk.logged("outcome") == []


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"},
        {"limit": "201"},
        {"limit": "many"},
        {"free": "yes"},
        {"after": "x"},
        {"after": "12"},
        {"colour": "red"},
    ],
)
def test_a_query_that_cant_be_read_is_refused(desk: Desk, query: dict[str, str]) -> None:
    assert desk.ask("GET", "/v1/reviews", params=query).status_code == 400


def test_nobody_touches_what_is_not_theirs(desk: Desk) -> None:
    decision = desk.decide(1)
    assert desk.claim(decision, desk.stranger).status_code == 404
    assert desk.verdict(decision, desk.stranger, "fraud").status_code == 404
    assert desk.outcome(decision, desk.stranger, outcome="fraud", source="a").status_code == 404
    assert desk.outcome({"decision_id": "dec_x"}, outcome="fraud", source="a").status_code == 404
    for scope, method, path in [
        ("reviews:read", "GET", "/v1/reviews"),
        ("reviews:write", "POST", "/v1/reviews/x:claim"),
        ("reviews:write", "POST", "/v1/reviews/x:verdict"),
        ("outcomes:write", "POST", "/v1/decisions/x/outcome"),
    ]:
        others = desk.service.keys.create("default", [s for s in SCOPES if s != scope])
        answer = desk.ask(method, path, others, json={} if method == "POST" else None)
        assert answer.status_code == 403
        assert scope in answer.json()["detail"]


def test_the_queue_is_the_same_after_a_start_from_log_or_snapshot(desk: Desk) -> None:
    made = [desk.decide(n) for n in range(12)]
    desk.claim(made[0], desk.ann, lease_s=3_600)
    desk.verdict(made[1], desk.ann, "fraud")
    desk.outcome(made[2], outcome="genuine", source="call")
    before = desk.page(), counts(desk)
    desk.worker.start()  # from the log
    assert (desk.page(), counts(desk)) == before
    desk.worker.core.save()
    desk.worker.start()  # from the snapshot alone
    assert (desk.page(), counts(desk)) == before
    desk.verdict(made[3], desk.bo, "genuine")
    desk.claim(made[4], desk.bo, lease_s=3_600)
    last = desk.page(), counts(desk)
    desk.worker.start()  # from the snapshot and what came after it
    assert (desk.page(), counts(desk)) == last
    rebuilt = desk.rebuilt()
    queue = desk.worker.core._state.reviews
    assert rebuilt.snapshot(0).equals(queue.snapshot(0))


def counts(desk: Desk) -> dict[str, float]:
    stats = desk.worker.core.stats()
    return {k: v for k, v in stats.items() if k.startswith(("outcomes_", "reviews_"))}


def test_a_snapshot_that_knows_no_reviews_is_completed_from_the_log(desk: Desk) -> None:
    made = [desk.decide(n) for n in range(5)]
    desk.verdict(made[0], desk.ann, "genuine")
    pieces = desk.worker.core._state.pieces
    desk.worker.core._state.pieces = lambda: [*pieces()[:-2], pieces()[-1]]  # type: ignore[method-assign]
    desk.worker.core.save()
    desk.worker.start()
    assert desk.worker.core.stats()["snapshot_offset"] == desk.worker.core.next_offset
    assert set(ids(desk.page())) == {d["decision_id"] for d in made[1:]}


def test_what_nobody_looks_at_lapses_at_last(desk: Desk) -> None:
    old = desk.decide(1)
    desk.clock.advance(LAPSE_MS)
    young = desk.decide(2)
    assert ids(desk.page()) == [old["decision_id"], young["decision_id"]]
    desk.clock.advance(1)
    newest = desk.decide(3)
    assert ids(desk.page()) == [young["decision_id"], newest["decision_id"]]
    assert desk.worker.core.stats()["reviews_lapsed"] == 1
    # What turned out later is still taken.
    assert desk.outcome(old, outcome="fraud", source="chargeback").status_code == 200


def test_a_label_type_that_a_decided_event_cant_fill_makes_no_label_event() -> None:
    from dataclasses import replace

    from raypipe.events.schema import EventType, Field, Kind

    fault = EventType("fault", (Field("reading_id", Kind.STRING), Field("inspector", Kind.STRING)))
    strange = replace(PROJECT, events=(PROJECT.events[0], fault))
    made = LabelEvents(strange)
    assert made.lacking == ("inspector",)
    assert made.of({"tenant": "t", "event_id": "e"}, "dec_1", NOW, NOW) is None
