from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from raypipe.clock import ManualClock
from raypipe.errors import Conflict
from raypipe.runtime import running


@pytest.fixture
def other() -> Iterator[subprocess.Popen[str]]:
    """A process that reacts to SIGTERM only when it is told to: it prints a line first."""
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True))\n"
        "print('up', flush=True)\n"
        "sys.stdin.readline()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    yield process
    process.kill()
    process.communicate()


def _of(process: subprocess.Popen[str]) -> running.Running:
    born = psutil.Process(process.pid).create_time() - psutil.boot_time()
    return running.Running(process.pid, born, 0, "up")


def test_an_owner_is_found_while_it_runs_and_not_afterwards(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert running.find(home) is None
    with running.claim(home, "up", ManualClock(5_000)) as claim:
        found = running.find(home)
        assert found == claim.running
        assert (found.pid, found.verb, found.state) == (os.getpid(), "up", "starting")
        assert found.started_at == 5_000
        claim.announce("http://127.0.0.1:8000", "127.0.0.1:6379")
        found = running.find(home)
        assert found is not None
        assert (found.state, found.http_url) == ("serving", "http://127.0.0.1:8000")
        assert found.ray_address == "127.0.0.1:6379"
    assert running.find(home) is None
    assert not (home / running.RUN_FILE).exists()


def test_a_home_has_one_owner_whose_record_the_other_leaves_alone(tmp_path: Path) -> None:
    with running.claim(tmp_path, "up"):
        with pytest.raises(Conflict, match=rf"raypipe up.*{os.getpid()}"):
            running.claim(tmp_path, "serve").__enter__()
        found = running.find(tmp_path)
        assert found is not None
        assert found.verb == "up"
    with running.claim(tmp_path, "serve"):
        pass


def test_an_error_gives_the_home_back(tmp_path: Path) -> None:
    def work() -> None:
        with running.claim(tmp_path, "up"):
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        work()
    assert running.find(tmp_path) is None


def test_a_killed_owner_leaves_a_record_that_counts_as_absent(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from raypipe.runtime import running\n"
        "with running.claim(Path(sys.argv[1]), 'up'):\n"
        "    print('up', flush=True); sys.stdin.readline()\n"
    )
    root = Path(running.__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    assert running.find(tmp_path) is not None
    process.kill()
    process.communicate()
    assert running.read(tmp_path) is not None
    assert running.find(tmp_path) is None
    with running.claim(tmp_path, "up"):
        assert running.find(tmp_path) is not None


def test_a_pid_that_another_process_got_counts_as_absent(
    other: subprocess.Popen[str],
) -> None:
    record = _of(other)
    assert record.alive
    assert not replace(record, born_s=record.born_s - 5).alive


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"strange": 1}'])
def test_a_torn_record_counts_as_absent(tmp_path: Path, text: str) -> None:
    (tmp_path / running.RUN_FILE).write_text(text)
    assert running.find(tmp_path) is None


def test_the_record_is_whole_at_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running.claim(tmp_path, "up") as claim:
        before = (tmp_path / running.RUN_FILE).read_text()

        def torn(self: Path, text: str) -> int:
            with self.open("w") as file:
                file.write(text[:5])
            raise OSError("disk full")

        monkeypatch.setattr(Path, "write_text", torn)
        with pytest.raises(OSError, match="disk full"):
            claim.announce("http://127.0.0.1:8000")
        assert (tmp_path / running.RUN_FILE).read_text() == before
        assert json.loads(before)["pid"] == os.getpid()


def test_stop_asks_exactly_that_process_and_waits_for_its_end(
    other: subprocess.Popen[str],
) -> None:
    assert other.stdout is not None
    assert other.stdin is not None
    record, stdin, stdout = _of(other), other.stdin, other.stdout

    def pause(seconds: float) -> None:
        # It was asked before the first pause: let it end now.
        assert stdout.readline() == "asked\n"
        stdin.write("\n")
        stdin.flush()
        other.wait(30)

    assert running.stop(record, timeout_s=30, clock=lambda: 0.0, pause=pause)
    assert other.returncode == 0


def test_stop_gives_up_after_its_time_and_asks_again_meanwhile(
    other: subprocess.Popen[str],
) -> None:
    assert other.stdout is not None
    now = [0.0]

    def pause(seconds: float) -> None:
        now[0] += 4.0
        if now[0] in (4.0, 16.0):  # asked at 0 and, ten seconds later, at 12
            assert other.stdout is not None
            assert other.stdout.readline() == "asked\n"

    assert not running.stop(_of(other), timeout_s=20, clock=lambda: now[0], pause=pause)
    assert other.poll() is None


def test_stop_never_signals_a_process_that_only_has_the_pid(
    other: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    record = _of(other)
    assert running.stop(replace(record, born_s=record.born_s + 60), timeout_s=0)
    assert sent == []
    assert not running.stop(record, timeout_s=0)
    assert sent == [(other.pid, signal.SIGTERM)]


def test_a_server_that_does_not_answer_is_not_ready() -> None:
    import socket

    with socket.socket() as bound:  # taken, but nobody listens
        bound.bind(("127.0.0.1", 0))
        able, why = running.ready(f"http://127.0.0.1:{bound.getsockname()[1]}", timeout_s=1)
    assert not able
    assert "ConnectError" in why


def test_the_record_is_plain_data(tmp_path: Path) -> None:
    with running.claim(tmp_path, "up") as claim:
        stored = json.loads((tmp_path / running.RUN_FILE).read_text())
    assert stored == asdict(claim.running)
