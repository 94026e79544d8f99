"""Lists in a replica: a thread looks for changes, so that no request waits for the lake."""

from __future__ import annotations

import logging
import threading

from raypipe.lake import Place
from raypipe.policy.list_store import ListBook
from raypipe.policy.lists import Lists

EVERY_S = 2.0

_log = logging.getLogger("raypipe.serving")


class WatchedLists:
    """The lists of every tenant, at most some seconds old while the lake can be reached.

    Nothing is read before ``start``: a policy that reads no list costs no look at the lake.
    """

    def __init__(self, lake: Place, every_s: float = EVERY_S) -> None:
        self._book = ListBook(lake)
        self._every_s = every_s
        self.failures = 0
        """How often a look failed."""
        self._over = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Read the lists now, and from now on; raises when they can't be read at all.

        Raises IntegrityError and Unavailable. Called again, from any thread, it does nothing.
        """
        with self._starting:
            if self._thread is None:
                self._book.refresh()
                self._thread = threading.Thread(target=self._watch, name="lists", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def of(self, tenant: str) -> Lists:
        """A tenant's lists as they were last read."""
        return self._book.of(tenant)

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            try:
                self._book.refresh()
            except Exception:  # noqa: BLE001 - the last good lists stand, and the next look may work
                self.failures += 1
                _log.exception("the lists can't be read; decisions use those of the last look")
