"""A real S3 server for tests: versitygw over a folder, on a free loopback port.

Its binary is built once by the machine's Go from a pinned version of its module.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

MODULE = "github.com/versity/versitygw/cmd/versitygw"
VERSION = "v1.8.0"
REGION = "us-east-1"
BUCKET = "lake"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "raypipe-test",
    "AWS_SECRET_ACCESS_KEY": "raypipe-test-secret",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def program() -> Path:
    """The server's binary, built if it isn't in the cache yet; skips where it can't be had."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raypipe-tests"
    binary = cache / f"versitygw-{VERSION}"
    if binary.exists():
        return binary
    go = shutil.which("go")
    if go is None:
        pytest.skip(f"no S3 server: {MODULE} needs Go to be built")
    cache.mkdir(parents=True, exist_ok=True)
    with (
        (cache / "lock").open("w") as lock,
        tempfile.TemporaryDirectory(dir=cache) as folder,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)  # who comes second finds what the first has built
        if binary.exists():
            return binary
        built = subprocess.run(
            [go, "install", f"{MODULE}@{VERSION}"],
            env={**os.environ, "GOBIN": folder},
            capture_output=True,
            text=True,
            check=False,
        )
        if built.returncode:
            pytest.skip(f"no S3 server: {MODULE}@{VERSION} can't be built: {built.stderr[-400:]}")
        (Path(folder) / "versitygw").replace(binary)
    return binary


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """A server with the empty bucket ``lake``; the query by which a URL reaches it."""
    binary = program()
    (folder / BUCKET).mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [binary, "--port", f"127.0.0.1:{port}", "--quiet", "posix", folder],
        env={
            **os.environ,
            "ROOT_ACCESS_KEY": CREDENTIALS["AWS_ACCESS_KEY_ID"],
            "ROOT_SECRET_KEY": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _await(port, process)
        yield f"region={REGION}&scheme=http&endpoint_override=127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _await(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"the S3 server does not answer at {port}")


if __name__ == "__main__":
    with suppress(pytest.skip.Exception):
        program()
