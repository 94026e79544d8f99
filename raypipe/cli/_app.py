"""The verbs, put together."""

from __future__ import annotations

import typer

from raypipe.cli import (
    cluster,
    doctor,
    down,
    experiment,
    features,
    ingest,
    init,
    load,
    log,
    parity,
    patterns,
    plan,
    policy,
    quarantine,
    recommend,
    release,
    reviews,
    serve,
    simulate,
    sql,
    status,
    train,
    up,
)
from raypipe.cli._guard import Guarded

app = typer.Typer(
    name="raypipe",
    cls=Guarded,
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Real-time decisions for commerce and payments, from one feature definition.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done in part. "
    "RAYPIPE_DEBUG=1 shows tracebacks and Ray's log. `raypipe --version` prints the version.",
)


for _verb in (
    up.up,
    status.status,
    down.down,
    simulate.simulate,
    load.load,
    ingest.ingest,
    plan.plan,
    features.features,
    train.train,
    serve.serve,
    parity.parity,
    sql.sql,
    doctor.doctor,
    init.init,
):
    app.command()(_verb)
app.add_typer(experiment.app)
app.add_typer(patterns.app)
app.add_typer(policy.app)
app.add_typer(quarantine.app)
app.add_typer(cluster.app)
app.add_typer(log.app)
app.add_typer(recommend.app)
app.add_typer(release.app)
app.add_typer(reviews.app)
