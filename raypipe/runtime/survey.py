"""What each node of a cluster is like: one report a node, made there, for ``raypipe doctor``."""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import secrets
import stat
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import raypipe
from raypipe.errors import RaypipeError
from raypipe.runtime.launch.clear_text import is_secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from raypipe.config import Settings

PACKAGES = ("ray", "feast", "xgboost", "numba", "pyarrow", "numpy")
"""Whose versions must agree: they compute, or carry what is computed between nodes."""

STAGES = ("raypipe", "features", "training", "serving")
VARIABLES = (
    *("RAY_AUTH_MODE", "RAY_DATA_", "RAY_SERVE_", "RAY_health_check_", "RAY_idle_worker_"),
    *("RAY_num_workers_", "RAYPIPE_", "TUNE_"),
)
"""Beginnings of the variables that all nodes start Ray with alike."""

NODE_S = 60.0
"""A node that doesn't report within this is one finding."""

_CLOCK_READINGS = 5


@dataclass(frozen=True, slots=True)
class Report:
    """One node as it saw itself."""

    node: str
    """Ray's node id."""
    address: str
    python: str
    packages: dict[str, str]
    code: str
    """sha256 over the Python files of all stages."""
    place: str
    """Where raypipe was imported from."""
    environment: dict[str, str]
    """Of a secret only that it is set."""
    token: str
    """"" when Ray asks for its token there; else what is wrong."""
    lake: str
    """"" when the lake is shared and writable; else what is wrong."""
    online: str
    """"" when the online store is embedded or answers; else what is wrong."""
    tls: str
    """sha256 of the authority's certificate, "" without tls_dir; else begins with ``!``."""
    expires_ms: int | None
    """When the node's certificate expires, ms UTC."""
    worker: str
    """"" when the worker answers or none was asked; else what is wrong."""
    http: str
    """"" when the HTTP port is free there or serves; else what is wrong."""


@dataclass(frozen=True, slots=True)
class Survey:
    """All nodes: their reports, how far their clocks are from here, and who didn't report."""

    here: Report
    reports: list[Report]
    clocks_ms: dict[str, tuple[float, float]]
    """By address: ahead of here by, plus or minus (half the round trip)."""
    silent: dict[str, str] = field(default_factory=dict)
    """By address: why there is no report."""


