"""HTTP/1.1 as the load clients speak it: whole requests as bytes, replies read without copies of
what is not needed."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go and what they have in common."""

    url: str
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 30.0

    def message(self, body: bytes) -> bytes:
        """The whole request as bytes."""
        parts = urlsplit(self.url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        head = {"Host": parts.netloc, "Content-Length": str(len(body)), **self.headers}
        lines = [f"{self.method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in head.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body

    def endpoint(self) -> dict[str, Any]:
        """Arguments of ``loop.create_connection``."""
        parts = urlsplit(self.url)
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        return {
            "host": parts.hostname or "127.0.0.1",
            "port": parts.port or (443 if tls else 80),
            "ssl": tls,
        }


def parse_reply(data: bytes | bytearray) -> tuple[int, bytes, bool] | None:
    """(status, body, connection stays open) of a whole reply, None while it is incomplete.

    Raises ValueError for what is not HTTP/1.1 with a length or chunks.

    >>> parse_reply(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\nhi")
    (200, b'hi', True)
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = bytes(data[:end]).lower()
    if not head.startswith(b"http/1.1 "):
        raise ValueError(f"not an HTTP/1.1 reply: {bytes(data[:40])!r}")
    status = int(head[9:12])
    keep = b"\r\nconnection: close" not in head
    at = head.find(b"\r\ncontent-length:")
    if b"\r\ntransfer-encoding: chunked" in head:
        body = _chunks(data, end + 4)
        return None if body is None else (status, body, keep)
    if status in (204, 304):
        return status, b"", keep
    if at < 0:
        raise ValueError("reply has neither a length nor chunks")
    stop = head.find(b"\r\n", at + 2)
    length = int(head[at + 17 : stop if stop > 0 else None])
    body = bytes(data[end + 4 : end + 4 + length])
    return (status, body, keep) if len(body) == length else None


def _chunks(data: bytes | bytearray, at: int) -> bytes | None:
    out = bytearray()
    while (line := data.find(b"\r\n", at)) >= 0:
        size = int(bytes(data[at:line]).partition(b";")[0], 16)
        if size == 0:
            return bytes(out) if data.find(b"\r\n", line + 2) == line + 2 else None
        if len(data) < line + 2 + size + 2:
            return None
        out += data[line + 2 : line + 2 + size]
        at = line + size + 4
    return None
