"""What a user would build: FastAPI, Feast on Redis, one XGBoost model, ``pred_contribs``.

A request's keys are looked up by ``FeatureStore.get_online_features`` in Feast's own Redis store,
in the same columns that raypipe's model reads; the row is made, scored, and every so many are
explained: as many as raypipe does not approve, or all. By its own scores it would explain more, for
its values stand still while the payments go on. It counts nothing, stores nothing and knows no key.

``fill`` writes the values into the store; the server is
``python -m benchmarks.peers.feast_stack OPTIONS PORT``, with options as one JSON object: place,
redis_port, model, review (the threshold) and each (1: all are explained; 50: every 50th).
"""

from __future__ import annotations

import itertools
import json
import sys
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import uvicorn
import xgboost
from fastapi import FastAPI

from benchmarks.peers.bare_fastapi import Payment

if TYPE_CHECKING:
    import feast

    from raypipe.config import Settings
    from raypipe.lake import Place
    from raypipe.profiles import Profile
    from raypipe.windows.spec import WindowView

REASONS = 4
"""Reasons of an answer at most, as raypipe gives."""


def open_store(place: Path, redis_port: int) -> feast.FeatureStore:
    """Feast with its Redis store, its registry in a folder."""
    with warnings.catch_warnings():
        from feast import FeatureStore, RepoConfig

    return FeatureStore(
        config=RepoConfig(
            project="payments",
            provider="local",
            registry=str(place / "registry.db"),
            offline_store={"type": "duckdb"},
            online_store={"type": "redis", "connection_string": f"127.0.0.1:{redis_port}"},
            entity_key_serialization_version=3,
        )
    )


def fill(settings: Settings, place: Path, redis_port: int) -> int:
    """Register the project's online views and write the newest values of every key, as of now.

    Returns the rows that were written.
    """
    import duckdb

    from features.builds import Build
    from features.profiles import made
    from features.store.definitions import define
    from features.store.names import TIMESTAMP, state_folder, state_view
    from raypipe.project import load_project

    project = load_project(settings.project)
    build = Build.current(settings.lake).place
    folders = made.values_folders(settings.lake, project)
    views: dict[str, tuple[WindowView | Profile, Place]] = {
        **{state_view(v.name): (v, state_folder(build, v)) for v in project.views},
        **{p.name: (p, folders[p.name]) for p in project.profiles},
    }
    defined = define(project, build, profiles=folders)
    store = open_store(place, redis_port)
    used = [v for v in defined.views if v.name in views]
    keys = {e for v in used for e in v.entities}
    store.apply([*(e for e in defined.entities if e.name in keys), *used])
    now, written = datetime.now(UTC), 0
    for name, (group, folder) in views.items():
        paths = [str(f.local) for f in folder.files()]
        if not paths:
            continue
        columns = ", ".join(f'"{c}"' for c in group.column_names)
        rows = duckdb.execute(
            f'SELECT "{group.key}", {columns} FROM read_parquet($1) QUALIFY row_number() OVER '  # noqa: S608 - declared names
            f'(PARTITION BY "{group.key}" ORDER BY {TIMESTAMP} DESC, created DESC) = 1',
            [paths],
        ).df()
        rows["event_timestamp"] = rows["created"] = now
        for extra in {f.name for f in store.get_feature_view(name).schema} - set(rows.columns):
            rows[extra] = 0
        store.write_to_online_store(name, rows)
        written += len(rows)
    return written


def references() -> list[str]:
    """What the model reads of the online views, as Feast names it."""
    from features.payments import project
    from features.store.definitions import used_columns
    from features.store.names import state_view

    views = {v.name: state_view(v.name) for v in project.views}
    used = used_columns(project, project.models[0])
    return [f"{views.get(group, group)}:{c}" for group, columns in used.items() for c in columns]


def application(place: Path, redis_port: int, model: Path, review: float, each: int) -> FastAPI:
    """One route: look up, make the row, score, explain."""
    from features.payments import project
    from raypipe.vector.assemble import Assembler

    booster = xgboost.Booster(model_file=model)
    booster.set_param({"nthread": 1})
    assembler = Assembler(project, project.models[0])
    names = list(assembler.features)
    store, wanted = open_store(place, redis_port), references()
    app, numbers = FastAPI(), itertools.count(1)

    def row_of(payment: Payment) -> np.ndarray[Any, Any]:
        keys = {
            "card_id": payment.card_id,
            "customer_id": payment.customer_id,
            "merchant_id": payment.merchant_id,
            "device_id": payment.device_id or "",
        }
        known = store.get_online_features(wanted, [keys]).to_dict()

        def values(columns: tuple[str, ...]) -> list[float]:
            return [_number(known, c) for c in columns]

        return assembler.row(
            payment.model_dump(), values(project.window_names), values(project.profile_names)
        )

    @app.post("/score")
    async def score(payment: Payment) -> dict[str, Any]:
        row = row_of(payment)[None]
        value = float(booster.inplace_predict(row, validate_features=False)[0])
        reasons = []
        if next(numbers) % each == 0:
            matrix = xgboost.DMatrix(row, feature_names=names, nthread=1)
            shares = booster.predict(matrix, pred_contribs=True)[0, :-1]
            strongest = np.argsort(-shares)[:REASONS]
            reasons = [{"code": names[i], "share": float(shares[i])} for i in strongest]
        return {
            "event_id": payment.event_id,
            "score": value,
            "action": "approve" if value <= review else "review",
            "reasons": reasons,
            "known": int(np.isfinite(row).sum()),
        }

    return app


def _number(known: Mapping[str, list[Any]], column: str) -> float:
    value = known[column][0] if column in known else None
    return np.nan if value is None else float(value)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    uvicorn.run(
        application(
            Path(given["place"]),
            given["redis_port"],
            Path(given["model"]),
            given["review"],
            given["each"],
        ),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        log_level="warning",
        access_log=False,
    )
