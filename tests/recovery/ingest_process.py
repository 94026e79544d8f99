"""The server of bulk events of the greenhouse domain as a process of its own, to be killed."""

from pathlib import Path

import uvicorn

from raypipe.clock import SystemClock
from raypipe.runtime.worker import reach
from raypipe.runtime.worker.client import WorkerClient
from raypipe.runtime.worker.link import Link
from serving.credentials import Credentials
from serving.events import Events
from serving.ingest import IngestApp
from serving.metrics import Metrics
from tests.domains.greenhouse import project


def main(home: Path, port: int) -> None:
    async def connect() -> Link:
        return await reach.unix(str(home / "worker.sock"))

    worker = WorkerClient(connect)
    events = Events(
        project, worker, "EUR", SystemClock(), body_limit=2**20, waiting_limit=16 * 2**20
    )
    app = IngestApp(Credentials(worker), worker, events, Metrics("ingest"), 20.0)
    uvicorn.run(app, host="127.0.0.1", port=port, lifespan="off", log_level="critical")


def start(home: str, port: str) -> None:
    """As its nursery has the words."""
    main(Path(home), int(port))
