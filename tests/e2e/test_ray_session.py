from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raypipe.runtime import session

ROOT = Path(session.__file__).resolve().parents[2]

OWNER = """
import json, os, signal, stat, sys
from pathlib import Path
import psutil
from raypipe.config import Settings
from raypipe.runtime import session

home = Path(sys.argv[1])
settings = Settings(home=home, ray_num_cpus=1, object_store_bytes=100_000_000)
mine = lambda number, frame: None
signal.signal(signal.SIGTERM, mine)
session.start(settings, env={"RAYPIPE_TEST_EXTRA": "1"}, warm=False)
first = session.address()
session.start(settings)  # again: nothing happens
import ray


@ray.remote
def look():
    import raypipe
    names = ("RAY_AUTH_TOKEN_PATH", "RAYPIPE_TEST_EXTRA", "RAY_num_workers_soft_limit")
    return {"raypipe": raypipe.__file__, **{name: os.environ.get(name) for name in names}}


found = {
    "same": session.address() == first,
    "address": first,
    "cpus": session.cpus(),
    "worker": ray.get(look.remote()),
    "token_mode": stat.S_IMODE((home / "ray-token").stat().st_mode),
    "handler_kept": signal.getsignal(signal.SIGTERM) is mine,
    "listening": sorted({
        c.laddr.ip
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]
        for c in process.net_connections("inet")
        if c.status == psutil.CONN_LISTEN
    }),
}
print(json.dumps(found), flush=True)
sys.stdin.readline()
session.stop()
print(json.dumps({"address": session.address(), "initialized": ray.is_initialized()}))
"""

GUEST = """
import json, sys
from pathlib import Path
from raypipe.config import Settings
from raypipe.runtime import session

session.start(Settings(home=Path(sys.argv[1]), ray_address=sys.argv[2]), warm=False)
import ray
print(json.dumps({"cpus": session.cpus(), "namespace": ray.get_runtime_context().namespace}))
session.stop()
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_local_session_is_private_idempotent_and_can_be_joined_by_its_home(
    tmp_path: Path, user_environment: dict[str, str]
) -> None:
    environment = {k: v for k, v in user_environment.items() if not k.startswith("RAY")}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    home = tmp_path / "home"
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    try:
        assert owner.stdout is not None
        found: dict[str, Any] = json.loads(owner.stdout.readline())
        guest = subprocess.run(
            [sys.executable, "-c", GUEST, str(home), found["address"]],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            timeout=120,
            check=True,
        )
        ended, _ = owner.communicate("\n", timeout=120)
    finally:
        owner.kill()
        owner.communicate()
    assert found["same"]
    assert found["cpus"] == 1
    assert found["token_mode"] == 0o600
    assert found["handler_kept"]
    assert set(found["listening"]) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert found["worker"] == {
        "raypipe": str(ROOT / "raypipe/__init__.py"),
        "RAY_AUTH_TOKEN_PATH": str(home / "ray-token"),
        "RAYPIPE_TEST_EXTRA": "1",
        "RAY_num_workers_soft_limit": "8",
    }
    assert json.loads(guest.stdout) == {"cpus": 1, "namespace": "raypipe"}
    assert json.loads(ended) == {"address": "", "initialized": False}
    assert not (tmp_path / ".ray").exists()  # no token in the user's home
