"""Which node of a cluster holds the event log.

The embedded log is a folder on one node's disk. That node carries the label LOG_NODE, and whatever
opens the log runs there: a worker that Ray restarted anywhere else would find an empty disk and
begin a second history.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raypipe.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from raypipe.config import Settings

LOG_LABEL = "raypipe.io/log"
LOG_NODE = {LOG_LABEL: "true"}
"""Ray node label: ``ray start --labels raypipe.io/log=true``."""


def worker_options(settings: Settings) -> dict[str, Any]:
    """Options of a worker's actor that keep it on the log's node.

    A session of our own has one node and needs none. Raises ConfigError when a cluster has no
    such node, or several.
    """
    if settings.ray_address is None:
        return {}
    _the_node()
    return {"label_selector": LOG_NODE}


def require_log_node(settings: Settings) -> None:
    """Raise UsageError if this process joined a cluster on a node that has not got the log."""
    if settings.ray_address is None:
        return
    import ray

    node = _the_node()
    mine = ray.get_runtime_context().get_node_id()
    if node["NodeID"] != mine:
        raise UsageError(
            f"the event log is on {node['NodeManagerAddress']}, this process is not",
            hint="Submit it as a job, whose driver runs on the head: "
            "`ray job submit --working-dir . -- python -m ...`; or log in there: `ray attach`.",
        )


def _the_node() -> dict[str, Any]:
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [node for node in nodes if node["Alive"]]
    found = [n for n in alive if LOG_NODE.items() <= n.get("Labels", {}).items()]
    if len(found) == 1:
        return found[0]
    label = ",".join(f"{name}={value}" for name, value in LOG_NODE.items())
    raise ConfigError(
        f"{len(found)} of {len(alive)} nodes have the label {label}, and exactly one must: "
        "the one whose disk holds the event log",
        hint=f"Start that node with `ray start ... --labels {label}`; cluster.yaml does so.",
    )
