"""The one Ray session of a process: a local one that only this machine and user can reach, or a
cluster's.

Nothing of Ray is imported before ``start``: several of these variables are read while it is.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import secrets
import signal
import site
import socket
import sys
import threading
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import raypipe
from raypipe.errors import Unavailable
from raypipe.runtime.ingress import own
from raypipe.runtime.ingress.haproxy import LOOPBACK

if TYPE_CHECKING:
    from raypipe.config import Settings

NAMESPACE = "raypipe"
"""Ray namespace of every named actor."""

TOKEN_FILE = "ray-token"  # noqa: S105 - a file name
IDLE_WORKER_MS = 60_000
LEAST_WORKERS = 8
ANSWER_S = 3.0

_EXTENDED = ("PYTHONPATH", own.BINARY_VARIABLE)
"""Variables that take in what the user gave."""

_exported: set[str] = set()
_owned: bool = False
_ingress: own.Ingress | None = None


def environment(settings: Settings) -> dict[str, str]:
    """What the session exports to this process and, by inheritance, to all processes of Ray.

    A variable that the user has set already wins over the one given here.
    """
    cpus = settings.ray_num_cpus or os.cpu_count() or 1
    values = {
        "RAY_AUTH_MODE": settings.ray_auth,
        # Ray kills idle workers above the soft limit after 1 s; the next task then pays seconds
        # of imports. Measured: 3 to 6 times the run time of a batch on two cores.
        "RAY_idle_worker_killing_time_threshold_ms": str(IDLE_WORKER_MS),
        "RAY_num_workers_soft_limit": str(max(LEAST_WORKERS, 2 * cpus)),
        # Under `uv run` Ray would upload the working directory and start workers through uv.
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        # The newer reader starts dozens of processes to read the footers of one Parquet file.
        # Measured: twice the run time of the features of a small history on two cores.
        "RAY_DATA_USE_DATASOURCE_V2": "0",
        # The user's own exception instead of UserCodeException.
        "RAY_DATA_RAISE_ORIGINAL_MAP_EXCEPTION": "1",
        # How often replicas and handles tell the autoscaler their load; Ray's 10 s is too slow.
        "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
        "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
        # Serve's controller looks at everything ten times a second otherwise: 4 % of an idle core.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.2",
        # A replica that dies with a request must not become a 500 of the proxy.
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.proxy:middlewares",
        # Tune would swallow Ctrl-C and go on with half a sweep.
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
    }
    if _on_this_machine(settings.ray_address):
        # Ray's switch for laptops: every port listens on loopback instead of all interfaces.
        values["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        # A busy machine needs longer than 5 s to start an ingress; Ray would kill it, and give up.
        values["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = "50"
        if not settings.dashboard:
            # Nobody looks at how each of Ray's processes is; to ask the system costs for each.
            values["REPORTER_UPDATE_INTERVAL_MS"] = "30000"
        token = settings.home / TOKEN_FILE
        # A session of our own gets a token under home, not one for all in the user's ~/.ray.
        if "RAY_AUTH_TOKEN" not in os.environ and (settings.ray_address is None or token.exists()):
            values["RAY_AUTH_TOKEN_PATH"] = str(token)
    root = Path(raypipe.__file__).resolve().parents[1]
    if str(root) not in site.getsitepackages():
        # A checkout that is on this process's path only (pytest, `python -m` elsewhere).
        rest = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
        values["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(root), *rest]))
    if not _debug():
        values["RAY_DATA_LOGGING_CONFIG"] = str(Path(__file__).with_name("ray_data_logging.yaml"))
    cache = numba_cache(settings.home)
    if cache is not None:
        values["NUMBA_CACHE_DIR"] = str(cache)
    return values


def numba_cache(home: Path) -> Path | None:
    """Where compiled kernels are shared; None leaves them beside the code.

    Beside the code (numba's default, `__pycache__`) they are compiled once per installation and
    are found by every process, also by tests and scripts that know no home. Where the package
    can't be written (a container image) numba's next choice is the user's home, which such places
    often lack, and then it fails: there the raypipe home takes them.
    """
    package = Path(raypipe.__file__).resolve().parent
    return None if os.access(package, os.W_OK) else home / "numba"


def start(settings: Settings, *, env: Mapping[str, str] | None = None, warm: bool = True) -> None:
    """Start a local session, or join the cluster at ``settings.ray_address``.

    Call it before anything imports Ray where you can: a Ray imported earlier keeps listening on
    all interfaces (behind the token). ``env`` adds variables for Ray and its processes. ``warm``
    lets the workers import what every batch task needs, in the background. A session that runs
    already, ours or the caller's, is kept as it is. Raises Unavailable when Ray can't be started
    or reached.
    """
    global _owned, _ingress  # noqa: PLW0603 - Ray allows one session a process
    loaded = sys.modules.get("ray")
    if loaded is not None and loaded.is_initialized():
        return
    _require_answer(settings.ray_address)
    preloaded = loaded is not None
    _release_ingress()  # of a start that failed
    _ingress = _own_ingress(settings)
    values = {**environment(settings), **(_ingress.environment() if _ingress else {})}
    _export({**values, **(env or {})}, preloaded)
    if settings.ray_address is None:
        _ensure_token()
    if preloaded:
        _reread_authentication()
    import ray

    if not _debug():
        _hush()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**_arguments(settings))
    except (ray.exceptions.RayError, OSError, RuntimeError, ValueError) as e:
        where = settings.ray_address
        raise Unavailable(
            f"no Ray cluster answers at {where}: {e}" if where else f"Ray does not start: {e}",
            hint="Check ray_address, RAY_AUTH_MODE and the token."
            if where
            else "`raypipe doctor` checks memory, disk and ports; RAYPIPE_DEBUG=1 shows Ray's log.",
        ) from e
    finally:
        _give_back(handler)
    _owned = True
    if warm:
        remote = ray.remote(num_cpus=1)(_import_libraries)
        for _ in range(cpus()):
            remote.remote()


def _require_answer(address: str | None) -> None:
    """Ray itself would go on trying for minutes."""
    if address is None or address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as e:
        raise Unavailable(
            f"no Ray cluster answers at {address}: {e}",
            hint="Start the cluster, check ray_address, or unset it for a local session.",
        ) from e


def stop() -> None:
    """End the session that ``start`` began; one that the caller had started goes on."""
    global _owned  # noqa: PLW0603
    if _owned:
        import ray

        ray.shutdown()
        _owned = False
        _release_ingress()


def bind_host(settings: Settings) -> str:
    """What Ray Serve is to listen on: in HAProxy mode loopback, whatever HAProxy listens on."""
    return LOOPBACK if _ingress is not None else settings.http_host


def address() -> str:
    """host:port at which other processes join the running session; "" when there is none."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return ""
    return str(ray.get_runtime_context().gcs_address)


def cpus() -> int:
    """CPUs of the whole running session, at least 1."""
    import ray

    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(1, int(resources.get("CPU", 1)))


def _own_ingress(settings: Settings) -> own.Ingress | None:
    """Without HAProxy batch stages run all the same; whoever serves asks for it by itself."""
    given = "" if own.BINARY_VARIABLE in _exported else os.environ.get(own.BINARY_VARIABLE, "")
    if settings.ingress != "haproxy" or own.missing(given):
        return None
    return own.claim(settings, given)


def _release_ingress() -> None:
    global _ingress  # noqa: PLW0603
    if _ingress is not None:
        _ingress.release()
        _ingress = None


def _arguments(settings: Settings) -> dict[str, Any]:
    debug = _debug()
    common = {
        "namespace": NAMESPACE,
        "log_to_driver": debug,
        "logging_level": "INFO" if debug else "ERROR",
    }
    if settings.ray_address is not None:
        return {"address": settings.ray_address, **common}
    return {
        # Without an address Ray would join any cluster that it finds on this machine.
        "address": "local",
        "num_cpus": settings.ray_num_cpus,
        "object_store_memory": settings.object_store_bytes,
        "include_dashboard": settings.dashboard,
        "dashboard_host": "127.0.0.1",
        **common,
    }


def _debug() -> bool:
    return bool(os.environ.get("RAYPIPE_DEBUG"))


def _hush() -> None:
    """Leave the terminal to raypipe's own reports; Ray's log files keep everything."""
    # Ray turns these on for its own modules; they speak to its developers.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"ray\.")
    logging.getLogger("ray.tune").setLevel(logging.WARNING)
    # Serve sets its logger's level whenever it starts; a filter stays.
    logging.getLogger("ray.serve").addFilter(_warnings_alone)


def _warnings_alone(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def _export(values: Mapping[str, str], preloaded: bool) -> None:
    for name in _exported - values.keys():  # of an earlier session
        os.environ.pop(name, None)
        _exported.remove(name)
    for name, value in values.items():
        if preloaded and name == "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER":
            continue  # this process has read it already, and both sides must agree
        if name not in os.environ or name in _exported or name in _EXTENDED:
            os.environ[name] = value
            _exported.add(name)


def _ensure_token() -> None:
    """Make the token file that the environment names, if it is ours and absent."""
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if path is None or "RAY_AUTH_TOKEN_PATH" not in _exported:
        return
    file = Path(path)
    if not file.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_hex(32))
        # A link, unlike a rename, leaves the token of a process that was faster.
        with contextlib.suppress(FileExistsError):
            file.hardlink_to(temporary)
        temporary.unlink()
    file.chmod(0o600)


def _reread_authentication() -> None:
    """Ray reads mode and token when it is imported; what was imported too early reads again.

    The same two calls that Ray makes after it changes them itself
    (ray/_private/authentication/authentication_token_setup.py).
    """
    from ray import _raylet

    _raylet.Config.initialize("")  # type: ignore[attr-defined]
    _raylet.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]


def _give_back(handler: Any) -> None:
    """Ray takes SIGTERM for itself; whoever had chosen a handler before gets it back."""
    if handler is not signal.SIG_DFL and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _on_this_machine(ray_address: str | None) -> bool:
    if ray_address is None:
        return True
    host = ray_address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _import_libraries() -> None:
    import pyarrow.parquet
    import ray.data

    _ = pyarrow.parquet, ray.data
