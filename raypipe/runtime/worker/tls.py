"""How the nodes of one cluster know each other: TLS 1.3, both sides with a certificate of its CA.

All nodes carry the same certificate, for the name NODE: addresses of nodes come and go, and what
is proven is "a node of this cluster". ``raypipe cluster secrets`` makes the files.
"""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from raypipe.errors import ConfigError

CA, CERTIFICATE, KEY = "ca.crt", "node.crt", "node.key"
NODE = "raypipe-node"
"""The name in every node's certificate."""

_SILENCE_S = 10
_PROBES = 3
_PROBE_S = 2


def server_context(folder: Path) -> ssl.SSLContext:
    """For the side that listens: only holders of a certificate of the CA get in."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    return _load(context, folder)


def client_context(folder: Path) -> ssl.SSLContext:
    """For the side that connects; name the peer NODE."""
    return _load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), folder)


def _load(context: ssl.SSLContext, folder: Path) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(folder / CA)
        context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    except (OSError, ssl.SSLError) as e:
        missing = [n for n in (CA, CERTIFICATE, KEY) if not (folder / n).is_file()]
        raise ConfigError(
            f"tls_dir {folder} lacks {', '.join(missing)}" if missing else f"tls_dir {folder}: {e}",
            hint="`raypipe cluster secrets` makes these files; every node needs the same ones.",
        ) from e
    return context


def watch(sock: socket.socket) -> None:
    """Notice within about 16 s that the other host is gone without a word."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _SILENCE_S),
        ("TCP_KEEPINTVL", _PROBE_S),
        ("TCP_KEEPCNT", _PROBES),
        ("TCP_USER_TIMEOUT", 1_000 * _SILENCE_S),
    ):
        if hasattr(socket, name):  # Linux; others keep their own patience
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
