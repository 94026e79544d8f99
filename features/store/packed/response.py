"""The answer of the fast path: Feast's own response, its Protobuf made when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from feast.online_response import TIMESTAMP_POSTFIX, OnlineResponse
from feast.protos.feast.serving.ServingService_pb2 import (
    FieldStatus,
    GetOnlineFeaturesResponse,
)
from google.protobuf.timestamp_pb2 import Timestamp

from features.store.packed.codec import Wire
from features.store.packed.protos import python_reader, to_proto


@dataclass(frozen=True)
class Form:
    """Names and kinds of the columns of one view, or of the keys."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]

    @cached_property
    def converters(self) -> tuple[Callable[[Any], Any] | None, ...]:
        """What makes the wire values of each column Python's; None for those that are."""
        return tuple(map(python_reader, self.kinds))

    @cached_property
    def plain(self) -> bool:
        """Whether all are Python's already."""
        return not any(self.converters)


@dataclass(frozen=True, slots=True)
class Answer:
    """The columns of one view, or the keys."""

    form: Form
    columns: Sequence[Sequence[Wire | None]]
    times: Sequence[int | None] | None
    """Event times of the rows in microseconds, None where a row is not known; keys have none."""

    def seconds(self) -> list[int]:
        """Event times in whole seconds, 0 for none."""
        if self.times is None:
            return [0] * len(self.columns[0])
        return [(t or 0) // 1_000_000 for t in self.times]


class PackedResponse(OnlineResponse):
    """What ``get_online_features`` returns.

    ``to_dict``, ``to_df`` and ``to_arrow`` need no Protobuf; ``proto`` is for Feast's servers.
    """

    def __init__(self, answers: Sequence[Answer]) -> None:
        self._answers = answers

    def to_dict(self, include_event_timestamps: bool = False) -> dict[str, Any]:
        """See OnlineResponse.to_dict."""
        found: dict[str, Any] = {}
        for answer in self._answers:
            form = answer.form
            if form.plain and not include_event_timestamps:
                found.update(zip(form.names, map(list, answer.columns), strict=True))
                continue
            seconds = answer.seconds()
            for name, convert, column in zip(
                form.names, form.converters, answer.columns, strict=True
            ):
                found[name] = (
                    list(column)
                    if convert is None
                    else [None if v is None else convert(v) for v in column]
                )
                if include_event_timestamps:
                    found[f"{name}{TIMESTAMP_POSTFIX}"] = list(seconds)
        return found

    @cached_property
    def proto(self) -> GetOnlineFeaturesResponse:  # type: ignore[override]
        """The same values as Feast's Protobuf, with a status and an event time each."""
        made = GetOnlineFeaturesResponse()
        for answer in self._answers:
            times: Sequence[int | None] = answer.times or [0] * len(answer.columns[0])
            stamps = [_timestamp(t or 0) for t in times]
            statuses = [FieldStatus.NOT_FOUND if t is None else FieldStatus.PRESENT for t in times]
            made.metadata.feature_names.val.extend(answer.form.names)
            for kind, column in zip(answer.form.kinds, answer.columns, strict=True):
                made.results.append(
                    GetOnlineFeaturesResponse.FeatureVector(
                        values=[to_proto(kind, v) for v in column],
                        statuses=statuses,
                        event_timestamps=stamps,
                    )
                )
        return made


def _timestamp(microseconds: int) -> Timestamp:
    made = Timestamp()
    made.FromMicroseconds(microseconds)
    return made
