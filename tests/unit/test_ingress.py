"""HAProxy as Ray Serve's ingress: its configuration, its ports, and what it answers by itself.

A real HAProxy runs on Ray's own template, without Ray.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from jinja2 import ChainableUndefined, Environment

from raypipe.config import Settings
from raypipe.errors import ConfigError, Unavailable
from raypipe.runtime.ingress import own
from raypipe.runtime.ingress.haproxy import narrowed
from serving.problems import problem_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="HAProxy comes for Linux alone")


def template() -> str:
    """Ray's template of the configuration; Ray itself needn't be imported."""
    ray = find_spec("ray")
    assert ray is not None
    assert ray.origin is not None
    file = Path(ray.origin).parent / "serve/_private/haproxy_templates.py"
    spec = importlib.util.spec_from_file_location("haproxy_templates", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.HAPROXY_CONFIG_TEMPLATE)


def as_serve_writes_it(folder: Path, port: int, replicas: list[int]) -> str:
    error = folder / "500.http"
    error.write_text("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n")
    (folder / "state").touch()
    backend = {
        "name": "http-raypipe",
        "path_prefix": "/",
        "servers": [{"name": f"r{p}", "host": "127.0.0.1", "port": p} for p in replicas],
    }
    health = "default-server fastinter 250ms downinter 250ms fall 2 rise 2 inter 5s check"
    config = {
        "log_target": "127.0.0.1:514",
        "socket_path": str(folder / "a"),
        "maxconn": 100,
        "nbthread": 1,
        "bufsize": 16384,
        "enable_hap_optimization": True,
        "server_state_base": str(folder),
        "server_state_file": str(folder / "state"),
        "hard_stop_after_s": 120,
        "close_spread_time_s": None,
        "timeout_connect_s": 5,
        "timeout_client_s": 60,
        "timeout_server_s": 1,
        "timeout_http_request_s": None,
        "timeout_http_keep_alive_s": 5,
        "timeout_queue_s": None,
        "retry_on": "conn-failure empty-response",
        "retries": 3,
        "tcp_nodelay": True,
        "error_file_path": str(error),
        "balance_algorithm": "leastconn",
        "frontend_host": "127.0.0.1",
        "frontend_port": port,
        "metrics_port": port + 1,
        "metrics_uri": "/metrics",
        "stats_port": port + 2,
        "stats_uri": "/stats",
        "observe_mark_down_enabled": True,
        "observe_error_limit": 1,
    }
    engine = Environment(undefined=ChainableUndefined, autoescape=False)
    engine.filters["haproxy_fmt"] = json.dumps
    backends = [backend] if replicas else []
    rendered = engine.from_string(template()).render(
        config=config,
        backends=backends,
        grpc_backends=[],
        backends_with_health_config=[
            {"backend": b, "health_config": {"default_server_directive": health}} for b in backends
        ],
        route_info={
            "status": 200,
            "routes_content_type": "application/json",
            "routes_message": "{}",
        },
        healthz_rules="",
        grpc_healthz_rules="",
    )
    # What a backend leaves open is None in Ray's objects and undefined here.
    return re.sub(r"^ *timeout [a-z-]+ s\n", "", rendered, flags=re.MULTILINE) + "\n"


@pytest.fixture
def ingress(tmp_path: Path) -> Iterator[own.Ingress]:
    claimed = own.claim(Settings(home=tmp_path))
    try:
        yield claimed
    finally:
        claimed.release()


@contextmanager
def running(ingress: own.Ingress, replicas: list[int]) -> Iterator[psutil.Process]:
    """HAProxy, started by the command that Serve is given, on the block's own ports."""
    config = ingress.folder / "cfg"
    config.write_text(as_serve_writes_it(ingress.folder, ingress.port + 10, replicas))
    process = subprocess.Popen([ingress.command, "-db", "-f", config], stderr=subprocess.PIPE)
    try:
        _await_port(ingress.port + 10)
        yield psutil.Process(process.pid)
    finally:
        process.kill()
        process.communicate()


