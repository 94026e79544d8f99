"""The most memory that this process and its children held together while a block ran."""

from __future__ import annotations

import contextlib
import threading
from types import TracebackType

import psutil

_PAUSE_S = 0.1


class Peak:
    """A context manager; ``gib`` is the largest sum of proportional set sizes that was seen.

    Pages that processes share, such as Ray's object store, are divided among them, so they count
    once. What comes and goes between two samples, 0.1 s, is not seen.
    """

    def __init__(self) -> None:
        self.gib = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while True:
            total = 0
            for process in (me, *me.children(recursive=True)):
                with contextlib.suppress(psutil.Error):  # it ended meanwhile
                    total += process.memory_full_info().pss
            self.gib = max(self.gib, total / 2**30)
            if self._ended.wait(_PAUSE_S):
                return
