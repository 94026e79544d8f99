"""What ``raypipe doctor`` looks at. Each check looks at one thing and says how to cure it."""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import stat
import sys
import tempfile
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

import raypipe
from raypipe.clock import SECOND_MS, SystemClock
from raypipe.errors import NotFound, RaypipeError
from raypipe.lake import Place
from raypipe.ledger import spill
from raypipe.runtime import running
from raypipe.runtime.ingress import own
from raypipe.runtime.survey import PACKAGES

if TYPE_CHECKING:
    from raypipe.config import Settings

GIB = 2**30
SPILL_S = 60
"""A decision that waits longer for the log is worth a warning."""

_LOG_TIMEOUT_MS = 3_000


@dataclass(frozen=True, slots=True)
class Check:
    """A finding: ``ok``, ``warn`` (works, badly) or ``fail``, and the cure unless it is ok."""

    name: str
    state: str
    found: str
    cure: str = ""


def run(settings: Settings) -> list[Check]:
    """Every check, in the order in which a reader wants them."""
    return [
        _python(),
        *(_package(name) for name in (*PACKAGES, "uvloop")),
        _installation(),
        _stages(),
        _project(settings),
        _cores(settings),
        _memory(),
        _shared_memory(),
        _files(),
        _home(settings.home),
        _disk(settings.home),
        _log(settings),
        _lake(settings.lake),
        _mode("api key", settings.home / "api-key"),
        _mode("tenants", settings.home / "tenants.db"),
        _running(settings.home),
        _spill(settings),
        _port(settings),
        _ingress(settings),
    ]


def _graded(name: str, value: float, least: float, wanted: float, found: str, cure: str) -> Check:
    state = "fail" if value < least else "warn" if value < wanted else "ok"
    return Check(name, state, found, "" if state == "ok" else cure)


def _python() -> Check:
    found = ".".join(str(n) for n in sys.version_info[:3])
    if (3, 11) <= sys.version_info[:2] < (3, 14):
        return Check("python", "ok", found)
    return Check("python", "fail", found, "Use Python 3.11, 3.12 or 3.13.")


def _package(name: str) -> Check:
    try:
        return Check(name, "ok", version(name))
    except PackageNotFoundError:
        return Check(name, "fail", "not installed", "`make setup`, or `pip install -e .`.")


def _installation() -> Check:
    """A checkout beside an installed wheel: Ray's workers would import the other one."""
    used = Path(raypipe.__file__).resolve().parent
    here = Path.cwd() / "raypipe"
    if (here / "__init__.py").is_file() and here.resolve() != used:
        return Check(
            "raypipe",
            "fail",
            f"{raypipe.__version__} from {used}, but Ray's workers would import {here}",
            "Install the checkout with `pip install -e .`, or work in another folder.",
        )
    return Check("raypipe", "ok", f"{raypipe.__version__} from {used}")


