"""The packed store as Feast's OnlineStore."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from feast import Entity, FeatureService, FeatureView, RepoConfig, utils
from feast import metrics as feast_metrics
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.registry.base_registry import BaseRegistry
from feast.infra.supported_async_methods import SupportedAsyncMethods
from feast.online_response import OnlineResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel

from features.store.packed import protos
from features.store.packed.backend import Backend, open_backend
from features.store.packed.codec import encode
from features.store.packed.keys import KeyValue, several
from features.store.packed.order import NEVER
from features.store.packed.request import Plan
from features.store.packed.view import PackedView
from features.store.packed.write import write_table
from raypipe.errors import ConfigError, UsageError

Row = tuple[EntityKey, dict[str, Value], datetime, datetime | None]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_PLANS = 1_000


class PackedOnlineStoreConfig(FeastConfigBaseModel):
    """The `online_store` of a feature_store.yaml."""

    type: Literal["features.store.packed.store.PackedOnlineStore"] = (
        "features.store.packed.store.PackedOnlineStore"
    )
    url: str
    """``sqlite:///FILE``, ``redis://HOST:PORT/DB`` or ``rediss://HOST:PORT/DB``."""
    otherwise: str | None = None
    """The URL that counts where `url` is a variable that the environment doesn't have."""

    @property
    def place(self) -> str:
        """The URL that counts.

        Raises:
            ConfigError: neither is one.
        """
        for url in (self.url, self.otherwise):
            if url and "${" not in url:
                return url
        raise ConfigError(
            f"the online store's url is {self.url!r}",
            hint="Set the variable, or write sqlite:///FILE or redis://HOST:PORT/DB.",
        )


class PackedOnlineStore(OnlineStore):
    """One packed value per entity and view; newest wins; the TTL counts at every read."""

    def __init__(self) -> None:
        self._backend: Backend | None = None
        self._plans: dict[tuple[Any, ...], tuple[tuple[Any, ...], Plan | None]] = {}

    def backend(self, config: RepoConfig) -> Backend:
        """Where the values are; opened at the first call."""
        if self._backend is None:
            self._backend = open_backend(config.online_store.place)
        return self._backend

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        """None: Feast's server calls from its threads, which is as fast here."""
        return SupportedAsyncMethods()

    # write

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[Row],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """See OnlineStore.online_write_batch.

        Raises:
            UsageError: a key can't be one, or a value is not of the feature's type.
        """
        if not data:
            return
        view = PackedView.of(table, config)
        keys = [entity_key(view, config, key) for key, _, _, _ in data]
        times = _microseconds([moment for _, _, moment, _ in data])
        created = _microseconds([c for _, _, _, c in data])
        if view.by_created and (created == NEVER).any():
            raise UsageError(f"view {view.name!r} is ordered by `created`, and a row has none")
        major, minor = (created, times) if view.by_created else (times, created)
        absent = Value()
        columns = [
            protos.column(name, kind, [values.get(name, absent) for _, values, _, _ in data])
            for name, kind in view.layout.columns
        ]
        values = encode(view.layout, major, minor, times, columns)
        self.backend(config).put(keys, values, view.layout.schema, view.layout.described)
        if progress is not None:
            progress(len(data))

    def write_table(self, config: RepoConfig, table: FeatureView, rows: pa.Table) -> int:
        """Write Arrow rows of a view; returns how many were newer than what was there.

        See write.write_table.
        """
        return write_table(self.backend(config), config, table, rows)

    async def online_write_batch_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[Row],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """See online_write_batch; in a thread."""
        await asyncio.to_thread(self.online_write_batch, config, table, data, progress)

    # read

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """See OnlineStore.online_read; what the TTL has ended is not there."""
        backend, view = self.backend(config), PackedView.of(table, config)
        names = requested_features or list(view.types)
        reader = view.reader(names, backend)
        kinds, now = [kind for _, kind in reader.wanted], _now()
        out: list[tuple[datetime | None, dict[str, Value] | None]] = []
        stored = backend.get([entity_key(view, config, k) for k in entity_keys])
        for found in reader.read(stored, now):
            if found is None:
                out.append((None, None))
                continue
            values = map(protos.to_proto, kinds, found[1])
            out.append((_EPOCH + found[0] * _MICROSECOND, dict(zip(names, values, strict=True))))
        return out

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """See online_read; in a thread."""
        return await asyncio.to_thread(
            self.online_read, config, table, entity_keys, requested_features
        )

    def get_online_features(
        self,
        config: RepoConfig,
        features: list[str] | FeatureService,
        entity_rows: Any,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        include_feature_view_version_metadata: bool = False,
    ) -> OnlineResponse:
        """See OnlineStore.get_online_features.

        Plain features of plain entities are read in one round trip and answered without Protobuf.
        All else (on-demand views, precomputed vectors, versions, other types of keys, Feast's
        metrics) takes Feast's own path over the same values.
        """
        plain = not (
            include_feature_view_version_metadata
            or feast_metrics._config.online_features
            or getattr(features, "precompute_online", False)
        )
        if plain:
            plan = self.compiled(config, features, registry, project, full_feature_names)
            if plan is not None:
                answer = plan.answer(entity_rows, self.backend(config), _now())
                if answer is not None:
                    return answer
        return super().get_online_features(
            config,
            features,
            entity_rows,
            registry,
            project,
            full_feature_names,
            include_feature_view_version_metadata,
        )

    async def get_online_features_async(self, *args: Any, **kwargs: Any) -> OnlineResponse:
        """See get_online_features; in a thread."""
        return await asyncio.to_thread(self.get_online_features, *args, **kwargs)

    def compiled(
        self,
        config: RepoConfig,
        features: list[str] | FeatureService,
        registry: BaseRegistry,
        project: str,
        full_names: bool,
    ) -> Plan | None:
        """How to answer these features; None where Feast's own path has to."""
        context = utils._get_cached_request_context(registry, project, features, full_names)
        asked = (features.name,) if isinstance(features, FeatureService) else (None, *features)
        key = (project, full_names, *asked)
        context_of_plan, plan = self._plans.get(key, (None, None))
        if context_of_plan is not context:
            plan = Plan.of(context, full_names, config, self.backend(config))
            if len(self._plans) >= _PLANS:
                self._plans.clear()
            self._plans[key] = context, plan
        return plan

    # keep house

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Drop the rows of deleted views; others need nothing."""
        self.teardown(config, tables_to_delete, entities_to_delete)

    def teardown(
        self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]
    ) -> None:
        """Drop the rows of the views."""
        for table in tables:
            self.backend(config).drop(PackedView.of(table, config).prefix)

    async def close(self) -> None:
        """Let go of connections and files."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def _is_versioned_read_supported(self) -> bool:
        return True


def entity_key(view: PackedView, config: RepoConfig, key: EntityKey) -> bytes:
    """The store's key of Feast's entity key."""
    named = dict(zip(key.join_keys, key.entity_values, strict=True))
    named.pop(
        DUMMY_ENTITY_ID, None
    )  # Feast's stand-in for no entity: read with it, written without
    values: list[KeyValue] = [protos.key_value(name, named[name]) for name in sorted(named)]
    return several(view.keys_of(config.project, list(named)), values)


def _now() -> int:
    return time.time_ns() // 1_000


def _microseconds(times: Sequence[datetime | None]) -> npt.NDArray[np.int64]:
    """Exact: a float of seconds would round, and two ways to write would order differently."""
    return np.array(
        [NEVER if t is None else (utils.make_tzaware(t) - _EPOCH) // _MICROSECOND for t in times],
        np.int64,
    )
