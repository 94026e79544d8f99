"""What Ray Serve starts in place of HAProxy: narrows the configuration, then becomes HAProxy.

Serve writes the configuration anew before each start and each reload, and its template binds the
statistics and the metrics to all interfaces, answers with bare text, and logs each request to a
port where nobody listens. Run as a file by ``python -I -S``, so it imports the standard library
alone; ``raypipe.runtime.ingress.own`` writes the command.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

LOOPBACK = "127.0.0.1"
PUBLIC = ("frontend", "http_frontend")
"""The section that takes clients' requests."""
NOWHERE = ("backend", "default_backend")
"""Where a request ends that no application takes: ours takes all, so it isn't there yet."""

_SECTIONS = frozenset({"global", "defaults", "frontend", "backend", "listen"})
_LOGGING = ("option httplog", "option log-health-checks")
_PR_SET_PDEATHSIG = 1

_REQUEST_IDS = """\
    unique-id-format %[uuid]
    acl named req.fhdr_cnt(x-request-id) eq 1
    acl well_named req.fhdr(x-request-id) -m reg ^[!-~]{1,128}$
    http-request set-header x-request-id %[unique-id] unless named well_named
    http-request set-var(txn.request_id) req.fhdr(x-request-id)
    http-after-response set-header x-request-id %[var(txn.request_id)] \
if { var(txn.request_id) -m found }
    http-after-response set-header x-request-id %[unique-id] \
unless { var(txn.request_id) -m found }
    http-after-response set-status 503 if { status 502 504 }
"""


def narrowed(config: str, http_host: str, problem: str) -> str:
    """The configuration as raypipe wants it.

    Only the frontend of clients listens on ``http_host``; whatever else listens does so on
    loopback, also a section that a later Ray adds. HAProxy's own 502, 503 and 504 become a 503
    with the document in the file ``problem``, and every answer carries one X-Request-Id.
    """
    document = f"content-type application/problem+json lf-file {problem} hdr Retry-After 1"
    section: tuple[str, ...] = ()
    lines: list[str] = []
    for line in config.splitlines():
        words = line.split()
        first = words[0] if words else ""
        if first in _SECTIONS:
            section = tuple(words[:2])
        if first == "bind":
            host = http_host if section == PUBLIC else LOOPBACK
            lines.append(f"    bind {_endpoint(host, words[1])} {' '.join(words[2:])}".rstrip())
            lines += _REQUEST_IDS.splitlines() if section == PUBLIC else ()
        elif section == ("defaults",) and line.strip() == "mode http":
            # Only a request that is there as a whole can be sent again to another replica.
            lines += [line, "    option http-buffer-request"]
            lines += [f"    http-error status {code} {document}" for code in (502, 503, 504)]
        elif section == NOWHERE and line.strip().startswith("http-request return status 404"):
            lines.append(f"    http-request return status 503 {document}")
        elif first not in ("log", "errorfile") and not line.strip().startswith(_LOGGING):
            lines.append(line)
    return "\n".join(lines) + "\n"


def _endpoint(host: str, bound: str) -> str:
    port = bound.rpartition(":")[2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def main(arguments: list[str]) -> None:
    """``HTTP_HOST PROBLEM_FILE HAPROXY``, then what Serve gave for HAProxy; does not return."""
    http_host, problem, haproxy, *given = arguments
    if "-f" in given:
        config = Path(given[given.index("-f") + 1])
        narrow = config.with_name(f"{config.name}.{os.getpid()}")
        narrow.write_text(narrowed(config.read_text(), http_host, problem))
        narrow.replace(config)  # in its place: Serve knows its HAProxy by the file's name
    # Serve's actor may be killed without a chance to end its child.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.execv(haproxy, [haproxy, *given])  # noqa: S606 - no shell


if __name__ == "__main__":
    main(sys.argv[1:])