def _stages() -> Check:
    root = Path(raypipe.__file__).resolve().parents[1]
    strange = []
    for name in ("features", "training", "serving"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            strange.append(f"no {name}")
        elif Path(spec.origin).resolve().parents[1] != root:
            strange.append(f"{name} is {spec.origin}")
    if strange:
        return Check(
            "stages",
            "fail",
            ", ".join(strange),
            "Another package of that name comes first, or only a part is installed: "
            "`pip install -e .` in a clean environment.",
        )
    return Check("stages", "ok", f"features, training, serving from {root}")


def _project(settings: Settings) -> Check:
    from raypipe.project import load_project

    try:
        project = load_project(settings.project)
    except RaypipeError as e:
        return Check("project", "fail", e.detail, e.hint or "Correct the declaration.")
    return Check(
        "project",
        "ok",
        f"{project.name}: {len(project.views)} views, {len(project.feature_names)} features",
    )


def _cores(settings: Settings) -> Check:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    wanted = settings.ray_num_cpus
    if wanted is not None and count is not None and wanted > count:
        return Check(
            "cores", "warn", f"{count}, but ray_num_cpus is {wanted}", "Lower ray_num_cpus."
        )
    return Check("cores", "ok", str(count))


def _memory() -> Check:
    memory = psutil.virtual_memory()
    return _graded(
        "memory",
        memory.available,
        1 * GIB,
        3 * GIB,
        f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB available",
        "Close other programs, or lower object_store_bytes and ray_num_cpus.",
    )


def _shared_memory() -> Check:
    place = Path("/dev/shm")  # noqa: S108 - looked at, not written
    if not place.is_dir():
        return Check("shared memory", "ok", "Ray takes the temporary folder here")
    free = shutil.disk_usage(place).free
    return _graded(
        "shared memory",
        free,
        0,
        GIB // 4,
        f"{free / GIB:.1f} GiB free in {place}",
        "Ray falls back to the disk, which is slow. In Docker: --shm-size=2g.",
    )


def _files() -> Check:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit == resource.RLIM_INFINITY:
        return Check("open files", "ok", "unlimited")
    return _graded("open files", limit, 1_024, 4_096, f"{limit:,}", "`ulimit -n 65536`.")


def _home(home: Path) -> Check:
    place = _existing(home)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as e:
        return Check(
            "home",
            "fail",
            f"{home}: {e.strerror or e}",
            "Give this user the right to write there, or choose another --home.",
        )
    return Check("home", "ok", f"{home}" + ("" if place == home else " (not made yet)"))


def _disk(home: Path) -> Check:
    free = shutil.disk_usage(_existing(home)).free
    return _graded(
        "disk",
        free,
        1 * GIB,
        5 * GIB,
        f"{free / GIB:.1f} GiB free at {home}",
        "Free some space, or choose another --home.",
    )


def _log(settings: Settings) -> Check:
    """Looks only: a topic that isn't there is made by the first start."""
    if settings.log_url.startswith("sqlite:"):
        return Check("log", "ok", settings.log_place)
    from raypipe.log.kafka.address import KafkaAddress
    from raypipe.log.kafka.topics import open_topics

    address = KafkaAddress.parse(settings.log_url)
    try:
        topics = open_topics(replace(address, timeout_ms=_LOG_TIMEOUT_MS), create=False)
    except NotFound:
        return Check("log", "ok", f"{address} (not made yet)")
    except RaypipeError as e:
        return Check("log", "fail", e.detail, e.hint or "Check log_url.")
    return Check("log", "ok", f"{address}, {topics.partitions} partitions")


def _lake(lake: Place) -> Check:
    """Looks only: a bucket that isn't there reads like an empty one, and is told when written."""
    try:
        lake.names()
    except (RaypipeError, OSError) as e:
        found = e.detail if isinstance(e, RaypipeError) else str(e)
        return Check("lake", "fail", found, "Check lake_url and this node's credentials.")
    return Check("lake", "ok", lake.url)


def _mode(name: str, file: Path) -> Check:
    try:
        mode = stat.S_IMODE(file.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return Check(name, "ok", "none yet; the first start makes it")
    if mode & 0o077:
        return Check(
            name,
            "fail",
            f"{file} has mode {mode:04o}: others can read it",
            f"`chmod 600 {file}`, and revoke keys that others may have seen.",
        )
    return Check(name, "ok", f"{file}, mode {mode:04o}")


def _running(home: Path) -> Check:
    found = running.read(home)
    if found is None:
        return Check("running", "ok", "nothing")
    if found.alive:
        return Check("running", "ok", f"raypipe {found.verb}, pid {found.pid}, {found.state}")
    return Check(
        "running",
        "warn",
        f"raypipe {found.verb} (pid {found.pid}) ended without a clean stop",
        "Nothing to do: the next start recovers.",
    )


def _spill(settings: Settings) -> Check:
    """Decisions that clients were told and the log does not have; somebody must hand them over."""
    folder = settings.spill_dir
    try:
        waiting = spill.backlog(folder)
    except RaypipeError as e:
        return Check("spill", "fail", f"{folder}: {e.detail}", "Check the disk and the folder.")
    if waiting.since is None:
        return Check("spill", "ok", f"{folder}: empty")
    age_s = (SystemClock().now_ms() - waiting.since) / SECOND_MS
    found = f"{folder}: {waiting.rows} decisions wait for the log, the oldest for {age_s:.0f} s"
    if running.find(settings.home) is not None or settings.ray_address is not None:
        state = "warn" if age_s > SPILL_S else "ok"
        cure = "The worker is away: `raypipe status`." if state == "warn" else ""
        return Check("spill", state, found, cure)
    return Check("spill", "warn", found, "Nothing runs that would hand them over: start it again.")


def _port(settings: Settings) -> Check:
    where = f"{settings.http_host}:{settings.http_port}"
    owner = running.find(settings.home)
    if owner is not None and owner.http_url == settings.http_url:
        return Check("port", "ok", f"{where}, used by the running raypipe {owner.verb}")
    refusal = running.refusal(settings.http_host, settings.http_port)
    if refusal and settings.ray_address is not None and running.ready(settings.http_url)[0]:
        return Check("port", "ok", f"{where}, used by the cluster that serves")
    if refusal:
        return Check(
            "port",
            "fail",
            f"{where}: {refusal}",
            "Stop what uses it, or choose another http_port (or http_host).",
        )
    return Check("port", "ok", f"{where} is free")


def _ingress(settings: Settings) -> Check:
    if settings.ingress == "proxy":
        return Check("ingress", "ok", "proxy")
    given = os.environ.get(own.BINARY_VARIABLE, "")
    absent = own.missing(given)
    if absent:
        cure = "Install ray[serve] again, or set ingress to proxy."
        return Check("ingress", "fail", absent, cure)
    return Check("ingress", "ok", f"haproxy, {own.binary(given)}")


def _existing(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    return next(p for p in (path, *path.parents) if p.exists())
