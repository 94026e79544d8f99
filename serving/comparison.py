"""What shadows would have done, against what was decided: actions, scores, disagreement."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from raypipe.clock import DAY_MS
from raypipe.errors import NotFound
from raypipe.lake import Place
from serving.shadows import FOLDER

if TYPE_CHECKING:
    import pyarrow as pa

    from raypipe.config import Settings

QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)

Floats = npt.NDArray[np.float64]


class Compared(msgspec.Struct, frozen=True):
    """One shadow against the decisions of one model that it has seen."""

    shadow: str
    model: str
    decisions: int
    disagreed: int
    """Decisions for which the shadow would have taken another action."""
    degraded: int
    """Decisions about which the shadow could say nothing."""
    actions: dict[str, dict[str, int]]
    """Decisions by the action that was taken, then by the shadow's."""
    quantiles: dict[str, tuple[float | None, float | None]]
    """Of the scores: of what decided, of the shadow."""
    ks_distance: float | None
    """Largest distance of the two scores' distributions (Kolmogorov-Smirnov), 0 to 1."""
    mean_difference: float | None
    """Mean of the shadow's score less the other."""


def run(settings: Settings, *, since_ms: int, shadow: str | None = None) -> list[Compared]:
    """Compare the tenant's rows of shadows since a moment; raises NotFound when there are none.

    A decision counts once for each shadow, however many files it is in.
    """
    table = _rows(settings.lake / FOLDER, settings.tenant, since_ms)
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    seen = set()
    for row in table.to_pylist():
        key = row["shadow"], row["decision_id"]
        if key not in seen and shadow in (None, row["shadow"]):
            seen.add(key)
            found[row["shadow"], row["model"]].append(row)
    if not found:
        raise NotFound(
            "no shadow has judged a decision" + (f" as {shadow}" if shadow else ""),
            hint="`raypipe release shadow MODEL@VERSION` starts one; rows are there in seconds.",
        )
    return [_compared(*key, rows) for key, rows in sorted(found.items())]


def _compared(shadow: str, model: str, rows: list[dict[str, Any]]) -> Compared:
    actions: dict[str, dict[str, int]] = {}
    for row in rows:
        counts = actions.setdefault(row["action"], {})
        counts[row["shadow_action"]] = counts.get(row["shadow_action"], 0) + 1
    both = [r for r in rows if r["score"] is not None and r["shadow_score"] is not None]
    mine = np.array([r["score"] for r in both], np.float64)
    other = np.array([r["shadow_score"] for r in both], np.float64)
    return Compared(
        shadow=shadow,
        model=model,
        decisions=len(rows),
        disagreed=sum(r["action"] != r["shadow_action"] for r in rows),
        degraded=sum(r["shadow_degraded"] for r in rows),
        actions={a: dict(sorted(c.items())) for a, c in sorted(actions.items())},
        quantiles={f"{q:g}": (_quantile(mine, q), _quantile(other, q)) for q in QUANTILES},
        ks_distance=ks_distance(mine, other) if both else None,
        mean_difference=float(np.mean(other - mine)) if both else None,
    )


def ks_distance(a: Floats, b: Floats) -> float:
    """The two-sample Kolmogorov-Smirnov statistic of two samples that are not empty.

    >>> ks_distance(np.array([0.1, 0.2]), np.array([0.1, 0.2])), ks_distance(
    ...     np.array([0.0, 0.1]), np.array([0.5, 0.9]))
    (0.0, 1.0)
    """
    places = np.concatenate([a, b])
    shares = [np.searchsorted(np.sort(x), places, "right") / len(x) for x in (a, b)]
    return float(np.max(np.abs(shares[0] - shares[1])))


def _quantile(values: Floats, q: float) -> float | None:
    return float(np.quantile(values, q)) if len(values) else None


def _rows(folder: Place, tenant: str, since_ms: int) -> pa.Table:
    """The rows of the days since then: a row lies in the folder of the day on which it was
    written, never of an earlier one than its decision's."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    from serving.shadows import SCHEMA

    first = datetime.fromtimestamp(max(since_ms, 0) // DAY_MS * DAY_MS / 1_000, UTC)
    tables = [SCHEMA.empty_table()]
    for day in folder.names():
        if day < first.strftime("%Y-%m-%d"):
            continue
        for place in (folder / day).files():
            with place.open() as file:
                table = pq.read_table(file)
            mine = pc.and_(
                pc.equal(table.column("tenant"), tenant),
                pc.greater_equal(table.column("decided_at"), since_ms),
            )
            tables.append(table.filter(mine))
    return pa.concat_tables(tables)
