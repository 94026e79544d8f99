"""One Serve replica of the recommender."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from typing import TYPE_CHECKING, Any

from raypipe.clock import SystemClock
from raypipe.errors import RaypipeError
from serving.autoscaling import P95
from serving.recommend.http import PREFIX, RecommendApp

if TYPE_CHECKING:
    from raypipe.config import Settings
    from serving.options import Options
    from serving.recommend.selection import Selection
    from serving.recommend.stage import Stage

LOOK_S = 0.2
"""How often it is looked for a worker that is away."""

FIRST_S = 5.0
"""How often a replica without a version looks for the first one in the lake."""

ANSWER_S = 1.0

_log = logging.getLogger("raypipe.recommend")


class RecommendReplica:
    """The class that Ray Serve deploys; ``user_config`` is ``{"version": "name@version"}``.

    As serving.replica.Replica: another version is loaded beside the one that answers, follows the
    log to its end, and takes over between two requests. A version of None is the first one that is
    current in the lake, which the replica waits for.
    """

    def __init__(self, settings: Settings, options: Options, selection: Selection) -> None:
        from ray import serve

        from raypipe.project import load_project
        from raypipe.runtime.worker import actor
        from serving import loopback
        from serving.credentials import AWAY_S, Credentials
        from serving.docs import render
        from serving.entrance import Entrance
        from serving.fairness import Gate
        from serving.key_shelf import KeyShelf
        from serving.presence import Presence
        from serving.recommend.desk import Desk
        from serving.recommend.metrics import RecommendMetrics
        from serving.recommend.openapi import document
        from serving.recommend.record import Recorder

        loopback.narrow()
        self._settings = settings
        self._selection = selection
        self._sponsored = options.recommend.sponsored
        self._project = load_project(settings.project)
        worker = actor.client(settings, self._project)
        keys = Credentials(worker, shelf=KeyShelf(settings.spill_dir / "keys", AWAY_S))
        gate = Gate(
            settings.max_ongoing_requests, settings.max_queued_requests, options.fairness.weights
        )
        self._presence = Presence(
            worker, max(1, settings.max_ongoing_requests // 2), settings.worker_patience_ms / 1_000
        )
        self._worker = worker
        self._desk = Desk(Recorder(self._project, worker), SystemClock(), self._presence)
        replica = serve.get_replica_context().replica_id.unique_id
        self._version = ""
        self._prepared: tuple[str, Stage] | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._app = RecommendApp(
            desk=self._desk,
            keys=keys,
            entrance=Entrance(keys, gate, settings.decision_deadline_ms, self._presence),
            metrics=RecommendMetrics(replica, self._figures),
            documents=render(
                document(self._project.name), PREFIX, f"../{PREFIX.rpartition('/')[2]}"
            ),
            replica=replica,
            patience_s=settings.decision_deadline_ms / 1_000,
            echo_request_id=False,  # Serve's own middleware does
        )

    def __serve_build_asgi_app__(self) -> RecommendApp:
        return self._app

    async def __del__(self) -> None:
        """Ray Serve awaits this once, after the last request of a replica that it stops."""
        for task in self._tasks:
            task.cancel()
        self._desk.close()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Ray Serve's controller hands to the autoscaling policy."""
        return {P95: self._app.latencies.p95_ms}

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Answer by a version. The first one must load; of later ones one that doesn't leaves the
        old one answering."""
        wanted = user_config["version"]
        if wanted is not None and wanted != self._version:
            try:
                stage = await self._load(wanted)
            except Exception as e:
                if not self._version:
                    raise
                _log.error("the version is refused, the old one answers on: %s", e)
                return
            self._use(wanted, stage)
        if not self._tasks:
            loop = asyncio.get_running_loop()
            beside = (self._follow(), self._presence.watch(), self._look_for_worker())
            self._tasks = [loop.create_task(run) for run in beside]

    async def prepare(self, wanted: dict[str, Any]) -> dict[str, str] | None:
        """Load a version beside the one that answers; None, or why it can't be used."""
        name = str(wanted["version"])
        try:
            stage = await self._load(name)
        except RaypipeError as e:
            return {"code": e.code, "detail": e.detail, "hint": e.hint}
        except Exception as e:  # noqa: BLE001 - whatever it is, whoever asked must hear of it
            _log.exception("a version can't be prepared")
            return {"code": RaypipeError.code, "detail": f"{type(e).__name__}: {e}", "hint": ""}
        await self.forget()
        self._prepared = name, stage
        return None

    async def forget(self) -> None:
        """Drop what was prepared: it will not answer."""
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            prepared[1].close()

    async def switch(self, wanted: dict[str, Any]) -> None:
        """Answer by the prepared version from the next request on; nothing if that is another."""
        name = str(wanted["version"])
        if self._prepared is not None and self._prepared[0] == name:
            self._use(name, self._prepared[1])

    async def serves(self) -> dict[str, Any]:
        """The version that answers now; None before the first."""
        return {"version": self._version or None}

    async def _follow(self) -> None:
        """Follow the log, from the first version on."""
        while not self._answers:
            await self._look_for_version()
            if not self._answers:
                await asyncio.sleep(FIRST_S)
        await self._desk.follow()

    async def _look_for_version(self) -> None:
        from serving.recommend.versions import current

        try:
            found = await asyncio.to_thread(current, self._settings.lake)
            stage = None if found is None or self._answers else await self._load(found)
        except Exception as e:  # noqa: BLE001 - whatever it is, the next look may find it mended
            _log.error("the first version can't be used yet: %s", e)
            return
        if found is None or stage is None:
            return
        if self._answers:
            stage.close()  # another one was promoted meanwhile
        else:
            self._use(found, stage)

    @property
    def _answers(self) -> bool:
        return bool(self._version)

    async def _look_for_worker(self) -> None:
        """Have lists recorded again once the worker is back."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self._presence.away:
                with contextlib.suppress(RaypipeError, TimeoutError):
                    async with asyncio.timeout(ANSWER_S):
                        await self._worker.stats()
                    self._presence.back()

    async def _load(self, wanted: str) -> Stage:
        """In a thread: requests go on meanwhile."""
        from serving.recommend.stage import Stage
        from serving.recommend.versions import located
        from training.recommend.ranking.fit import SHOP

        prepared = self._prepared
        if prepared is not None and prepared[0] == wanted:
            return prepared[1]
        return await asyncio.to_thread(
            lambda: Stage.open(
                self._settings,
                self._project,
                located(self._settings.lake, wanted),
                SHOP,
                self._selection,
                self._sponsored,
            )
        )

    def _use(self, name: str, stage: Stage) -> None:
        self._desk.use(stage)
        first, self._version = not self._version, name
        if self._prepared is not None and self._prepared[1] is stage:
            self._prepared = None
        if first:
            gc.collect()
        # What is loaded now stays: no collection needs to walk it again within a request.
        gc.freeze()

    def _figures(self) -> dict[str, float]:
        if not self._version:
            return {}
        stage = self._desk.stage
        return {
            "recommend_offset": float(stage.offset),
            "recommend_recent_visitors": float(stage.histories.recent),
            "recommend_forgotten_visitors": float(stage.histories.forgotten),
            "recommend_window_bytes": float(stage.windows.nbytes),
        }
