"""One of several workers of the greenhouse domain as a process of its own, to be killed by tests.

Its arguments are its home, its partition, and the number of workers.
"""

from functools import partial
from pathlib import Path

from raypipe.events.quarantine import QUARANTINE_FILE, Quarantine
from raypipe.lake import Place
from raypipe.log.opening import open_log
from raypipe.ownership.routes import Ownership
from raypipe.runtime.worker import reach
from raypipe.runtime.worker.compiled import compile_worker
from raypipe.runtime.worker.connection import UnixListener
from raypipe.runtime.worker.core import WorkerCore
from raypipe.runtime.worker.forwarding import Forwarder
from raypipe.runtime.worker.server import WorkerServer
from raypipe.runtime.worker.snapshots import Snapshots
from raypipe.tenancy.keys import STORE_FILE, KeyStore
from tests.domains.greenhouse import project

SNAPSHOT_S = 0.3
"""Often enough that kills hit snapshots too."""


def socket_of(home: Path, partition: int) -> Path:
    return home / f"worker-{partition}.sock"


def main(home: Path, partition: int, workers: int) -> None:
    ownership = Ownership(project, workers)
    log = open_log(f"sqlite:///{home}/log", home / "log-index", workers=workers)
    core = WorkerCore(
        project,
        log,
        partition,
        quarantine=Quarantine(home / QUARANTINE_FILE),
        snapshots=Snapshots(
            Place.at(home / "snapshots" / str(partition)), project.definition_hash, SNAPSHOT_S
        ),
        ownership=ownership,
    )
    others = set(range(workers)) - {partition}
    forwarder = Forwarder(
        log,
        ownership,
        partition,
        {other: partial(reach.unix, str(socket_of(home, other))) for other in others},
    )
    listener = UnixListener(socket_of(home, partition))
    keys = KeyStore(home / STORE_FILE)
    WorkerServer(core, keys, [listener], forwarder.figures).run()


def prepare() -> None:
    """What every start would do again: load the kernels."""
    compile_worker(project)


def start(home: str, partition: str, workers: str) -> None:
    """As its nursery has the words."""
    main(Path(home), int(partition), int(workers))
