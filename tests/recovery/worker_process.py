"""A worker of the greenhouse domain as a process of its own, to be killed by tests.

Its arguments are its home, the URL of its log and, if it makes snapshots, every how many seconds.
"""

from pathlib import Path

from raypipe.events.quarantine import QUARANTINE_FILE, Quarantine
from raypipe.lake import Place
from raypipe.log.opening import open_log
from raypipe.runtime.worker.compiled import compile_worker
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


def prepare() -> None:
    """What every start would do again: load the kernels."""
    compile_worker(project)


def start(home: str, log_url: str, *snapshot_s: str) -> None:
    """As its nursery has the words."""
    main(Path(home), log_url, *map(float, snapshot_s))
