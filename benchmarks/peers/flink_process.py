"""Flink in a process of its own: keyed sliding windows over files that come into a folder.

``.flink/bin/python flink_process.py SPEC``: SPEC is JSON with the fields of ``benchmarks.peers
.flink.Job``. Prints "ready"; then each line on stdin says how many rows have come in all, and is
answered by one line when the windows have taken in all but ``tail`` of them. With its stdin ends
the job: it is drained, and its results are in ``out``. Imports nothing of this project: Flink's
Python has old pins of its own.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from typing import Any

POLL_S = 0.1


def query(spans: list[int]) -> str:
    """The windows as SQL; a streaming query takes one frame a step, so they are stacked."""
    columns = "event_id, card_id, ts, amount"
    found = f"SELECT {columns} FROM payments"  # noqa: S608
    for i, span in enumerate(spans):
        days, rest = divmod(span - 1, 86_400)
        back = f"{days} {rest // 3_600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
        found = (
            f"SELECT {columns}, COUNT(*) OVER w AS c{i}, SUM(amount) OVER w AS s{i} "  # noqa: S608
            f"FROM ({found}) WINDOW w AS (PARTITION BY card_id ORDER BY ts "
            f"RANGE BETWEEN INTERVAL '{back}' DAY TO SECOND PRECEDING AND CURRENT ROW)"
        )
        columns += f", c{i}, s{i}"
    values = ", ".join(f"c{i}, s{i}" for i in range(len(spans)))
    return f"INSERT INTO windows SELECT event_id, {values} FROM ({found})"  # noqa: S608


def start(spec: dict[str, Any]) -> Any:
    """Submit the job; returns its client."""
    from pyflink.common import Configuration
    from pyflink.table import EnvironmentSettings, TableEnvironment

    settings = {
        "parallelism.default": "1",
        "pipeline.object-reuse": "true",
        "state.backend.type": "hashmap",
        "execution.checkpointing.interval": f"{spec['checkpoint_s']} s",
        "execution.checkpointing.mode": "EXACTLY_ONCE",
        "execution.checkpointing.dir": f"file://{spec['checkpoints']}",
        "rest.address": "localhost",
        "rest.bind-address": "localhost",
        "rest.bind-port": str(spec["port"]),
        "rest.port": str(spec["port"]),
        # How fresh the counters are that tell when a file has been taken in.
        "metrics.fetcher.update-interval": str(round(POLL_S * 1_000)),
    }
    configuration = Configuration()
    for name, value in settings.items():
        configuration.set_string(name, value)
    made = EnvironmentSettings.new_instance().in_streaming_mode()
    table = TableEnvironment.create(made.with_configuration(configuration).build())
    table.execute_sql(
        "CREATE TABLE payments (event_id STRING NOT NULL, card_id STRING NOT NULL, "
        "event_time BIGINT NOT NULL, amount BIGINT NOT NULL, "
        "ts AS TO_TIMESTAMP_LTZ(event_time, 3), WATERMARK FOR ts AS ts) "
        f"WITH ('connector' = 'filesystem', 'path' = 'file://{spec['events']}', "
        "'format' = 'json', 'source.monitor-interval' = '100 ms')"
    )
    values = ", ".join(f"c{i} BIGINT, s{i} BIGINT" for i in range(len(spec["spans"])))
    table.execute_sql(
        f"CREATE TABLE windows (event_id STRING, {values}) "
        f"WITH ('connector' = 'filesystem', 'path' = 'file://{spec['out']}', 'format' = 'csv')"
    )
    client = table.execute_sql(query(spec["spans"])).get_job_client()
    if client is None:
        raise RuntimeError("Flink gave no client of the job")
    return client


class Watch:
    """What the running job has taken in, by its own counters."""

    def __init__(self, port: int, job: str) -> None:
        self._port = port
        self._path = f"/jobs/{job}"

    def _ask(self, method: str, path: str, body: str = "") -> dict[str, Any]:
        asking = http.client.HTTPConnection("localhost", self._port, timeout=60)
        try:
            asking.request(method, path, body or None, {"Content-Type": "application/json"})
            answer = asking.getresponse()
            text = answer.read().decode()
        finally:
            asking.close()
        if answer.status >= 300:
            raise RuntimeError(f"Flink answered {answer.status} to {method} {path}: {text}")
        found: dict[str, Any] = json.loads(text)
        return found

    def _job(self) -> dict[str, Any]:
        found = self._ask("GET", self._path)
        if found["state"] not in ("CREATED", "RUNNING"):
            raise RuntimeError(f"the job is {found['state']}")
        return found

    def running(self) -> None:
        """Return when all parts of the job run."""
        while any(v["status"] != "RUNNING" for v in self._job()["vertices"]):
            time.sleep(POLL_S)

    def taken(self, rows: int) -> None:
        """Return when the last window has taken in so many rows."""
        while True:
            windows = [v for v in self._job()["vertices"] if "OverAggregate" in v["name"]]
            if windows[-1]["metrics"]["read-records"] >= rows:
                return
            time.sleep(POLL_S)

    def stop(self, savepoints: str) -> None:
        """Have the job write all that it holds, and end. (PyFlink 2.3's own call for it fails: it
        lacks an argument that Java's has got.)"""
        wanted = {"targetDirectory": f"file://{savepoints}", "drain": True}
        self._ask("POST", f"{self._path}/stop", json.dumps(wanted))


def main(spec: dict[str, Any]) -> None:
    """Run the job until stdin ends."""
    client = start(spec)
    watch = Watch(spec["port"], str(client.get_job_id()))
    watch.running()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        watch.taken(int(line) - spec["tail"])
        sys.stdout.write("done\n")
        sys.stdout.flush()
    watch.stop(spec["checkpoints"])
    client.get_job_execution_result().result()
    sys.stdout.write("drained\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
