"""The worker's data plane: one thread, one Unix socket, group commits without a timer.

Each round reads every waiting frame, works on all, commits once and answers all. What queued
during the last commit is the next group, so the group grows with the load by itself.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import struct
from pathlib import Path

import msgspec

from raypipe.aborts import reach
from raypipe.errors import RaypipeError
from raypipe.ledger import record as ledger
from raypipe.runtime.worker import protocol
from raypipe.runtime.worker.core import WorkerCore

_log = logging.getLogger("raypipe.worker")
_RECEIVE = 262_144


class _Connection:
    """One replica: its socket, what it sent so far, what it hasn't taken yet."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.frames = protocol.FrameBuffer()
        self.out = bytearray()


class WorkerServer:
    """Serves one WorkerCore on a Unix socket that only this user can reach.

    ``run`` returns after ``stop``; it raises when a commit failed, and the process must end then.
    """

    def __init__(self, core: WorkerCore, path: Path) -> None:
        self._core = core
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(os.fspath(path))
        path.chmod(0o600)
        self._listener.listen(128)
        self._listener.setblocking(False)
        self._wake_in, self._wake_out = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_in, selectors.EVENT_READ)
        self._stopping = False

    def stop(self) -> None:
        """Ask ``run`` to finish its round and return; from any thread."""
        self._stopping = True
        self._wake_out.send(b"x")

    def run(self) -> None:
        """Serve until stopped."""
        while not self._stopping:
            asked: list[tuple[_Connection, protocol.Request]] = []
            for key, mask in self._selector.select():
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is not self._wake_in:
                    self._serve(key.data, mask, asked)
            self._round(asked)
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, _Connection):
                self._close(key.data)
        self._selector.close()
        self._listener.close()

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        # Ucred: pid, uid, gid. The socket's mode keeps others out; this says so a second time.
        _, uid, _ = struct.unpack(
            "3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        )
        if uid != os.getuid():
            _log.warning("refused a connection of user %d", uid)
            sock.close()
            return
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ, _Connection(sock))

    def _serve(
        self, connection: _Connection, mask: int, asked: list[tuple[_Connection, protocol.Request]]
    ) -> None:
        try:
            if mask & selectors.EVENT_WRITE:
                self._send(connection)
            if not mask & selectors.EVENT_READ:
                return
            data = connection.sock.recv(_RECEIVE)
            if not data:
                self._close(connection)
                return
            asked += [
                (connection, protocol.decode_request(body)) for body in connection.frames.feed(data)
            ]
        except BlockingIOError:
            return
        except (OSError, ValueError) as e:
            _log.warning("closing a connection: %s", e)
            self._close(connection)

    def _round(self, asked: list[tuple[_Connection, protocol.Request]]) -> None:
        durable: list[tuple[_Connection, protocol.Reply]] = []
        for connection, request in asked:
            reply = self._answer(request)
            if isinstance(reply, protocol.Recorded | protocol.Found) or (
                isinstance(reply, protocol.Observed) and reply.decision is not None
            ):
                durable.append((connection, reply))
            else:
                self._reply(connection, reply)
        self._core.commit()
        for connection, reply in durable:
            self._reply(connection, reply)
        if durable:
            reach("worker.after_reply")

    def _answer(self, request: protocol.Request) -> protocol.Reply:
        try:
            match request:
                case protocol.Observe(id=number, event=event, body_hash=body_hash, kind=kind):
                    entry, decision = self._core.observe(event, body_hash, kind)
                    return protocol.Observed(
                        number, entry.offset, entry.windows, entry.event, decision
                    )
                case protocol.Record(id=number, record=record, windows=windows):
                    stored = self._core.record(ledger.decode(record), windows)
                    return protocol.Recorded(number, ledger.encode(stored))
                case protocol.Lookup(id=number, tenant=tenant, decision_id=decision_id):
                    found = self._core.decision(tenant, decision_id)
                    return protocol.Found(number, None if found is None else ledger.encode(found))
                case protocol.Stats(id=number):
                    return protocol.StatsReply(number, self._core.stats())
        except RaypipeError as e:
            return protocol.Failed(request.id, e.code, e.detail)
        except msgspec.MsgspecError as e:
            return protocol.Failed(request.id, RaypipeError.code, f"unreadable record: {e}")

    def _reply(self, connection: _Connection, reply: protocol.Reply) -> None:
        connection.out += protocol.frame(reply)
        self._send(connection)

    def _send(self, connection: _Connection) -> None:
        if connection.sock.fileno() < 0:
            return
        try:
            while connection.out:
                sent = connection.sock.send(connection.out)
                del connection.out[:sent]
        except BlockingIOError:
            pass
        except OSError as e:
            _log.warning("a replica went away: %s", e)
            self._close(connection)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.out else 0)
        self._selector.modify(connection.sock, wanted, connection)

    def _close(self, connection: _Connection) -> None:
        if connection.sock.fileno() >= 0:
            self._selector.unregister(connection.sock)
            connection.sock.close()
