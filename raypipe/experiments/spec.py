"""An experiment declared as data. Nothing here assigns or counts; docs/how-to/experiments.md has
the whole.

Shares are of a layer: experiments of one layer never meet in a unit, those of different layers
meet independently. The first arm is the control.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, NoReturn

from raypipe.errors import DeclarationError
from raypipe.yaml_nodes import Place

EVENT = "event"
"""As a unit: each decision event is its own."""


class Kind(StrEnum):
    """What becomes of a unit's rows.

    ``mean``: their values are summed by unit, and units are averaged. ``share``: whether the unit
    has any. ``ratio``: the values of all units over the number of all their rows.
    """

    MEAN = "mean"
    SHARE = "share"
    RATIO = "ratio"


class Direction(StrEnum):
    """Which way is better."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A metric of the decisions themselves, and what holds where its declaration says nothing.

    ``priced`` needs a value of the event; ``labelled`` waits until the project's label is known.
    """

    kind: Kind
    direction: Direction
    priced: bool = False
    labelled: bool = False


BUILT_IN: Mapping[str, BuiltIn] = {
    "conversion": BuiltIn(Kind.RATIO, Direction.UP),
    "revenue": BuiltIn(Kind.MEAN, Direction.UP, priced=True),
    "fraud_loss": BuiltIn(Kind.MEAN, Direction.DOWN, priced=True, labelled=True),
    "false_positive": BuiltIn(Kind.RATIO, Direction.DOWN, labelled=True),
    "latency": BuiltIn(Kind.RATIO, Direction.DOWN),
}
"""Approved decisions; the value of the approved; the value of the approved that turned out
positive; decisions that were not approved and did not turn out positive; ms to decide."""


@dataclass(frozen=True, slots=True)
class Arm:
    """What its units get instead of what the release serves: a model, a policy, both or neither."""

    name: str
    share: float
    model: str | None = None
    policy: str | None = None


@dataclass(frozen=True, slots=True)
class Cap:
    """What is above counts as this: a ``value``, or a ``quantile`` of the units of all arms."""

    quantile: float | None = None
    value: float | None = None

    def describe(self) -> dict[str, float]:
        """Plain data in the words of an experiment file."""
        return {
            name: given
            for name in ("quantile", "value")
            if (given := getattr(self, name)) is not None
        }


@dataclass(frozen=True, slots=True)
class Metric:
    """What is counted of a unit from its first exposure on.

    ``of`` is one of BUILT_IN, or an event type whose column ``key`` names the unit. ``where``
    chooses among its rows and ``value`` is an expression of their columns, 1 where it is empty.
    ``within_ms`` ends the counting so long after the first exposure, 0: never. ``maturity_ms``:
    rows are complete that long after they happened; None: as long as the built-in needs.
    """

    name: str
    of: str
    kind: Kind
    direction: Direction
    value: str = ""
    where: str = ""
    key: str = ""
    cap: Cap = Cap()
    within_ms: int = 0
    maturity_ms: int | None = None

    @property
    def built_in(self) -> BuiltIn | None:
        """What it is a metric of, unless that is an event type."""
        return BUILT_IN.get(self.of)

    def describe(self) -> dict[str, Any]:
        """Plain data in the words of an experiment file."""
        found: dict[str, Any] = {
            "name": self.name,
            "of": self.of,
            "kind": self.kind.value,
            "direction": self.direction.value,
        }
        found |= {n: t for n in ("value", "where", "key") if (t := getattr(self, n))}
        if cap := self.cap.describe():
            found["cap"] = cap
        if self.within_ms:
            found["within"] = f"{self.within_ms}ms"
        if self.maturity_ms is not None:
            found["maturity"] = f"{self.maturity_ms}ms"
        return found


@dataclass(frozen=True)
class Experiment:
    """One version of an experiment, as it was written. Raises DeclarationError if it is none.

    ``metrics`` begin with the primary one. ``guardrails`` are metrics and the relative loss of each
    that is tolerated. ``minimum_effect`` is relative to the control's primary metric.
    ``start`` is where the experiment begins in its layer, and ``salt`` what its arms are drawn by:
    a version with the same name and salt leaves every unit its arm. ``before_ms`` is how far before
    the first exposure a unit is looked at, to explain what it would have done anyway; 0: not.
    """

    name: str
    version: int
    unit: str
    arms: tuple[Arm, ...]
    metrics: tuple[Metric, ...]
    horizon_ms: int
    minimum_effect: float
    layer: str = ""
    start: float = 0.0
    salt: str = ""
    holdout: float = 0.0
    eligible: str = ""
    segments: tuple[str, ...] = ()
    guardrails: Mapping[str, float] = field(default_factory=dict)
    before_ms: int = 0
    alpha: float = 0.05
    power: float = 0.8
    description: str = ""
    owner: str = ""
    place: Place = field(default_factory=Place, compare=False, repr=False)

    @property
    def id(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"

    @property
    def control(self) -> Arm:
        """The arm that the others are compared with."""
        return self.arms[0]

    @property
    def primary(self) -> Metric:
        """The metric that the verdict is about."""
        return self.metrics[0]

    @property
    def share(self) -> float:
        """Of its layer, all arms together."""
        return sum(a.share for a in self.arms)

    @property
    def layer_name(self) -> str:
        """Its layer; one of its own where none is declared, called like no declared one."""
        return self.layer or f"={self.name}"

    @property
    def arm_salt(self) -> str:
        """What its arms are drawn by."""
        return self.salt or self.name

    def arm(self, name: str) -> Arm:
        """The arm of that name; raises DeclarationError."""
        found = next((a for a in self.arms if a.name == name), None)
        if found is None:
            self.fail("arms", f"there is no arm {name!r}", _known(a.name for a in self.arms))
        return found

    def metric(self, name: str) -> Metric:
        """The metric of that name; raises DeclarationError."""
        found = next((m for m in self.metrics if m.name == name), None)
        if found is None:
            self.fail(
                "metrics", f"there is no metric {name!r}", _known(m.name for m in self.metrics)
            )
        return found

    def fail(self, part: str, what: str, hint: str = "") -> NoReturn:
        """Refuse the experiment for what stands at ``part``."""
        raise DeclarationError(f"{self.place.of(part)}experiment {self.name!r}: {what}", hint=hint)

    def describe(self) -> dict[str, Any]:
        """Plain data in the words of an experiment file; read again it is this experiment."""
        return {
            "name": self.name,
            "version": self.version,
            "description": self.description,
            "owner": self.owner,
            "unit": self.unit,
            "layer": self.layer,
            "start": self.start,
            "salt": self.salt,
            "arms": {
                a.name: {
                    "share": a.share,
                    **({"model": a.model} if a.model else {}),
                    **({"policy": a.policy} if a.policy else {}),
                }
                for a in self.arms
            },
            "holdout": self.holdout,
            "eligible": self.eligible,
            "segments": list(self.segments),
            "metrics": [m.describe() for m in self.metrics],
            "guardrails": dict(sorted(self.guardrails.items())),
            "minimum_effect": self.minimum_effect,
            "horizon": f"{self.horizon_ms}ms",
            "before": f"{self.before_ms}ms" if self.before_ms else "",
            "alpha": self.alpha,
            "power": self.power,
        }

    @cached_property
    def text(self) -> str:
        """The canonical form: one line of JSON, which is YAML too."""
        # Neither sorted, for the order of the arms counts, nor escaped: YAML knows no surrogates.
        return json.dumps(self.describe(), ensure_ascii=False, separators=(", ", ": "))

    @cached_property
    def sha256(self) -> str:
        """Of the canonical form."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def _known(names: Iterable[str]) -> str:
    return "It has: " + ", ".join(names)
