"""The fastest way to score and to explain that gives what the library gives, found at load."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from raypipe.ledger.record import Reason
from serving.decide import Vector, Ways
from serving.scoring import forest, lgb, xgb
from serving.scoring.cut import MAX_BITS, cut
from serving.scoring.forest import Tree, Unsupported
from serving.scoring.probes import probes
from serving.scoring.table import Table
from serving.scoring.walk import Walk
from training.artefact import LIGHTGBM, LoadedModel

REASONS = 4
"""At most so many reasons are given."""

TABLE_BYTES = 64 * 2**20
TOLERANCE = 1e-5
"""How far a tabulated contribution may lie from the library's, in log-odds."""
FLOAT32 = 1e-6
"""And by which part of itself, where it is so large that its last bits are more than that."""

_log = logging.getLogger("raypipe.serving")

Floats = npt.NDArray[Any]


class RowScore(Protocol):
    """Scores one row."""

    name: str

    def __call__(self, row: Vector) -> float:
        """A probability, float32 in value."""


@dataclass(frozen=True)
class _Library:
    """What a library of trees offers; ``fast``, the fastest first, uses what it doesn't promise."""

    name: str
    fast: tuple[Callable[[Any, int, Sequence[Tree]], RowScore], ...]
    plain: Callable[[Any, int], RowScore]
    scores: Callable[[Any, Vector], Floats]
    contributions: Callable[[Any, Vector], Floats]
    trees: Callable[[Any], list[Tree]]


_XGBOOST = _Library(
    "xgboost",
    (Walk, lambda booster, features, _: xgb.DenseRow(booster, features)),
    xgb.InplaceRow,
    xgb.scores,
    xgb.contributions,
    forest.of_xgboost,
)
_LIGHTGBM = _Library(
    "lightgbm",
    (lambda booster, features, _: lgb.FastRow(booster, features),),
    lgb.PlainRow,
    lgb.scores,
    lgb.contributions,
    forest.of_lightgbm,
)


class TreeScorer:
    """A model on one thread. Not thread-safe.

    Args:
        features: names, in order.
        shares: each feature's contribution to the margin of a row.
    """

    def __init__(
        self,
        features: Sequence[str],
        score: RowScore,
        shares: Callable[[Vector], Floats],
        ways: Ways,
    ) -> None:
        self.ways = ways
        self._names = [(f.upper(), f) for f in features]
        self._score = score
        self._shares = shares

    def score(self, row: Vector) -> float:
        """The probability of a positive; ``row`` is float32 [features]."""
        return self._score(self._fit(row))

    def reasons(self, row: Vector) -> tuple[Reason, ...]:
        """The features with the largest positive TreeSHAP contributions, in log-odds."""
        shares = self._shares(self._fit(row))
        places = np.argsort(-shares, kind="stable")[:REASONS].tolist()
        strongest = [(int(i), float(shares[i])) for i in places]
        return tuple(Reason(*self._names[i], share) for i, share in strongest if share > 0.0)

    def _fit(self, row: Vector) -> Vector:
        if row.shape != (len(self._names),):
            raise ValueError(f"a row of shape {row.shape}, expected ({len(self._names)},)")
        return row


def load_scorer(loaded: LoadedModel, *, table_bytes: int = TABLE_BYTES) -> TreeScorer:
    """A scorer whose ways were compared with the library's own on rows made for the model.

    Args:
        table_bytes: what the table of contributions may take; a larger one is not made, and the
            library explains. 0 for none.
    """
    booster: Any = loaded.booster
    features = loaded.manifest.features
    library = _LIGHTGBM if loaded.manifest.model_file == LIGHTGBM else _XGBOOST
    if library is _XGBOOST:
        booster.set_param({"nthread": 1})
    try:
        trees = library.trees(booster)
        why = ""
    except Unsupported as e:
        trees, why = [], str(e)
    rows = probes(len(features), trees)
    score = _row_score(library, booster, trees, rows, loaded.reference)
    table = None if why else _table(library, booster, trees, rows, table_bytes)
    if isinstance(table, Table):
        return TreeScorer(features, score, table.shares, Ways(score.name, "table"))
    _log.warning(
        "reasons of model %s come from %s, which is slower: %s",
        loaded.reference,
        library.name,
        why or table,
    )
    return TreeScorer(
        features,
        score,
        lambda row: library.contributions(booster, row[None])[0],
        Ways(score.name, f"{library.name}_contributions"),
    )


def _row_score(
    library: _Library, booster: Any, trees: Sequence[Tree], rows: Vector, reference: str
) -> RowScore:
    expected = library.scores(booster, rows)
    for way in library.fast:
        try:
            fast = way(booster, rows.shape[1], trees)
            found = np.array([fast(row) for row in rows], expected.dtype)
        except Exception as e:  # noqa: BLE001 - whatever is wrong with it, there is another
            why = f"{type(e).__name__}: {e}"
        else:
            if found.tobytes() == expected.tobytes():
                return fast
            why = f"it differs on {int((found != expected).sum())} of {len(rows)} rows"
        _log.warning("model %s is scored a slower way: %s", reference, why)
    return library.plain(booster, rows.shape[1])


def _table(
    library: _Library, booster: Any, trees: list[Tree], rows: Vector, limit: int
) -> Table | str:
    """The table, or why there is none."""
    pieces = cut(trees)
    size = sum(piece.size for piece in pieces)
    if size > limit:
        return f"their table would take {size} bytes, over reasons_table_bytes {limit}"
    deepest = max((piece.bits for piece in pieces), default=0)
    if deepest > MAX_BITS:
        return f"a leaf of theirs depends on {deepest} features, over {MAX_BITS}"
    table = Table(pieces, rows.shape[1])
    expected = library.contributions(booster, rows)
    found = np.array([table.shares(row) for row in rows])
    if np.allclose(found, expected, rtol=FLOAT32, atol=TOLERANCE):
        return table
    return f"their table is off by {np.abs(found - expected).max():.3g}"
