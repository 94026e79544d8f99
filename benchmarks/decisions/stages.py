"""Where each microsecond of a decision goes: its steps, timed one by one in this process.

The same functions that a replica and a worker call, on a copy of the home, without HTTP, sockets
and other processes. What a decision over HTTP takes beyond their sum is those.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import msgspec
import numpy as np

from raypipe.config import Settings

GROUP = 8
"""Decisions of a group commit, as eight connections make one."""

_WAIT = "a commit alone"
_SHARED = f"a commit of {GROUP}, each one's part"


class Watch:
    """Microseconds by stage; ``lap`` ends one."""

    def __init__(self) -> None:
        self.taken: dict[str, list[float]] = {}
        self._since = 0.0

    def start(self) -> None:
        """From now on."""
        self._since = time.perf_counter()

    def lap(self, stage: str) -> None:
        """What was done since the last lap belongs to ``stage``."""
        now = time.perf_counter()
        self.taken.setdefault(stage, []).append((now - self._since) * 1e6)
        self._since = time.perf_counter()

    def medians(self) -> dict[str, float]:
        """By stage, in the order of the first lap."""
        return {stage: float(np.median(values)) for stage, values in self.taken.items()}


def measure(
    settings: Settings, model: str, bodies: Sequence[bytes], policy: str | None = None
) -> dict[str, float]:
    """Median microseconds of each stage over the bodies.

    Args:
        settings: of a home that nothing runs on; its log gets the bodies' events.
        model: ``name@version``.
        policy: ``name@version``; None for the thresholds of the model.
    """
    return asyncio.run(_measure(settings, model, bodies, policy))


async def _measure(
    settings: Settings, model: str, bodies: Sequence[bytes], policy: str | None
) -> dict[str, float]:
    from features.profiles.lookup import ProfileReader
    from raypipe.clock import SystemClock
    from raypipe.events.body import parse_object
    from raypipe.events.row import RowValidator
    from raypipe.events.schema import canonical_json
    from raypipe.ledger import record as ledger
    from raypipe.log.sqlite import SqliteLog
    from raypipe.policy.registry import load_policy
    from raypipe.project import load_project
    from raypipe.runtime.worker import protocol
    from raypipe.runtime.worker.core import WorkerCore
    from raypipe.tenancy.keys import KeyStore, Scope
    from serving import schemas
    from serving.auth import authorize
    from serving.credentials import Credentials
    from serving.scoring import load_judge

    project, clock = load_project(settings.project), SystemClock()
    rules = None if policy is None else load_policy(settings.lake, policy, project)
    name, _, version = model.partition("@")
    judge = load_judge(settings.lake / "models", project, name, version, "review", rules)
    validator = RowValidator(project.decision_event, settings.currency)
    names = [f.name for f in project.decision_event.client_fields]
    reader = ProfileReader(project.profiles, settings.home, settings.online_url)
    store = KeyStore(settings.home / "stages-keys.db", clock)
    keys = Credentials(_Here(store))
    header = "Bearer " + store.create(settings.tenant, ["decisions:write"])
    watch = Watch()
    with closing(SqliteLog.open(settings.log_url)) as log:
        core = WorkerCore(project, log, tenant=settings.tenant)
        for number, body in enumerate(bodies):
            watch.start()
            parsed = parse_object(body)
            watch.lap("parse")
            event = validator.check(parsed, settings.tenant, clock.now_ms())
            watch.lap("validate")
            given = {n: event[n] for n in names if event[n] is not None}
            body_hash = hashlib.sha256(canonical_json(given)).digest()
            watch.lap("body hash")
            await authorize(header, Scope.DECISIONS_WRITE, keys)
            watch.lap("authorize")
            profiles = reader.read(event)
            watch.lap("profiles")
            asked = protocol.Observe(number, event, body_hash)
            protocol.decode_request(_payload(protocol.frame(asked)))
            watch.lap("frames")
            entry, _ = core.observe(event, body_hash)
            watch.lap("worker: observe")
            seen = protocol.Observed(number, entry.offset, entry.windows, entry.event, None)
            watch.start()
            row = judge.features.row(event, entry.windows, profiles.values)
            watch.lap("features")
            score = judge.scorer.score(row)
            watch.lap("score")
            lists = judge.lists.of(settings.tenant)
            judge.policy.decide(score, event, row, lists, clock.now_ms())
            watch.lap("policy")
            judge.scorer.reasons(row)
            watch.lap("reasons, where not approved")
            record = judge.judge(seen, profiles, clock)
            watch.start()
            data = ledger.encode(record)
            ledger.decode(data)
            watch.lap("record's bytes")
            msgspec.json.encode(schemas.answer(record, False))
            watch.lap("answer's JSON")
            core.record(record, entry.windows)
            watch.lap("worker: record")
            if number < len(bodies) // 2:
                core.commit()
                watch.lap(_WAIT)
            elif number % GROUP == 0:
                core.commit()
                watch.lap(_SHARED)
    found = watch.medians()
    if _SHARED in found:
        found[_SHARED] /= GROUP
    return found


class _Here:
    """The worker's keys without the worker."""

    def __init__(self, store: Any) -> None:
        self._store = store

    async def verify(self, shown: Any) -> Any:
        return self._store.verify(shown)


def _payload(frame: bytes) -> bytes:
    from raypipe.runtime.worker import protocol

    [body] = protocol.FrameBuffer().feed(frame)
    return bytes(body)


def table(
    stages: Mapping[str, float], not_approved: float, whole_us: float, cpu_us: float
) -> Iterator[str]:
    """The stages as lines, with what is left of a decision over HTTP on one connection.

    Args:
        not_approved: share of decisions whose reasons were found.
        whole_us: median latency on one connection.
        cpu_us: CPU of all processes for a decision.
    """
    known = 0.0
    for stage, us in stages.items():
        if stage == _SHARED:
            continue
        share = not_approved if stage.startswith("reasons") else 1.0
        known += us * share
        yield f"{us * share:7.0f} us  {stage}" + (f" ({us:.0f} each)" if share < 1 else "")
    yield f"{whole_us - known:7.0f} us  HTTP, sockets, waking up: the rest of the latency at c=1"
    yield f"{whole_us:7.0f} us  latency at c=1; CPU of all processes {cpu_us:.0f} us a decision"
    if _SHARED in stages:
        yield f"{stages[_SHARED]:7.0f} us  {_SHARED}"


def names(stages: Mapping[str, float]) -> dict[str, float]:
    """As figures."""
    return {
        "stage_us_" + "".join(c if c.isalnum() else "_" for c in s).replace("__", "_"): us
        for s, us in stages.items()
    }
