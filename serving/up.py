"""The whole main job in a straight line: simulate, load, features, train, serve, replay.

Each stage's result stays under home or in the lake, and a stage whose result is there is not done
again, so a second ``up`` goes on where the first one ended: also with the world, whose next
payments are new.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypipe.clock import DAY_MS, HOUR_MS, SystemClock
from raypipe.errors import IntegrityError, NotFound, RaypipeError
from raypipe.events.quarantine import QUARANTINE_FILE
from raypipe.log.opening import open_log
from raypipe.log.port import EventLog
from raypipe.ownership.claim import require_one, require_single
from raypipe.project import Project, load_project
from raypipe.runtime import placement, session
from serving.release import Release
from serving.releases import Releases, somebody
from serving.replay import Replayed, replay
from serving.run import Announce, serve

if TYPE_CHECKING:
    from raypipe.config import Settings
    from raypipe.runtime.progress import Progress
    from raypipe.simulate.world import LiveRow, World

STATE = "up.json"
PARTITION = 0
TX_PER_CUSTOMER_DAY = 1.2
LIVE_REACHES = (1.1, 1.5, 2.0, 3.0, 5.0)
"""Tried in turn: how much longer than at the mean rate the live payments may take."""
MADE_HERE = ("world", "log", "feast", "snapshots", "staging")
MADE_IN_THE_LAKE = (
    "export",
    "features",
    "profiles",
    "models",
    "retrieval",
    "ranking",
    "tune",
    "reports",
    "releases",
    "shadows",
)
"""What ``--fresh`` drops; keys and tenants stay."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the flags of ``raypipe up`` ask for."""

    events: int
    days: int
    requests: int
    fresh: bool


def run(
    settings: Settings,
    progress: Progress,
    *,
    events: int,
    days: int,
    requests: int,
    fresh: bool,
    announce: Announce,
) -> tuple[dict[str, Any], list[str]]:
    """Run all stages; returns the summary and the names of the stages that failed.

    The first failure ends the line: what comes later would work on nothing. Serving goes on if
    only the replay had errors.
    """
    plan = Plan(events, days, requests, fresh)
    return _Line(settings, progress, plan, announce).run()


