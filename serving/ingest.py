"""The server that takes bulk events, and keeps the online store up to date: a process of its own
beside Ray Serve.

Ray Serve's proxy and router hand every request on by messages, which costs more than reading a
thousand events; here the socket's owner reads them itself (docs/adr/0019).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import uvloop
from starlette.requests import Request
from starlette.responses import Response

from raypipe.errors import Unavailable
from raypipe.runtime.worker.actor import NAMESPACE
from raypipe.tenancy.keys import Scope as KeyScope
from serving.face import Face

if TYPE_CHECKING:
    from raypipe.config import Settings
    from serving.auth import Verifier
    from serving.decide import Worker
    from serving.events import Events
    from serving.flushing import Flusher
    from serving.metrics import Metrics

NAME = "ingest"
"""Of the actor, and of its figures among the replicas'."""

START_S = 60.0
READ_TIMEOUT_S = 1.0

_log = logging.getLogger("raypipe.ingest")


class IngestApp(Face):
    """The routes of the ingest server."""

    def __init__(
        self, keys: Verifier, worker: Worker, events: Events, metrics: Metrics, patience_s: float
    ) -> None:
        self._worker = worker
        self._events = events
        self._metrics = metrics
        super().__init__(
            (
                ("/v1/events", self._take, "POST"),
                ("/healthz", self._healthz, "GET"),
                ("/metrics", self._metrics_text, "GET"),
            ),
            keys,
            metrics,
            patience_s=patience_s,
            echo_request_id=True,
        )

    async def _take(self, request: Request) -> Response:
        credential = await self._authorize(request, KeyScope.EVENTS_WRITE)
        return await self._events.take(request, credential.tenant)

    async def _healthz(self, request: Request) -> Response:
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def _metrics_text(self, request: Request) -> Response:
        from serving.http_metrics import CONTENT_TYPE

        figures = await self._worker.figures(READ_TIMEOUT_S)
        return Response(self._metrics.render(figures), media_type=CONTENT_TYPE)


class IngestActor:
    """Runs the server in a thread; if that fails, the process ends and Ray restarts it."""

    def __init__(self, settings: Settings) -> None:
        import uvicorn

        from features.flush import StateWriter
        from raypipe.project import load_project
        from raypipe.runtime.worker import actor
        from serving.credentials import Credentials
        from serving.events import Events
        from serving.flushing import Flusher
        from serving.metrics import Metrics

        project = load_project(settings.project)
        worker = actor.client(settings, project)
        self._flushers: list[Flusher] = []
        if settings.flush_rows_per_second:
            self._flushers = [
                Flusher(
                    each,
                    partial(StateWriter, project, settings.home, settings.online_url),
                    max(1, settings.flush_rows_per_second // settings.workers),
                )
                for each in worker.each
            ]
        app = IngestApp(
            Credentials(worker),
            worker,
            Events.of(settings, project, worker),
            Metrics(NAME),
            settings.decision_deadline_ms / 1_000,
        )
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                host=settings.http_host,
                port=settings.ingest_port,
                loop="none",
                http="httptools",
                lifespan="off",
                access_log=False,
                server_header=False,
                log_level="warning",
            )
        )
        self._thread = threading.Thread(target=self._serve, name="ingest", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._main())
        except BaseException:  # noqa: BLE001 - whatever it was, the process must end
            _log.exception("the ingest server ends")
        if not self._server.should_exit:
            os._exit(1)

    async def _main(self) -> None:
        flushing = [asyncio.create_task(flusher.run()) for flusher in self._flushers]
        await self._server.serve()
        for task in flushing:
            task.cancel()

    def ready(self) -> bool:
        """Whether it listens."""
        return bool(self._server.started)

    def pid(self) -> int:
        """Process id, for tests and `raypipe status`."""
        return os.getpid()

    def stop(self) -> None:
        """Finish what is in work."""
        self._server.should_exit = True
        self._thread.join()


def ensure(settings: Settings) -> Any:
    """The ingest server, started if it isn't running; returns when it listens.

    The actor is detached, and on a cluster it runs beside the worker. Raises Unavailable when it
    doesn't come up.
    """
    import ray

    from raypipe.runtime import placement

    remote: Any = ray.remote(IngestActor)
    actor: Any = remote.options(
        name=NAME,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_task_retries=-1,
        num_cpus=0,
        **placement.worker_options(settings),
    ).remote(settings)
    deadline = time.monotonic() + START_S
    with contextlib.suppress(ray.exceptions.GetTimeoutError):
        while (left := deadline - time.monotonic()) > 0:
            if ray.get(actor.ready.remote(), timeout=left):
                return actor
            time.sleep(0.05)
    raise Unavailable(
        f"the ingest server does not listen on {settings.http_host}:{settings.ingest_port}",
        hint="Is the port taken? Choose another with the setting ingest_port.",
    )


def stop() -> None:
    """End the ingest server of this process's Ray session, if one runs."""
    ray: Any = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    try:
        actor = ray.get_actor(NAME, namespace=NAMESPACE)
        ray.get(actor.stop.remote(), timeout=START_S)
        ray.kill(actor, no_restart=True)
    except (ValueError, ray.exceptions.RayError) as e:
        _log.info("no ingest server to stop: %s", e)
