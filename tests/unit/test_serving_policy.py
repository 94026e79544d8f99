"""Decisions by a published policy: what is answered, recorded, and what an error does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from raypipe.clock import ManualClock
from raypipe.errors import DeclarationError
from raypipe.lake import Place
from raypipe.ledger.record import DecisionRecord, decode, encode
from raypipe.policy import registry
from raypipe.policy.list_store import ListStore
from raypipe.policy.lists import Kind, Recorded
from raypipe.policy.reading import parse_policy
from raypipe.policy.rules import RuleSet
from serving.lists import WatchedLists
from serving.scoring import load_judge
from tests.unit.serving_kit import HOT, NOW, PROJECT, Service, body, ids, train

POLICY = """
name: plant
version: 2
on_error: review
lists: {broken: deny, known: allow}
segments: [{name: left, when: side == 'left'}]
thresholds: {default: {review: 0.3}, left: {block: 0.999}}
rules:
  - {name: known, when: 'in_list("known", sensor_id)', action: approve, final: true, reason: Known.}
  - {name: broken, when: 'in_list("broken", sensor_id)', action: block, reason: It is broken.}
  - {name: hot, when: heat > 800 and score > 0.2, action: step_up, code: TOO_HOT, reason: Too hot.}
reasons:
  cost: {code: EXPENSIVE, words: It costs a lot.}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    train(folder)
    registry.publish(Place.at(folder), parse_policy(POLICY), POLICY.encode(), PROJECT, NOW)
    return folder


@pytest.fixture
def service(home: Path, tmp_path: Path) -> Service:
    return judged(Service(home, tmp_path / "tenants.db"), Place.at(tmp_path / "lake"))


def judged(service: Service, lists: Place) -> Service:
    """The service with the published policy, and lists that a lake of its own has."""
    lake = Place.at(service.home)
    rules = registry.load_policy(lake, "plant@2", PROJECT)
    watched = WatchedLists(lists)
    watched.start()
    watched.stop()
    service.judge = load_judge(lake / "models", PROJECT, "fault", None, "block", rules, watched)
    service.use(service.judge)
    return service


def listed(tmp_path: Path, name: str, kind: Kind) -> str:
    store = ListStore(Place.at(tmp_path / "lake"), "default", ManualClock(NOW - 1))
    return store.add(name, kind, ["s-1"], who="ann", why="test").version


