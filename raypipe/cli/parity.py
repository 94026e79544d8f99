"""``raypipe parity``: do served decisions equal what the batch path computes?"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from raypipe.cli import _options, _output, _stage
from raypipe.cli._guard import PARTIAL
from raypipe.cli._options import Config, Home, Json, Quiet, Set


def parity(
    keys: Annotated[
        int, typer.Option("--keys", metavar="N", min=1, help="Keys to draw, by the setting seed.")
    ] = 100,
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="DURATION", help="Only decisions of the last 30m, 24h, 7d."
        ),
    ] = None,
    entity: Annotated[
        str | None,
        typer.Option("--entity", metavar="NAME", help="Whose keys [the first one with windows]."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Compute served decisions again by the batch path and compare every bit.

    Takes all decisions about a sample of keys, also while the system serves; `/metrics` exports the
    last result. Exits with 1 if a difference is unexplained, with 3 if nothing could be compared.
    """
    settings = _options.settings(home, config, set_)
    from raypipe.clock import SystemClock

    since_ms = 0 if since is None else SystemClock().now_ms() - _milliseconds(since)
    models = settings.lake / "models"
    with _options.progress(quiet).stage("parity", unit="decisions") as stage:
        report = _stage.call(
            "features.parity:run",
            settings,
            partial(_stage.call, "serving.scoring:feature_names", models),
            keys=keys,
            since_ms=since_ms,
            entity=entity,
        )
        stage.advance(report.compared)
    import msgspec

    result = msgspec.to_builtins(report) | {"mismatches": report.mismatches}
    _output.write(result, as_json=json, text=_text(report))
    if report.failed:
        return 1
    return 0 if report.compared else PARTIAL


def _milliseconds(duration: str) -> int:
    from raypipe.windows.spec import seconds

    return 1_000 * seconds(duration)


def _text(report: Any) -> str:
    from datetime import UTC, datetime

    def moment(ms: int) -> str:
        return datetime.fromtimestamp(ms / 1_000, UTC).isoformat("T", "milliseconds")

    counts = {
        "keys": f"{report.keys} of {report.entity}",
        "decisions": report.decisions,
        "compared": report.compared,
        "other version": report.version,
        "without features": report.featureless,
        "broken": report.broken,
        "values that differ": {str(cause): n for cause, n in report.mismatches.items()},
    }
    text = _output.lines(counts)
    rows = [
        (
            feature.feature,
            example.cause,
            example.event_id,
            moment(example.event_time),
            example.served,
            example.recomputed,
        )
        for feature in report.features
        for example in feature.examples
    ]
    if rows:
        header = ("FEATURE", "CAUSE", "EVENT", "TIME", "SERVED", "RECOMPUTED")
        text += "\n\n" + _output.table(header, rows)
    return text
