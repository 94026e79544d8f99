"""The credentials of a cluster, in a folder of this machine.

auth_token       Ray's token: who has it may run code on the cluster
online_password  of the Redis that is the online store, such as ElastiCache takes as its AUTH token
tls/ca.crt       whom the nodes trust; tls/node.crt and tls/node.key: what they show
ca.key           signs the next node.crt; never leaves the folder
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from raypipe import aborts
from raypipe.clock import Clock, SystemClock
from raypipe.errors import IntegrityError, Unavailable
from raypipe.runtime.launch import certificates
from raypipe.runtime.worker import tls

FOLDER = "~/.raypipe/cluster"
TOKEN, ONLINE_PASSWORD, CA_KEY = "auth_token", "online_password", "ca.key"
CA, CERTIFICATE, KEY = (f"tls/{name}" for name in (tls.CA, tls.CERTIFICATE, tls.KEY))
PUBLIC = (CA, CERTIFICATE)

MOUNTED = {
    "~/.ray/auth_token": f"{FOLDER}/{TOKEN}",
    "~/.raypipe/online_password": f"{FOLDER}/{ONLINE_PASSWORD}",
    **{f"~/.raypipe/{name}": f"{FOLDER}/{name}" for name in (CA, CERTIFICATE, KEY)},
}
"""Path on every node -> path on the machine that launches."""

SECRET = (f"{FOLDER}/{CA_KEY}",)
"""What no node may have."""

SECRET_BYTES = 32
"""Random bytes of a token or password, written as twice as many letters and digits."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What lies in the folder, after ``ensure``; ``made`` are the files that it wrote."""

    folder: Path
    made: tuple[str, ...]
    valid_until: datetime


def ensure(folder: Path, *, renew: bool = False, clock: Clock | None = None) -> Credentials:
    """Make what is missing, check what is there, and overwrite nothing that is valid.

    Renewal replaces node.key and node.crt; authority, token and password stay, so that nodes with
    the old certificate and nodes with the new one trust each other while it is rolled out.

    Raises IntegrityError for a file that is wrong, expired or readable by others, and Unavailable
    when the folder can't be written.
    """
    moment = datetime.fromtimestamp((clock or SystemClock()).now_ms() / 1000, UTC)
    made: list[str] = []
    with _owned(folder):
        _random(folder, TOKEN, "a running cluster needs `ray up` to learn the new one", made)
        _random(folder, ONLINE_PASSWORD, "give the new one to the Redis, then `ray up`", made)
        _authority(folder, made, moment)
        _node(folder, made, moment, renew=renew)
        for file in (folder / name for name in (TOKEN, ONLINE_PASSWORD, CA_KEY, KEY)):
            if file.exists():
                _check_mode(file)
        valid_until = _verified(folder, moment)
    return Credentials(folder, tuple(made), valid_until)


def _random(folder: Path, name: str, then: str, made: list[str]) -> None:
    file = folder / name
    if not file.exists():
        _write(folder, name, secrets.token_hex(SECRET_BYTES).encode(), made)
    elif not re.fullmatch(rb"[!-~]{%d,}" % SECRET_BYTES, file.read_bytes().strip()):
        raise IntegrityError(
            f"{file} doesn't hold {SECRET_BYTES} or more characters of ASCII without blanks",
            hint=f"Delete it and call again; {then}.",
        )


def _authority(folder: Path, made: list[str], moment: datetime) -> None:
    key, certificate = folder / CA_KEY, folder / CA
    if certificate.exists():
        # The key may be kept elsewhere until the next renewal.
        if key.exists() and not certificates.matches(key.read_bytes(), certificate.read_bytes()):
            raise IntegrityError(
                f"{key} is not the key of {certificate}", hint=_ANEW.format(folder)
            )
        return
    if (folder / CERTIFICATE).exists():
        raise IntegrityError(f"{certificate} is missing", hint=_ANEW.format(folder))
    if not key.exists():
        _write(folder, CA_KEY, certificates.new_key(), made)
    _write(folder, CA, certificates.authority(key.read_bytes(), moment), made)


def _node(folder: Path, made: list[str], moment: datetime, *, renew: bool) -> None:
    present = (folder / CERTIFICATE).exists() and (folder / KEY).exists()
    if present and not renew:
        return
    if not (folder / CA_KEY).exists():
        raise IntegrityError(
            f"{folder / CA_KEY} is missing, so no certificate can be signed",
            hint=f"Bring it back from a backup. {_ANEW.format(folder)}",
        )
    ca, ca_key = (folder / CA).read_bytes(), (folder / CA_KEY).read_bytes()
    key = certificates.new_key()
    certificate = certificates.node(key, ca, ca_key, moment)
    certificates.verify(certificate, key, ca, moment)
    # A call that is killed from here on leaves no certificate, and the next one makes the pair.
    (folder / CERTIFICATE).unlink(missing_ok=True)
    _write(folder, KEY, key, made)
    _write(folder, CERTIFICATE, certificate, made)


def _verified(folder: Path, moment: datetime) -> datetime:
    certificate, key, ca = ((folder / name).read_bytes() for name in (CERTIFICATE, KEY, CA))
    try:
        return certificates.verify(certificate, key, ca, moment)
    except IntegrityError as e:
        raise IntegrityError(
            f"{folder / 'tls'}: {e.detail}",
            hint="`raypipe cluster secrets --renew`, then `ray up`.",
        ) from e


def _check_mode(file: Path) -> None:
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & 0o077:
        raise IntegrityError(
            f"{file} has mode {mode:04o}: others can read it",
            hint=f"`chmod 600 {file}`; if others use this machine, make new credentials.",
        )


def _write(folder: Path, name: str, data: bytes, made: list[str]) -> None:
    """The file appears whole or not at all."""
    file = folder / name
    temporary = file.with_name(f".{file.name}.new")
    temporary.unlink(missing_ok=True)  # of a call that was killed
    mode = 0o644 if name in PUBLIC else 0o600
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    aborts.reach("credentials.before_rename")
    temporary.replace(file)
    made.append(name)


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """The folder, made and held by one call at a time."""
    try:
        (folder / "tls").mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
    except OSError as e:
        raise Unavailable(
            f"{e.filename or folder}: {e.strerror or e}",
            hint="Choose another --dir, or give this user the right to write there.",
        ) from e


_ANEW = "To begin anew, move {} away and call again; then `ray up` brings it to the nodes."
