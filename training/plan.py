"""What a training run is asked to do and what its sweep found, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from raypipe.errors import UsageError

METRIC = "aucpr"
"""What trials are compared by: area under the precision-recall curve of validation."""

FIXED: dict[str, Any] = {
    "objective": "binary:logistic",
    "eval_metric": METRIC,
    # Both defaults changed between XGBoost releases; an estimated base_score costs precision here.
    "tree_method": "hist",
    "base_score": 0.5,
    "max_bin": 256,
    "nthread": 1,
    "verbosity": 0,
}
"""Parameters that no trial varies."""

FIRST_POINT: dict[str, Any] = {
    "max_depth": 5,
    "learning_rate": 0.1,
    "min_child_weight": 5.0,
    "subsample": 0.8,
    "colsample_bytree": 0.6,
    "reg_lambda": 1.0,
    "scale_pos_weight": 1.0,
}
"""Tried first: a setting that does well on card fraud, so that a short sweep is a good one."""


@dataclass(frozen=True)
class SweepPlan:
    """How much to try.

    A trial may be stopped after ``grace_rounds`` and at multiples of it, where it is saved too.
    ``concurrency`` None means one trial per CPU of the session.
    """

    trials: int = 8
    max_rounds: int = 300
    grace_rounds: int = 50
    report_every: int = 10
    seed: int = 7
    concurrency: int | None = None

    def __post_init__(self) -> None:
        for name in ("trials", "max_rounds", "grace_rounds", "report_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class Options:
    """A training run. ``review_fpr`` and ``block_fpr`` are false positives allowed on validation,
    ``review_precision`` the part of flags that must be right there.

    ``as_of_ms`` None means the newest event; ``gap_ms`` None the label's horizon. ``key`` names the
    key column whose precision@``top_k`` a day is reported, by default the first view's.
    """

    model: str = "fraud"
    trials: int = 8
    max_rounds: int = 300
    seed: int = 7
    concurrency: int | None = None
    as_of_ms: int | None = None
    gap_ms: int | None = None
    validation_share: float = 0.2
    test_share: float = 0.2
    review_fpr: float = 0.005
    review_precision: float = 0.6
    block_fpr: float = 0.001
    key: str | None = None
    top_k: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.block_fpr <= self.review_fpr < 1:
            raise UsageError(
                f"{self.block_fpr} false positives for block and {self.review_fpr} for review",
                hint="Both lie between 0 and 1, and block allows no more than review.",
            )
        if not 0 <= self.review_precision < 1:
            raise UsageError(
                f"review_precision is {self.review_precision}; it must be in [0, 1)",
                hint="0 leaves the false positive limit alone to decide.",
            )

    @property
    def sweep(self) -> SweepPlan:
        """The sweep's part."""
        return SweepPlan(self.trials, self.max_rounds, seed=self.seed, concurrency=self.concurrency)

    def conflicts(self, other: Options) -> list[str]:
        """What was set here (differs from the default) and is otherwise in ``other``."""
        return [
            f"{f.name} {getattr(self, f.name)} instead of {getattr(other, f.name)}"
            for f in fields(self)
            if getattr(self, f.name) not in (f.default, getattr(other, f.name))
        ]


@dataclass(frozen=True)
class Trial:
    """One tried setting; ``metric`` is its best validation value, reached after ``rounds``.

    ``state``: finished (all rounds), stopped (early, by the scheduler) or failed.
    """

    id: str
    state: str
    metric: float | None
    rounds: int
    parameters: Mapping[str, Any]

    def describe(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class SweepResult:
    """All trials, best first, and the best one's model as UBJSON."""

    trials: tuple[Trial, ...]
    model: bytes

    @property
    def best(self) -> Trial:
        """The trial that the model comes from."""
        return self.trials[0]
