"""What one writes in an afternoon: `implicit` fitted on all interactions, behind one FastAPI route.

It retrieves, and that is all: no catalogue, stock, orders, order of candidates, rules or events.
Whoever is new gets the most popular items. Run as
``python -m benchmarks.peers.implicit_service PAIRS.parquet PORT``.
"""

from __future__ import annotations

import sys

import numpy as np
import pyarrow.parquet as pq
import uvicorn
from fastapi import FastAPI
from implicit.nearest_neighbours import CosineRecommender
from pydantic import BaseModel
from scipy.sparse import csr_matrix

NEIGHBOURS = 200


class Wanted(BaseModel):
    """Who wants how many."""

    user: str | None = None
    k: int = 10


def application(pairs: str) -> FastAPI:
    """One route; the model is fitted before it opens."""
    table = pq.read_table(pairs)
    users, items = (table[c].combine_chunks().dictionary_encode() for c in ("user", "item"))
    row, column = (np.asarray(a.indices) for a in (users, items))
    weights = np.asarray(table["weight"], np.float32)
    shape = (len(users.dictionary), len(items.dictionary))
    matrix = csr_matrix((weights, (row, column)), shape=shape)
    model = CosineRecommender(K=NEIGHBOURS)
    model.fit(matrix, show_progress=False)
    codes = {user: code for code, user in enumerate(users.dictionary.to_pylist())}
    ids = items.dictionary.to_pylist()
    counts = np.asarray(matrix.astype(bool).sum(axis=0))[0]
    popular = np.argsort(-counts, kind="stable")[:1_000].tolist()
    app = FastAPI()

    @app.post("/recommendations")
    async def recommend(wanted: Wanted) -> dict[str, list[dict[str, str | float]]]:
        code = codes.get(wanted.user or "")
        found: dict[int, float] = {}
        if code is not None:
            best, scores = model.recommend(code, matrix[code], N=wanted.k)
            found = {i: s for i, s in zip(best.tolist(), scores.tolist(), strict=True) if i >= 0}
        for item in popular:
            if len(found) >= wanted.k:
                break
            found.setdefault(item, 0.0)
        return {"items": [{"item_id": ids[i], "score": s} for i, s in found.items()]}

    return app


if __name__ == "__main__":
    uvicorn.run(
        application(sys.argv[1]),
        host="127.0.0.1",
        port=int(sys.argv[2]),
        log_level="warning",
        access_log=False,
    )
