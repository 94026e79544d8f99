"""`raypipe quarantine` and `raypipe ingest` against a server of bulk events."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from typer.testing import CliRunner, Result

from raypipe.cli._app import app
from raypipe.events.quarantine import Quarantine
from tests.unit.ingest_kit import LIMIT, Service, lines, reading

DECLARED = "tests.unit.serving_kit:PROJECT"


class Live:
    """The ingest application on a port, and the command line on its home folder."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.service = Service(home)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.server = uvicorn.Server(
            uvicorn.Config(self.service.app, port=self.port, lifespan="off", log_level="critical")
        )
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()

    def call(self, *arguments: object) -> Result:
        common = {"ingest_port": self.port, "ingest_body_bytes": LIMIT, "project": DECLARED}
        words = [w for name, value in common.items() for w in ("--set", f"{name}={value}")]
        return CliRunner().invoke(app, [*map(str, arguments), *words, "--home", str(self.home)])

    def said(self, *arguments: object, code: int = 0) -> dict[str, Any]:
        result = self.call(*arguments, "--json")
        assert result.exit_code == code, result.stderr
        found: dict[str, Any] = json.loads(result.stdout)
        return found


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    for name in list(os.environ):
        if name.startswith("RAYPIPE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    live = Live(tmp_path / "home")
    monkeypatch.setenv("RAYPIPE_API_KEY", live.service.key)
    yield live
    live.close()


def test_refused_rows_are_shown_mended_and_dropped(live: Live) -> None:
    live.service.post(
        lines(
            *(reading(f"r-{i}", currency="USD") for i in range(3)),
            reading("x", cost="free", currency="USD"),
            reading("y", heat=5_000),
        )
    )
    listed = live.call("quarantine", "list", "--type", "reading", "--reason", "/heat").stdout
    assert "must be at most 1000" in listed
    assert "/currency" not in listed
    shown = live.call("quarantine", "show", "1")
    assert "/v1/events" in shown.stdout
    assert "must be EUR" in shown.stdout
    assert "2025-10-09T" in shown.stdout
    done = live.call("quarantine", "retry", "--reason", "/currency", "--replace", "currency=EUR")
    assert done.exit_code == 3, done.stderr
    assert "accepted    3\n" in done.stdout
    assert "refused     1\n" in done.stdout
    assert "1 /cost: must be an integer" in done.stdout
    assert "resolved" in live.call("quarantine", "show", "1").stdout
    dropped = live.said("quarantine", "drop", "--id", "4", "--id", "5", "--note", "tests")
    assert dropped == {"dropped": 2}
    assert live.call("quarantine", "list").stdout.startswith("Nothing of tenant default")
    assert "(dropped: tests)" in live.call("quarantine", "list", "--settled").stdout
    assert live.said("quarantine", "retry", "--all")["accepted"] == 0


def test_wrong_usage_and_missing_rows(live: Live) -> None:
    live.service.post(lines(reading("a", currency="USD")))
    for arguments in (["retry"], ["drop", "--note", "x"]):
        result = live.call("quarantine", *arguments)
        assert result.exit_code == 2
        assert "--all" in result.stderr
    assert live.call("quarantine", "show", "7").exit_code == 1
    wrong = live.call("quarantine", "retry", "--all", "--replace", "colour=red")
    assert wrong.exit_code == 2
    assert "currency" in wrong.stderr
    for arguments in (["ingest"], ["ingest", "a", "--watch", "b"], ["ingest", "a", "--once"]):
        assert live.call(*arguments).exit_code == 2


def test_without_a_system_or_a_key_the_next_command_is_named(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    live.service.post(lines(reading("a", currency="USD")))
    port, live.port = live.port, 9
    away = live.call("quarantine", "retry", "--all")
    live.port = port
    assert away.exit_code == 1
    assert "raypipe up" in away.stderr
    monkeypatch.delenv("RAYPIPE_API_KEY")
    assert "raypipe serve" in live.call("quarantine", "retry", "--all").stderr
    other = live.call("quarantine", "retry", "--all", "--tenant", "other")
    assert other.exit_code == 1  # has no rows, and no key either
    assert "RAYPIPE_API_KEY" in other.stderr
    assert live.said("quarantine", "list")["counts"]


def test_a_full_quarantine_says_so(live: Live) -> None:
    full = Quarantine(live.home / "quarantine.db", limit_rows=1)
    full.add("post", "reading", [("{}", ["x"])] * 3)
    full.close()
    assert live.said("quarantine", "list")["tally"] == {"kept": 1, "unkept": 2, "forgotten": 0}
    assert "2 more rows were refused and not kept" in live.call("quarantine", "list").stdout


def test_files_are_ingested(live: Live, tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_bytes(lines(*(reading(f"r-{i}") for i in range(6_000))))
    (tmp_path / "b.json").write_text(json.dumps([reading("x", cost="free"), reading("r-1")]))
    first = live.said("ingest", "a.ndjson")
    assert (first["accepted"], first["refused"]) == (6_000, 0)
    assert live.said("ingest", "a.ndjson") == first
    second = live.said("ingest", "a.ndjson", "b.json", "--in-flight", "1", code=3)
    assert (second["accepted"], second["duplicates"], second["refused"]) == (6_000, 1, 1)
    assert [kind for kind, _ in live.service.logged()].count("reading") == 6_000
    (tmp_path / "in").mkdir()
    (tmp_path / "a.ndjson").rename(tmp_path / "in/again.ndjson")
    watched = live.said("ingest", "--watch", "in", "--once")
    assert (watched["files"], watched["accepted"]) == (1, 6_000)
    assert (tmp_path / "in/done/again.ndjson").is_file()
    assert live.call("ingest", "none.ndjson").exit_code == 1
