"""The main job as a user runs it: from nothing to a serving system, and down again."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from features.payments import project
from raypipe.client import AsyncClient, Client, Decision
from raypipe.errors import InputError
from raypipe.lake import Place
from raypipe.ledger.record import decode
from raypipe.log.sqlite import SqliteLog
from raypipe.runtime.worker.core import GROUP
from tests.domains.greenhouse_line import free_port
from training import artefact, registry

pytestmark = [pytest.mark.ray, pytest.mark.slow]

COMMAND = str(Path(sys.executable).with_name("raypipe"))
SIZE = ["--events", "12000", "--days", "40", "--requests", "150", "--trials", "2"]
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@dataclass
class Shell:
    """Runs the command in an environment and a folder of its own; ends all that it started."""

    folder: Path
    environment: dict[str, str]
    port: int = field(default_factory=free_port)
    started: list[psutil.Process] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [COMMAND, *arguments, "--home", str(self.home)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
            cwd=self.folder,
        )
        self.started.append(psutil.Process(process.pid))
        return process

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=400)
        return process.returncode, out, err

    def tree(self, process: subprocess.Popen[str]) -> list[psutil.Process]:
        """The process and everything under it now."""
        root = psutil.Process(process.pid)
        found = [root, *root.children(recursive=True)]
        self.started += found[1:]
        return found

    def end(self) -> None:
        """Kill what is left, children first seen included."""
        for process in list(self.started):
            try:
                self.started += process.children(recursive=True)
            except psutil.NoSuchProcess:
                continue
        for process in reversed(self.started):
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue


@dataclass
class Up:
    """A serving ``raypipe up``: its summary, and what it wrote on stderr so far."""

    shell: Shell
    process: subprocess.Popen[str]
    summary: dict[str, Any]
    progress: list[str]

    @property
    def url(self) -> str:
        return str(self.summary["serving"]["url"])

    @property
    def key(self) -> str:
        return Path(self.summary["serving"]["api_key"]).read_text().strip()

    def ask(self, method: str, path: str, key: str | None = "own", **given: Any) -> httpx.Response:
        text = self.key if key == "own" else key
        headers = {} if text is None else {"Authorization": f"Bearer {text}"}
        return httpx.request(
            method, self.url + path, headers=headers, timeout=60, trust_env=False, **given
        )


@pytest.fixture(scope="module")
def shell(
    tmp_path_factory: pytest.TempPathFactory, user_environment: dict[str, str]
) -> Iterator[Shell]:
    folder = tmp_path_factory.mktemp("up")
    environment = {k: v for k, v in user_environment.items() if not k.startswith(("RAY", "SERVE"))}
    shell = Shell(folder, environment | {"HOME": str(folder)})
    try:
        yield shell
    finally:
        shell.end()


@pytest.fixture(scope="module")
def up(shell: Shell) -> Up:
    """From nothing to serving; the summary is the one line on stdout."""
    process = shell.start("up", *SIZE, "--port", str(shell.port), "--json")
    progress: list[str] = []
    assert process.stderr is not None
    assert process.stdout is not None
    # Read all the time: a full pipe would stop the process.
    reader = threading.Thread(target=progress.extend, args=(process.stderr,), daemon=True)
    reader.start()
    line = process.stdout.readline()
    assert line, "".join(progress)
    return Up(shell, process, json.loads(line), progress)


def logged(home: Path) -> tuple[dict[str, int], dict[str, Any]]:
    """Rows of the log by kind, and its decisions by event id."""
    decisions = {}
    with closing(SqliteLog(home / "log")) as log:
        for chunk in log.read(0, 0, 1_000_000):
            if chunk.kind == "decision":
                for record in map(decode, chunk.batch.column("record").to_pylist()):
                    decisions[record.event_id] = record
        return log.counts(0), decisions


def test_the_summary_says_what_lies_in_home(up: Up) -> None:
    summary, home = up.summary, up.shell.home
    assert "failed" not in summary
    replay, counts = summary["replay"], logged(home)[0]
    assert replay["requests"] == 150
    assert counts["decision"] == replay["requests"] == sum(replay["actions"].values())
    assert replay["errors"] == 0
    assert counts["transaction"] == summary["events"]["transaction"] + replay["requests"]
    assert counts["chargeback"] == summary["events"]["chargeback"]
    assert 10_000 < summary["events"]["transaction"] < 14_000
    assert summary["refused"] == 0
    assert replay["p50_ms"] <= replay["p95_ms"] <= replay["p99_ms"]

    version = summary["model"]["version"]
    model = artefact.load(registry.locate(Place.at(home) / "models", "fraud"), project)
    assert model.reference == summary["serving"]["model"] == f"fraud@{version}"
    report = Path(summary["model"]["report"])
    assert report.is_relative_to(home)
    assert version in report.read_text()
    told = json.loads(report.with_name("report.json").read_text())
    assert told["test"]["average_precision"] == summary["model"]["average_precision"]
    assert len(told["sweep"]) == 2
    assert Path(summary["serving"]["api_key"]).stat().st_mode & 0o777 == 0o600
    assert not (home.parent / ".ray").exists()  # nothing in the user's own folder


def test_decisions_know_the_profiles_of_yesterday_and_a_key_is_told_of_with_its(up: Up) -> None:
    decisions = logged(up.shell.home)[1].values()
    known = [r for r in decisions if min(r.profile_times, default=-1) > 0]
    assert len(known) > len(decisions) / 2
    assert not any(r.degraded for r in decisions)
    shop = re.search(r'"merchant_id": "([^"]+)"', up.summary["try"])
    assert shop is not None
    answer = up.ask("GET", f"/v1/features/merchant/{shop[1]}")
    assert answer.status_code == 200
    values = answer.json()["values"]
    assert values["merchant_count_35d"] > 0
    assert values["merchant_profile_tenure_days"] > 0
    assert not answer.json()["degraded"]


def test_progress_is_a_line_a_stage_and_nothing_else(up: Up) -> None:
    stages = ["simulate", "load", "features", "profiles", "feast", "dataset", "sweep", "evaluate"]
    stages += ["worker", "ingest", "serve", "replay"]
    assert [line.split()[0] for line in up.progress if line.endswith(" started\n")] == stages
    # On a machine that is busy with other things Ray warns of slow starts.
    own = [line for line in up.progress if "(raylet)" not in line]
    assert [x for x in own if not re.match(rf"({'|'.join(stages)}|note) +\S", x)] == []


def test_status_says_that_it_serves(up: Up) -> None:
    code, out, _ = up.shell.run("status", "--json")
    status = json.loads(out)
    assert code == 0
    assert (status["running"], status["ready"], status["state"]) == (True, True, "serving")
    assert (status["pid"], status["verb"]) == (up.process.pid, "up")
    assert status["http_url"] == up.url == f"http://127.0.0.1:{up.shell.port}"
    # It is this one that answers there.
    ready = up.ask("GET", "/readyz").json()
    assert ready["model"] == up.summary["serving"]["model"]
    assert ready["definition_hash"] == project.definition_hash


def test_the_printed_curl_decides(up: Up) -> None:
    words = shlex.split(up.summary["try"])
    assert words[:2] == ["curl", "-s"]
    assert words[2] == f"{up.url}/v1/decisions"
    body = json.loads(words[words.index("-d") + 1])
    answer = up.ask("POST", "/v1/decisions", json=body)
    assert answer.status_code == 200, answer.text
    decision = answer.json()
    assert (decision["event_id"], decision["replayed"]) == (body["event_id"], False)
    assert decision["action"] in ("approve", "review", "block")
    whole = up.ask("GET", f"/v1/decisions/{decision['decision_id']}")
    assert whole.status_code == 200
    assert all(whole.json()[n] == v for n, v in decision.items() if n != "replayed")
    assert list(whole.json()["features"]) == list(project.model("fraud").features)
    record = logged(up.shell.home)[1][body["event_id"]]
    assert (record.decision_id, record.score) == (decision["decision_id"], decision["score"])
    if shutil.which("curl"):
        pasted = subprocess.run(
            ["bash", "-c", up.summary["try"]],
            capture_output=True,
            env=up.shell.environment | {"no_proxy": "*"},
            check=True,
            timeout=60,
        )
        assert json.loads(pasted.stdout) == decision | {"replayed": True}


def test_the_client_decides_explains_reports_and_reads(up: Up) -> None:
    body = json.loads(shlex.split(up.summary["try"])[-1])
    before = logged(up.shell.home)[0]
    ingest = f"http://127.0.0.1:{up.shell.port + 1}"
    with Client(up.url, up.key, ingest_url=ingest, timeout_s=60, trust_env=False) as client:
        single = client.decide(body | {"event_id": "client-0"}, explain=True)
        assert (single.event_id, single.replayed) == ("client-0", False)
        whole = client.decision(single.decision_id, explain=True)
        assert whole.reasons == single.reasons
        assert len(whole.feature_bytes) == 4 * len(project.model("fraud").features)

        rows = [body | {"event_id": f"client-{n}"} for n in range(200)]
        outcomes = client.decide_batch([*rows, {"event_id": "client-bad"}], rows=100)
        decisions = [o.get() for o in outcomes[:-1]]
        assert [d.event_id for d in decisions] == [r["event_id"] for r in rows]
        assert [d.replayed for d in decisions] == [n == 0 for n in range(200)]
        assert decisions[0].reasons == client.decide(rows[0]).reasons
        offsets = [d.event_offset for d in decisions]
        assert offsets == sorted(offsets)
        assert isinstance(outcomes[-1].error, InputError)

        events = [body | {"event_id": f"bulk-{n}"} for n in range(50)]
        assert client.send_events(events, kind="transaction", rows=20).accepted == 50
        assert client.features("merchant", body["merchant_id"]).values["merchant_count_1d"] > 200
        [table, *_] = project.tables
        assert client.table(table.name).definition_hash == table.definition_hash
    after, decided = logged(up.shell.home)
    assert after["transaction"] == before["transaction"] + 250
    assert sum(i.startswith("client-") for i in decided) == 200
    record = decided["client-0"]
    assert (record.decision_id, record.score) == (single.decision_id, single.score)

    async def at_once() -> list[Decision]:
        async with AsyncClient(up.url, up.key, timeout_s=60, trust_env=False) as client:
            return await asyncio.gather(*(client.decide(row) for row in rows[:20]))

    assert all(d.replayed for d in asyncio.run(at_once()))


def test_nobody_decides_without_a_key(up: Up) -> None:
    before = logged(up.shell.home)[0]
    for key in (None, "rp_local_0123456789ab_" + "0" * 64, up.key[:-2]):
        answer = up.ask("POST", "/v1/decisions", key, json={"event_id": "stranger"})
        assert answer.status_code == 401
        assert answer.headers["content-type"] == "application/problem+json"
        assert up.ask("GET", "/v1/decisions/dec_x", key).status_code == 401
    now = logged(up.shell.home)[0]
    assert now | {"alert": 0} == before | {"alert": 0}  # patterns find theirs when they do


def test_nothing_listens_to_other_machines(up: Up) -> None:
    listening = {
        (process.name(), c.laddr.ip, c.laddr.port)
        for process in up.shell.tree(up.process)
        for c in process.net_connections("inet")
        if c.status == psutil.CONN_LISTEN
    }
    assert ("haproxy", "127.0.0.1", up.shell.port) in listening
    statistics_and_metrics = {p for name, _, p in listening if name == "haproxy"} - {up.shell.port}
    assert len(statistics_and_metrics) == 2
    assert {ip for _, ip, _ in listening} <= LOOPBACK


def test_answers_carry_the_request_id_once(up: Up) -> None:
    key = {"Authorization": f"Bearer {up.key}", "X-Request-Id": "r-1"}
    for path, status in (("/healthz", 200), ("/v1/decisions/dec_x", 404), ("/nowhere", 404)):
        answer = httpx.get(up.url + path, headers=key, trust_env=False)
        assert answer.status_code == status
        assert answer.headers.get_list("x-request-id") == ["r-1"]
    answer = up.ask("POST", "/v1/decisions", json={})
    assert answer.status_code == 422
    assert answer.headers.get_list("x-request-id") == [answer.json()["request_id"]]


def test_a_second_one_on_the_same_home_is_refused(up: Up) -> None:
    code, _, err = up.shell.run("up", "--once", "--port", str(free_port()))
    assert code == 1
    assert f"pid {up.process.pid}" in err


def test_down_leaves_no_process(up: Up) -> None:
    tree = up.shell.tree(up.process)
    assert len(tree) > 5
    code, out, _ = up.shell.run("down", "--json")
    assert code == 0
    assert json.loads(out)["stopped"] is True
    assert up.process.wait(60) == 0
    assert up.process.stdout is not None
    assert up.process.stdout.read() == ""
    _, alive = psutil.wait_procs(tree, timeout=60)
    assert alive == []
    code, out, _ = up.shell.run("status", "--json")
    assert (code, json.loads(out)["running"]) == (1, False)
    assert not (up.shell.home / "run.json").exists()
    with closing(SqliteLog(up.shell.home / "log")) as log:
        committed = log.committed(GROUP, 0)
        assert committed is not None
        assert committed[0] == log.end(0), "the worker left no snapshot of its last state"


def test_killed_at_once_with_all_its_processes_it_counts_as_absent(up: Up) -> None:
    """The next test starts on the home that this one leaves."""
    process = up.shell.start("up", *SIZE, "--port", str(free_port()))
    assert process.stderr is not None
    assert any(line.startswith("serve ") for line in process.stderr)
    tree = up.shell.tree(process)
    for one in tree:
        one.kill()
    process.communicate()
    assert (up.shell.home / "run.json").exists()
    code, out, _ = up.shell.run("status", "--json")
    assert (code, json.loads(out)["running"]) == (1, False)
    code, out, _ = up.shell.run("down", "--json")
    assert (code, json.loads(out)["stopped"]) == (0, False)


def test_a_second_run_keeps_what_is_there(up: Up) -> None:
    """By Ray Serve's own proxy, which the first one did not use."""
    assert up.process.poll() is not None
    counts, decisions = logged(up.shell.home)
    port = ["--port", str(free_port()), "--set", "ingress=proxy"]
    code, out, err = up.shell.run("up", "--once", *SIZE, *port, "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert summary["events"] == counts
    assert summary["serving"]["model"] == up.summary["serving"]["model"]
    assert [x.split()[0] for x in err.splitlines() if x.endswith(" started")][:3] == [
        "worker",
        "ingest",
        "serve",
    ]
    assert err.count("kept") == 3
    again, kept = logged(up.shell.home)
    new = summary.get("replay", {"requests": 0})["requests"]
    assert again["decision"] == counts["decision"] + new
    assert {i: kept[i] for i in decisions} == decisions


def test_a_port_that_is_taken_fails_the_stage_with_a_cure(up: Up) -> None:
    assert up.process.poll() is not None
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = up.shell.run("up", *SIZE, "--port", str(port), "--json")
    assert code == 3
    [said] = json.loads(out)["failed"]["serve"]
    assert f"127.0.0.1:{port}" in said
    assert "--port" in said
    assert "failed: serve" in err
    assert "Traceback" not in err


def test_a_stop_before_it_serves_is_partial(up: Up) -> None:
    assert up.process.poll() is not None
    process = up.shell.start("up", "--once", *SIZE, "--port", str(free_port()))
    assert process.stderr is not None
    assert any(line.startswith("worker") for line in process.stderr)
    tree = up.shell.tree(process)
    os.kill(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "Stopped before the end" in err
    _, alive = psutil.wait_procs(tree, timeout=60)
    assert alive == []
