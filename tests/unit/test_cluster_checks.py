"""What doctor says of a cluster: each fault is found on its node and comes with a cure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from raypipe.cli._cluster_checks import judge
from raypipe.clock import DAY_MS
from raypipe.config import Settings
from raypipe.runtime.survey import Report, Survey, code_hash, environment, online
from tests.contract.redis_server import RedisServer, needs_redis

NOW = 1_790_000_000_000
ADDRESSES = ("10.0.0.1", "10.0.0.2", "10.0.0.3")


def report(address: str) -> Report:
    return Report(
        node=f"node of {address}",
        address=address,
        python="3.11.7",
        packages={"ray": "2.60.0", "numpy": "2.4.0"},
        code="c0de",
        place="/home/ubuntu/raypipe",
        environment={"RAY_AUTH_MODE": "token", "RAY_health_check_period_ms": "1000"},
        token="",
        lake="",
        online="",
        tls="a" * 64,
        expires_ms=NOW + 300 * DAY_MS,
        worker="",
        http="",
    )


def survey(**changes: object) -> Survey:
    """Three good nodes; ``changes`` are of the last one."""
    reports = [report(a) for a in ADDRESSES]
    reports[-1] = replace(reports[-1], **changes)  # type: ignore[arg-type]
    return Survey(reports[0], reports, dict.fromkeys(ADDRESSES, (3.0, 1.0)))


def settings(tmp_path: Path, **changes: object) -> Settings:
    online = {"online_url": "rediss://store:6379/0"}
    values = {"home": tmp_path, "tls_dir": tmp_path / "tls", "ray_address": "auto", **online}
    values |= changes
    return Settings(**values)  # type: ignore[arg-type]


def test_a_sound_cluster_has_nothing_to_cure(tmp_path: Path) -> None:
    checks = judge(survey(), settings(tmp_path), NOW)
    assert [(c.name, c.state, c.cure) for c in checks] == [
        (name, "ok", "")
        for name in (
            *("nodes", "code", "versions", "environment", "token", "shared lake"),
            *("online store", "certificates", "worker", "http port", "clocks"),
        )
    ]


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("code", {"code": "0ther"}, ["0ther", "10.0.0.3"]),
        ("versions", {"python": "3.12.1"}, ["python 3.12.1", "10.0.0.3"]),
        ("versions", {"packages": {"ray": "2.59.0", "numpy": "2.4.0"}}, ["ray 2.59.0"]),
        ("environment", {"environment": {"RAY_AUTH_MODE": "token"}}, ["unset on 10.0.0.3"]),
        (
            "environment",
            {"environment": {"RAY_AUTH_MODE": "disabled", "RAY_health_check_period_ms": "1000"}},
            ["RAY_AUTH_MODE is disabled on 10.0.0.3"],
        ),
        ("token", {"token": "RAY_AUTH_MODE is unset"}, ["10.0.0.3: RAY_AUTH_MODE is unset"]),
        ("shared lake", {"lake": "the nodes see different folders"}, ["10.0.0.3: the nodes see"]),
        ("online store", {"online": "the online store is away"}, ["10.0.0.3: the online store is"]),
        ("certificates", {"tls": "!/tls/node.key: others can read it"}, ["10.0.0.3: /tls/node"]),
        ("certificates", {"tls": "b" * 64}, ["10.0.0.1: authority aaaa", "10.0.0.3: authority b"]),
        ("certificates", {"expires_ms": NOW}, ["has expired"]),
        ("http port", {"http": "0.0.0.0:8000: Address already in use"}, ["10.0.0.3: 0.0.0.0:8000"]),
        ("worker", {"worker": "does not answer within 5 s"}, ["10.0.0.3: does not answer"]),
    ],
)
def test_a_fault_of_one_node_is_found_there(
    tmp_path: Path, name: str, changes: dict[str, object], words: list[str]
) -> None:
    checks = judge(survey(**changes), settings(tmp_path), NOW)
    assert [c.name for c in checks if c.state != "ok"] == [name]
    [bad] = [c for c in checks if c.state != "ok"]
    assert bad.state == "fail"
    assert bad.cure
    assert all(word in bad.found for word in words), bad.found


def test_a_certificate_that_will_expire_is_told_of_before(tmp_path: Path) -> None:
    soon = survey(expires_ms=NOW + 29 * DAY_MS)
    [bad] = [c for c in judge(soon, settings(tmp_path), NOW) if c.state != "ok"]
    assert (bad.name, bad.state) == ("certificates", "warn")
    assert "29 days" in bad.found
    assert "--renew" in bad.cure


def test_a_silent_node_is_a_fault(tmp_path: Path) -> None:
    found = replace(survey(), silent={"10.0.0.4": "ModuleNotFoundError: No module named raypipe"})
    [bad] = [c for c in judge(found, settings(tmp_path), NOW) if c.state != "ok"]
    assert (bad.name, bad.state) == ("nodes", "fail")
    assert "10.0.0.4: ModuleNotFoundError" in bad.found


@pytest.mark.parametrize(
    ("offset", "uncertain", "state"),
    [(200, 1, "ok"), (900, 700, "ok"), (-900, 10, "warn"), (6_000, 10, "fail"), (-9e9, 1, "fail")],
)
def test_clocks_apart_are_told_with_their_uncertainty(
    tmp_path: Path, offset: float, uncertain: float, state: str
) -> None:
    found = survey()
    found.clocks_ms["10.0.0.2"] = (offset, uncertain)
    [clocks] = [c for c in judge(found, settings(tmp_path), NOW) if c.name == "clocks"]
    assert clocks.state == state
    assert state == "ok" or "10.0.0.2" in clocks.found


def test_several_nodes_need_certificates(tmp_path: Path) -> None:
    found = Survey(
        replace(report("10.0.0.1"), tls="", expires_ms=None),
        [replace(report(a), tls="", expires_ms=None) for a in ADDRESSES],
        {},
    )
    named = {c.name: c for c in judge(found, settings(tmp_path, tls_dir=None), NOW)}
    assert named["certificates"].state == "fail"
    alone = replace(found, reports=found.reports[:1])
    named = {c.name: c for c in judge(alone, settings(tmp_path, tls_dir=None), NOW)}
    assert named["certificates"].state == "ok"


def test_several_nodes_need_an_online_store_that_all_of_them_reach(tmp_path: Path) -> None:
    embedded = settings(tmp_path, online_url=f"sqlite:///{tmp_path}/online.db")
    found = survey()
    [bad] = [c for c in judge(found, embedded, NOW) if c.state != "ok"]
    assert (bad.name, bad.state) == ("online store", "fail")
    assert "online_url" in bad.cure
    alone = replace(found, reports=found.reports[:1])
    assert [c for c in judge(alone, embedded, NOW) if c.state != "ok"] == []


@needs_redis
def test_a_node_says_why_it_does_not_reach_the_online_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAYPIPE_ONLINE_PASSWORD", raising=False)
    server = RedisServer(tmp_path, "requirepass right")
    given = settings(tmp_path, online_url=server.url())
    password = tmp_path / "online_password"
    monkeypatch.setenv("RAYPIPE_ONLINE_PASSWORD_FILE", str(password))
    try:
        assert "online_password can't be read" in online(given)
        password.touch(0o600)
        password.write_text("wrong")
        assert "refuses us" in online(given)
        password.write_text("right")
        assert online(given) == ""
        password.chmod(0o644)
        assert "others can read it" in online(given)
        password.chmod(0o600)
    finally:
        server.kill()
    assert "is away" in online(given)


def test_a_report_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYPIPE_ONLINE_PASSWORD", "hunter2")
    monkeypatch.setenv("RAYPIPE_API_KEY", "hunter2")
    monkeypatch.setenv("RAYPIPE_ONLINE_PASSWORD_FILE", "/home/somebody/password")
    told = environment()
    assert "hunter2" not in str(told)
    assert told["RAYPIPE_ONLINE_PASSWORD"] == "set"
    assert told["RAYPIPE_ONLINE_PASSWORD_FILE"] == "/home/somebody/password"


def test_the_code_hash_sees_names_and_bytes(tmp_path: Path) -> None:
    for stage in ("raypipe", "features", "training", "serving"):
        (tmp_path / stage).mkdir()
    (tmp_path / "raypipe" / "a.py").write_text("1")
    before = code_hash(tmp_path)
    (tmp_path / "raypipe" / "a.py").write_text("2")
    changed = code_hash(tmp_path)
    (tmp_path / "raypipe" / "a.py").write_text("1")
    (tmp_path / "raypipe" / "a.py").rename(tmp_path / "raypipe" / "b.py")
    assert len({before, changed, code_hash(tmp_path)}) == 3
    (tmp_path / "raypipe" / "b.py").rename(tmp_path / "raypipe" / "a.py")
    (tmp_path / "raypipe" / "notes.txt").write_text("not code")
    assert code_hash(tmp_path) == before
