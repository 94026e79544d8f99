from __future__ import annotations

import os
import shutil
import socket
import ssl
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from raypipe.clock import ManualClock
from raypipe.errors import IntegrityError, Unavailable
from raypipe.runtime.launch.credentials import ensure
from raypipe.runtime.worker.tls import NODE

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
NAMES = ("auth_token", "online_password", "ca.key", "tls/ca.crt", "tls/node.key", "tls/node.crt")
openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def at(moment: datetime) -> ManualClock:
    return ManualClock(round(moment.timestamp() * 1_000))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if not p.is_dir()}


def said(*arguments: str) -> str:
    """What openssl, which is not our code, says of a file."""
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def test_the_first_call_makes_all_and_the_next_ones_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "deep/cluster"
    assert sorted(ensure(folder).made) == sorted(NAMES)
    before = contents(folder)
    assert sorted(before) == sorted(NAMES)
    assert ensure(folder).made == ()
    assert contents(folder) == before


def test_secrets_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    ensure(tmp_path / "c")
    modes = {n: stat.S_IMODE((tmp_path / "c" / n).stat().st_mode) for n in (".", "tls", *NAMES)}
    assert {n for n, m in modes.items() if m & 0o077} == {"tls/ca.crt", "tls/node.crt"}
    assert modes["auth_token"] == modes["online_password"] == 0o600


def test_token_and_password_are_random_hex_of_32_bytes(tmp_path: Path) -> None:
    found = set()
    for folder in (tmp_path / "a", tmp_path / "b"):
        ensure(folder)
        found |= {(folder / name).read_text() for name in ("auth_token", "online_password")}
    assert len(found) == 4
    # ElastiCache takes 16 to 128 characters, and of signs other than letters and digits only some.
    assert all(len(secret) == 64 and secret.isalnum() for secret in found)
    assert all(len(bytes.fromhex(secret)) == 32 for secret in found)


def test_a_password_that_a_redis_has_already_is_kept(tmp_path: Path) -> None:
    ensure(tmp_path)
    (tmp_path / "online_password").write_text("a!-&#" * 10 + "\n")
    assert ensure(tmp_path, renew=True).made == ("tls/node.key", "tls/node.crt")
    for bad in ("short", "a b" * 20, "é" * 40):
        (tmp_path / "online_password").write_text(bad)
        with pytest.raises(IntegrityError, match="online_password doesn't hold 32") as e:
            ensure(tmp_path)
        assert bad not in str(e.value)


@openssl
def test_the_chain_and_its_names_uses_and_times_are_what_openssl_reads(tmp_path: Path) -> None:
    until = ensure(tmp_path).valid_until
    ca, node = str(tmp_path / "tls/ca.crt"), str(tmp_path / "tls/node.crt")
    for purpose in ("sslserver", "sslclient"):
        assert "OK" in said("verify", "-x509_strict", "-purpose", purpose, "-CAfile", ca, node)
    text = said("x509", "-in", node, "-noout", "-text")
    assert f"DNS:{NODE}" in text
    assert "CA:FALSE" in text
    assert "prime256v1" in text
    assert "TLS Web Server Authentication, TLS Web Client Authentication" in text
    assert "CA:TRUE, pathlen:0" in said("x509", "-in", ca, "-noout", "-text")
    days = until - datetime.now(UTC)
    assert timedelta(days=396, hours=23) < days <= timedelta(days=397)


def test_two_nodes_shake_hands_and_a_stranger_is_refused(tmp_path: Path) -> None:
    ours, strange = tmp_path / "ours/tls", tmp_path / "strange/tls"
    ensure(ours.parent)
    ensure(strange.parent)
    assert handshake(ours, ours, ours)
    assert not handshake(ours, strange, ours)  # the client shows a strange certificate
    assert not handshake(ours, ours, strange)  # the client trusts a strange authority


def handshake(server: Path, client: Path, trusted: Path) -> bool:
    """Whether a mutual TLS connection comes about, with the standard library's TLS."""
    there = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=server / "ca.crt")
    there.verify_mode = ssl.CERT_REQUIRED
    there.load_cert_chain(server / "node.crt", server / "node.key")
    here = ssl.create_default_context(cafile=trusted / "ca.crt")
    here.load_cert_chain(client / "node.crt", client / "node.key")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            raw, _ = listening.accept()
            with raw:
                try:
                    with there.wrap_socket(raw, server_side=True) as connection:
                        connection.sendall(b"x")
                except OSError:
                    pass

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with (
                socket.create_connection(listening.getsockname()) as raw,
                here.wrap_socket(raw, server_hostname=NODE) as connection,
            ):
                return connection.recv(1) == b"x"
        except OSError:
            return False
        finally:
            thread.join()


