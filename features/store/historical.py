"""Training inputs by event id, through Feast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from features.store.duck import parts, reach
from features.store.names import EVENT_KEY, TIMESTAMP
from raypipe.errors import NotFound, StageError
from raypipe.lake import Place

if TYPE_CHECKING:
    import feast

_POSITION = "_position"
_LATEST = "2200-01-01"
"""Later than any event: rows are found by id alone, so no time may hide one."""


def historical(
    store: feast.FeatureStore, lake: Place, event_ids: Sequence[str], service: str
) -> pa.Table:
    """The values that a model version reads, before each of the events.

    Args:
        lake: where the registered files lie.
        service: a feature service over `*_at_event` views, as ``fraud_v1``.

    Returns:
        event_id and the service's features (float64, NaN where there is none), one row per given
        id in the given order.

    Raises:
        NotFound: no such service.
        StageError: a view of the service has no files yet.
    """
    import pandas as pd
    from feast.errors import FeatureServiceNotFoundException

    try:
        found = store.get_feature_service(service)
    except FeatureServiceNotFoundException as e:
        names = ", ".join(sorted(s.name for s in store.list_feature_services()))
        raise NotFound(f"no feature service {service!r}", hint=f"There are: {names}.") from e
    columns = [f.name for p in found.feature_view_projections for f in p.features]
    _need_files(store, lake, found)
    if not event_ids:
        return pa.table({EVENT_KEY: pa.array([], pa.string())} | dict.fromkeys(columns, _floats()))
    asked = pd.DataFrame(
        {
            EVENT_KEY: list(event_ids),
            TIMESTAMP: pd.Timestamp(_LATEST, tz="UTC"),
            _POSITION: range(len(event_ids)),
        }
    )
    _reach(lake)
    table = store.get_historical_features(entity_df=asked, features=found).to_arrow()
    table = table.sort_by(_POSITION)
    values = {c: _floats(table.column(c)) for c in columns}
    return pa.table({EVENT_KEY: table.column(EVENT_KEY).cast(pa.string())} | values)


def _floats(column: pa.ChunkedArray | None = None) -> pa.Array | pa.ChunkedArray:
    if column is None:
        return pa.array([], pa.float64())
    return column.cast(pa.float64()).fill_null(float("nan"))


def _reach(lake: Place) -> None:
    """Let Feast's DuckDB store, which reads through Ibis' one connection, read from the lake."""
    if lake.local is None:
        import ibis

        reach(ibis.get_backend().con, lake)


def _need_files(store: feast.FeatureStore, lake: Place, service: feast.FeatureService) -> None:
    for projection in service.feature_view_projections:
        source = store.get_feature_view(projection.name).batch_source
        pattern = str(getattr(source, "path", ""))
        if not parts(pattern, lake):
            raise StageError(
                f"view {projection.name!r} has no files at {pattern}",
                hint="`raypipe features` computes them.",
            )
