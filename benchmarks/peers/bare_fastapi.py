"""The usual notebook-to-production step: FastAPI, pydantic, one XGBoost model file, one process.

It parses and scores; it computes no feature, stores nothing and knows no key.
Run as ``python -m benchmarks.peers.bare_fastapi MODEL FEATURES PORT``.
"""

from __future__ import annotations

import sys

import numpy as np
import uvicorn
import xgboost
from fastapi import FastAPI
from pydantic import BaseModel


class Payment(BaseModel):
    """The transaction as a client sends it."""

    event_id: str
    event_time: int
    card_id: str
    customer_id: str
    merchant_id: str
    device_id: str | None = None
    amount: int
    currency: str
    channel: str | None = None
    category: str | None = None
    country: str | None = None


def application(model: str, features: int) -> FastAPI:
    """One route: score a row whose first feature is the amount, the others missing."""
    booster = xgboost.Booster(model_file=model)
    booster.set_param({"nthread": 1})
    app = FastAPI()

    @app.post("/score")
    async def score(payment: Payment) -> dict[str, float | str]:
        row = np.full((1, features), np.nan, np.float32)
        row[0, 0] = payment.amount
        value = float(booster.inplace_predict(row, validate_features=False)[0])
        return {"event_id": payment.event_id, "score": value}

    return app


if __name__ == "__main__":
    uvicorn.run(
        application(sys.argv[1], int(sys.argv[2])),
        host="127.0.0.1",
        port=int(sys.argv[3]),
        log_level="warning",
        access_log=False,
    )
