"""The answer of the fast path: Feast's own response, its Protobuf made when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from feast.online_response import TIMESTAMP_POSTFIX, OnlineResponse
from feast.protos.feast.serving.ServingService_pb2 import (
    FieldStatus,
    GetOnlineFeaturesResponse,
)
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp

from features.store.packed.codec import Wire
from features.store.packed.protos import python_reader, to_proto


@dataclass(frozen=True, slots=True)
class Answer:
    """One column of a response."""

    name: str
    kind: str
    values: Sequence[Wire | str | None]
    times: Sequence[int | None]
    """Event times in microseconds; None where the row is not known."""


class PackedResponse(OnlineResponse):
    """What ``get_online_features`` returns.

    ``to_dict``, ``to_df`` and ``to_arrow`` need no Protobuf; ``proto`` is for Feast's servers.
    """

    def __init__(self, keys: Sequence[Answer], features: Sequence[Answer]) -> None:
        self._keys = keys
        self._features = features

    def to_dict(self, include_event_timestamps: bool = False) -> dict[str, Any]:
        """See OnlineResponse.to_dict: times in whole seconds, 0 for none."""
        found: dict[str, Any] = {}
        for answer in (*self._keys, *self._features):
            convert = python_reader(answer.kind)
            found[answer.name] = (
                list(answer.values)
                if convert is None
                else [None if v is None else convert(v) for v in answer.values]
            )
            if include_event_timestamps:
                seconds = [(t or 0) // 1_000_000 for t in answer.times]
                found[f"{answer.name}{TIMESTAMP_POSTFIX}"] = seconds
        return found

    @cached_property
    def proto(self) -> GetOnlineFeaturesResponse:  # type: ignore[override]
        """The same values as Feast's Protobuf, with a status and an event time each."""
        made = GetOnlineFeaturesResponse()
        none = Timestamp()
        for answer in self._keys:
            n = len(answer.values)
            made.metadata.feature_names.val.append(answer.name)
            made.results.append(
                GetOnlineFeaturesResponse.FeatureVector(
                    values=[to_proto(answer.kind, v) for v in answer.values],  # type: ignore[arg-type]
                    statuses=[FieldStatus.PRESENT] * n,
                    event_timestamps=[none] * n,
                )
            )
        for answer in self._features:
            made.metadata.feature_names.val.append(answer.name)
            made.results.append(
                GetOnlineFeaturesResponse.FeatureVector(
                    values=[
                        Value() if v is None else to_proto(answer.kind, v)  # type: ignore[arg-type]
                        for v in answer.values
                    ],
                    statuses=[
                        FieldStatus.NOT_FOUND if t is None else FieldStatus.PRESENT
                        for t in answer.times
                    ],
                    event_timestamps=[none if t is None else _timestamp(t) for t in answer.times],
                )
            )
        return made


def _timestamp(microseconds: int) -> Timestamp:
    made = Timestamp()
    made.FromMicroseconds(microseconds)
    return made
