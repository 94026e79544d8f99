"""A model artefact as a scorer of one row at a time, and what raised a score."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from raypipe.errors import IntegrityError, NotFound
from raypipe.lake import Place
from raypipe.ledger.record import Reason
from raypipe.policy.policy import Decides, Policy
from raypipe.policy.rules import RuleSet
from raypipe.project import Project
from raypipe.vector.assemble import Assembler
from serving.decide import NO_LISTS, Judge, KnownLists, Vector
from training import artefact, registry

if TYPE_CHECKING:
    import xgboost

REASONS = 4
"""At most so many reasons are given."""


class BoosterScorer:
    """Scores by XGBoost on one thread. Not thread-safe: it reuses one row."""

    def __init__(self, booster: xgboost.Booster, features: tuple[str, ...]) -> None:
        booster.set_param({"nthread": 1})
        self._booster = booster
        self._features = features
        self._row = np.zeros((1, len(features)), np.float32)

    def score(self, row: Vector) -> float:
        """The probability of a positive, a float32 value; ``row`` is float32 [features]."""
        self._take(row)
        return float(self._booster.inplace_predict(self._row, validate_features=False)[0])

    def reasons(self, row: Vector) -> tuple[Reason, ...]:
        """The features with the largest positive exact TreeSHAP contributions, in log-odds."""
        import xgboost

        self._take(row)
        matrix = xgboost.DMatrix(self._row, feature_names=list(self._features), nthread=1)
        shares = self._booster.predict(matrix, pred_contribs=True)[0, :-1]
        strongest = np.argsort(-shares, kind="stable")[:REASONS]
        return tuple(
            Reason(self._features[i].upper(), self._features[i], float(shares[i]))
            for i in strongest
            if shares[i] > 0.0
        )

    def _take(self, row: Vector) -> None:
        if row.shape != (len(self._features),):
            raise ValueError(f"a row of shape {row.shape}, expected ({len(self._features)},)")
        self._row[0] = row


def load_judge(
    models: Place,
    project: Project,
    name: str,
    version: str | None,
    on_error: str,
    rules: RuleSet | None = None,
    lists: KnownLists = NO_LISTS,
) -> Judge:
    """A verified model version, by default the current one, with its features and its policy.

    The policy is ``rules`` bound to the model, else the manifest's thresholds with ``on_error``.
    The model scores one row here, so that a model that can't is refused at load and not at the
    first request. Raises NotFound, IntegrityError, and DeclarationError for rules that read what
    the model does not have.
    """
    loaded = artefact.load(registry.locate(models, name, version), project)
    manifest = loaded.manifest
    policy: Decides = (
        Policy.from_thresholds(f"{loaded.reference}/thresholds", manifest.thresholds, on_error)
        if rules is None
        else rules.bind(manifest.features)
    )
    scorer = BoosterScorer(loaded.booster, manifest.features)
    judge = Judge(
        features=Assembler(project, project.model(name)),
        scorer=scorer,
        model=loaded.reference,
        model_sha256=manifest.sha256,
        policy=policy,
        definition_hash=manifest.definition_hash,
        lists=lists,
    )
    probe = np.full(len(manifest.features), np.nan, np.float32)
    if not 0.0 <= scorer.score(probe) <= 1.0:
        raise IntegrityError(
            f"model {loaded.reference} does not give probabilities",
            hint="Train it with objective binary:logistic.",
        )
    scorer.reasons(probe)
    return judge


@lru_cache(maxsize=64)
def feature_names(models: Place, reference: str) -> tuple[str, ...] | None:
    """The features of ``name@version`` in order, None when that version is not here any more."""
    name, _, version = reference.partition("@")
    try:
        return artefact.read_manifest(registry.locate(models, name, version)).features
    except (NotFound, IntegrityError):
        return None
