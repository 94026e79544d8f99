"""The feature vector of one model: raw fields, windows, profiles, derived features, in order.

Everything is float64 until one cast to float32 at the end. What is not finite there is missing and
becomes the one canonical NaN, so that equal values are equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.events.schema import EventType, Kind
from raypipe.project import Model, Project
from raypipe.vector.expressions import compile_columns, compile_row, names_in

Floats = npt.NDArray[np.float64]
Vector = npt.NDArray[np.float32]

WINDOW_VALUE = np.dtype("<f8")
"""One window value in an observation and in the log."""

FEATURE_VALUE = np.dtype("<f4")
"""One feature in a decision record."""


class Assembler:
    """Builds feature vectors of one model, for columns and for a row, with equal bits."""

    def __init__(self, project: Project, model: Model) -> None:
        self.features = model.features
        self._event = project.decision_event
        self._raw = project.raw_names
        self._windows = project.window_names
        self._profiles = project.profile_names
        self._columns = compile_columns(project.derived, project.input_names)
        self._row = compile_row(project.derived, project.input_names)
        self._derived = tuple(d.name for d in project.derived)
        read = names_in(project.derived)
        self._read = tuple(n for n in project.input_names if n in read)
        places = {name: i for i, name in enumerate(project.feature_names)}
        self._read_at = np.array([places[n] for n in self._read], np.intp)
        self._places = np.array([places[n] for n in self.features], np.intp)
        self._ends = np.cumsum([len(self._raw), len(self._windows), len(self._profiles)]).tolist()
        self._choices = {
            f.name: {c: float(i) for i, c in enumerate(f.choices)}
            for f in self._event.fields
            if f.kind is Kind.CHOICE
        }

    def columns(
        self,
        raw: Mapping[str, Floats],
        windows: Mapping[str, Floats],
        profiles: Mapping[str, Floats],
    ) -> npt.NDArray[np.float32]:
        """Vectors of n events.

        Args:
            raw: the numeric fields, from :func:`raw_columns`, each float64 [n].
            windows: every declared window value, each float64 [n].
            profiles: every declared profile value, each float64 [n].

        Returns:
            float32 [n, len(features)].
        """
        values: dict[str, Floats] = {n: raw[n] for n in self._raw}
        values.update((n, windows[n]) for n in self._windows)
        values.update((n, profiles[n]) for n in self._profiles)
        values.update(self._columns(values))
        size = len(next(iter(values.values())))
        out = np.empty((size, len(self.features)), np.float32)
        with np.errstate(over="ignore"):
            for i, name in enumerate(self.features):
                out[:, i] = values[name]
        out[~np.isfinite(out)] = np.nan
        return out

    def row(
        self,
        event: Mapping[str, Any],
        windows: bytes | Sequence[float] | Floats,
        profiles: Sequence[float],
    ) -> Vector:
        """Vector of one event, float32 [len(features)].

        Args:
            event: a validated decision event.
            windows: window values in ``Project.window_names`` order, or their WINDOW_VALUE bytes.
            profiles: profile values in ``Project.profile_names`` order, NaN where unknown.
        """
        if isinstance(windows, bytes):
            windows = np.frombuffer(windows, WINDOW_VALUE)
        if len(windows) != len(self._windows):
            raise ValueError(f"{len(windows)} window values, expected {len(self._windows)}")
        if len(profiles) != len(self._profiles):
            raise ValueError(f"{len(profiles)} profile values, expected {len(self._profiles)}")
        raw, window, profile = self._ends
        values = np.empty(profile + len(self._derived))
        values[:raw] = [self._number(name, event.get(name)) for name in self._raw]
        values[raw:window] = windows
        values[window:profile] = profiles
        # Python's own numbers for the few that are read one by one.
        some = dict(zip(self._read, values[self._read_at].tolist(), strict=True))
        self._row(some)
        values[profile:] = [some[name] for name in self._derived]
        with np.errstate(over="ignore"):
            out = values[self._places].astype(np.float32)
        out[~np.isfinite(out)] = np.nan
        return out

    def _number(self, name: str, value: Any) -> float:
        if value is None:
            return math.nan
        codes = self._choices.get(name)
        return codes[value] if codes is not None else float(value)


def raw_columns(event: EventType, table: pa.Table) -> dict[str, Floats]:
    """Numeric client fields of validated events as float64 [n], missing as NaN.

    A choice is its index among the declared choices.
    """
    out: dict[str, Floats] = {}
    for f in event.client_fields:
        if not f.numeric:
            continue
        column = table.column(f.name)
        if f.kind is Kind.CHOICE:
            column = pc.index_in(column, value_set=pa.array(f.choices, pa.string()))
        # Unsafe only in that integers over 2**53 are rounded, as they are for a row.
        column = column.cast(pa.float64(), safe=False)
        out[f.name] = column.to_numpy(zero_copy_only=False).astype(np.float64)
    return out
