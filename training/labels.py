"""Labels with a horizon: what became known about an event, and whether it was known in time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.project import Label


def labels(
    label: Label,
    event_ids: pa.ChunkedArray,
    event_time: npt.NDArray[np.int64],
    truths: pa.Table,
    *,
    as_of_ms: int,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Label decided events as known at ``as_of_ms``.

    An event is positive when a label event names it with
    ``event_time <= its own event_time + horizon`` and ``event_time <= as_of_ms``. It is labelled
    at all only when its horizon has passed: ``event_time + horizon <= as_of_ms``.

    Args:
        label: the project's label.
        event_ids: ids of the decided events, string [n].
        event_time: their times, int64 ms [n].
        truths: label events with the columns ``event_time`` and ``label.reference``.
        as_of_ms: what happened later is not known.

    Returns:
        ``(y, labelled)``: uint8 [n] and bool [n]; ``y`` means nothing where not ``labelled``.
    """
    known = truths.filter(pc.less_equal(truths.column("event_time"), as_of_ms))
    first = known.group_by(label.reference).aggregate([("event_time", "min")])
    place = pc.index_in(event_ids, value_set=first.column(label.reference).combine_chunks())
    named = pc.is_valid(place).to_numpy(zero_copy_only=False)
    times = first.column("event_time_min").take(pc.fill_null(place, 0)) if len(first) else None
    y = np.zeros(len(event_time), np.uint8)
    if times is not None:
        # The earliest label event decides: a repeated one never makes an event negative again.
        in_time = times.to_numpy() <= event_time + label.horizon_ms
        y[named & in_time] = 1
    return y, event_time <= as_of_ms - label.horizon_ms
