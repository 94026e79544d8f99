"""Which arm a unit has: a pure function of its key, the same bits for one unit and for a column.

Three stable hashes place a unit. That of its layer says which experiment of the layer has it, so
experiments of one layer exclude each other and those of others meet it independently. That of the
experiment's salt says which arm, so an experiment that follows another in the same place of the
layer mixes its units anew, and one that takes more of the layer leaves every unit its arm. The
third is one for all experiments of a tenant: whoever is held out of one is held out of all that
hold out as much. Layers are those of Tang, Agarwal, O'Brien and Meyer, "Overlapping Experiment
Infrastructure" (KDD 2010); the hash is XXH64 of raypipe.windows.hashing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit

from raypipe.errors import ConfigError
from raypipe.experiments.checks import condition, key_column
from raypipe.experiments.spec import Experiment
from raypipe.project import Project
from raypipe.windows.hashing import hash_column, hash_text, key_seed

NOT_IN = -1
"""The arm of a unit that is in none."""

_BITS = 53
_STEPS = 1 << _BITS
_MASK = (1 << 64) - 1


class Placed(NamedTuple):
    """A unit in an experiment: the place of its arm, and how likely that arm was."""

    experiment: str
    arm: int
    name: str
    unit: str
    propensity: float


class Assignment:
    """The arms of one experiment. Immutable; any thread may use it.

    Raises DeclarationError when the experiment doesn't fit the project.
    """

    def __init__(self, experiment: Experiment, project: Project) -> None:
        self.experiment = experiment
        self.column = key_column(experiment, project)
        """The column of the decision event that names the unit."""
        self.arms = tuple(a.name for a in experiment.arms)
        self._eligible = (
            condition(experiment.eligible, project.decision_event) if experiment.eligible else None
        )
        self._start = _step(experiment.start)
        self._end = _step(experiment.start + experiment.share)
        self._held = _step(experiment.holdout)
        reached = accumulate(a.share for a in experiment.arms)
        self._edges = [_step(r / experiment.share) for r in reached][:-1]
        self._edge_column = np.array(self._edges, np.int64)
        self.propensities = tuple((b - a) / _STEPS for a, b in pairwise((0, *self._edges, _STEPS)))
        """How likely each arm is for a unit that is in the experiment."""
        self._seeds: dict[str, tuple[int, int, int]] = {}

    def place(self, event: Mapping[str, Any]) -> Placed | None:
        """The arm of a decision event's unit; None where it is in none."""
        unit = event[self.column]
        if unit is None or (self._eligible is not None and not self._eligible.of_row(event)):
            return None
        arm = self.arm(event["tenant"], unit)
        if arm == NOT_IN:
            return None
        return Placed(self.experiment.id, arm, self.arms[arm], unit, self.propensities[arm])

    def arm(self, tenant: str, unit: str) -> int:
        """The place of a unit's arm whatever its events are like; NOT_IN for none."""
        layer, held, mine = self._seeds_of(tenant)
        if not self._start <= _position(unit, layer) < self._end:
            return NOT_IN
        if self._held and _position(unit, held) < self._held:
            return NOT_IN
        return bisect_right(self._edges, _position(unit, mine))

    def arms_of(self, tenant: str, units: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.int8]:
        """The same for a column of units [n]; a null has none."""
        layer, held, mine = self._seeds_of(tenant)
        at = hash_column(units, layer)
        kept = hash_column(units, held) if self._held else at
        drawn = hash_column(units, mine)
        out = np.empty(len(at), np.int8)
        _arms(at, kept, drawn, self._start, self._end, self._held, self._edge_column, out)
        return out

    def arms_of_events(self, tenant: str, events: pa.Table) -> npt.NDArray[np.int8]:
        """The arms that decision events of a tenant are decided with [n]."""
        out = self.arms_of(tenant, events.column(self.column))
        if self._eligible is not None:
            out[~self._eligible.of_columns(events)] = NOT_IN
        return out

    def _seeds_of(self, tenant: str) -> tuple[int, int, int]:
        found = self._seeds.get(tenant)
        if found is None:
            mine = self.experiment
            found = self._seeds[tenant] = (
                key_seed(tenant, f"experiment layer {mine.layer_name}"),
                key_seed(tenant, "experiment holdout"),
                key_seed(tenant, f"experiment arm {mine.arm_salt}"),
            )
        return found


def check_together(experiments: Sequence[Experiment]) -> None:
    """Raise ConfigError for experiments that can't run at the same time.

    Two of one layer may not share a place in it, and must divide the same units. Two of different
    layers may not change the same thing, since a unit of both could have only one of the changes.
    """
    for place, a in enumerate(experiments):
        for b in experiments[place + 1 :]:
            if a.name == b.name:
                raise ConfigError(
                    f"{a.id} and {b.id} are versions of one experiment", hint="Stop one of them."
                )
            if a.layer_name == b.layer_name:
                _check_layer(a, b)
            else:
                _check_layers(a, b)


def _check_layer(a: Experiment, b: Experiment) -> None:
    if a.unit != b.unit:
        raise ConfigError(
            f"{a.id} divides layer {a.layer!r} by {a.unit}, {b.id} by {b.unit}",
            hint="Experiments of a layer have one unit: put one of them into another layer.",
        )
    starts = max(_step(a.start), _step(b.start))
    if starts < min(_step(a.start + a.share), _step(b.start + b.share)):
        raise ConfigError(
            f"{a.id} has {_range(a)} of layer {a.layer!r}, {b.id} has {_range(b)}",
            hint="They exclude each other: move one by `start`, or lower the shares.",
        )


def _check_layers(a: Experiment, b: Experiment) -> None:
    for part in ("model", "policy"):
        if all(any(getattr(arm, part) for arm in e.arms) for e in (a, b)):
            raise ConfigError(
                f"{a.id} and {b.id} both change the {part}, in different layers",
                hint=f"A unit has one {part}: put them into one layer, side by side.",
            )


def _range(experiment: Experiment) -> str:
    return f"{experiment.start:g} to {experiment.start + experiment.share:g}"


def _step(share: float) -> int:
    """A share as a position; sums of shares that mean the same are the same."""
    return min(round(round(share, 9) * _STEPS), _STEPS)


def _position(unit: str, seed: int) -> int:
    return (hash_text(unit, seed) & _MASK) >> (64 - _BITS)


@njit(cache=True, nogil=True)
def _arms(layer, kept, drawn, start, end, held, edges, out):  # type: ignore[no-untyped-def]
    shift = np.uint64(11)
    for i in range(len(out)):
        at = np.int64(np.uint64(layer[i]) >> shift)
        none = layer[i] == 0 or at < start or at >= end
        if none or (held > 0 and np.int64(np.uint64(kept[i]) >> shift) < held):
            out[i] = -1
            continue
        mine = np.int64(np.uint64(drawn[i]) >> shift)
        arm = 0
        while arm < len(edges) and mine >= edges[arm]:
            arm += 1
        out[i] = arm
