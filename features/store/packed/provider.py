"""Feast's provider, whose writes of frames and whose materialisation go column by column."""

from __future__ import annotations

import asyncio
from typing import Any

import pandas as pd
import pyarrow as pa
from feast import OnDemandFeatureView
from feast.infra.compute_engines.base import ComputeEngine
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.passthrough_provider import PassthroughProvider
from feast.utils import _run_pyarrow_field_mapping

from features.store.packed.engine import PackedComputeEngine
from features.store.packed.store import PackedOnlineStore


class PackedProvider(PassthroughProvider):
    """`write_to_online_store`, `push` and `materialize` of a packed store, without Protobuf.

    With any other online store it is Feast's own.
    """

    @property
    def batch_engine(self) -> ComputeEngine:
        """Feast's engine; the local one writes by column."""
        engine = super().batch_engine
        if type(engine) is LocalComputeEngine and self._is_packed:
            engine = self._batch_engine = PackedComputeEngine(
                backend=engine.backend_name,
                repo_config=self.repo_config,
                offline_store=self.offline_store,
                online_store=self.online_store,
            )
        return engine

    def ingest_df(
        self, feature_view: Any, df: pd.DataFrame, field_mapping: dict[str, str] | None = None
    ) -> None:
        """Write the rows of a frame online."""
        if self._takes_columns(feature_view):
            rows = pa.Table.from_pandas(df, preserve_index=False)
            mapping = feature_view.batch_source.field_mapping
            rows = _run_pyarrow_field_mapping(rows, mapping or {})
            self.online_store.write_table(self.repo_config, feature_view, rows)
        else:
            super().ingest_df(feature_view, df, field_mapping)

    async def ingest_df_async(
        self, feature_view: Any, df: pd.DataFrame, field_mapping: dict[str, str] | None = None
    ) -> None:
        """The same, in a thread."""
        await asyncio.to_thread(self.ingest_df, feature_view, df, field_mapping)

    @property
    def _is_packed(self) -> bool:
        return isinstance(self.online_store, PackedOnlineStore)

    def _takes_columns(self, view: Any) -> bool:
        return (
            self._is_packed
            and not isinstance(view, OnDemandFeatureView)
            and getattr(view, "batch_source", None) is not None
        )
