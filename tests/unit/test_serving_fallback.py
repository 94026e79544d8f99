"""A replica without its worker: in time, degraded, recorded, and of one mind with the log later."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from features.online import OnlineRow
from raypipe.clock import HOUR_MS, MINUTE_MS
from raypipe.errors import Conflict, Unavailable
from raypipe.events.row import RowValidator
from raypipe.lake import Place
from raypipe.ledger.record import DecisionRecord, decode
from raypipe.ledger.spill import Spill
from raypipe.policy.lists import EMPTY
from raypipe.policy.reading import parse_policy
from raypipe.policy.rules import RuleSet
from raypipe.windows.spec import WindowView, count, last, since_last, spans
from serving import taking_in
from serving.decide import Decider, NoProfiles
from serving.entrance import Entrance
from serving.fairness import Gate
from serving.fallback import Fallback
from serving.presence import SILENT_S, Presence
from serving.scoring import load_judge
from serving.spill import SpillWriter
from serving.taking_in import BATCH, TakingIn
from tests.unit.serving_kit import (
    FEATURES,
    HOT,
    NOW,
    PROJECT,
    READING,
    MemoryWorker,
    Service,
    body,
    train,
)

DEADLINE_MS = 2_000


@dataclass
class Worker(MemoryWorker):
    """Keeps answers beside decisions too, and can be cut off."""

    told: list[tuple[DecisionRecord, dict[str, Any], str]] = field(default_factory=list)
    reachable: bool = True
    hangs_in_record: bool = False

    async def record(self, record: DecisionRecord, windows: bytes) -> DecisionRecord:
        if not self.hangs_in_record:
            return await super().record(record, windows)
        await super().record(record, windows)  # it comes there, and no answer comes back
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def tell(self, record: DecisionRecord, event: dict[str, Any], reason: str) -> None:
        await self._reached()
        self.told.append((record, event, reason))


class Replica:
    """One replica of a node with a fallback; all of a node share a worker and a spill."""

    def __init__(self, home: Path, folder: Path, worker: Worker | None = None) -> None:
        self.service = Service(home, folder / "keys.db")
        self.worker = worker or Worker(self.service.worker.keys)
        self.worker.keys = self.service.worker.keys
        self.service.worker = self.service.app._worker = self.worker
        self.writer = SpillWriter(lambda: Spill(folder / "spill", 2**20))
        self.writer.open()
        self.presence = Presence(self.worker, 4, 60.0)
        self.fallback = Fallback(
            PROJECT,
            self.service.stored,
            "default",
            self.writer,
            self.presence,
            reserve_s=60,  # half of each budget is kept for it, on any machine
        )
        self.service.app.decider = Decider(
            READING,
            RowValidator(READING, "EUR"),
            self.worker,
            self.service.judge,
            self.service.clock,
            DEADLINE_MS / 1_000,
            None,
            self.fallback,
        )
        keys = self.service.app._known
        self.service.app._entrance = Entrance(keys, Gate(64, 64), DEADLINE_MS, self.presence)
        self.taking_in = TakingIn(self.worker, self.writer, self.presence, READING)

    def post(self, payload: dict[str, Any], **headers: str) -> httpx.Response:
        return self.service.post(payload, **headers)

    def leave(self, *, noticed: bool = True) -> None:
        """The worker dies. The key is known: it has decided for this client before."""
        self.worker.hangs, self.worker.reachable = True, False
        self.presence.away = noticed

    def come_back(self) -> None:
        self.worker.hangs, self.worker.reachable = False, True
        asyncio.run(self.taking_in.step())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    train(folder)
    return folder


@pytest.fixture
def replica(home: Path, tmp_path: Path) -> Iterator[Replica]:
    made = Replica(home, tmp_path)
    assert made.post(body(event_id="first")).status_code == 200
    yield made
    made.writer.close()


@pytest.fixture
def other(home: Path, tmp_path: Path, replica: Replica) -> Iterator[Replica]:
    """Another replica on the same node."""
    made = Replica(home, tmp_path, replica.worker)
    made.worker.keys = replica.service.keys
    made.service.key = replica.service.key
    assert made.post(body(event_id="first")).status_code == 200
    yield made
    made.writer.close()


def recorded(replica: Replica, event_id: str) -> DecisionRecord:
    encoded = replica.worker.seen["default", event_id].decision
    assert encoded is not None
    return decode(encoded)


PLACE = ("event_offset", "replayed")


def same(one: httpx.Response, two: httpx.Response) -> bool:
    """Whether two clients were told the same; a place in the log may have become known."""
    assert one.status_code == two.status_code == 200, (one.text, two.text)
    left, right = ({k: v for k, v in r.json().items() if k not in PLACE} for r in (one, two))
    return left == right


def test_a_degraded_answer_comes_in_time_and_is_recorded_later(replica: Replica) -> None:
    replica.leave(noticed=False)
    answer = replica.post(body())
    told = answer.json()
    assert (answer.status_code, told["replayed"]) == (200, False)
    assert (told["degraded"], told["degraded_by"]) == (True, ["worker_away"])
    assert told["event_offset"] is None
    assert replica.writer.opened.backlog().rows == 1
    replica.come_back()
    assert replica.writer.opened.backlog().rows == 0
    record = recorded(replica, "r-1")
    assert record.spilled
    assert (record.event_offset, record.score) == (1, told["score"])
    again = replica.post(body())
    assert same(answer, again)
    assert (again.json()["replayed"], again.json()["event_offset"]) == (True, 1)


def test_a_replica_that_ends_hands_over_what_its_node_has_kept(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taking_in, "ANSWER_S", 1.0)
    replica.leave()
    for number in range(BATCH + 3):
        assert replica.post(body(event_id=f"r-{number}")).status_code == 200

    async def end() -> None:
        finished = asyncio.create_task(replica.taking_in.finish())
        await asyncio.sleep(0.3)
        assert not finished.done()
        replica.worker.hangs, replica.worker.reachable = False, True
        await asyncio.wait_for(finished, 30)

    asyncio.run(end())
    assert replica.writer.opened.backlog().rows == 0
    assert all(recorded(replica, f"r-{number}").spilled for number in range(BATCH + 3))


def test_once_one_has_waited_in_vain_the_others_do_not_wait(replica: Replica) -> None:
    replica.leave(noticed=False)
    assert replica.presence.worth_asking
    replica.post(body())
    assert not replica.presence.worth_asking
    assert replica.post(body(event_id="r-2")).json()["degraded_by"] == ["worker_away"]
    replica.come_back()
    assert replica.post(body(event_id="r-3")).json()["degraded"] is False


def test_a_replica_without_its_worker_is_ready_and_says_how(replica: Replica) -> None:
    assert replica.service.get("/readyz").json()["status"] == "ready"
    replica.worker.failure = Unavailable("gone")
    answer = replica.service.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")


def test_the_windows_are_the_last_that_were_written(replica: Replica) -> None:
    stored = replica.service.stored.rows
    stored["s-1"] = OnlineRow("s-1", NOW - MINUTE_MS, {"sensor_count_1h": 7.0})
    stored["s-2"] = OnlineRow("s-2", NOW - 2 * HOUR_MS, {"sensor_count_1h": 7.0})
    replica.leave()
    for number, value in enumerate((7.0, np.nan, np.nan), 1):
        event_id = f"r-{number}"
        answer = replica.post(body(event_id=event_id, sensor_id=f"s-{number}", **HOT))
        assert answer.json()["action"] in ("review", "block")  # the model judges as ever
        features = replica.writer.find("default", event_id).record.features
        window = np.frombuffer(features, "<f4")[FEATURES.index("sensor_count_1h")]
        assert np.array_equal(window, np.float32(value), equal_nan=True)


def test_a_key_that_is_missing_and_a_value_that_has_aged_are_no_numbers(replica: Replica) -> None:
    views = (
        WindowView("side", "sensor", "reading", "side", (count(),), spans("1h/1m")),
        WindowView(
            "tap", "sensor", "reading", "sensor_id",
            (count(), since_last(), last("cost")), spans("10m/10s", "1h/1m"),
        ),
    )  # fmt: skip
    fallback = replica.fallback
    fallback._project = SimpleNamespace(views=views)  # type: ignore[assignment]
    names = views[1].column_names
    row = OnlineRow("s-1", NOW - HOUR_MS // 2, dict.fromkeys(names, 3.0))
    replica.service.stored.rows["s-1"] = row
    event = {"side": None, "sensor_id": "s-1", "event_time": NOW - HOUR_MS, "received_at": NOW}
    values = np.frombuffer(fallback._read(event), "<f8").tolist()
    known = dict(zip((*views[0].column_names, *names), values, strict=True))
    assert {n for n, v in known.items() if v == 3.0} == {"tap_count_1h", "tap_cost_last"}


def test_without_any_windows_on_error_answers(replica: Replica) -> None:
    replica.service.stored.read = _no_store  # type: ignore[method-assign]
    replica.leave()
    told = replica.post(body()).json()
    assert told["degraded_by"] == ["worker_away", "no_windows"]
    assert (told["action"], told["score"]) == ("review", None)


CAREFUL = """
name: careful
version: 1
thresholds: {default: {block: 1.0}}
rules:
  - name: large
    when: worker_away and cost >= 500
    action: block
    reason: Large amounts wait until what came lately is known again.
