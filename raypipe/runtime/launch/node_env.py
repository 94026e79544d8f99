"""Rules of the environment that all nodes share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raypipe.runtime.launch.clear_text import is_secret
from raypipe.runtime.launch.files import NODE_ENV, Variable
from raypipe.runtime.launch.node import Finding

OF_ONE_MACHINE = frozenset(
    {
        "RAY_num_workers_soft_limit",  # by the CPUs of the machine
        "RAY_DATA_LOGGING_CONFIG",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S",
        "REPORTER_UPDATE_INTERVAL_MS",
        "RAY_AUTH_TOKEN_PATH",
        "PYTHONPATH",
        "NUMBA_CACHE_DIR",
    }
)
"""What a session sets for itself, with a value that isn't a cluster's."""

HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
NEEDED = ("RAY_num_workers_soft_limit", "RAYPIPE_CONFIG", "RAYPIPE_ONLINE_PASSWORD_FILE")


def session_values() -> dict[str, str]:
    """What raypipe.runtime.session sets and a cluster has to set alike."""
    from raypipe.config import Settings
    from raypipe.runtime.session import environment

    values = environment(Settings(ray_address="auto"))
    return {name: value for name, value in values.items() if name not in OF_ONE_MACHINE}


def node_env_findings(variables: Sequence[Variable]) -> Iterator[Finding]:
    """Variables that are missing, differ from a session's, or are secrets."""
    given = {v.name: v for v in variables}
    for name, value in {**session_values(), **HEALTH_CHECKS}.items():
        if name not in given:
            yield _finding("/", f"no {name}", f"{name}={value}", f"Add {name}={value}.")
        elif given[name].value != value:
            yield _finding(
                f"line {given[name].line}",
                f"{name}={given[name].value}",
                f"{name}={value}",
                "Take the value of raypipe/runtime/session.py, or change it there too.",
            )
    for name in NEEDED:
        if not given.get(name, Variable(name, "", 0)).value:
            yield _finding("/", f"no {name}", f"{name} with a value", f"Add {name}.")
    for variable in variables:
        if is_secret(variable.name, variable.value):
            yield _finding(
                f"line {variable.line}",
                f"{variable.name}, a secret in clear text",
                "no secret in the file",
                "Take it out, change the secret, and mount it as a file.",
            )


def _finding(place: str, found: str, expected: str, cure: str) -> Finding:
    return Finding(NODE_ENV, place, found, expected, cure)
