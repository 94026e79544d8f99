from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from raypipe.config import Settings
from raypipe.runtime import session

ROOT = Path(session.__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _empty_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("RAY_", "NUMBA_")) or name == "PYTHONPATH":
            monkeypatch.delenv(name)


def test_a_local_session_listens_on_loopback_with_a_token_under_home(tmp_path: Path) -> None:
    values = session.environment(Settings(home=tmp_path))
    assert values["RAY_AUTH_MODE"] == "token"
    assert values["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "ray-token")
    assert values["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert values["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "0"
    assert values["RAY_USAGE_STATS_ENABLED"] == "0"
    assert not (tmp_path / "ray-token").exists()  # made by start alone


def test_workers_are_kept_however_few_the_cpus(tmp_path: Path) -> None:
    few = session.environment(Settings(home=tmp_path, ray_num_cpus=2))
    many = session.environment(Settings(home=tmp_path, ray_num_cpus=64))
    assert few["RAY_num_workers_soft_limit"] == "8"
    assert many["RAY_num_workers_soft_limit"] == "128"
    assert few["RAY_idle_worker_killing_time_threshold_ms"] == "60000"


def test_a_cluster_elsewhere_keeps_its_own_token_and_interfaces(tmp_path: Path) -> None:
    (tmp_path / "ray-token").write_text("of a local session")
    values = session.environment(Settings(home=tmp_path, ray_address="10.1.2.3:6379"))
    assert "RAY_AUTH_TOKEN_PATH" not in values
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in values


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "[::1]:6379", "localhost:6379"])
def test_the_session_of_another_process_here_is_joined_with_the_token_of_its_home(
    tmp_path: Path, address: str
) -> None:
    settings = Settings(home=tmp_path, ray_address=address)
    assert "RAY_AUTH_TOKEN_PATH" not in session.environment(settings)
    (tmp_path / "ray-token").write_text("x")
    assert session.environment(settings)["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "ray-token")


def test_a_token_of_the_user_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    assert "RAY_AUTH_TOKEN_PATH" not in session.environment(Settings(home=tmp_path))


def test_workers_find_this_installation_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"/opt/mine{os.pathsep}{ROOT}")
    values = session.environment(Settings(home=tmp_path))
    assert values["PYTHONPATH"] == f"{ROOT}{os.pathsep}/opt/mine"


def test_kernels_are_cached_beside_the_code_or_under_home_if_that_is_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert session.numba_cache(tmp_path) is None
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert session.numba_cache(tmp_path) == tmp_path / "numba"


def test_ray_data_reports_to_its_log_file_and_to_the_terminal_only_when_debugging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import yaml

    monkeypatch.delenv("RAYPIPE_DEBUG", raising=False)
    file = session.environment(Settings(home=tmp_path))["RAY_DATA_LOGGING_CONFIG"]
    config = yaml.safe_load(Path(file).read_text())
    assert config["loggers"]["ray.data"]["handlers"] == ["file", "console"]
    assert config["handlers"]["console"]["level"] == "CRITICAL"
    monkeypatch.setenv("RAYPIPE_DEBUG", "1")
    assert "RAY_DATA_LOGGING_CONFIG" not in session.environment(Settings(home=tmp_path))


def test_without_a_session_there_is_nothing_to_stop_and_no_address() -> None:
    code = (
        "import sys; from raypipe.runtime import session\n"
        "session.stop(); assert session.address() == ''; assert 'ray' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_a_cluster_that_does_not_answer_is_told_at_once(tmp_path: Path) -> None:
    # In a process of its own: a session that runs here already would be kept.
    code = (
        "import sys; from pathlib import Path\n"
        "from raypipe.config import Settings; from raypipe.runtime import session\n"
        "session.start(Settings(home=Path(sys.argv[1]), ray_address=sys.argv[2]))\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"127.0.0.1:{probe.getsockname()[1]}"
    for absent in (closed, "127.0.0.1:99999"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path), absent],
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        assert f"Unavailable: no Ray cluster answers at {absent}" in done.stderr
