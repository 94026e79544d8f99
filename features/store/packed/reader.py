"""The online store in process: fixed features of any entities as numbers, in one round trip."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from features.store.packed.access import packed
from features.store.packed.codec import Reading
from features.store.packed.keys import KeyValue
from raypipe.errors import UsageError

if TYPE_CHECKING:
    import feast

NUMBERS = "dfqi?t"
"""Kinds of columns that become a float64: a time as seconds, a bool as 0 or 1."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of some entities."""

    values: npt.NDArray[np.float64]
    """(entities, features), NaN where there is no value."""
    event_times: npt.NDArray[np.int64]
    """(entities, views), milliseconds; -1 where the view knows nothing, or nothing that counts."""


class OnlineReader:
    """Reads the same features again and again: what a replica holds.

    Made once from the registry as it is then; after a change of the registry, make another.
    """

    def __init__(
        self, store: feast.FeatureStore, features: Sequence[str] | feast.FeatureService
    ) -> None:
        """Compile what is to be read.

        Args:
            features: `view:feature` names, or a feature service.

        Raises:
            UsageError: a feature is no number, or needs more than a look-up.
            feast.errors.FeatureViewNotFoundException: a view isn't registered.
        """
        online = packed(store)
        asked = list(features) if isinstance(features, Sequence) else features
        plan = online.compiled(store.config, asked, store.registry, store.project, False)
        if plan is None:
            raise UsageError(
                "these features can't be read by a look-up alone",
                hint="On-demand views and other keys than texts, int64 and bytes: use "
                "FeatureStore.get_online_features.",
            )
        self._plan = plan
        self._backend = online.backend(store.config)
        self.keys: tuple[str, ...] = tuple(plan.key_types)
        self.views: tuple[str, ...] = tuple(g.view for g in plan.groups)
        self.names: tuple[str, ...] = tuple(n for g in plan.groups for n in g.form.names)
        wrong = [n for g in plan.groups for n, kind in g.reader.wanted if kind not in NUMBERS]
        if wrong:
            raise UsageError(f"features {wrong} are no numbers")
        self._missing: list[Reading] = [(-1_000, g.missing) for g in plan.groups]

    def read(self, entities: Mapping[str, Sequence[KeyValue]], now_ms: int | None = None) -> Known:
        """What is known of entities now.

        Args:
            entities: each of `keys` with a list of values; one entity a position.
            now_ms: milliseconds UTC, by which age is judged; the machine's clock when None.

        Raises:
            UsageError: a key is missing or of another type than declared.
            Unavailable, IntegrityError: see Backend.
        """
        columns = self._plan.columns({k: list(v) for k, v in entities.items()})
        if columns is None:
            if entities.keys() == set(self.keys) and not any(entities.values()):
                return Known(np.empty((0, len(self.names))), np.empty((0, len(self.views)), int))
            raise UsageError(
                f"got {dict(entities)!r} as entities",
                hint=f"Give {', '.join(self.keys)}: lists of one length, of the declared types.",
            )
        now = time.time_ns() // 1_000 if now_ms is None else now_ms * 1_000
        found = [
            [missing if r is None else r for r in readings]
            for readings, missing in zip(
                self._plan.read(columns, self._backend, now), self._missing, strict=True
            )
        ]
        rows = [[v for _, some in row for v in some] for row in zip(*found, strict=True)]
        times = [[moment // 1_000 for moment, _ in row] for row in zip(*found, strict=True)]
        return Known(np.array(rows, np.float64), np.array(times, np.int64))
