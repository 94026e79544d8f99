"""A worker of the greenhouse domain as a process of its own, to be killed by tests.

Its arguments are its home, the URL of its log and, if it makes snapshots, every how many seconds.
"""

import sys
from pathlib import Path

from raypipe.events.quarantine import QUARANTINE_FILE, Quarantine
from raypipe.lake import Place
from raypipe.log.opening import open_log
from raypipe.runtime.worker.connection import UnixListener
from raypipe.runtime.worker.core import WorkerCore
from raypipe.runtime.worker.server import WorkerServer
from raypipe.runtime.worker.snapshots import Snapshots
from raypipe.tenancy.keys import STORE_FILE, KeyStore
from tests.domains.greenhouse import project


def main(home: Path, log_url: str, snapshot_s: float | None = None) -> None:
    snapshots = None
    if snapshot_s is not None:
        snapshots = Snapshots(Place.at(home / "snapshots"), project.definition_hash, snapshot_s)
    core = WorkerCore(
        project,
        open_log(log_url, home / "log-index"),
        quarantine=Quarantine(home / QUARANTINE_FILE),
        snapshots=snapshots,
    )
    server = WorkerServer(core, KeyStore(home / STORE_FILE), [UnixListener(home / "worker.sock")])
    print("ready", flush=True)
    server.run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(float, sys.argv[3:]))
