"""Reasons of a decision that was recorded without them, from the bytes that its model saw."""

from __future__ import annotations

import asyncio
import logging
from functools import lru_cache

import msgspec
import numpy as np
from starlette.datastructures import QueryParams

from raypipe.errors import IntegrityError, NotFound, UsageError
from raypipe.lake import Place
from raypipe.ledger.record import DecisionRecord
from raypipe.vector.assemble import FEATURE_VALUE
from serving.decide import Judge, Scorer

PARAMETER = "explain"
_log = logging.getLogger("raypipe.serving")

KEPT = 4
"""Older models that are kept loaded."""


def wants_reasons(query: bytes) -> bool:
    """Whether a request's query asks for reasons; raises UsageError for what is no answer."""
    if not query:
        return False
    given = QueryParams(query).get(PARAMETER, "false")
    if given not in ("true", "false"):
        raise UsageError(f"{PARAMETER} is {given!r}", hint="It is true or false.")
    return given == "true"


class Explainer:
    """Finds reasons by the model version that decided, whether or not it still does.

    Nothing is recorded: the bytes and the model are, and the reasons follow from them.
    """

    def __init__(self, models: Place) -> None:
        self._models = models
        self._older = lru_cache(KEPT)(self._load)
        self._alone = asyncio.Lock()  # a scorer is used by one thread at a time

    async def explained(self, record: DecisionRecord, judge: Judge) -> DecisionRecord:
        """The record with the model's reasons where it had none. Without features nothing can be
        told.

        Args:
            judge: what decides now; its model is loaded already, and its policy has words for
                reasons if it is still the one that decided.

        Raises NotFound when the model that decided is not here any more, IntegrityError when it
        was changed.
        """
        if not record.features or any(reason.feature for reason in record.reasons):
            return record
        row = np.frombuffer(record.features, FEATURE_VALUE)
        if record.model_sha256 == judge.model_sha256:
            reasons = judge.scorer.reasons(row)
        else:
            async with self._alone:
                older = await asyncio.to_thread(self._older, record.model, record.model_sha256)
                reasons = await asyncio.to_thread(older.reasons, row)
        if record.policy_sha256 == judge.policy.sha256:
            reasons = tuple(map(judge.worded, reasons))
        return msgspec.structs.replace(record, reasons=(*record.reasons, *reasons))

    async def tried(self, record: DecisionRecord, judge: Judge) -> DecisionRecord:
        """The same, or the record as it is when no reasons can be found: the decision stands."""
        try:
            return await self.explained(record, judge)
        except Exception:  # noqa: BLE001 - whatever fails in a model, the decision was made
            _log.exception("no reasons from %s for %s", record.model, record.event_id)
            return record

    def _load(self, reference: str, sha256: str) -> Scorer:
        from serving.scoring import load_scorer
        from training import artefact, registry

        name, _, version = reference.partition("@")
        try:
            place = registry.locate(self._models, name, version)
        except NotFound:
            raise NotFound(
                f"model {reference} is not here any more, so its reasons can't be computed",
                hint="The recorded features and score stay; restore the version from a backup.",
            ) from None
        manifest = artefact.read_manifest(place)
        if manifest.sha256 != sha256:
            raise IntegrityError(f"model {reference} is another one than the one that decided")
        return load_scorer(artefact.open_version(place, manifest), table_bytes=0)
