"""A worker in a process of its own, behind the product's sockets or behind grpc.aio.

``python -m benchmarks.peers.worker_process FOLDER TLS_DIR``: listens on ``FOLDER/worker.sock`` and
on two loopback ports, which it prints as one JSON line; ends with its stdin.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from pathlib import Path

import grpc

from features.payments import project
from raypipe.log.sqlite import SqliteLog
from raypipe.runtime.worker import protocol, tls
from raypipe.runtime.worker.connection import TlsListener, UnixListener
from raypipe.runtime.worker.core import WorkerCore
from raypipe.runtime.worker.server import WorkerServer
from raypipe.tenancy.keys import KeyStore

METHOD = "/raypipe.Worker/Ask"


def credentials(folder: Path) -> tuple[bytes, bytes, bytes]:
    """Key, certificate and authority of a tls_dir, as gRPC takes them."""
    key, certificate, authority = (folder / n for n in (tls.KEY, tls.CERTIFICATE, tls.CA))
    return key.read_bytes(), certificate.read_bytes(), authority.read_bytes()


async def _serve_grpc(core: WorkerCore, folder: Path, announce: dict[str, int]) -> None:
    key, certificate, authority = credentials(folder)

    async def ask(body: bytes, context: object) -> bytes:
        request = protocol.decode_request(body)
        if not isinstance(request, protocol.Observe):
            raise TypeError(f"this peer answers Observe, not {type(request).__name__}")
        entry, decision = core.observe(request.event, request.body_hash, request.kind)
        reply = protocol.Observed(request.id, entry.offset, entry.windows, entry.event, decision)
        core.commit()
        return protocol.encode(reply)

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(ask)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("raypipe.Worker", {"Ask": handler}),)
    )
    secure = grpc.ssl_server_credentials([(key, certificate)], authority, True)
    announce["grpc"] = server.add_secure_port("127.0.0.1:0", secure)
    await server.start()
    print(json.dumps(announce), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


def main(folder: Path, tls_dir: Path) -> None:
    """Serve one worker each way; both know the same events once they were observed there."""
    network = TlsListener("127.0.0.1", 0, tls_dir)
    server = WorkerServer(
        WorkerCore(project, SqliteLog(folder / "framed")),
        KeyStore(folder / "tenants.db"),
        [UnixListener(folder / "worker.sock"), network],
    )
    threading.Thread(target=server.run, daemon=True).start()
    core = WorkerCore(project, SqliteLog(folder / "grpc"))
    asyncio.run(_serve_grpc(core, tls_dir, {"tls": network.sock.getsockname()[1]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
