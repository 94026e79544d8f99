"""A whole node dies under load, with worker, upkeep and ingest server on it: they come back on
another one, and nothing that was acknowledged is lost or counted twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from raypipe.tenancy.keys import STORE_FILE, KeyStore
from tests.domains.greenhouse_line import free_port
from tests.recovery import ingest_kit
from tests.recovery.ingest_kit import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.ray]

BATCHES = 50
ANSWERS = 20
"""So many before the node dies."""


@dataclass
class Cluster:
    """Where the system on the cluster is reached."""

    url: str
    key: str


def test_a_node_dies_under_load(tmp_path: Path) -> None:
    home, port = tmp_path / "home", free_port()
    home.mkdir()
    key = KeyStore(home / STORE_FILE).create("default", ["events:write"])
    with subprocess.Popen(
        [sys.executable, "-m", "tests.recovery.node_process", home, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        answered: list[str] = []

        def acknowledged(batch: str) -> None:
            answered.append(batch)
            if len(answered) == ANSWERS:
                process.stdin.write("\n")
                process.stdin.flush()

        cluster = Cluster(f"http://127.0.0.1:{port}", key)
        told = ingest_kit.run(
            cluster, batches=BATCHES, keyed=True, kills=0, seed=7, acknowledged=acknowledged
        )
        dead, alive = json.loads(process.stdout.readline())
        ingest_kit.check_receipts(cluster, told)
        process.stdin.close()
    assert process.returncode == 0
    assert dead != alive
    ingest_kit.check(home, told, keyed=True)
