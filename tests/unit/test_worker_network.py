"""A worker's sockets: the same answers on its node and from another one, none to strangers."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raypipe.errors import ConfigError, Conflict
from raypipe.ledger.record import DecisionRecord, decision_id, decode
from raypipe.log.sqlite import SqliteLog
from raypipe.runtime.worker import connection as connections
from raypipe.runtime.worker import protocol, reach, server, tls
from raypipe.runtime.worker.client import WorkerClient
from raypipe.runtime.worker.core import WorkerCore
from raypipe.tenancy.keys import KeyStore, Presented, Scope
from tests.domains.greenhouse import project
from tests.unit.certificates_kit import authority

TIME = 1_790_000_000_000


@dataclass
class Worker:
    """A worker in a thread of this process, with both kinds of sockets."""

    home: Path
    path: Path
    port: int
    keys: KeyStore
    tls: Path

    @property
    def address(self) -> reach.Address:
        return reach.Address("there", str(self.path), "127.0.0.1", self.port)

    def client(self, node: str = "elsewhere", folder: Path | None = None) -> WorkerClient:
        async def locate() -> reach.Address:
            return self.address

        return WorkerClient(reach.connector(locate, node, folder or self.tls))


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    log = SqliteLog(tmp_path / "log")
    keys = KeyStore(tmp_path / "tenants.db")
    folder = authority(tmp_path / "tls")
    unix = connections.UnixListener(tmp_path / "w.sock")
    network = connections.TlsListener("127.0.0.1", 0, folder)
    serving = server.WorkerServer(WorkerCore(project, log), keys, [unix, network])
    thread = threading.Thread(target=serving.run)
    thread.start()
    try:
        port = network.sock.getsockname()[1]
        yield Worker(tmp_path, tmp_path / "w.sock", port, keys, folder)
    finally:
        serving.stop()
        thread.join()
        log.close()


def opening(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "tenant": "default",
        "event_id": f"o-{number}",
        "event_time": TIME + number,
        "received_at": TIME + number,
        "valve": f"v-{number % 3}",
        "gardener": None,
        "litres": 5,
        "mode": None,
    } | changes


def test_both_ways_lead_to_the_same_worker(worker: Worker) -> None:
    async def ask() -> None:
        here, there = worker.client("there"), worker.client()
        first = await here.observe(opening(1), b"1" * 32)
        again = await there.observe(opening(1), b"1" * 32)
        assert (again.windows, again.event) == (first.windows, opening(1))
        assert again.offset == first.offset
        with pytest.raises(Conflict):
            await there.observe(opening(1), b"2" * 32)
        assert (await there.stats())["events"] == 1
        for client in (here, there):
            await client.close()

    asyncio.run(ask())


def decided(seen: protocol.Observed) -> DecisionRecord:
    event = seen.event
    return DecisionRecord(
        decision_id("default", event["event_id"]),
        *("default", event["event_id"], seen.offset, event["event_time"], event["received_at"]),
        *(TIME, "m@1", "", "p", "", project.definition_hash, seen.windows, 0.5, "review"),
    )


def test_a_decision_is_told_though_another_never_comes(worker: Worker) -> None:
    """Its event was observed and its replica is gone: who waits for it waits shortly."""

    async def ask() -> None:
        gone, client = worker.client("there"), worker.client("there")
        await gone.observe(opening(1), b"1" * 32)
        await gone.close()
        for number in (2, 3):
            seen = await client.observe(opening(number), b"2" * 32)
            async with asyncio.timeout(30):
                assert await client.record(decided(seen), seen.own) == decided(seen)
        again = await client.observe(opening(2), b"2" * 32)
        assert again.decision is not None
        assert decode(again.decision).event_id == "o-2"
        await client.close()

    asyncio.run(ask())


def test_many_and_large_messages_cross_the_network_whole(worker: Worker) -> None:
    async def ask() -> None:
        client = worker.client()
        # Over TLS records, socket buffers and the reads of both sides.
        wide = ["g" * size for size in (1, 16_383, 16_384, 16_385, 300_000, 2_000_000)]
        events = [opening(n, gardener=wide[n % len(wide)]) for n in range(60)]
        seen = await asyncio.gather(
            *(client.observe(e, str(n).zfill(32).encode()) for n, e in enumerate(events))
        )
        assert [s.event for s in seen] == events
        offsets = sorted(s.offset for s in seen)
        assert offsets == list(range(offsets[0], offsets[0] + 60))
        await client.close()

    asyncio.run(ask())


@pytest.mark.parametrize("node", ["there", "elsewhere"])
def test_a_key_is_verified_until_it_is_revoked(worker: Worker, node: str) -> None:
    text = worker.keys.create("acme", [Scope.ADMIN, Scope.DECISIONS_READ])
    shown = Presented.parse(text)
    assert shown is not None
    wrong = Presented(shown.key_id, bytes(32))

    async def ask() -> None:
        client = worker.client(node)
        found = await client.verify(shown)
        assert found is not None
        assert found.tenant == "acme"
        assert found.scopes == {Scope.ADMIN, Scope.DECISIONS_READ}
        assert await client.verify(wrong) is None
        worker.keys.revoke(shown.key_id)
        assert await client.verify(shown) is None
        await client.close()

    asyncio.run(ask())


def refused(worker: Worker, context: ssl.SSLContext) -> bool:
    """Whether nobody answers a request over such a connection."""
    with socket.create_connection(("127.0.0.1", worker.port), timeout=10) as sock:
        try:
            with context.wrap_socket(sock, server_hostname=tls.NODE) as inside:
                # In TLS 1.3 the client hears of a refused certificate with its first read.
                return inside.recv(1) == b""
        except OSError:
            return True


def test_strangers_are_not_let_in(worker: Worker, tmp_path: Path) -> None:
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    nobody.load_verify_locations(worker.tls / tls.CA)
    assert refused(worker, nobody)
    other = authority(tmp_path / "other")
    foreign = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    foreign.load_verify_locations(worker.tls / tls.CA)
    foreign.load_cert_chain(other / tls.CERTIFICATE, other / tls.KEY)
    assert refused(worker, foreign)
    old = tls.client_context(worker.tls)
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    assert refused(worker, old)
    with socket.create_connection(("127.0.0.1", worker.port), timeout=10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with suppress(ConnectionResetError):
            while plain.recv(64):  # an alert at most, then the end
                pass
    asyncio.run(_alive(worker))


def test_a_node_talks_to_no_impostor(worker: Worker, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        asyncio.run(reach.network("127.0.0.1", worker.port, authority(tmp_path / "other")))


def test_an_expired_or_misnamed_certificate_is_refused_by_the_other_side(tmp_path: Path) -> None:
    for name, given in (("expired", {"days": -1}), ("misnamed", {"name": "somebody-else"})):
        folder = authority(tmp_path / name, **given)  # type: ignore[arg-type]
        listener = connections.TlsListener("127.0.0.1", 0, folder)
        keys, log = KeyStore(tmp_path / f"{name}.db"), SqliteLog(tmp_path / f"{name}-log")
        serving = server.WorkerServer(WorkerCore(project, log), keys, [listener])
        thread = threading.Thread(target=serving.run)
        thread.start()
        try:
            with pytest.raises(ssl.SSLCertVerificationError):
                asyncio.run(reach.network("127.0.0.1", listener.sock.getsockname()[1], folder))
        finally:
            serving.stop()
            thread.join()
            log.close()


def test_silent_connections_do_not_pile_up(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_STRANGERS", 8)
    silent = [socket.create_connection(("127.0.0.1", worker.port)) for _ in range(20)]
    asyncio.run(_alive(worker))
    silent[0].settimeout(10)
    assert silent[0].recv(1) == b""  # the oldest made room
    for sock in silent:
        sock.close()


async def _alive(worker: Worker) -> None:
    client = worker.client()
    assert "epoch" in await client.stats()
    await client.close()


def test_a_host_that_is_gone_counts_as_away(worker: Worker) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(OSError, match=r"refused|Connect"):
        asyncio.run(reach.network("127.0.0.1", port, worker.tls))


def test_a_host_that_never_answers_counts_as_away(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "CONNECT_S", 0.2)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        with pytest.raises(ConnectionError, match=r"did not answer within 0\.2 s"):
            asyncio.run(reach.network(*mute.getsockname(), worker.tls))


def test_a_cluster_without_certificates_is_told_so(worker: Worker, tmp_path: Path) -> None:
    async def ask(folder: Path | None, port: int) -> None:
        async def locate() -> reach.Address:
            return reach.Address("there", str(worker.path), "10.0.0.9", port)

        await WorkerClient(reach.connector(locate, "here", folder)).stats()

    with pytest.raises(ConfigError, match=r"another node \(10.0.0.9\), and this node has no"):
        asyncio.run(ask(None, worker.port))
    with pytest.raises(ConfigError, match="the worker's node has no tls_dir"):
        asyncio.run(ask(worker.tls, 0))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"lacks ca\.crt, node\.crt, node\.key"):
        tls.server_context(tmp_path / "empty")
    (worker.tls / tls.KEY).write_text("no key")
    with pytest.raises(ConfigError, match="tls_dir"):
        tls.client_context(worker.tls)


def test_the_unix_socket_is_this_users_alone(worker: Worker) -> None:
    assert worker.path.stat().st_mode & 0o777 == 0o600
    assert worker.path.stat().st_uid == os.getuid()
