"""The greenhouse through the whole line, in the run's one Ray session: fixtures for the e2e tests.

A test module asks for them with ``pytest_plugins = ["tests.domains.greenhouse_line"]``.
"""

from __future__ import annotations

import csv
import json
import random
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from raypipe.cli._app import app as command_line
from raypipe.clock import DAY_MS, HOUR_MS, SystemClock
from raypipe.config import Settings
from raypipe.runtime.progress import Quiet

PROJECT = "tests.domains.greenhouse:project"
DAYS = 20
OPENINGS = 5_000
LATE_MS = 12 * 60_000

MAPPING = """
[[stream]]
event = "opening"
table = "openings"
time_zone = "Etc/GMT-3"

[stream.columns]
event_id = { from = "no", prefix = "o-" }
event_time = "opened"
received_at = "logged"
valve = { from = "valve_no", prefix = "v-" }
gardener = "who"
litres = { from = "cubic_metres", scale = 1000, round = true }
mode = "how"

[[stream]]
event = "flood"
table = "floods"
time_unit = "s"

[stream.columns]
event_id = "id"
event_time = "seen"
opening_id = { from = "opening", prefix = "o-" }
valve = { from = "valve_no", prefix = "v-" }
"""

DIRTY = {
    "no": [{"no": ""}],
    "opened": [{"opened": "yesterday"}],
    "valve_no": [{"valve_no": ""}, {"valve_no": "7" * 200}],
    "cubic_metres": [{"cubic_metres": "-0.5"}, {"cubic_metres": "much"}, {"cubic_metres": ""}],
    "how": [{"how": "hose"}],
}
"""Changes to good rows, by the column that breaks a rule."""


@dataclass(frozen=True)
class Opening:
    """A row of the generated history, as the loaded event must be."""

    number: int
    at_ms: int
    valve: str
    gardener: str | None
    litres: int
    mode: str | None


@dataclass(frozen=True)
class Line:
    """What the stages before serving left."""

    settings: Settings
    openings: list[Opening]
    floods: dict[int, int]
    """Opening number -> when its flood became known, ms."""
    loaded: dict[str, Any]
    features: dict[str, Any]
    report: dict[str, Any]


@dataclass(frozen=True)
class Served:
    """A served greenhouse: where it answers, and as whom to ask."""

    line: Line
    url: str
    key: str
    model: str

    @property
    def settings(self) -> Settings:
        return self.line.settings

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def client(self) -> httpx.Client:
        """A client with the key; the machine's proxies have no business here."""
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=60.0, trust_env=False)


def free_port() -> int:
    """A port of the loopback interface that nothing uses now, and no connection that goes out will:
    Ray opens hundreds while a session starts, from the ports that 0 would give."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def history(now_ms: int) -> tuple[list[Opening], dict[int, int]]:
    """Openings and floods that end two hours ago. Much water by spray is likely to flood."""
    rng = random.Random(11)
    end = now_ms - 2 * HOUR_MS
    times = sorted(end - rng.randrange(DAYS * DAY_MS) for _ in range(OPENINGS))
    openings = []
    floods = {}
    for number, at_ms in enumerate(times):
        much = rng.random() < 0.06
        opening = Opening(
            number,
            at_ms // 1_000 * 1_000,
            f"v-{min(int(rng.expovariate(0.15)), 30)}",
            rng.choice(["ann", "bo", "cy", None]),
            rng.randrange(5_000, 50_000) if much else rng.randrange(5, 800),
            rng.choice(["drip", "spray", None]),
        )
        openings.append(opening)
        if rng.random() < (0.9 if much and opening.mode == "spray" else 0.002):
            known = opening.at_ms + rng.randrange(1, 20) * HOUR_MS
            if known < end:
                floods[number] = known // 1_000 * 1_000
    return openings, floods


def write_tables(
    folder: Path, openings: list[Opening], floods: dict[int, int]
) -> tuple[list[Path], Path]:
    """Two CSV tables as a garden computer in UTC+3 might write them, dirty rows among them."""
    zone = timedelta(hours=3)

    def clock(ms: int) -> str:
        return (datetime.fromtimestamp(ms / 1000, UTC) + zone).strftime("%Y-%m-%d %H:%M:%S")

    rows: list[dict[str, Any]] = [
        {
            "no": o.number,
            "opened": clock(o.at_ms),
            "logged": clock(o.at_ms + (LATE_MS if o.number % 40 == 7 else 0)),
            "valve_no": o.valve.removeprefix("v-"),
            "who": o.gardener or "",
            "cubic_metres": o.litres / 1_000,
            "how": o.mode or "",
            "colour": "green",
        }
        for o in openings
    ]
    dirty = [change for changes in DIRTY.values() for change in changes]
    for i, change in enumerate(dirty):
        rows.insert(100 * i + 50, rows[100 * i] | {"no": 900_000 + i} | change)
    rows.append(rows[0])  # the same opening twice
    seen = [
        {"id": f"f-{n}", "opening": n, "valve_no": openings[n].valve[2:], "seen": ms // 1_000}
        for n, ms in floods.items()
    ]
    seen.append({"id": "f-none", "opening": "", "valve_no": "1", "seen": seen[0]["seen"]})
    tables = []
    for name, table in (("openings", rows), ("floods", seen)):
        tables.append(folder / f"{name}.csv")
        with tables[-1].open("w", newline="") as f:
            writer = csv.DictWriter(f, list(table[0]), delimiter=";")
            writer.writeheader()
            writer.writerows(table)
    mapping = folder / "greenhouse.toml"
    mapping.write_text(MAPPING)
    return tables, mapping


def raypipe(
    settings: Settings, *arguments: str, code: int = 0, quiet: bool = True
) -> dict[str, Any]:
    """A verb of the command line in this process; its JSON result.

    Args:
        quiet: tell it to show no progress; a verb that has none doesn't know the flag.
    """
    given = ["--json", *(["--quiet"] if quiet else []), "--home", str(settings.home)]
    given += ["--set", f"project={settings.project}", "--set", f"trials={settings.trials}"]
    result = CliRunner().invoke(command_line, [*arguments, *given])
    assert result.exit_code == code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture(scope="session")
def greenhouse_line(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Line:
    """CSV -> mapping -> log -> features -> Feast -> model, by the verbs that a user types."""
    folder = tmp_path_factory.mktemp("greenhouse")
    settings = Settings(
        home=folder / "home", project=PROJECT, trials=2, http_port=free_port(), replica_cpus=0.1
    )
    openings, floods = history(SystemClock().now_ms())
    tables, mapping = write_tables(folder, openings, floods)
    loaded = raypipe(settings, "load", *map(str, tables), "--map", str(mapping), code=3)
    features = raypipe(settings, "features")
    report = raypipe(settings, "train")
    return Line(settings, openings, floods, loaded, features, report)


@pytest.fixture(scope="module")
def greenhouse(greenhouse_line: Line) -> Iterator[Served]:
    """The greenhouse served over HTTP while a module's tests run."""
    from ray import serve

    from raypipe.runtime.worker import actor
    from serving import ingest
    from serving.run import serve as start

    announced = []
    try:
        about = start(greenhouse_line.settings, Quiet(), lambda *where: announced.append(where))
        assert [url for url, _ in announced] == [about["url"]]
        key = Path(about["api_key"]).read_text().strip()
        yield Served(greenhouse_line, about["url"], key, about["model"])
    finally:
        ingest.stop()
        serve.shutdown()
        actor.stop()
