"""Feast's own HTTP feature server and its command line on the packed store."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
import yaml
from feast import FeatureStore
from feast.types import Float64, Int64

from tests.contract.store_kit import CARD, PACKED, frame, now, view

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_feasts_http_server_reads_and_pushes(tmp_path: Path, online_url: str) -> None:
    config = {
        "project": "shop",
        "provider": PACKED["provider"],
        "registry": "registry.pb",
        "offline_store": {"type": "duckdb"},
        "online_store": {"type": PACKED["type"], "url": "${RAYPIPE_ONLINE_URL}"},
        "entity_key_serialization_version": 3,
    }
    (tmp_path / "feature_store.yaml").write_text(yaml.safe_dump(config))
    environment = {**os.environ, "RAYPIPE_ONLINE_URL": online_url, "PYTHONPATH": str(ROOT)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYPIPE_ONLINE_URL", online_url)
        store = FeatureStore(repo_path=str(tmp_path))
    columns = {"amount": Float64, "count": Int64}
    store.apply([CARD, view(tmp_path, "by_card", columns, ttl=timedelta(days=1))])
    at = now()
    row = {"card_id": "a", "amount": 1.5, "count": None}
    store.write_to_online_store("by_card", frame([row], at))
    old = {**row, "card_id": "old"}
    store.write_to_online_store("by_card", frame([old], at - timedelta(days=2)))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "feast.cli.cli", "-c", str(tmp_path)]
    command += ["serve", "-h", "127.0.0.1", "-p", str(port), "--no-access-log"]
    log = (tmp_path / "serve.log").open("wb")
    with (
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        ) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        try:
            _wait(client, process, tmp_path / "serve.log")
            asked = {
                "features": ["by_card:amount", "by_card:count"],
                "entities": {"card_id": ["a", "old", "x"]},
            }
            answer = client.post("/get-online-features", json=asked)
            assert answer.status_code == 200, answer.text
            found = _columns(answer.json())
            assert found["amount"] == ([1.5, None, None], ["PRESENT", "NOT_FOUND", "NOT_FOUND"])
            assert found["count"] == ([None] * 3, ["PRESENT", "NOT_FOUND", "NOT_FOUND"])
            pushed = {
                "push_source_name": "push_by_card",
                "df": {
                    "card_id": ["a"],
                    "amount": [2.5],
                    "count": [7],
                    "event_timestamp": [now().isoformat()],
                },
                "to": "online",
            }
            answer = client.post("/push", json=pushed)
            assert answer.status_code == 200, answer.text
            found = _columns(client.post("/get-online-features", json=asked).json())
            assert found["amount"][0] == [2.5, None, None]
            assert found["count"][0][0] in (7, "7")
            unknown = {**asked, "features": ["unknown:amount"]}
            assert client.post("/get-online-features", json=unknown).status_code == 404
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert store.get_online_features(["by_card:amount"], [{"card_id": "a"}]).to_dict() == {
        "card_id": ["a"],
        "amount": [2.5],
    }


def _columns(body: dict) -> dict[str, tuple[list, list]]:  # type: ignore[type-arg]
    return {
        name: (result["values"], result["statuses"])
        for name, result in zip(body["metadata"]["feature_names"], body["results"], strict=True)
    }


def _wait(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while True:
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
