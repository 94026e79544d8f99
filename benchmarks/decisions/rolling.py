"""Deploy the application again in the Ray session of a home, as another release of raypipe would.

``python -m benchmarks.decisions.rolling SETTINGS``, with the settings as one JSON object.
"""

from __future__ import annotations

import json
import sys

from benchmarks.harness import check


def main(given: dict[str, object]) -> None:
    """Returns when all replicas are new."""
    from raypipe.config import load_settings
    from raypipe.runtime import running, session
    from serving import app

    settings = load_settings(given, None)
    found = running.find(settings.home)
    check(found is not None and bool(found.ray_address), f"nothing serves on {settings.home}")
    assert found is not None
    session.start(settings.model_copy(update={"ray_address": found.ray_address}), warm=False)
    app.start(settings)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
