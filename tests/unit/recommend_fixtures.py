"""The shop of recommend_home, fitted once a run: ``pytest_plugins`` of a module names this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.recommend_home import fitted


@pytest.fixture(scope="session")
def shop_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For tests to copy, not to change."""
    home = tmp_path_factory.mktemp("shop")
    fitted(home)
    return home
