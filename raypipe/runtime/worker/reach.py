"""Where a worker listens, and the connection from another process to it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from raypipe.errors import ConfigError
from raypipe.runtime.worker import tls
from raypipe.runtime.worker.link import Link

CONNECT_S = 2.0
"""A node that doesn't answer within this is taken for away."""

Connect = Callable[[], Awaitable[Link]]
"""Opens a connection to a worker; raises OSError while it is away."""


@dataclass(frozen=True, slots=True)
class Address:
    """A Unix socket for processes of its own node; for others TLS at host:port (0: nowhere)."""

    node: str
    path: str
    host: str = ""
    port: int = 0


async def unix(path: str) -> Link:
    """A connection on the worker's own node."""
    _, link = await asyncio.get_running_loop().create_unix_connection(Link, path)
    return link


async def network(host: str, port: int, folder: Path) -> Link:
    """A connection from another node, each side proving that it belongs to the cluster.

    Raises OSError when nothing answers, or something that is no node of this cluster.
    """
    context = tls.client_context(folder)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_S):
            # Made here, not by asyncio: some event loops hide the socket's options.
            (family, kind, protocol, _, where), *_ = await loop.getaddrinfo(
                host, port, type=socket.SOCK_STREAM
            )
            sock = socket.socket(family, kind, protocol)
            try:
                sock.setblocking(False)
                tls.watch(sock)
                await loop.sock_connect(sock, where)
                _, link = await loop.create_connection(
                    Link, sock=sock, ssl=context, server_hostname=tls.NODE
                )
                return link
            except BaseException:
                sock.close()
                raise
    except TimeoutError as e:
        raise ConnectionError(f"{host}:{port} did not answer within {CONNECT_S:g} s") from e


def connector(locate: Callable[[], Awaitable[Address]], node: str, folder: Path | None) -> Connect:
    """Connects to wherever ``locate`` finds the worker, by the short way on its own node.

    Args:
        node: Ray's id of this process's node.
        folder: the setting ``tls_dir``.
    """

    async def connect() -> Link:
        address = await locate()
        if address.node == node:
            return await unix(address.path)
        if folder is None or not address.port:
            side = "this node" if folder is None else "the worker's node"
            raise ConfigError(
                f"the worker runs on another node ({address.host}), and {side} has no tls_dir",
                hint="Set tls_dir on all nodes; `raypipe cluster secrets` makes the files.",
            )
        return await network(address.host, address.port, folder)

    return connect