def test_renewal_makes_a_new_pair_that_old_nodes_trust(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    ensure(first)
    shutil.copytree(first, second)
    assert ensure(second, renew=True).made == ("tls/node.key", "tls/node.crt")
    before, after = contents(first), contents(second)
    assert {n for n in NAMES if before[n] != after[n]} == {"tls/node.key", "tls/node.crt"}
    assert handshake(first / "tls", second / "tls", second / "tls")
    assert handshake(second / "tls", first / "tls", first / "tls")


def test_an_expired_certificate_is_refused_until_it_is_renewed(tmp_path: Path) -> None:
    ensure(tmp_path, clock=at(NOW))
    later = NOW + timedelta(days=398)
    with pytest.raises(IntegrityError, match=r"node\.crt is valid from .* to 2027-12-27 only") as e:
        ensure(tmp_path, clock=at(later))
    assert "--renew" in e.value.hint
    renewed = ensure(tmp_path, renew=True, clock=at(later))
    assert renewed.valid_until > later + timedelta(days=390)
    assert ensure(tmp_path, clock=at(later)).made == ()


def test_a_certificate_of_the_future_is_refused(tmp_path: Path) -> None:
    ensure(tmp_path, clock=at(NOW))
    with pytest.raises(IntegrityError, match="is valid from"):
        ensure(tmp_path, clock=at(NOW - timedelta(days=1)))


def test_an_expired_authority_is_refused_also_by_renewal(tmp_path: Path) -> None:
    ensure(tmp_path, clock=at(NOW))
    before = contents(tmp_path)
    with pytest.raises(IntegrityError, match=r"ca\.crt is valid from"):
        ensure(tmp_path, renew=True, clock=at(NOW + timedelta(days=3_651)))
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "strange"])
def test_a_damaged_file_is_refused_and_left_alone(tmp_path: Path, name: str, damage: str) -> None:
    folder, other = tmp_path / "ours", tmp_path / "other"
    ensure(folder)
    ensure(other)
    file = folder / name
    whole = file.read_bytes()
    file.write_bytes(
        {
            "empty": b"",
            "cut": whole[:20],
            "noise": b"\x00\xff" * 8,
            "strange": (other / name).read_bytes(),
        }[damage]
    )
    before = contents(folder)
    if name in ("auth_token", "online_password") and damage == "strange":
        assert ensure(folder).made == ()  # any is as good as another
        return
    with pytest.raises(IntegrityError):
        ensure(folder)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["auth_token", "online_password", "ca.key", "tls/node.key"])
def test_a_secret_that_others_can_read_is_refused(tmp_path: Path, name: str) -> None:
    ensure(tmp_path)
    (tmp_path / name).chmod(0o640)
    with pytest.raises(IntegrityError, match=f"{name} has mode 0640"):
        ensure(tmp_path)


def test_an_authority_whose_key_is_kept_elsewhere_still_checks_but_signs_nothing(
    tmp_path: Path,
) -> None:
    ensure(tmp_path)
    (tmp_path / "ca.key").unlink()
    assert ensure(tmp_path).made == ()
    with pytest.raises(IntegrityError, match=r"ca\.key is missing"):
        ensure(tmp_path, renew=True)


def test_a_lost_authority_is_not_replaced_in_silence(tmp_path: Path) -> None:
    ensure(tmp_path)
    (tmp_path / "tls/ca.crt").unlink()
    with pytest.raises(IntegrityError, match=r"ca\.crt is missing"):
        ensure(tmp_path)


@pytest.mark.parametrize("arrival", range(1, len(NAMES) + 1))
def test_a_call_that_is_killed_leaves_nothing_half_and_the_next_one_completes_it(
    tmp_path: Path, arrival: int
) -> None:
    kill(tmp_path, arrival)
    ensure(tmp_path)
    assert sorted(contents(tmp_path)) == sorted(NAMES)
    assert handshake(*[tmp_path / "tls"] * 3)


@pytest.mark.parametrize("arrival", [1, 2])
def test_a_renewal_that_is_killed_is_completed_by_the_next_call(
    tmp_path: Path, arrival: int
) -> None:
    ensure(tmp_path)
    kill(tmp_path, arrival, "renew=True")
    ensure(tmp_path)
    assert sorted(contents(tmp_path)) == sorted(NAMES)
    assert handshake(*[tmp_path / "tls"] * 3)


def kill(folder: Path, arrival: int, option: str = "") -> None:
    """Make the credentials in a process that dies before it puts the n-th file in its place."""
    program = (
        "from pathlib import Path; from raypipe.runtime.launch.credentials import ensure; "
        f"ensure(Path({str(folder)!r}), {option})"
    )
    point = f"credentials.before_rename:{arrival}"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "RAYPIPE_ABORT_AT": point},
        check=False,
    )
    assert done.returncode == -9


def test_two_calls_at_once_make_one_set(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = [c.made for c in pool.map(lambda _: ensure(tmp_path), range(8))]
    assert sorted(name for names in made for name in names) == sorted(NAMES)
    assert handshake(*[tmp_path / "tls"] * 3)


def test_a_folder_that_can_not_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="file"):
        ensure(tmp_path / "file/cluster")