def _await_port(port: int) -> None:
    for _ in range(500):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.02)
    raise TimeoutError(f"nothing listens on {port}")


def ask(ingress: own.Ingress, **headers: str) -> httpx.Response:
    sent = {k.replace("_", "-"): v for k, v in headers.items()}
    url = f"http://127.0.0.1:{ingress.port + 10}/v1/decisions"
    return httpx.post(url, content=b"{}", headers=sent, trust_env=False, timeout=10)


def test_it_listens_on_loopback_alone_and_is_the_process_that_serve_started(
    ingress: own.Ingress,
) -> None:
    with running(ingress, []) as process:
        listening = {
            c.laddr for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN
        }
        name = process.name()
    assert name == "haproxy"
    assert {a.ip for a in listening} == {"127.0.0.1"}
    assert {a.port for a in listening} == {ingress.port + n for n in (10, 11, 12)}


@pytest.mark.parametrize(
    ("host", "bound"), [("0.0.0.0", "0.0.0.0:8000"), ("::1", "[::1]:8000"), ("10.0.0.9",) * 2]
)
def test_only_the_clients_frontend_follows_the_setting(
    tmp_path: Path, host: str, bound: str
) -> None:
    text = as_serve_writes_it(tmp_path, 8000, [9000])
    text += "frontend of_a_later_ray\n  bind :7000 proto h2\n"
    binds = [
        line.strip()
        for line in narrowed(text, host, "p.json").splitlines()
        if line.strip().startswith("bind")
    ]
    assert binds[1].startswith(f"bind {bound}")
    assert [b for b in binds if not b.startswith("bind 127.0.0.1:")] == [binds[1]]
    assert "bind 127.0.0.1:7000 proto h2" in binds


def test_where_no_replica_is_the_answer_is_the_applications_own_problem(
    ingress: own.Ingress,
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as gone:
        port = gone.getsockname()[1]
    for replicas in ([], [port]):
        with running(ingress, replicas):
            answer = ask(ingress, X_Request_Id='a"b')
            nameless = ask(ingress)
        expected = problem_of(own.AWAY, 'a"b')
        assert answer.status_code == expected.status_code == 503
        assert answer.json() == json.loads(bytes(expected.body))
        for header in ("content-type", "retry-after"):
            assert answer.headers[header] == expected.headers[header]
        assert answer.headers.get_list("x-request-id") == ['a"b']
        assert nameless.headers["x-request-id"] == nameless.json()["request_id"] != ""


class Replica:
    """Answers with what it was asked; says nothing to its first ``silent`` requests."""

    def __init__(self, silent: int = 0, patience_s: float = 0.0) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.asked: list[bytes] = []
        self.silent = silent
        self.patience_s = patience_s
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server.getsockname()[1])

    def _serve(self) -> None:
        while True:
            try:
                line, _ = self.server.accept()
            except OSError:
                return
            with line:
                head = line.recv(65_536)
                if not head.startswith(b"POST"):
                    continue  # a health check of the connection alone
                # With something left unread a close is a reset, which marks the replica down.
                while not head.endswith(b"{}"):
                    head += line.recv(65_536)
                self.asked.append(head)
                if len(self.asked) <= self.silent:
                    continue
                time.sleep(self.patience_s)
                given = re.search(rb"(?i)x-request-id: ([^\r]*)", head)
                assert given is not None
                with contextlib.suppress(OSError):  # HAProxy may wait no longer
                    line.sendall(
                        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n"
                        b"X-Request-ID: " + given[1] + b"\r\n\r\nok"
                    )


def test_a_request_whose_replica_dies_with_it_is_sent_again(ingress: own.Ingress) -> None:
    replica = Replica(silent=2)
    with closing(replica.server), running(ingress, [replica.port]):
        answer = ask(ingress, X_Request_Id="r-1")
    assert (answer.status_code, answer.text) == (200, "ok")
    assert len(replica.asked) == 3


