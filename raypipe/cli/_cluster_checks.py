"""What ``raypipe doctor`` looks at on a cluster: whether its nodes are one system."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from raypipe.cli._checks import Check
from raypipe.clock import DAY_MS, SystemClock
from raypipe.errors import RaypipeError
from raypipe.runtime.survey import Report, Survey, survey

if TYPE_CHECKING:
    from raypipe.config import Settings

CLOCK_WARN_MS = 250.0
CLOCK_FAIL_MS = 5_000.0
EXPIRY_WARN_MS = 30 * DAY_MS

_SYNC = "`ray up` again; end a node that keeps the old files, and the autoscaler starts another."


def run(settings: Settings) -> list[Check]:
    """Join the cluster and ask each node; a cluster that can't be joined is the only finding."""
    from raypipe.runtime import placement, session

    try:
        session.start(settings, warm=False)
        found = survey(settings)
    except RaypipeError as e:
        return [Check("cluster", "fail", e.detail, e.hint or "Check ray_address.")]
    checks: list[Check] = []
    try:
        placement.worker_options(settings)
        checks.append(Check("log node", "ok", "one node has the label"))
    except RaypipeError as e:
        checks.append(Check("log node", "fail", e.detail, e.hint))
    return [*checks, *judge(found, settings, SystemClock().now_ms())]


def judge(found: Survey, settings: Settings, now_ms: int) -> list[Check]:
    """What a survey shows, a check a subject."""
    return [
        _nodes(found),
        _same(
            "code",
            found,
            lambda r: r.code,
            "the files of raypipe, features, training and serving",
            f"{_SYNC} Jobs bring their own with --working-dir.",
        ),
        _same(
            "versions",
            found,
            lambda r: ", ".join(f"{n} {v}" for n, v in {"python": r.python, **r.packages}.items()),
            "Python and packages",
            "Install the lock file on every node: `make setup` in the checkout there.",
        ),
        _environment(found),
        _each(
            "token",
            found,
            lambda r: r.token,
            "every node asks for it",
            "Mount ~/.ray/auth_token (mode 0600) and set RAY_AUTH_MODE=token on every node.",
        ),
        _each(
            "shared lake",
            found,
            lambda r: r.lake,
            f"{settings.lake_url}: written and read by every node",
            "Set lake_url to what all nodes mount, or to s3://... with a role that may write it.",
        ),
        _online(found, settings),
        _certificates(found, settings, now_ms),
        _each(
            "worker",
            found,
            lambda r: r.worker,
            f"reached from every node (port {settings.worker_port}), if it runs",
            "Open worker_port between the nodes, and give all of them the same tls_dir.",
        ),
        _each(
            "http port",
            found,
            lambda r: r.http,
            f"{settings.http_port} is free or serves on every node",
            "Stop what uses it there, or choose another http_port (in deploy/serve.yaml too).",
        ),
        _clocks(found),
    ]


def _nodes(found: Survey) -> Check:
    count = len(found.reports) + len(found.silent)
    if found.silent:
        said = "; ".join(f"{a}: {why}" for a, why in sorted(found.silent.items()))
        return Check(
            "nodes",
            "fail",
            f"{len(found.silent)} of {count} did not report: {said}",
            "Look at /tmp/ray/session_latest/logs there; most often raypipe isn't installed.",
        )
    addresses = ", ".join(sorted(r.address for r in found.reports))
    return Check("nodes", "ok", f"{count} alive: {addresses}")


def _same(name: str, found: Survey, value: Callable[[Report], str], what: str, cure: str) -> Check:
    """Whether all nodes, and this process, have the same."""
    groups = {value(found.here): ["here"]}
    for report in found.reports:
        groups.setdefault(value(report), []).append(report.address)
    if len(groups) == 1:
        return Check(name, "ok", f"{what}: the same on every node")
    said = "; ".join(f"{', '.join(where)}: {text[:120]}" for text, where in groups.items())
    return Check(name, "fail", f"{what} differ. {said}", cure)


