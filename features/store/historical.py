"""Training inputs by the names of Feast's registry: point-in-time joins over its files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from features.store.asof import Source, join
from features.store.duck import parts
from features.store.names import EVENT_ENTITY
from raypipe.errors import NotFound
from raypipe.lake import Place

if TYPE_CHECKING:
    import feast


def historical(
    store: feast.FeatureStore,
    lake: Place,
    rows: pa.Table,
    features: str | Sequence[str],
    *,
    known_only: bool = True,
) -> pa.Table:
    """What was known of each row's keys at its time, as Feast's ``get_historical_features`` gives.

    Args:
        lake: where the registered files lie.
        rows: the join keys of the wanted views, and ``event_timestamp`` (timestamp[us, UTC]),
            which may be left out where all are `*_at_event` views: those are found by event_id.
        features: a feature service, as ``fraud_v1``, or names as ``view:feature``.
        known_only: whether values count only from their ``created`` time on; Feast's
            ``filter_by_created_timestamp``.

    Returns:
        the rows in their order with the features' columns, null where nothing is known.

    Raises:
        NotFound: no such service, view or feature.
        UsageError, StageError: see asof.join.
    """
    return join(rows, sources(store, lake, features), known_only=known_only)


def sources(store: feast.FeatureStore, lake: Place, features: str | Sequence[str]) -> list[Source]:
    """The files behind features, for :func:`features.store.asof.join_on_ray` too.

    Raises:
        NotFound: no such service, view or feature.
    """
    from feast.errors import FeatureViewNotFoundException

    wanted = _of_service(store, features) if isinstance(features, str) else _by_view(features)
    out = []
    for name, columns in wanted.items():
        try:
            view = store.get_feature_view(name)
        except FeatureViewNotFoundException as e:
            raise NotFound(f"no feature view {name!r}", hint="`feast feature-views list`") from e
        unknown = sorted(set(columns) - {f.name for f in view.features})
        if unknown:
            raise NotFound(f"view {name!r} has no features {unknown}")
        source: Any = view.batch_source
        out.append(
            Source(
                view=name,
                files=tuple(parts(str(getattr(source, "path", "")), lake)),
                keys=tuple(c.name for c in view.entity_columns),
                columns=tuple(columns),
                ttl_us=round(view.ttl.total_seconds() * 1_000_000) if view.ttl else 0,
                created=source.created_timestamp_column or None,
                timeless=view.entities == [EVENT_ENTITY],
            )
        )
    return out


def _of_service(store: feast.FeatureStore, name: str) -> dict[str, list[str]]:
    from feast.errors import FeatureServiceNotFoundException

    try:
        found = store.get_feature_service(name)
    except FeatureServiceNotFoundException as e:
        names = ", ".join(sorted(s.name for s in store.list_feature_services()))
        raise NotFound(f"no feature service {name!r}", hint=f"There are: {names}.") from e
    return {p.name: [f.name for f in p.features] for p in found.feature_view_projections}


def _by_view(features: Sequence[str]) -> dict[str, list[str]]:
    wanted: dict[str, list[str]] = {}
    for name in features:
        view, _, feature = name.partition(":")
        wanted.setdefault(view, []).append(feature)
    return wanted