def test_the_request_id_reaches_the_replica_and_comes_back_once(ingress: own.Ingress) -> None:
    replica = Replica()
    with closing(replica.server), running(ingress, [replica.port]):
        answers = [ask(ingress, X_Request_Id=i) for i in ("r-1", "two words", "x" * 129, "")]
    ids = [a.headers.get_list("x-request-id") for a in answers]
    assert ids[0] == ["r-1"]
    assert all(re.fullmatch(r"[0-9a-f-]{36}", one) for [one] in ids[1:])
    assert b"two words" not in b"".join(replica.asked)


def test_a_replica_that_does_not_answer_in_time_is_a_503(ingress: own.Ingress) -> None:
    replica = Replica(patience_s=3.0)
    with closing(replica.server), running(ingress, [replica.port]):
        answer = ask(ingress)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


def test_it_ends_with_the_process_that_started_it(ingress: own.Ingress) -> None:
    (ingress.folder / "cfg").write_text(as_serve_writes_it(ingress.folder, ingress.port + 10, []))
    code = (
        "import subprocess, sys, time; p = subprocess.Popen(sys.argv[1:]);"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    arguments = [str(ingress.command), "-db", "-f", str(ingress.folder / "cfg")]
    parent = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    _await_port(ingress.port + 10)
    parent.kill()
    parent.communicate()
    _, alive = psutil.wait_procs([child], timeout=10)
    assert not alive


# Ports and files


def test_two_sessions_share_no_port_no_file_and_no_command(tmp_path: Path) -> None:
    first, second = own.claim(Settings(home=tmp_path)), own.claim(Settings(home=tmp_path))
    shared: set[Any] = set()
    try:
        one, two = first.environment(), second.environment()
        shared = {n for n in one if one[n] == two[n] and ("/" in one[n] or "_PORT" in n)}
        ranges = [
            range(
                int(e["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"]),
                int(e["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"]),
            )
            for e in (one, two)
        ]
        assert not set(ranges[0]) & set(ranges[1])
        assert first.folder.stat().st_mode & 0o777 == 0o700
    finally:
        first.release()
        second.release()
    assert not shared
    assert not first.folder.exists()
    assert not first.command.exists()


def test_a_released_block_is_free_again(tmp_path: Path) -> None:
    first = own.claim(Settings(home=tmp_path))
    first.release()
    again = own.claim(Settings(home=tmp_path))
    again.release()
    assert again.port == first.port


def test_a_haproxy_that_the_user_names_is_wrapped_too(tmp_path: Path) -> None:
    mine = tmp_path / "haproxy"
    mine.write_text("#!/bin/sh\n")
    mine.chmod(0o700)
    claimed = own.claim(Settings(home=tmp_path), str(mine))
    try:
        assert claimed.environment()[own.BINARY_VARIABLE] == str(claimed.command)
        assert str(mine) in claimed.command.read_text()
    finally:
        claimed.release()


def test_a_folder_that_others_can_open_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "_ROOT", tmp_path)
    (tmp_path / f"rp-{os.getuid()}").mkdir(mode=0o755)
    with pytest.raises(Unavailable, match="of this user alone"):
        own.claim(Settings(home=tmp_path))


def test_the_paths_of_the_sockets_leave_room_for_what_ray_adds(ingress: own.Ingress) -> None:
    path = Path(ingress.environment()["RAY_SERVE_HAPROXY_SOCKET_PATH"])
    # A node id of 56 characters, and the pid that HAProxy appends while it starts.
    assert len(str(path.parent / ("0" * 56) / f"{path.name}.4194304.tmp")) < 108


# The setting


def test_haproxy_serves_a_session_of_its_own_and_the_proxy_a_cluster() -> None:
    assert Settings().ingress == "haproxy"
    assert Settings(ray_address="auto").ingress == "proxy"


def test_haproxy_on_a_cluster_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from raypipe.config import load_settings

    with pytest.raises(ConfigError, match="clear text"):
        load_settings({"ray_address": "auto", "ingress": "haproxy"})
