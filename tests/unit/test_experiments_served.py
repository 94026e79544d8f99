"""Experiments in line: who decides, what is recorded, what is counted, and what can't be served."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from raypipe.clock import ManualClock
from raypipe.errors import ConfigError, DeclarationError, NotFound, RaypipeError
from raypipe.events.row import RowValidator
from raypipe.experiments import registry
from raypipe.experiments.assignment import Assignment
from raypipe.experiments.reading import parse_experiment
from raypipe.lake import Place
from raypipe.ledger import record as ledger
from raypipe.policy.reading import parse_policy
from raypipe.policy.registry import publish
from serving.decide import Decider
from serving.panel import Panel, load_panel
from serving.release import Challenger, Release, read
from tests.unit.core_worker import CoreWorker
from tests.unit.serving_kit import HOT, NOW, PROJECT, READING, Service, body, train

STRICT = "name: strict\nversion: 1\nthresholds: {default: {review: 0.0001}}\n"
LOOSE = "name: loose\nversion: 1\nthresholds: {default: {block: 0.9999}}\n"
POLICIES = """
name: limits
version: 1
unit: sensor_id
layer: thresholds
arms:
  control: {share: 0.4}
  strict: {share: 0.2, policy: strict@1}
  loose: {share: 0.2, policy: loose@1}
eligible: cost >= 50
metrics: {name: passed, of: conversion}
minimum_effect: 0.05
horizon: 7d
"""
EVENTS = 120


def models(new: str) -> str:
    return (
        POLICIES.replace("limits", "newer")
        .replace("thresholds", "models")
        .replace("{share: 0.2, policy: strict@1}", f"{{share: 0.2, model: {new}}}")
        .replace("{share: 0.2, policy: loose@1}", "{share: 0.2}")
        .replace("eligible: cost >= 50", "")
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two model versions, two policies, an experiment of each."""
    home = tmp_path_factory.mktemp("home")
    lake = Place.at(home)
    old, new = (f"fault@{train(home, rounds=r)}" for r in (12, 20))
    for text in (STRICT, LOOSE):
        publish(lake, parse_policy(text), text.encode(), PROJECT, NOW)
    for text in (POLICIES, models(new), models(new).replace("newer", "third")):
        registry.publish(lake, parse_experiment(text), text.encode(), PROJECT, NOW)
    (home / "versions").write_text(f"{old} {new}")
    return home


@pytest.fixture(scope="module")
def versions(home: Path) -> list[str]:
    return (home / "versions").read_text().split()


def panel(home: Path, release: Release) -> Panel:
    return load_panel(Place.at(home), PROJECT, release, "review")


def use(service: Service, panel: Panel) -> None:
    service.app.decider = Decider(
        READING,
        RowValidator(READING, "EUR"),
        service.worker,
        panel.champion,
        service.clock,
        5.0,
        chooser=panel,
    )
    service.app._experiments.release = panel.release


def ask(service: Service, n: int) -> dict[str, Any]:
    changes = HOT if n % 3 else {"cost": 49 + n % 2}
    found: dict[str, Any] = service.post(
        body(event_id=f"e-{n}", sensor_id=f"s-{n % 40}", **changes)
    ).json()
    return found


def test_each_unit_is_decided_about_by_its_arm_and_the_record_says_so(
    home: Path, versions: list[str], tmp_path: Path
) -> None:
    service = Service(home, tmp_path / "t.db")
    running = ("limits@1", "newer@1")
    use(service, panel(home, Release(versions[0], experiments=running, number=4)))
    limits, newer = (
        Assignment(registry.load_experiment(Place.at(home), e, PROJECT), PROJECT) for e in running
    )
    arms: Counter[str] = Counter()
    for n in range(EVENTS):
        answer = ask(service, n)
        record = service.worker.records["default", answer["decision_id"]]
        event = service.worker.seen["default", f"e-{n}"].event
        wanted = [p for a in (limits, newer) if (p := a.place(event)) is not None]
        assert [(e.experiment, e.arm, e.unit, e.propensity) for e in record.exposed] == [
            (p.experiment, p.name, p.unit, p.propensity) for p in wanted
        ]
        mine = {p.experiment: p.name for p in wanted}
        assert (event["cost"] >= 50) or "limits@1" not in mine
        policy = {"strict": "strict@1", "loose": "loose@1"}.get(mine.get("limits@1", ""))
        model = versions[1] if mine.get("newer@1") == "strict" else versions[0]
        assert record.model == model
        assert record.policy == (policy or f"{model}/thresholds")
        assert (record.experiment, record.arm) == (None, None)
        if policy == "strict@1":
            assert record.action == "review"
        arms.update(mine.values())
        detail = service.get(f"/v1/decisions/{record.decision_id}").json()
        assert detail["exposures"] == [msgspec.to_builtins(e) for e in record.exposed]
    assert set(arms) == {"control", "strict", "loose"}

    state = service.get("/v1/experiments/limits").json()
    assert (state["experiment"], state["state"], state["release"]) == ("limits@1", "running", 4)
    counted = Counter(
        e.arm
        for r in service.worker.records.values()
        for e in r.exposed
        if e.experiment == "limits@1"
    )
    assert {a["name"]: a["exposures"] for a in state["arms"]} == counted
    assert [a["policy"] for a in state["arms"]] == [None, "strict@1", "loose@1"]
    use(service, panel(home, Release(versions[0])))
    assert service.get("/v1/experiments/limits@1").json()["state"] == "stopped"
    untouched = service.get("/v1/experiments/third").json()
    assert (untouched["state"], untouched["arms"][0]["first_exposure"]) == ("published", None)
    assert service.get("/v1/experiments/limits@2").status_code == 404
    assert service.get("/v1/experiments/limits", key=None).status_code == 401


