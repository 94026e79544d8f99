"""The worker as a Ray actor: Ray places it, restarts it and finds it by name; data goes around Ray.

A restart runs ``__init__`` again, which restores the window state from snapshot and log.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raypipe.clock import MINUTE_MS
from raypipe.errors import ConfigError

if TYPE_CHECKING:
    from raypipe.config import Settings
    from raypipe.project import Project
    from raypipe.runtime.worker.client import WorkerClient
    from raypipe.runtime.worker.reach import Address, Connect
    from raypipe.runtime.worker.routing import RoutingClient

NAMESPACE = "raypipe"
STOP_S = 60.0
"""How long a worker may take for its last snapshot."""

_SOCKET_PATH_LIMIT = 100  # sockaddr_un holds 108 bytes

_log = logging.getLogger("raypipe.worker")


def worker_name(partition: int) -> str:
    """The actor's name in NAMESPACE."""
    return f"worker-{partition}"


def socket_path(home: Path, partition: int) -> Path:
    """Where the worker of a home folder listens; in the temporary folder if home is too deep."""
    path = home / "run" / f"{worker_name(partition)}.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_LIMIT:
        return path
    short = hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"raypipe-{os.getuid()}-{short}" / path.name


class WorkerActor:
    """Runs one WorkerServer in a thread; if that fails, the process ends and Ray restarts it."""

    def __init__(self, settings: Settings, partition: int) -> None:
        from raypipe.events.quarantine import QUARANTINE_FILE, Quarantine
        from raypipe.lake import Place
        from raypipe.log.opening import open_log
        from raypipe.ownership.routes import Ownership
        from raypipe.patterns.files import pattern_files, runnable
        from raypipe.project import load_project
        from raypipe.runtime import upkeep
        from raypipe.runtime.worker.compiled import compile_worker
        from raypipe.runtime.worker.connection import Listener, TlsListener, UnixListener
        from raypipe.runtime.worker.core import WorkerCore
        from raypipe.runtime.worker.forwarding import Forwarder
        from raypipe.runtime.worker.intake import Dedup
        from raypipe.runtime.worker.server import WorkerServer
        from raypipe.runtime.worker.snapshots import Snapshots
        from raypipe.tenancy.keys import STORE_FILE, KeyStore, ensure_local_key

        self._address = _address(settings, partition)
        self._workers = settings.workers
        project = load_project(settings.project)
        # A worker that answers its address answers events.
        compile_worker(project)
        log = open_log(settings.log_url, settings.log_cache, workers=settings.workers)
        ownership = Ownership(project, settings.workers) if settings.workers > 1 else None
        quarantine = Quarantine(
            settings.home / QUARANTINE_FILE, limit_rows=settings.quarantine_limit_rows
        )
        self._core = WorkerCore(
            project,
            log,
            partition,
            quarantine=quarantine,
            dedup=Dedup(settings.dedup_ids, settings.dedup_seconds * 1_000),
            snapshots=Snapshots(
                Place.at(settings.home / "snapshots" / worker_name(partition)),
                project.definition_hash,
                settings.snapshot_seconds,
            ),
            tenant=settings.tenant,
            patterns=runnable(pattern_files(settings), project),
            ownership=ownership,
            review_ms=settings.review_minutes * MINUTE_MS,
        )
        ensure_local_key(settings.home)
        listeners: list[Listener] = [UnixListener(Path(self._address.path))]
        if settings.tls_dir is not None:
            at = self._address
            listeners.append(TlsListener(at.host, at.port, settings.tls_dir))
        self._forwarder = None
        if ownership is not None:
            others = set(range(settings.workers)) - {partition}
            connects = {other: connector(settings.tls_dir, other) for other in others}
            self._forwarder = Forwarder(log, ownership, partition, connects)
        self._server = WorkerServer(
            self._core,
            KeyStore(settings.home / STORE_FILE),
            listeners,
            dict if self._forwarder is None else self._forwarder.figures,
        )
        # What is loaded now stays: no collection needs to walk it again within a round.
        gc.collect()
        gc.freeze()
        self._upkeep = upkeep.start(settings, project, partition)
        self._thread = threading.Thread(target=self._serve, name="worker", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self._server.run()
        except BaseException:  # noqa: BLE001 - whatever it was, the process must end
            # The state may count events that the log lacks: only a new start is right again.
            _log.exception("the worker ends")
            os._exit(1)

    def address(self) -> Address:
        """Where it listens."""
        return self._address

    def workers(self) -> int:
        """Of how many it is one."""
        return self._workers

    def pid(self) -> int:
        """Process id, for tests and `raypipe status`."""
        return os.getpid()

    def stop(self) -> int:
        """Finish, write a snapshot, return its offset."""
        if self._upkeep is not None:
            self._upkeep.stop()
        if self._forwarder is not None:
            self._forwarder.stop()
        self._server.stop()
        self._thread.join()
        return self._core.save()


def _address(settings: Settings, partition: int) -> Address:
    import ray
    from ray.util import get_node_ip_address

    from raypipe.runtime.worker.reach import Address

    node = ray.get_runtime_context().get_node_id()
    path = os.fspath(socket_path(settings.home, partition))
    if settings.tls_dir is None:
        return Address(node, path)
    host: str = get_node_ip_address()  # type: ignore[no-untyped-call]
    return Address(node, path, host, settings.worker_port + partition)


def ensure(settings: Settings) -> Any:
    """All workers, those started that aren't running; returns the first one when all are ready.

    The actors are detached: they outlive the driver that started them. On a cluster they run on the
    node that holds the log, or wait for it. Raises ConfigError if others run, for another number of
    workers.
    """
    import ray

    found = [_ensure(settings, partition) for partition in range(settings.workers)]
    for actor in found:
        ray.get(actor.address.remote())
    running = set(ray.get([actor.workers.remote() for actor in found]))
    if running != {settings.workers}:
        raise ConfigError(
            f"`workers` is {settings.workers}, and the workers that run are for "
            f"{', '.join(map(str, sorted(running)))}",
            hint="Stop them first: `raypipe down`.",
        )
    return found[0]


def _ensure(settings: Settings, partition: int) -> Any:
    import ray

    from raypipe.runtime import placement

    try:
        # While the log's node is away its worker still exists: nobody may take its place.
        actor: Any = ray.get_actor(worker_name(partition), namespace=NAMESPACE)
    except ValueError:
        actor = _start(settings, partition, placement.worker_options(settings))
    return actor


def _start(settings: Settings, partition: int, options: dict[str, Any]) -> Any:
    import ray

    remote: Any = ray.remote(WorkerActor)
    return remote.options(
        name=worker_name(partition),
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        max_restarts=-1,
        max_task_retries=-1,
        num_cpus=0,
        **options,
    ).remote(settings, partition)


def connector(tls_dir: Path | None, partition: int = 0) -> Connect:
    """Connects this process to the partition's worker, wherever it runs, for a WorkerClient."""
    import ray

    from raypipe.runtime.worker import reach

    async def locate() -> Address:
        try:
            actor: Any = ray.get_actor(worker_name(partition), namespace=NAMESPACE)
            address: Address = await actor.address.remote()
        except (ValueError, ray.exceptions.RayError) as e:
            raise ConnectionError(f"no worker for partition {partition}: {e}") from e
        return address

    return reach.connector(locate, ray.get_runtime_context().get_node_id(), tls_dir)


def client(settings: Settings, project: Project) -> WorkerClient | RoutingClient:
    """What asks the workers from this process, wherever they run."""
    from raypipe.ownership.routes import Ownership
    from raypipe.runtime.worker.routing import RoutingClient

    found = clients(settings)
    if len(found) == 1:
        return found[0]
    return RoutingClient(found, Ownership(project, settings.workers))


def clients(settings: Settings) -> list[WorkerClient]:
    """One for each worker, in the order of their partitions."""
    from raypipe.runtime.worker.client import WorkerClient

    return [WorkerClient(connector(settings.tls_dir, p)) for p in range(settings.workers)]


def stop() -> int | None:
    """Stop the workers with snapshots, so that the next ones have little to replay.

    Returns the offset of the first one's snapshot, None if no worker runs in this process's Ray
    session or it could not save: the log has everything.
    """
    ray: Any = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    first, partition = _stop(ray, 0), 1
    while _there(ray, partition):
        _stop(ray, partition)
        partition += 1
    return first


def _there(ray: Any, partition: int) -> bool:
    try:
        ray.get_actor(worker_name(partition), namespace=NAMESPACE)
    except ValueError:
        return False
    return True


def _stop(ray: Any, partition: int) -> int | None:
    try:
        actor = ray.get_actor(worker_name(partition), namespace=NAMESPACE)
        offset: int = ray.get(actor.stop.remote(), timeout=STOP_S)
    except (ValueError, ray.exceptions.RayError) as e:
        _log.info("no snapshot of partition %d: %s", partition, e)
        return None
    ray.kill(actor, no_restart=True)
    return offset
