"""An experiment over HTTP: it finds a planted uplift and logs each exposure once, whoever dies."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from features.experiments import run as experiments
from raypipe.clock import SystemClock
from raypipe.ledger.record import decode
from raypipe.ledger.spill import backlog
from raypipe.log.sqlite import SqliteLog
from raypipe.runtime.progress import Quiet
from tests.domains.greenhouse_line import Served, raypipe
from tests.e2e.test_decisions_survive import replica_pids, worker_pid

pytest_plugins = ["tests.domains.greenhouse_line"]
pytestmark = [pytest.mark.ray, pytest.mark.slow]

UNITS, EACH = 520, 3
CLIENTS = 4
TIGHT, WIDE = 300, 500
PLANTED = (WIDE - TIGHT) / 1_000
"""Litres are drawn from 0 to below 1,000, and a policy approves what is below its limit."""

POLICY = """
name: {name}
version: 1
rules:
  - {{name: much, when: litres >= {limit}, action: block, reason: That is too much.}}
"""
EXPERIMENT = """
name: more_water
version: 1
unit: gardener
arms:
  tight: {share: 0.45, policy: tight@1}
  wide: {share: 0.45, policy: wide@1}
eligible: mode == 'drip'
segments: [mode]
metrics:
  - {name: opened, of: conversion}
  - {name: water, of: revenue, value: litres, cap: {quantile: 0.99}}
  - {name: took, of: latency}
minimum_effect: 0.1
horizon: 14d
"""


def published(served: Served, folder: Path) -> None:
    """Both policies and the experiment, by the verbs of a user."""
    for name, limit in (("tight", TIGHT), ("wide", WIDE)):
        file = folder / f"{name}.yaml"
        file.write_text(POLICY.format(name=name, limit=limit))
        raypipe(served.settings, "policy", "publish", str(file), quiet=False)
    file = folder / "more_water.yaml"
    file.write_text(EXPERIMENT)
    for verb in ("validate", "publish"):
        told = raypipe(served.settings, "experiment", verb, str(file), quiet=False)
        assert told["experiment"] == "more_water@1"


def bodies() -> list[dict[str, Any]]:
    rng = random.Random(23)
    asked = [
        {
            "event_id": f"water-{unit}-{n}",
            "event_time": SystemClock().now_ms(),
            "valve": f"w-{unit % 5}",  # other tests count what the v- valves had
            "gardener": f"w-{unit}",
            "litres": rng.randrange(1_000),
            "mode": "drip" if n else "spray",
        }
        for unit in range(UNITS)
        for n in range(EACH + 1)
    ]
    rng.shuffle(asked)
    return asked


async def decide(served: Served, asked: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every answer, with a replica and the worker killed on the way; each event is asked for until
    it is answered."""
    answers: dict[str, dict[str, Any]] = {}
    waiting = iter(asked)

    def kill() -> None:
        if len(answers) == len(asked) // 3:
            os.kill(worker_pid(), signal.SIGKILL)
        elif len(answers) == 2 * len(asked) // 3:
            for pid in replica_pids():
                os.kill(pid, signal.SIGKILL)

    async with httpx.AsyncClient(
        base_url=served.url, headers=served.headers, timeout=60.0, trust_env=False
    ) as client:

        async def loop() -> None:
            for body in waiting:
                while body["event_id"] not in answers:
                    try:
                        answer = await client.post("/v1/decisions", json=body)
                    except httpx.TransportError:
                        await asyncio.sleep(0.05)
                        continue
                    if answer.status_code == 200:
                        answers[body["event_id"]] = answer.json()
                    else:
                        assert answer.status_code == 503, answer.text
                        await asyncio.sleep(0.05)
                kill()

        await asyncio.gather(*(loop() for _ in range(CLIENTS)))
    return answers


