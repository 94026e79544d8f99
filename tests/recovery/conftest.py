"""What the recovery tests share: the processes that theirs are forked from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from raypipe.runtime.worker import watch
from tests.recovery import disk
from tests.recovery.ingest_kit import Nurseries


@pytest.fixture(scope="package")
def nurseries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nurseries]:
    """Of worker, ingest server and upkeep, which may be given a disk and a clock of their own."""
    env = {} if disk.MISSING else disk.preloaded(tmp_path_factory.mktemp("library"))
    with Nurseries(env) as found:
        yield found


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patterns look at events without waiting for others."""
    monkeypatch.setattr(watch, "DELAY_S", 0.0)
