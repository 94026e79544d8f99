"""Opening the online store of a home without Feast: replicas read it, and start without."""

from __future__ import annotations

from pathlib import Path

from features.store.packed.backend import Backend, open_backend
from features.store.repo import settings
from raypipe.errors import NotFound


def open_here(home: Path, online_url: str | None) -> tuple[Backend, str]:
    """The store, and the Feast project that its keys begin with.

    Args:
        online_url: setting `online_url`; the embedded store of the home when None.

    Raises:
        NotFound: the embedded store is not there, as on a node that isn't the one it lies on.
    """
    found = settings(home, online_url)
    url = found["online_store"]["url"]
    _, embedded, path = url.partition("sqlite:///")
    if embedded and not Path(path).exists():
        raise NotFound(
            f"no online store at {path}",
            hint="`raypipe features` makes it. Where replicas run on several nodes, set "
            "online_url to a Redis that all of them reach.",
        )
    return open_backend(url), found["project"]
