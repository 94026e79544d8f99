"""The recommender of a home with all that it needs, until a signal: worker, bulk events, replicas.

Run as ``python -m benchmarks.recommendations.server SETTINGS``, settings as JSON; prints where it
answers as one line of JSON.
"""

from __future__ import annotations

import json
import signal
import sys
import threading

from raypipe.config import Settings
from raypipe.runtime import session
from raypipe.runtime.worker import actor
from raypipe.tenancy.keys import LOCAL_KEY_FILE


def main(given: str) -> None:
    """Serve until SIGTERM."""
    settings = Settings(**json.loads(given))
    session.start(settings)
    from serving import ingest
    from serving.recommend import app

    actor.ensure(settings)
    ingest.ensure(settings)
    version = app.start(settings)
    told = {
        "url": settings.http_url,
        "events": f"{settings.ingest_url}/v1/events",
        "api_key": str(settings.home / LOCAL_KEY_FILE),
        "version": version,
    }
    print(json.dumps(told), flush=True)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    stopped.wait()
    actor.stop()
    session.stop()


if __name__ == "__main__":
    main(sys.argv[1])