def whole(service: Service, said: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = service.get(f"/v1/decisions/{said['decision_id']}").json()
    return found


def test_rules_say_why_before_the_model_does(service: Service) -> None:
    said = service.post(body(event_id=next(ids), **HOT)).json()
    assert (said["action"], said["policy"]) == ("step_up", "plant@2")
    first, *rest = said["reasons"]
    assert first == {"code": "TOO_HOT", "feature": "", "contribution": 0.0, "words": "Too hot."}
    words = {r["feature"]: (r["code"], r["words"]) for r in rest}
    assert words["cost"] == ("EXPENSIVE", "It costs a lot.")
    assert words["heat"] == ("HEAT", "")
    detail = whole(service, said)
    assert (detail["rule_hits"], detail["codes"]) == (["hot"], ["TOO_HOT"])
    assert (detail["segment"], detail["list_hits"]) == ("left", [])
    assert detail["policy_sha256"] == service.judge.policy.sha256
    elsewhere = service.post(body(event_id=next(ids), side="right", **HOT)).json()
    assert elsewhere["action"] == "review"
    assert whole(service, elsewhere)["codes"] == ["TOO_HOT", "SCORE_REVIEW"]
    service.post(body(event_id=said["event_id"], **HOT))  # a retry fires no rule
    figures = service.get("/metrics", key=None).text
    assert 'raypipe_rule_hits_total{policy="plant@2",replica="r1",rule="hot"} 2.0' in figures
    assert 'raypipe_decisions_total{action="step_up",replayed="true",replica="r1"} 1.0' in figures


def test_lists_decide_and_their_version_is_recorded(service: Service, tmp_path: Path) -> None:
    quiet = service.post(body(event_id=next(ids))).json()
    assert (quiet["action"], whole(service, quiet)["lists"]) == ("approve", "0")
    version = listed(tmp_path, "broken", Kind.DENY)
    judged(service, Place.at(tmp_path / "lake"))
    said = service.post(body(event_id=next(ids))).json()
    assert said["action"] == "block"
    assert said["reasons"][0]["code"] == "BROKEN"
    detail = whole(service, said)
    assert (detail["lists"], detail["list_hits"]) == (version, ["broken:sensor_id"])
    later = listed(tmp_path, "known", Kind.ALLOW)
    judged(service, Place.at(tmp_path / "lake"))
    trusted = service.post(body(event_id=next(ids), **HOT)).json()
    assert trusted["action"] == "approve"
    assert [r["words"] for r in trusted["reasons"]] == ["Known."]
    assert whole(service, trusted)["lists"] == later
    explained = service.get(f"/v1/decisions/{trusted['decision_id']}?explain=true").json()[
        "reasons"
    ]
    assert [r["words"] for r in explained[:1]] == ["Known."]
    assert {r["code"] for r in explained[1:]} >= {"EXPENSIVE", "HEAT"}
    # Of another tenant nothing is on a list.
    key = service.keys.create("other", ["decisions:write"])
    assert service.post(body(event_id=next(ids)), key=key).json()["action"] == "approve"


def test_an_explained_decision_has_the_rules_then_what_raised_the_score_in_its_words(
    service: Service, tmp_path: Path
) -> None:
    listed(tmp_path, "known", Kind.ALLOW)
    judged(service, Place.at(tmp_path / "lake"))
    trusted = service.post(body(event_id=next(ids), **HOT), path="/v1/decisions?explain=true")
    first, *rest = trusted.json()["reasons"]
    assert (first["words"], first["feature"]) == ("Known.", "")
    words = {r["feature"]: (r["code"], r["words"]) for r in rest}
    assert words["cost"] == ("EXPENSIVE", "It costs a lot.")
    assert words["heat"] == ("HEAT", "")
    path = f"/v1/decisions/{trusted.json()['decision_id']}"
    assert service.get(f"{path}?explain=true").json()["reasons"] == [first, *rest]
    assert service.get(path).json()["reasons"] == [first]


def test_a_record_decides_again_without_the_lists(service: Service, tmp_path: Path) -> None:
    import numpy as np

    listed(tmp_path, "broken", Kind.DENY)
    judged(service, Place.at(tmp_path / "lake"))
    service.post(body(event_id=next(ids), **HOT))
    [record] = service.worker.records.values()
    [seen] = service.worker.seen.values()
    policy = service.judge.policy
    again = policy.decide(
        record.score,
        seen.event,
        np.frombuffer(record.features, np.float32),
        Recorded(record.list_hits, seen.event),
        record.decided_at,
    )
    assert (again.action.value, again.rules, again.codes) == (
        record.action,
        record.rule_hits,
        record.codes,
    )


@pytest.mark.parametrize("failure", ["model", "policy"])
def test_an_error_takes_on_error_of_the_policy(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    listed(tmp_path, "known", Kind.ALLOW)
    judged(service, Place.at(tmp_path / "lake"))

    def fail(*_: object) -> float:
        raise RuntimeError("it fails")

    if failure == "model":
        monkeypatch.setattr(service.judge.scorer, "score", fail)
    else:
        monkeypatch.setattr(service.judge.policy, "decide", fail)
    said = service.post(body(event_id=next(ids))).json()
    assert (said["action"], said["degraded"]) == ("review", True)
    assert whole(service, said)["codes"][-1] == "NO_SCORE"


def test_a_policy_that_reads_what_the_model_has_not_is_refused(home: Path) -> None:
    text = POLICY.replace("heat > 800", "hour > 800")
    with pytest.raises(DeclarationError, match="hour"):
        RuleSet(parse_policy(text), PROJECT)


def test_records_of_before_are_still_read() -> None:
    """A record as it was written before policies: its last fields are not there."""
    record = DecisionRecord(
        *("d", "t", "e", 0, 0, 0, 0, "m", "s", "p", "s", "h", b"", 0.5, "review")
    )
    fields = msgspec.msgpack.decode(encode(record))
    for name in ("codes", "segment", "lists", "list_hits"):
        del fields[name]
    fields["reasons"] = [{"code": "HEAT", "feature": "heat", "contribution": 0.5}]
    old = decode(msgspec.msgpack.encode(fields))
    assert (old.codes, old.segment, old.lists, old.list_hits) == ((), "", "", ())
    assert math.isclose(old.reasons[0].contribution, 0.5)
    assert old.reasons[0].words == ""
