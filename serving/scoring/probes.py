"""Rows by which a way to compute is compared with the library's own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serving.scoring.forest import Tree

ROWS = 64


def probes(features: int, trees: Sequence[Tree] = ()) -> npt.NDArray[np.float32]:
    """float32 [ROWS, features]: values at the trees' thresholds, just below and far from them,
    some missing, in one row all. The same for the same model."""
    rng = np.random.default_rng(features)
    rows = rng.normal(0, 1, (ROWS, features)) * 10.0 ** rng.integers(-2, 6, (ROWS, features))
    out = rows.astype(np.float32)
    limits: dict[int, list[float]] = {}
    for tree in trees:
        for node in tree.splits:
            limits.setdefault(tree.feature[node], []).append(tree.threshold[node])
    for feature, known in limits.items():
        at = rng.choice(np.array(known, np.float32), ROWS)
        below = np.nextafter(at, np.float32(-np.inf))
        kind = rng.integers(0, 3, ROWS)
        out[:, feature] = np.select([kind == 0, kind == 1], [at, below], out[:, feature])
    out[rng.random(out.shape) < 0.1] = np.nan
    out[0] = np.nan
    return out
