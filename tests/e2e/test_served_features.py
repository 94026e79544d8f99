"""A served system: a key's values over HTTP, parity of what it decided, SQL beside it."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from features import parity
from features.parity_report import Report
from features.pipeline import build
from features.profiles.lookup import ProfileReader
from features.query import run as query
from raypipe.clock import DAY_MS, HOUR_MS, SystemClock
from raypipe.config import Settings
from raypipe.ledger.record import DecisionRecord
from raypipe.log.sqlite import SqliteLog
from raypipe.runtime.progress import Quiet
from raypipe.runtime.worker.core import WorkerCore
from raypipe.vector.assemble import FEATURE_VALUE, Assembler
from tests.domains import greenhouse as declared
from tests.domains import orchard
from tests.domains.greenhouse_line import Line, Served, raypipe
from tests.unit.served_home import decision

pytest_plugins = ["tests.domains.greenhouse_line"]
pytestmark = [pytest.mark.ray, pytest.mark.slow]

VALVES = 4


@pytest.fixture
def client(greenhouse: Served) -> Iterator[httpx.Client]:
    with greenhouse.client() as client:
        yield client


def decide(client: httpx.Client, i: int, valve: str, late_ms: int = 0, name: str = "") -> None:
    now = SystemClock().now_ms()
    body = {
        "event_id": f"served{name}-{valve}-{i}",
        "event_time": now - late_ms,
        "valve": valve,
        "gardener": ("ann", "bo", None)[i % 3],
        "litres": 10 * i,
        "mode": ("drip", "spray", None)[i % 3],
    }
    answer = client.post("/v1/decisions", json=body)
    assert answer.status_code == 200, answer.text


def values(client: httpx.Client, path: str) -> dict[str, Any]:
    answer = client.get(f"/v1/features/{path}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_key_has_the_values_that_its_next_decision_sees(client: httpx.Client) -> None:
    # A valve of its own: other modules decide about the greenhouse's within the same ten minutes.
    before = values(client, "valve/v-own")
    assert not before["degraded"]
    decide(client, 1, "v-own")
    after = values(client, "valve/v-own")
    assert list(after["values"]) == [
        n for v in declared.project.views if v.entity == "valve" for n in v.column_names
    ]
    grown = {n: after["values"][n] - before["values"][n] for n in ("valve_count_2d",)}
    assert grown == {"valve_count_2d": 1}
    assert after["values"]["valve_litres_sum_10m"] == 10
    assert values(client, "valve/v-own")["values"]["valve_count_10m"] == 1


def test_an_unknown_key_has_no_events_and_an_unknown_entity_is_none(client: httpx.Client) -> None:
    new = values(client, "valve/never%20seen%2F%C3%BC")
    assert new["key"] == "never seen/ü"
    assert new["values"]["valve_count_2d"] == 0
    assert new["values"]["valve_litres_mean_2d"] is None
    answer = client.get("/v1/features/tree/v-1")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert "valve, gardener" in answer.json()["hint"]
    document = client.get("/openapi.json").json()
    route = document["paths"]["/v1/features/{entity}/{key}"]["get"]
    assert route["parameters"][0]["schema"]["enum"] == ["valve", "gardener"]


def test_decisions_of_a_served_system_are_those_of_the_batch(
    greenhouse: Served, client: httpx.Client
) -> None:
    for i in range(30):
        decide(client, i, f"v-{i % VALVES}", late_ms=HOUR_MS if i % 7 == 3 else 0, name="-parity")
    assert "raypipe_parity" not in client.get("/metrics").text
    report = raypipe(greenhouse.settings, "parity", "--since", "1h")
    assert report["compared"] >= 30
    assert report["compared"] == report["decisions"]
    # Others have killed this system's worker, and were answered without it.
    assert {n for cause, n in report["mismatches"].items() if cause != "worker_away"} == {0}
    text = client.get("/metrics").text
    compared = re.search(r'^raypipe_parity_decisions\{.*result="compared"\} (.+)$', text, re.M)
    assert compared is not None
    assert float(compared[1]) == report["compared"]
    unexplained = r'^raypipe_parity_mismatches\{cause="unexplained",.*\} 0\.0$'
    assert re.search(unexplained, text, re.M)


def test_sql_answers_beside_the_server(greenhouse: Served, client: httpx.Client) -> None:
    decide(client, 99, "v-2")
    settings = greenhouse.settings
    joined = (
        "select d.action, o.litres, s.valve_count_2d from decisions d"
        " join opening o using (event_id)"
        " left join (select * from valve_state where valve = 'v-2'"
        " order by created desc limit 1) s using (valve)"
        " where d.event_id = 'served-v-2-99'"
    )
    [[action, litres, count]] = raypipe(settings, "sql", joined)["rows"]
    assert (action in ("approve", "review", "block"), litres) == (True, 990)
    assert count > 0
    features = 'select count(*) from valve_at_event join opening using (event_id, "offset")'
    found = query(settings, features, limit=1, timeout_s=60, memory_mb=512)
    assert found.rows == [[len(greenhouse.line.openings)]]


def test_the_catalogue_knows_the_build(greenhouse_line: Line, tmp_path: Path) -> None:
    found = raypipe(greenhouse_line.settings, "features", "--list")
    assert found["build"] == greenhouse_line.features["build"]
    [count] = [f for f in found["features"] if f["name"] == "valve_count_2d"]
    assert count["freshness"] > "2026"
    page = tmp_path / "catalogue.html"
    raypipe(greenhouse_line.settings, "features", "--html", str(page))
    assert count["freshness"] in page.read_text()


def test_while_the_worker_hangs_the_last_state_is_answered_with_its_age(
    greenhouse: Served, client: httpx.Client
) -> None:
    import ray

    line = greenhouse.line
    fresh = values(client, "valve/v-0")
    worker = ray.get_actor("worker-0", namespace="raypipe")
    pid = ray.get(worker.pid.remote())
    os.kill(pid, signal.SIGSTOP)
    try:
        stale = values(client, "valve/v-0")
        unknown = values(client, "valve/never-seen")
    finally:
        os.kill(pid, signal.SIGCONT)
    newest = max(o.at_ms for o in line.openings if o.valve == "v-0")
    floods = [at for n, at in line.floods.items() if line.openings[n].valve == "v-0"]
    assert stale["degraded"]
    # Decisions of other tests may have made it younger: changed states are written as they change.
    assert 0 <= stale["age_ms"] <= stale["as_of"] - min(newest, *floods[-1:] or [newest])
    assert stale["values"].keys() == fresh["values"].keys()
    assert stale["values"]["valve_count_2d"] > 0
    assert set(unknown["values"].values()) == {None}
    assert not values(client, "valve/v-0")["degraded"]


# Profiles


def orchard_settings(home: Path) -> Settings:
    return Settings(home=home, project="tests.domains.orchard:project", features_blocks=2)


def serve_orchard(home: Path, day: int) -> list[DecisionRecord]:
    """Decisions about the harvests of a day, with the profiles that are online."""
    settings, model = orchard_settings(home), orchard.project.model("picked")
    reader = ProfileReader(orchard.project.profiles, home, settings.online_url)
    assembler = Assembler(orchard.project, model)
    records = []
    with closing(SqliteLog.open(settings.log_url)) as log:
        core = WorkerCore(orchard.project, log)
        for kind, event in orchard.day(day):
            entry, _ = core.observe(event, event["event_id"].encode().ljust(32), kind)
            if kind != "harvest" or event["tenant"] != "default":
                continue
            known = reader.read(event, event["received_at"])
            row = assembler.row(entry.event, entry.windows, known.values).astype(FEATURE_VALUE)
            record = decision(entry.event, entry.offset, row.tobytes())
            record = _of_orchard(record, known.times)
            core.record(record, entry.windows)
            records.append(record)
        core.commit()
    reader.close()
    return records


def _of_orchard(record: DecisionRecord, times: tuple[int, ...]) -> DecisionRecord:
    from msgspec.structs import replace

    return replace(
        record,
        model="picked@1",
        definition_hash=orchard.project.definition_hash,
        profile_times=times,
    )


def test_profiles_are_compared_with_what_the_batch_made_of_their_day(
    ray_session: None, tmp_path: Path
) -> None:
    settings = orchard_settings(tmp_path)
    with closing(SqliteLog.open(settings.log_url)) as log:
        for day in range(6):
            orchard.append(log, day)
    build(settings, Quiet())
    records = serve_orchard(tmp_path, 6)
    known = [r for r in records if r.profile_times != (-1,)]
    assert len(known) > 20

    def measure() -> Report:
        names = {"picked@1": orchard.project.model("picked").features}
        return parity.run(settings, names.get, keys=100)

    report = measure()
    assert (report.compared, report.failed) == (len(records), False)
    assert set(report.mismatches.values()) == {0}
    assert max(r.profile_times[0] for r in known) == orchard.START_MS + 6 * DAY_MS

    # The same decisions against a batch that knows other values for that day.
    _tamper(settings)
    report = measure()
    wrong = {f.feature for f in report.features if f.mismatches}
    assert wrong == {"tree_year_yield_mean", "to_mean"}
    assert report.failed


def _tamper(settings: Settings) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = settings.home / "profiles" / orchard.PROFILE.name
    for file in folder.rglob("values/*.parquet"):
        table = pq.read_table(file)
        at = table.column_names.index("tree_year_yield_mean")
        more = [None if v is None else v + 1 for v in table.column(at).to_pylist()]
        pq.write_table(table.set_column(at, table.field(at), pa.array(more, pa.float64())), file)
    assert json.loads((folder / "manifest.json").read_text())["segments"]
