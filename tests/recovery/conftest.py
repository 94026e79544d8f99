"""What the recovery tests share."""

from __future__ import annotations

import pytest

from raypipe.runtime.worker import watch


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patterns look at events without waiting for others."""
    monkeypatch.setattr(watch, "DELAY_S", 0.0)
