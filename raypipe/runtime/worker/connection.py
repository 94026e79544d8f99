"""The sockets of a worker: plain for its own node, TLS for the others. None of them blocks."""

from __future__ import annotations

import logging
import os
import selectors
import socket
import ssl
import struct
from pathlib import Path
from typing import Protocol

from raypipe.runtime.worker import protocol, tls

_log = logging.getLogger("raypipe.worker")
_RECEIVE = 262_144
_BACKLOG = 128


class Connection:
    """One replica on this node: its socket, what it sent so far, what it hasn't taken yet."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.frames = protocol.FrameBuffer()
        self.out = bytearray()
        # Room for what comes is made once: memory of this size is the system's each time.
        self._room = memoryview(bytearray(_RECEIVE))
        self.known = True
        """Whether the other side has proven who it is."""

    def greet(self) -> int:
        """Go on with proving that; returns the selector's event to wait for, 0 when it is done."""
        return 0

    def receive(self) -> bytes:
        """What has come; b"" at the end, BlockingIOError when nothing has."""
        return bytes(self._room[: self.sock.recv_into(self._room)])

    def send(self) -> None:
        """Send what it takes now."""
        try:
            while self.out:
                sent = self.sock.send(self.out)
                del self.out[:sent]
        except (BlockingIOError, ssl.SSLWantWriteError):
            pass


class TlsConnection(Connection):
    """One replica on another node."""

    sock: ssl.SSLSocket

    def __init__(self, sock: ssl.SSLSocket) -> None:
        super().__init__(sock)
        self.known = False

    def greet(self) -> int:
        """The TLS handshake, in which both sides show their certificates."""
        try:
            self.sock.do_handshake()
        except ssl.SSLWantReadError:
            return selectors.EVENT_READ
        except ssl.SSLWantWriteError:
            return selectors.EVENT_WRITE
        self.known = True
        return 0

    def receive(self) -> bytes:
        """What has come and was deciphered."""
        try:
            data = super().receive()
            # Deciphered already, so no selector would tell of it.
            while pending := self.sock.pending():
                data += self.sock.recv(pending)
        except ssl.SSLWantReadError:
            raise BlockingIOError from None
        return data


class Listener(Protocol):
    """Where connections come in."""

    sock: socket.socket

    def accept(self) -> Connection | None:
        """The next one; None for one that is refused."""


class UnixListener:
    """Listens where only this user can connect; what lay at ``path`` before is replaced."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.unlink(missing_ok=True)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.bind(os.fspath(path))
        path.chmod(0o600)
        self.sock.listen(_BACKLOG)
        self.sock.setblocking(False)

    def accept(self) -> Connection | None:
        """A process of this user. The socket's mode keeps others out; this says it again."""
        sock, _ = self.sock.accept()
        # Ucred: pid, uid, gid.
        size = struct.calcsize("3i")
        _, uid, _ = struct.unpack(
            "3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        )
        if uid != os.getuid():
            _log.warning("refused a connection of user %d", uid)
            sock.close()
            return None
        sock.setblocking(False)
        return Connection(sock)


class TlsListener:
    """Listens to the other nodes of the cluster; ``folder`` is the setting ``tls_dir``.

    Raises OSError when the port is taken, ConfigError when the folder can't be used.
    """

    def __init__(self, host: str, port: int, folder: Path) -> None:
        self._context = tls.server_context(folder)
        self.sock = socket.create_server((host, port), backlog=_BACKLOG)
        self.sock.setblocking(False)

    def accept(self) -> Connection | None:
        """Somebody who has yet to show a certificate."""
        sock, _ = self.sock.accept()
        sock.setblocking(False)
        tls.watch(sock)
        return TlsConnection(
            self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        )
