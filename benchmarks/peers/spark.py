"""PySpark beside the batch: started once, asked to compute the same windows again and again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from benchmarks.harness import check

HINT = "make peers"
"""What installs it."""


def obstacle() -> str:
    """Why Spark can't run here; "" if it can."""
    if find_spec("pyspark") is None:
        return f"PySpark is not installed ({HINT})"
    return (
        "" if shutil.which("java") else "there is no Java (apt-get install openjdk-17-jre-headless)"
    )


@contextmanager
def spark(
    events: Path, out: Path, entities: Sequence[str], spans: Sequence[int], cores: int
) -> Iterator[Callable[[], None]]:
    """A warm session; a call computes all windows of all entities, Parquet to Parquet.

    Args:
        events: Parquet with offset, event_time (ms), amount and a key column per entity.
        out: receives a folder per entity.
        spans: seconds.
    """
    spec = json.dumps({"entities": list(entities), "spans": list(spans), "cores": cores})
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.peers.spark_process", str(events), str(out), spec],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "SPARK_LOCAL_IP": "127.0.0.1", "PYTHONWARNINGS": "ignore"},
        start_new_session=True,
    )
    ask, told = process.stdin, process.stdout
    if ask is None or told is None:
        raise RuntimeError("no pipes to Spark")

    def compute() -> None:
        ask.write("again\n")
        ask.flush()
        check(told.readline() == "done\n", "Spark ended with an error")

    try:
        check(told.readline() == "ready\n", "Spark does not start")
        yield compute
    finally:
        ask.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