def test_an_experiment_finds_what_was_planted_and_logs_each_exposure_once(
    greenhouse: Served, tmp_path: Path
) -> None:
    settings = greenhouse.settings
    published(greenhouse, tmp_path)
    started = raypipe(settings, "experiment", "start", "more_water")
    assert started["serves"] is True
    assert started["release"]["experiments"] == ["more_water@1"]
    answers = asyncio.run(decide(greenhouse, bodies()))
    deadline = time.monotonic() + 60
    while backlog(settings.spill_dir).rows:
        assert time.monotonic() < deadline, "spilled decisions are not taken in"
        time.sleep(0.1)

    # Each decision of an eligible unit has its one exposure in the log, and no other does.
    decided, exposed = logged(settings.log_url)
    mine = {i: r for i, r in decided.items() if i in answers}
    assert mine.keys() == answers.keys()
    assert all(answers[i]["action"] == r.action for i, r in mine.items())
    expected = {(r.decision_id, e.arm, e.unit) for r in mine.values() for e in r.exposed}
    assert sorted(expected) == sorted(exposed)
    assert {i for i, r in mine.items() if r.exposed} <= {i for i in answers if i[-2:] != "-0"}
    units = {(unit, arm) for _, arm, unit in exposed}
    assert len(units) == len(dict(units)) > UNITS * 0.8
    counts = Counter(arm for _, arm, _ in exposed)
    with greenhouse.client() as client:
        state = client.get("/v1/experiments/more_water").json()
    assert (state["state"], state["release"]) == ("running", started["number"])
    assert {a["name"]: a["exposures"] for a in state["arms"]} == counts
    told = raypipe(settings, "experiment", "status", "more_water", quiet=False)
    assert {n: a["exposures"] for n, a in told["arms"].items()} == counts
    assert sum(a["units"] for a in told["arms"].values()) == len(units)

    # The planted uplift is in the table of units, which Ray Data makes too.
    _, made = experiments.run(settings, Quiet(), "more_water")
    table = made.table(settings.lake)
    assert (made.units, made.mixed) == (len(units), 0)
    rates, errors = zip(*(rate(table.to_pylist(), arm) for arm in ("tight", "wide")), strict=True)
    assert abs(rates[1] - rates[0] - PLANTED) < 4 * np.hypot(*errors)
    assert rates[1] - rates[0] > 4 * np.hypot(*errors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments, "TASK_ROWS", 0)
        patch.setattr(experiments, "PART_ROWS", 2_000)
        _, again = experiments.run(settings, Quiet(), "more_water@1")
    assert again.folder != made.folder
    assert again.table(settings.lake).to_pandas().equals(table.to_pandas())  # NaN is NaN there
    told = raypipe(settings, "experiment", "report", "more_water")
    assert (told["verdict"]["state"], told["verdict"]["arm"]) == ("better", "wide")
    found = told["findings"][0]
    assert found["low"] < PLANTED < found["high"]
    assert found["difference"] == pytest.approx(rates[1] - rates[0])
    assert Path(told["report"]).read_text().startswith("<!doctype html>")

    # What won is served to everybody, by one release that a rollback undoes.
    won = raypipe(settings, "experiment", "promote", "more_water", "wide", "--reason", "it won")
    assert (won["release"]["policy"], won["release"]["experiments"]) == ("wide@1", [])
    with greenhouse.client() as client:
        detail = client.get("/v1/experiments/more_water").json()
        assert (detail["state"], detail["release"]) == ("stopped", None)
        body = bodies()[0] | {"event_id": "water-after"}
        after = client.post("/v1/decisions", json=body).json()
        whole = client.get(f"/v1/decisions/{after['decision_id']}").json()
    assert (after["policy"], whole["exposures"]) == ("wide@1", [])
    raypipe(settings, "release", "rollback", "--to", str(started["previous"]))


def logged(url: str) -> tuple[dict[str, Any], list[tuple[str, str, str]]]:
    """Every decision by its event, and (decision, arm, unit) of every exposure."""
    log = SqliteLog.open(url)
    decided, exposed = {}, []
    try:
        for chunk in log.read(0, 0, 1_000_000):
            if chunk.kind == "decision":
                for data in chunk.batch.column("record").to_pylist():
                    record = decode(data)
                    assert record.event_id not in decided
                    decided[record.event_id] = record
            elif chunk.kind == "exposure":
                names = ("decision_id", "arm", "unit")
                exposed += list(
                    zip(*(chunk.batch.column(n).to_pylist() for n in names), strict=True)
                )
    finally:
        log.close()
    return decided, exposed


def rate(rows: list[dict[str, Any]], arm: str) -> tuple[float, float]:
    """Approved by decided of an arm, and its standard error by units (delta method)."""
    mine = [r for r in rows if r["arm"] == arm]
    y, n = (np.array([r[c] for r in mine]) for c in ("opened", "opened__of"))
    ratio = y.sum() / n.sum()
    return ratio, float(np.std(y - ratio * n, ddof=1) / n.mean() / np.sqrt(len(n)))
