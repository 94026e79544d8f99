"""Opening the Feast store of a home: one configuration for us and for Feast's command line."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from raypipe.errors import ConfigError

if TYPE_CHECKING:
    from feast import FeatureStore

CONFIG_FILE = Path(__file__).parent.parent / "feature_store.yaml"
HOME_VARIABLE = "${RAYPIPE_HOME}"


def settings(home: Path, online_url: str | None = None) -> dict[str, Any]:
    """What feature_store.yaml says for this home, as plain data.

    Args:
        online_url: the online store; the embedded one of the home when None.

    Raises:
        ConfigError: the path can't stand in a glob or a database URL.
    """
    bad = sorted(set(str(home)) & set("*?[]#%"))
    if bad:
        raise ConfigError(
            f"home {str(home)!r} contains {' '.join(bad)}",
            hint="Feast reads its files by glob and its registry by URL: choose another path.",
        )
    found = {
        k: _fill(v, str(home.resolve())) for k, v in yaml.safe_load(CONFIG_FILE.read_text()).items()
    }
    online = found["online_store"]
    online["url"] = online_url or online.pop("otherwise")
    return found


def _fill(value: Any, home: str) -> Any:
    # After parsing, so that no path can break the YAML.
    if isinstance(value, str):
        return value.replace(HOME_VARIABLE, home)
    if isinstance(value, dict):
        return {k: _fill(v, home) for k, v in value.items()}
    return value


def open_store(home: Path, online_url: str | None = None) -> FeatureStore:
    """The Feast store of a home; creates its folder, registers nothing.

    Args:
        online_url: setting `online_url`; the embedded store of the home when None.

    Importing Feast takes seconds: a process opens the store once and keeps it.
    """
    with warnings.catch_warnings():  # Feast changes the filters of the whole process
        from feast import FeatureStore, RepoConfig

    config = RepoConfig(**settings(home, online_url))
    config.repo_path = home.resolve()
    (home / "feast").mkdir(parents=True, exist_ok=True)
    return FeatureStore(repo_path=str(config.repo_path), config=config)


def spill_folder(home: Path) -> Path:
    """Where DuckDB puts what its memory can't hold."""
    return home / "feast" / "spill"


def home_of(store: FeatureStore) -> Path:
    """The home that a store was opened for."""
    return Path(store.repo_path)