def _each(name: str, found: Survey, wrong: Callable[[Report], str], what: str, cure: str) -> Check:
    """Whether no node finds anything wrong."""
    bad = [f"{r.address}: {text}" for r in found.reports if (text := wrong(r))]
    return Check(name, "fail", "; ".join(bad), cure) if bad else Check(name, "ok", what)


def _environment(found: Survey) -> Check:
    names = sorted({name for r in found.reports for name in r.environment})
    drift = []
    for name in names:
        groups: dict[str, list[str]] = {}
        for report in found.reports:
            groups.setdefault(report.environment.get(name, "unset"), []).append(report.address)
        if len(groups) > 1:
            drift += [f"{name} is {v} on {', '.join(where)}" for v, where in groups.items()]
    if drift:
        return Check("environment", "fail", "; ".join(drift), _SYNC)
    return Check("environment", "ok", f"{len(names)} variables: the same on every node")


def _online(found: Survey, settings: Settings) -> Check:
    if settings.embedded_online:
        alone = len(found.reports) < 2
        return Check(
            "online store",
            "ok" if alone else "fail",
            "a file" + ("" if alone else ": replicas read profiles on its own node only"),
            "" if alone else "Set online_url to a Redis that all nodes reach.",
        )
    return _each(
        "online store",
        found,
        lambda r: r.online,
        f"{settings.online_url}: answers every node",
        "Set online_url to a Redis that all nodes reach; `raypipe cluster secrets` makes its "
        "password, and `ray up` brings all nodes the same one (mode 0600).",
    )


def _certificates(found: Survey, settings: Settings, now_ms: int) -> Check:
    cure = "`raypipe cluster secrets` makes them; `ray up` brings all nodes the same ones."
    if settings.tls_dir is None:
        alone = len(found.reports) < 2
        return Check(
            "certificates",
            "ok" if alone else "fail",
            "no tls_dir" + ("" if alone else ": replicas reach the worker on its own node only"),
            "" if alone else cure,
        )
    bad = [f"{r.address}: {r.tls[1:]}" for r in found.reports if r.tls.startswith("!")]
    authorities = {r.tls for r in found.reports}
    if not bad and len(authorities) > 1:
        bad = [f"{r.address}: authority {r.tls[:12]}" for r in found.reports]
    if bad:
        return Check("certificates", "fail", "; ".join(bad), cure)
    left_ms = min((r.expires_ms or 0) for r in found.reports) - now_ms if found.reports else 0
    renew = "`raypipe cluster secrets --renew`, then `ray up`."
    if left_ms <= 0:
        return Check("certificates", "fail", "the node certificate has expired", renew)
    days = f"the node certificate expires in {left_ms // DAY_MS} days"
    if left_ms < EXPIRY_WARN_MS:
        return Check("certificates", "warn", days, renew)
    return Check("certificates", "ok", f"one authority; {days}")


def _clocks(found: Survey) -> Check:
    """Event times are compared with the clock of whichever node answers."""
    if not found.clocks_ms:
        return Check("clocks", "warn", "no node told its time", "See the check of the nodes.")
    # What the round trip leaves open counts for the node.
    apart = {a: max(0.0, abs(o) - u) for a, (o, u) in found.clocks_ms.items()}
    address, worst = max(apart.items(), key=lambda pair: pair[1])
    offset, uncertain = found.clocks_ms[address]
    text = f"{address} is {offset:+,.0f} ms from here (+-{uncertain:,.0f} ms)"
    if worst <= CLOCK_WARN_MS:
        return Check("clocks", "ok", f"at most {worst:,.0f} ms apart")
    state = "fail" if worst > CLOCK_FAIL_MS else "warn"
    return Check("clocks", state, text, "Let a time service (chrony, systemd-timesyncd) set it.")