def test_challengers_and_an_experiment_of_policies_run_together(
    home: Path, versions: list[str], tmp_path: Path
) -> None:
    service = Service(home, tmp_path / "t.db")
    release = Release(
        versions[0],
        challengers=(Challenger(versions[1], 0.5),),
        salt="spring",
        experiments=("limits@1",),
    )
    use(service, panel(home, release))
    for n in range(EVENTS):
        ask(service, n)
    records = service.worker.records.values()
    assert {r.experiment for r in records} == {"spring"}
    assert all(r.arm == ("champion" if r.model == versions[0] else r.model) for r in records)
    pairs = {(r.model, r.policy) for r in records if r.exposed}
    assert {m for m, p in pairs if p == "strict@1"} == set(versions)


def test_what_can_not_be_served_together_is_refused(home: Path, versions: list[str]) -> None:
    def refused(kind: type[RaypipeError], match: str, **given: Any) -> None:
        with pytest.raises(kind, match=match):
            panel(home, Release(versions[0], **given))

    refused(NotFound, "no experiment 'lost'", experiments=("lost@1",))
    refused(NotFound, "no version '9'", experiments=("limits@9",))
    refused(ConfigError, "0 to 0.8 of layer", experiments=("newer@1", "third@1"))
    challengers = (Challenger(versions[1], 0.5),)
    refused(
        ConfigError,
        "newer@1 and the challengers",
        experiments=("newer@1",),
        challengers=challengers,
        salt="s",
    )
    with pytest.raises(ConfigError, match="named twice"):
        read({"champion": "fault@1", "experiments": ["a@1", "a@2"]})
    with pytest.raises(ConfigError, match="names no version"):
        read({"champion": "fault@1", "experiments": ["a"]})
    lake = Place.at(home)
    text = POLICIES.replace("limits", "broken").replace("strict@1", "needs@1")
    needs = (
        "name: needs\nversion: 1\nrules: [{name: r, when: ticks > 1, action: review, reason: r}]\n"
    )
    publish(lake, parse_policy(needs), b"", PROJECT, NOW)
    registry.publish(lake, parse_experiment(text), b"", PROJECT, NOW)
    assert panel(home, Release(versions[0], experiments=("broken@1",))).arms
    stranger = parse_experiment(POLICIES.replace("sensor_id", "valve"))
    with pytest.raises(DeclarationError, match="'valve' is no key"):
        registry.publish(lake, stranger, b"", PROJECT, NOW)


def test_exposures_are_logged_with_their_decision_once_and_counted_after_a_death(
    home: Path, versions: list[str], tmp_path: Path
) -> None:
    worker = CoreWorker(tmp_path, PROJECT, ManualClock(NOW))
    service = Service(home, tmp_path / "keys.db", worker=worker)
    use(service, panel(home, Release(versions[0], experiments=("limits@1", "newer@1"))))
    for n in range(30):
        assert ask(service, n) | {"replayed": True} == ask(service, n)
    rows = logged(worker, "exposure")
    decisions = logged(worker, "decision")
    expected = [
        (f"{r.decision_id}/{e.experiment}", e.arm, e.unit, r.event_offset)
        for r in (ledger.decode(d["record"]) for d in decisions)
        for e in r.exposed
    ]
    assert sorted(expected) == sorted(
        (r["event_id"], r["arm"], r["unit"], r["event_offset"]) for r in rows
    )
    assert len({r["event_id"] for r in rows}) == len(rows) > 20
    counts = worker.core.exposures("default", "limits@1")
    assert sum(c.exposures for c in counts) == sum(r["experiment"] == "limits@1" for r in rows)
    assert worker.core.exposures("second", "limits@1") == []
    for saved in (False, True):
        if saved:
            worker.core.save()
            before = len(logged(worker, "exposure"))
            for n in (31, 32, 33):
                ask(service, n)
            counts = worker.core.exposures("default", "limits@1")
            assert len(logged(worker, "exposure")) > before
        worker.start()
        again = worker.core.exposures("default", "limits@1")
        assert {c.arm: c for c in again} == {c.arm: c for c in counts}


def logged(worker: CoreWorker, kind: str) -> list[dict[str, Any]]:
    chunks = worker.log.read(0, 0, 100_000)
    return [row for c in chunks if c.kind == kind for row in c.batch.to_pylist()]


def test_an_older_record_is_read_and_written_as_it_was() -> None:
    fields = dict.fromkeys(("decision_id", "tenant", "event_id", "model", "model_sha256"), "x")
    fields |= dict.fromkeys(("policy", "policy_sha256", "definition_hash", "action"), "x")
    numbers = dict.fromkeys(("event_offset", "event_time", "received_at", "decided_at"), 1)
    old = msgspec.msgpack.encode({**fields, **numbers, "features": b"", "score": 0.5})
    found = ledger.decode(old)
    assert found.exposed == ()
    assert "exposures" not in msgspec.msgpack.decode(ledger.encode(found))
    made = msgspec.structs.replace(found, exposures=(ledger.Exposed("a@1", "b", "u", 0.5),))
    assert ledger.decode(ledger.encode(made)).exposed == made.exposures
