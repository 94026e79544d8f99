"""The proof that no training column knew its own event or a later one.

Every column comes with the newest log offset that each of its values used. A value that was known
when the event was decided used only earlier offsets.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from raypipe.errors import LeakageError

Offsets = npt.NDArray[np.int64]


def check_no_leak(offsets: Offsets, newest: Mapping[str, Offsets]) -> None:
    """Refuse columns that saw their own event or a later one.

    Args:
        offsets: log offset of each row's event, int64 [n].
        newest: per column (or group of columns) the newest offset that each row's value used,
            int64 [n], -1 for none.

    Raises:
        LeakageError: names every such column with its first offending row.
    """
    found = []
    for name, used in newest.items():
        if used.shape != offsets.shape:
            raise LeakageError(
                f"{name}: {len(used)} newest offsets for {len(offsets)} rows prove nothing",
                hint="Give one newest offset per row, -1 where nothing was used.",
            )
        late = np.flatnonzero(used >= offsets)
        if len(late):
            row = int(late[0])
            found.append(
                f"{name} ({len(late)} of {len(offsets)} rows; first: the event at offset "
                f"{offsets[row]} used offset {used[row]})"
            )
    if found:
        raise LeakageError(
            "columns know their own event or a later one: " + "; ".join(found),
            hint="A value may use only events that precede its own event in the log.",
        )