class _Line:
    """The stages in order, with what one hands to the next."""

    def __init__(
        self, settings: Settings, progress: Progress, plan: Plan, announce: Announce
    ) -> None:
        self._settings = settings
        self._progress = progress
        self._plan = plan
        self._announce = announce
        self._project: Project = load_project(settings.project)
        self._summary: dict[str, Any] = {}

    def run(self) -> tuple[dict[str, Any], list[str]]:
        if self._settings.ray_address is not None:
            session.start(self._settings)
            placement.require_log_node(self._settings)
        if self._plan.fresh:
            # Dropping a topic that others may use is not for a flag of this command.
            _ = self._settings.log_directory
            for name in MADE_HERE:
                shutil.rmtree(self._settings.home / name, ignore_errors=True)
            for name in MADE_IN_THE_LAKE:
                (self._settings.lake / name).remove_tree()
            for name in (STATE, QUARANTINE_FILE):
                (self._settings.home / name).unlink(missing_ok=True)
        stages: tuple[tuple[str, Callable[[], list[str]]], ...] = (
            ("history", self._history),
            ("features", self._features),
            ("train", self._train),
            ("serve", self._serve),
            ("replay", self._replay),
        )
        for name, stage in stages:
            try:
                wrong = stage()
            except RaypipeError as e:
                self._progress.note(str(e))
                wrong = [str(e)]
            if wrong:
                return {"failed": {name: wrong}, **self._summary}, [name]
        return self._summary, []

    def _history(self) -> list[str]:
        """A simulated world whose history is loaded into the log."""
        require_one(self._settings.workers, "`raypipe up`")
        with closing(open_log(self._settings.log_url, self._settings.log_cache)) as log:
            require_single(log, "`raypipe up`")
            if log.end(PARTITION):
                self._progress.note(f"the log has {log.end(PARTITION):,} events: kept")
            else:
                self._simulate(log)
            self._summary["events"] = log.counts(PARTITION)
        return []

    def _simulate(self, log: EventLog) -> None:
        from raypipe.events.load import load
        from raypipe.events.mapping import read_mapping
        from raypipe.events.quarantine import Quarantine
        from raypipe.simulate.write import CHARGEBACKS, MAPPING, TRANSACTIONS, write

        home, out = self._settings.home, self._settings.home / "world"
        config = self._world_config()
        with self._progress.stage("simulate", unit="events") as stage:
            written = write(_world(config), out, stage.reach)
            stage.say(f"{written.counts.frauds:,} frauds in {config['days']} days")
        (home / STATE).write_text(json.dumps({"world": config, "replayed": 0}))
        with (
            self._progress.stage("load", unit="rows") as stage,
            closing(
                Quarantine(home / QUARANTINE_FILE, limit_rows=self._settings.quarantine_limit_rows)
            ) as quarantine,
        ):
            report = load(
                log,
                self._project,
                [out / TRANSACTIONS, out / CHARGEBACKS],
                read_mapping(out / MAPPING, self._project),
                tenant=self._settings.tenant,
                currency=self._settings.currency,
                quarantine=quarantine,
                staging_dir=home / "staging",
                progress=lambda done, _: stage.reach(done),
            )
            stage.say(f"{report.rejected:,} refused, {sum(report.duplicates.values()):,} twice")
        self._summary["refused"] = report.rejected

    def _world_config(self) -> dict[str, Any]:
        """History ends where the live payments begin, and these end now.

        People sleep: the hours before now may hold fewer payments than the mean, so the history
        ends earlier until the live ones are as many as were asked for.
        """
        now, requests = SystemClock().now_ms(), self._plan.requests
        for reach in LIVE_REACHES:
            config = self._world_until(now, reach)
            if all(_happened(row, now) for row in _world(config).live(requests)):
                break
        return config

    def _world_until(self, now: int, reach: float) -> dict[str, Any]:
        """A world whose live payments take ``reach`` times their mean time and end at ``now``."""
        plan = self._plan
        a_day = plan.events / plan.days
        live_ms = round(plan.requests / a_day * DAY_MS * reach)
        return {
            "seed": self._settings.seed,
            "start_ms": now - live_ms - plan.days * DAY_MS,
            "days": plan.days,
            "customers": max(1, round(a_day / TX_PER_CUSTOMER_DAY)),
            "merchants": max(20, round(a_day / TX_PER_CUSTOMER_DAY * 0.4)),
            "tx_per_customer_day": TX_PER_CUSTOMER_DAY,
        }

    def _features(self) -> list[str]:
        from features.builds import Build
        from features.pipeline import build

        try:
            made_by = Build.current(self._settings.lake).manifest.definition_hash
        except (NotFound, IntegrityError):
            made_by = ""
        if made_by == self._project.definition_hash:
            self._progress.note("the features fit the declarations: kept")
            return []
        build(self._settings, self._progress)
        return []

    def _train(self) -> list[str]:
        from training import registry
        from training.artefact import read_manifest
        from training.fraud import train

        model, models = self._project.models[0].name, self._settings.lake / "models"
        version = registry.current(models, model)
        if version is not None:
            manifest = read_manifest(models / model / version)
            if manifest.definition_hash == self._project.definition_hash:
                self._progress.note(f"{model}@{version} fits the declarations: kept")
                return []
        report = train(self._settings, self._progress)
        releases = Releases(self._settings.lake)
        if releases.current() is not None:
            # The release before was of other declarations, or its model is gone.
            releases.record(
                Release(champion=f"{report.model}@{report.version}"),
                by=somebody(),
                reason="`raypipe up` trained it: no model fitted the declarations",
            )
        review = report.operating_points["review"]
        self._summary["model"] = {
            "version": report.version,
            "average_precision": report.test["average_precision"],
            "base_rate": report.test["base_rate"],
            "recall": review["recall"],
            "precision": review["precision"],
            "false_positive_rate": review["fpr"],
            "report": f"{report.directory}/report.html",
        }
        return []

    def _serve(self) -> list[str]:
        self._summary["serving"] = serve(self._settings, self._progress, self._announce)
        return []

    def _replay(self) -> list[str]:
        state_path = self._settings.home / STATE
        if not self._plan.requests or not state_path.exists():
            return []
        state = json.loads(state_path.read_text())
        rows = self._live_rows(_world(state["world"]), state["replayed"])
        if not rows:
            self._progress.note("the world has no new payments yet: nothing to replay")
            return []
        serving = self._summary["serving"]
        with self._progress.stage("replay", total=len(rows), unit="requests") as stage:
            bodies = [row.body for row in rows]
            done = replay(
                serving["url"], Path(serving["api_key"]).read_text().strip(), bodies, stage.advance
            )
            stage.say(f"p50 {done.percentile_ms(50):.1f} ms, p99 {done.percentile_ms(99):.1f} ms")
        state["replayed"] += len(rows)
        state_path.write_text(json.dumps(state))
        self._summary["replay"] = _outcome(rows, done)
        self._summary["try"] = _curl(serving, rows[-1].body)
        return [f"{n} x {what}" for what, n in done.errors.items()]

    def _live_rows(self, world: World, replayed: int) -> list[LiveRow]:
        """The world's next payments that have happened by now."""
        now = SystemClock().now_ms()
        rows = list(world.live(replayed + self._plan.requests))[replayed:]
        return [row for row in rows if _happened(row, now)]


def _happened(row: LiveRow, now: int) -> bool:
    return bool(max(row.received_at, row.body["event_time"]) <= now)


def _world(config: dict[str, Any]) -> World:
    from raypipe.simulate.config import WorldConfig
    from raypipe.simulate.world import World

    return World(WorldConfig(**config))


def _outcome(rows: list[LiveRow], done: Replayed) -> dict[str, Any]:
    """Latencies, actions, and the actions on what was fraud in the simulated world."""
    fraud = {r.body["event_id"] for r in rows if r.is_fraud}
    flagged = {i for i, action in done.answers.items() if action != "approve"}
    return {
        "requests": len(rows),
        "errors": sum(done.errors.values()),
        "requests_per_s": round(len(done.latencies) / done.seconds, 1),
        "p50_ms": round(done.percentile_ms(50), 2),
        "p95_ms": round(done.percentile_ms(95), 2),
        "p99_ms": round(done.percentile_ms(99), 2),
        "actions": dict(done.actions),
        "frauds": len(fraud),
        "frauds_flagged": len(fraud & flagged),
        "genuine_flagged": len(flagged - fraud),
    }


def _curl(serving: dict[str, Any], body: dict[str, Any]) -> str:
    """A command to paste: the same payment a minute ago under an id of its own."""
    now = SystemClock().now_ms()
    example = body | {"event_id": f"my-payment-{now}", "event_time": now - HOUR_MS // 60}
    return (
        f'curl -s {serving["url"]}/v1/decisions -H "Authorization: Bearer $(cat '
        f"{serving['api_key']})\" -H 'Content-Type: application/json' -d '{json.dumps(example)}'"
    )
