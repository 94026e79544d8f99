"""A Ray cluster whose log node can be killed: worker and ingest server as the product starts them.

Its arguments are the home folder and the port for bulk events. It says ``ready`` when both serve,
and when there is another node that may hold the log. After a line on its standard input the node
they are on dies, raylet and all; it answers with the ids of that one and of the next.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from raypipe.config import Settings
from raypipe.runtime import session
from raypipe.runtime.placement import LOG_NODE

QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1_000}
NODE = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
PATIENCE_S = 240.0


def main(home: Path, port: int) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray prints
    folder = tempfile.mkdtemp(prefix="rp-")  # short: Unix sockets lie in it
    settings = Settings(
        home=home,
        project="tests.domains.greenhouse:project",
        log_url=f"sqlite:///{home}/log",
        ingest_port=port,
        flush_rows_per_second=0,
        snapshot_seconds=1,
    )
    session._export(session.environment(settings), preloaded=False)
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster()
    cluster.add_node(**NODE, _system_config=QUICK, temp_dir=folder)
    first = cluster.add_node(**NODE, labels=LOG_NODE)
    settings = settings.model_copy(update={"ray_address": cluster.address})
    session.start(settings, warm=False)
    from raypipe.runtime.worker import actor
    from serving import ingest

    try:
        worker = actor.ensure(settings)
        ingest.ensure(settings)
        cluster.add_node(**NODE, labels=LOG_NODE)
        print("ready", file=answers, flush=True)
        sys.stdin.readline()
        power_off(cluster, first)
        now_on = node_of(worker, first.node_id)
        print(json.dumps([first.node_id, now_on]), file=answers, flush=True)
        sys.stdin.readline()
    finally:
        session.stop()
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def power_off(cluster: Any, node: Any) -> None:
    """Kill a node and every process on it, without warning."""
    (raylet,) = node.all_processes["raylet"]
    there = psutil.Process(raylet.process.pid).children(recursive=True)
    cluster.remove_node(node, allow_graceful=False)
    for process in there:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def node_of(worker: Any, dead: str) -> str:
    """The node that a worker came back on."""
    import ray

    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            address = ray.get(worker.address.remote(), timeout=5)
        except ray.exceptions.RayError:
            pass
        else:
            if address.node != dead:
                return str(address.node)
        assert time.monotonic() < deadline, "the worker did not come back"
        time.sleep(0.1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
