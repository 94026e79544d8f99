"""Keep a replica's own ports on this machine, where the whole Ray session is."""

from __future__ import annotations

from typing import Any


def narrow() -> None:
    """Let the gRPC server that Ray Serve starts next in this process listen on loopback alone.

    Each replica has one for calls between deployments; Serve binds it to all interfaces, with no
    setting. On a node that other nodes reach by its address everything stays as it is.
    """
    from ray.serve._private import replica
    from ray.util import get_node_ip_address

    # Private, so looked up: without it a later Ray has another way, and a test looks at the ports.
    bind: Any = getattr(replica, "add_port_to_grpc_server", None)
    if bind is None or get_node_ip_address() != "127.0.0.1":  # type: ignore[no-untyped-call]
        return

    def bind_here(server: object, address: str) -> object:
        return bind(server, address.replace("[::]:", "127.0.0.1:"))

    setattr(replica, "add_port_to_grpc_server", bind_here)  # noqa: B010 - mypy knows no such name