def survey(settings: Settings) -> Survey:
    """Ask every living node of the running session; a file is left in the lake meanwhile."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = {n["NodeManagerAddress"]: n["NodeID"] for n in nodes if n["Alive"]}

    def on(function: Any, node: str) -> Any:
        remote: Any = ray.remote(function)
        strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        return remote.options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)

    reports, clocks, silent = [], {}, {}
    with _mark(settings) as mark:
        here = report(settings, mark)
        asked = {a: on(report, node).remote(settings, mark) for a, node in alive.items()}
        for address, reference in asked.items():
            try:
                reports.append(ray.get(reference, timeout=NODE_S))
                clocks[address] = _nearest(partial(_time_of, on(_now_ns, alive[address])))
            except ray.exceptions.RayError as e:
                silent[address] = f"{type(e).__name__}: {str(e).splitlines()[0]}"
    return Survey(here, reports, clocks, silent)


def report(settings: Settings, mark: str = "") -> Report:
    """This node. ``mark`` names a file that the asking process has put into the lake."""
    import ray
    from ray.util import get_node_ip_address

    tls, expires_ms = _certificates(settings)
    return Report(
        node=ray.get_runtime_context().get_node_id(),
        address=get_node_ip_address(),  # type: ignore[no-untyped-call]
        python=platform.python_version(),
        packages={name: _version(name) for name in PACKAGES},
        code=code_hash(),
        place=str(Path(raypipe.__file__).resolve().parents[1]),
        environment=environment(),
        token=_token(),
        lake=_lake(settings, mark),
        online=online(settings),
        tls=tls,
        expires_ms=expires_ms,
        worker=_worker(settings),
        http=_http(settings),
    )


def environment() -> dict[str, str]:
    """What Ray was started with on this node, without its secrets."""
    return {
        name: "set" if is_secret(name, value) else value
        for name, value in sorted(os.environ.items())
        if name.startswith(VARIABLES)
    }


def code_hash(root: Path | None = None) -> str:
    """sha256 over names and bytes of the Python files of all stages."""
    root = root or Path(raypipe.__file__).resolve().parents[1]
    total = hashlib.sha256()
    for file in sorted(f for stage in STAGES for f in (root / stage).rglob("*.py")):
        data = file.read_bytes()
        total.update(f"{file.relative_to(root)}\0{len(data)}\0".encode())
        total.update(data)
    return total.hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


@contextmanager
def _mark(settings: Settings) -> Iterator[str]:
    """A file of this process in the lake; its name, "" where none can be written."""
    name = secrets.token_hex(8)
    folder = settings.lake / "doctor"
    try:
        (folder / name).write(name.encode())
    except (RaypipeError, OSError):
        name = ""
    try:
        yield name
    finally:
        if name:
            folder.remove_tree()


def _lake(settings: Settings, mark: str) -> str:
    folder = settings.lake / "doctor"
    try:
        own = folder / secrets.token_hex(8)
        own.write(b"raypipe doctor")
        own.remove()
        if mark and (folder / mark).read() != mark.encode():
            return "what another node wrote reads differently"
    except FileNotFoundError:
        return "what another node wrote is not there: the nodes see different folders"
    except (RaypipeError, OSError) as e:
        return str(getattr(e, "detail", e))
    return "" if mark else "the asking process could not write there"


def _token() -> str:
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return f"RAY_AUTH_MODE is {os.environ.get('RAY_AUTH_MODE', 'unset')}"
    if os.environ.get("RAY_AUTH_TOKEN"):
        return ""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        empty = not path.read_text().strip()
    except OSError as e:
        return f"{path}: {e.strerror}"
    if empty:
        return f"{path} is empty"
    return f"{path} has mode {mode:04o}: others can read it" if mode & 0o077 else ""


def online(settings: Settings) -> str:
    """What is wrong when this node reads from the online store as a replica does; "" if nothing."""
    if settings.embedded_online:
        return ""
    # By name: the stages lie above this package.
    store = importlib.import_module("features.store.packed.backend")
    try:
        with closing(store.open_backend(settings.online_url)) as backend:
            backend.get([b"rp:doctor"])
    except RaypipeError as e:
        return e.detail
    return ""


def _certificates(settings: Settings) -> tuple[str, int | None]:
    if settings.tls_dir is None:
        return "", None
    from cryptography import x509

    from raypipe.runtime.worker import tls

    try:
        tls.server_context(settings.tls_dir)
        key = settings.tls_dir / tls.KEY
        if stat.S_IMODE(key.stat().st_mode) & 0o007:  # a pod's group may
            return f"!{key}: others can read it", None
        node = x509.load_pem_x509_certificate((settings.tls_dir / tls.CERTIFICATE).read_bytes())
        authority = (settings.tls_dir / tls.CA).read_bytes()
    except (RaypipeError, OSError, ValueError) as e:
        return f"!{getattr(e, 'detail', e)}", None
    expires_ms = round(node.not_valid_after_utc.timestamp() * 1000)
    return hashlib.sha256(authority).hexdigest(), expires_ms


def _worker(settings: Settings) -> str:
    """Ask the workers, if there are any, as a replica on this node would."""
    import asyncio

    import ray

    from raypipe.runtime.worker import actor

    try:
        ray.get_actor(actor.worker_name(0), namespace=actor.NAMESPACE)
    except ValueError:
        return ""

    async def ask() -> None:
        for client in actor.clients(settings):
            async with asyncio.timeout(5):
                await client.stats()
            await client.close()

    try:
        asyncio.run(ask())
    except TimeoutError:
        return "does not answer within 5 s"
    except RaypipeError as e:
        return e.detail
    return ""


def _http(settings: Settings) -> str:
    from raypipe.runtime import running

    refusal = running.refusal(settings.http_host, settings.http_port)
    # 503: it serves, but can't decide now.
    if not refusal or running.ready(settings.http_url)[1][:3] in ("200", "503"):
        return ""
    return f"{settings.http_host}:{settings.http_port}: {refusal}"


def _now_ns() -> int:
    return time.time_ns()


def _time_of(clock: Any) -> int:
    import ray

    told: int = ray.get(clock.remote(), timeout=NODE_S)
    return told


def _nearest(read: Callable[[], int]) -> tuple[float, float]:
    """How far a clock is ahead of ours in ms, and the uncertainty, of the fastest reading.

    Cristian, Probabilistic clock synchronization, 1989: half the round trip bounds the error.
    """
    best = (0.0, float("inf"))
    for _ in range(_CLOCK_READINGS):
        before = time.time_ns()
        there = read()
        after = time.time_ns()
        half = (after - before) / 2
        if half / 1e6 < best[1]:
            best = ((there - before - half) / 1e6, half / 1e6)
    return best
