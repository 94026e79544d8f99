"""A worker of the greenhouse domain as a process of its own, to be killed by tests."""

import sys
from pathlib import Path

from raypipe.log.sqlite import SqliteLog
from raypipe.runtime.worker.connection import UnixListener
from raypipe.runtime.worker.core import WorkerCore
from raypipe.runtime.worker.server import WorkerServer
from raypipe.tenancy.keys import STORE_FILE, KeyStore
from tests.domains.greenhouse import project


def main(home: Path) -> None:
    core = WorkerCore(project, SqliteLog(home / "log"))
    server = WorkerServer(core, KeyStore(home / STORE_FILE), [UnixListener(home / "worker.sock")])
    print("ready", flush=True)
    server.run()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