"""


def test_a_policy_knows_that_the_worker_is_away_and_so_does_its_record(
    replica: Replica, home: Path
) -> None:
    rules = RuleSet(parse_policy(CAREFUL), PROJECT)
    judge = load_judge(Place.at(home) / "models", PROJECT, "fault", None, "review", rules)
    replica.service.app.decider.judge = judge
    assert replica.post(body(event_id="here", cost=500)).json()["action"] == "approve"
    replica.leave()
    assert replica.post(body(event_id="small", cost=499)).json()["action"] == "approve"
    told = replica.post(body(event_id="large", cost=500)).json()
    assert (told["action"], told["reasons"][0]["code"]) == ("block", "LARGE")
    replica.service.stored.read = _no_store  # type: ignore[method-assign]
    told = replica.post(body(event_id="blind", cost=500)).json()
    assert (told["action"], told["score"]) == ("block", None)  # on_error alone would review
    replica.come_back()
    for event_id, fired in (("here", ()), ("small", ()), ("large", ("large",))):
        record, event = recorded(replica, event_id), replica.worker.seen["default", event_id].event
        row = np.frombuffer(record.features, "<f4")
        again = judge.policy.decide(
            record.score, event, row, EMPTY, record.decided_at, record.worker_away
        )
        assert (again.action.value, again.rules) == (record.action, record.rule_hits)
        assert record.rule_hits == fired


def _no_store(*_: Any) -> OnlineRow:
    raise Unavailable("no store here")


def test_another_tenants_windows_are_never_read(replica: Replica) -> None:
    service = replica.service
    key = service.keys.create("acme", ["decisions:write"])
    assert service.post(body(event_id="before"), key=key).status_code == 200
    service.stored.rows["s-1"] = OnlineRow("s-1", NOW, {"sensor_count_1h": 7.0})
    replica.leave()
    assert service.post(body(), key=key).json()["degraded_by"] == ["worker_away", "no_windows"]


def test_a_key_that_was_never_confirmed_is_not_let_in(replica: Replica) -> None:
    service = replica.service
    replica.leave()
    stranger = service.keys.create("acme", ["decisions:write"])
    answer = service.post(body(), key=stranger)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert replica.writer.opened.backlog().rows == 0


def test_a_retry_gets_the_same_answer_wherever_it_comes(replica: Replica, other: Replica) -> None:
    replica.leave()
    first = replica.post(body())
    assert same(first, replica.post(body()))
    other.service.stored.rows["s-1"] = OnlineRow("s-1", NOW, {"sensor_count_1h": 40.0})
    assert same(first, other.post(body()))
    # The worker is back, and what was spilled is not taken in yet.
    replica.worker.hangs, replica.worker.reachable = False, True
    other.presence.back()
    third = other.post(body())
    assert same(first, third)
    assert third.json()["replayed"] is True
    replica.come_back()
    assert same(first, other.post(body()))
    assert not replica.worker.told
    assert len(replica.worker.records) == 2  # and that of the event before


def test_another_body_is_a_conflict_also_while_the_worker_is_away(
    replica: Replica, other: Replica
) -> None:
    replica.leave()
    replica.post(body())
    assert replica.post(body(cost=1)).status_code == 409
    replica.worker.hangs, replica.worker.reachable = False, True
    other.presence.back()
    assert other.post(body(cost=1)).status_code == 409
    assert list(replica.worker.seen) == [("default", "first")]


def test_a_decision_on_its_way_to_the_worker_is_the_one_that_is_told(replica: Replica) -> None:
    replica.worker.hangs_in_record = True
    answer = replica.post(body())
    assert (answer.status_code, answer.json()["degraded"]) == (200, False)
    replica.worker.hangs_in_record = False
    replica.come_back()
    assert same(answer, replica.post(body()))
    assert not recorded(replica, "r-1").spilled
    assert not replica.worker.told


def test_an_observation_that_came_late_counts_once(replica: Replica) -> None:
    """The worker got the event and answered after the client had its answer."""
    replica.leave()
    answer = replica.post(body())
    event = replica.writer.find("default", "r-1").event
    replica.worker.hangs = False
    hashed = replica.service.app.decider.body_hash(event)
    asyncio.run(replica.worker.observe(event | {"received_at": NOW - 5}, hashed))
    replica.come_back()
    record = recorded(replica, "r-1")
    assert record.received_at == answer.json()["received_at"]
    assert same(answer, replica.post(body()))


def test_an_answer_that_another_decision_beat_is_kept_beside_it(replica: Replica) -> None:
    """Two tries at once, on two nodes that don't see each other's spill."""
    replica.leave()
    answer = replica.post(body())
    event = replica.writer.find("default", "r-1").event
    replica.worker.hangs = False

    async def elsewhere() -> DecisionRecord:
        service = replica.service
        seen = await replica.worker.observe(event, service.app.decider.body_hash(event))
        mine = service.judge.judge(seen, NoProfiles(), service.clock)
        return await replica.worker.record(mine, seen.own)

    first = asyncio.run(elsewhere())
    replica.come_back()
    assert recorded(replica, "r-1") == first
    [(told, kept, reason)] = replica.worker.told
    assert (told.action, told.degraded, kept) == (answer.json()["action"], True, event)
    assert "first" in reason
    assert replica.writer.opened.backlog().rows == 0
    assert replica.taking_in.taken == {"contradicted": 1}


def test_an_event_that_the_worker_refuses_is_kept_beside_the_log(replica: Replica) -> None:
    replica.leave()
    replica.post(body())
    replica.post(body(event_id="r-2"))
    replica.worker.hangs = False

    async def other_body() -> None:
        event = replica.writer.find("default", "r-1").event
        await replica.worker.observe(event | {"cost": 3}, b"other")

    asyncio.run(other_body())
    replica.come_back()
    [(_, _, reason)] = replica.worker.told
    assert reason == "event 'r-1' came before with another body"
    assert replica.taking_in.taken == {"refused": 1, "recorded": 1}


def test_what_can_not_be_kept_is_not_answered(replica: Replica, monkeypatch: Any) -> None:
    def refused(*_: Any) -> list[Any]:
        raise OSError(28, "No space left on device")

    replica.leave()
    monkeypatch.setattr(Spill, "keep", refused)
    answer = replica.post(body())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "space" in answer.json()["detail"]
    monkeypatch.undo()
    assert replica.post(body()).status_code == 200


def test_a_spill_that_can_not_be_read_answers_nothing_either(
    replica: Replica, monkeypatch: Any
) -> None:
    """It may hold what this client was told."""

    def refused(*_: Any) -> None:
        raise Unavailable("the spill can't be read")

    monkeypatch.setattr(SpillWriter, "find", refused)
    assert replica.post(body()).status_code == 503


def test_many_at_once_are_all_told(replica: Replica) -> None:
    replica.leave()

    async def crowd() -> list[httpx.Response]:
        async def one(i: int) -> httpx.Response:
            sent = body(event_id=f"r-{i % 40}")
            headers = replica.service._headers("own")
            return await replica.service.call("POST", "/v1/decisions", json=sent, headers=headers)

        return await asyncio.gather(*map(one, range(60)))

    answers = asyncio.run(crowd())
    assert {a.status_code for a in answers} == {200}
    assert {a.json()["degraded"] for a in answers} == {True}
    assert replica.writer.opened.backlog().rows == 40
    replica.come_back()
    assert len(replica.worker.records) == 41
    assert replica.taking_in.taken == {"recorded": 40}


class Reached:
    reachable = True


def test_a_worker_is_away_when_it_answers_nobody() -> None:
    now = [0.0]
    worker = Reached()
    presence = Presence(worker, 2, 1.0, lambda: now[0])

    def asking() -> AbstractContextManager[None]:
        return presence.asking(asyncio.Timeout(None))

    def wait(seconds: float, *, answered: bool) -> None:
        try:
            with asking():
                now[0] += seconds
                if not answered:
                    raise TimeoutError
        except TimeoutError:
            presence.in_vain()

    wait(SILENT_S / 2, answered=False)  # an impatient client makes nobody degraded
    assert presence.worth_asking
    now[0] += 60
    wait(SILENT_S / 2, answered=False)
    assert presence.worth_asking
    wait(SILENT_S, answered=False)
    assert not presence.worth_asking
    presence.back()
    assert presence.worth_asking
    with suppress(Conflict), asking():
        now[0] += 60
        raise Conflict("an answer too")
    presence.in_vain()
    assert presence.worth_asking
    worker.reachable = False
    with asking(), asking():
        assert not presence.worth_asking  # enough wait for it
    wait(0.001, answered=False)
    assert presence.away


def test_nobody_waits_for_a_worker_that_could_not_be_reached_for_a_while() -> None:
    now = [0.0]
    worker = Reached()
    presence = Presence(worker, 2, 1.0, lambda: now[0])

    def pass_by(seconds: float, *, reachable: bool) -> None:
        worker.reachable = reachable
        presence.look()
        now[0] += seconds
        presence.look()

    async def ask() -> None:
        async with asyncio.timeout(3_600) as limit:
            with presence.asking(limit):
                pass_by(0.9, reachable=False)
                pass_by(0.9, reachable=True)  # it has come back: that begins anew
                pass_by(0.9, reachable=False)
                assert not presence.away
                pass_by(0.2, reachable=False)
                assert presence.away
                await asyncio.sleep(3_600)

    pass_by(60.0, reachable=False)  # nobody asked
    with pytest.raises(TimeoutError):
        asyncio.run(ask())
    assert not presence.worth_asking
