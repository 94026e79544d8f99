"""A verified model version with its features and its policy, ready to decide."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from raypipe.errors import IntegrityError, NotFound
from raypipe.lake import Place
from raypipe.policy.policy import Decides, Policy
from raypipe.policy.rules import RuleSet
from raypipe.project import Project
from raypipe.vector.assemble import Assembler
from serving.decide import NO_LISTS, Judge, KnownLists, Scorer
from serving.scoring.scorer import TABLE_BYTES, load_scorer
from training import artefact, registry


def load_judge(
    models: Place,
    project: Project,
    name: str,
    version: str | None,
    on_error: str,
    rules: RuleSet | None = None,
    lists: KnownLists = NO_LISTS,
    *,
    table_bytes: int = TABLE_BYTES,
    scorer: Scorer | None = None,
) -> Judge:
    """A verified model version, by default the current one, with its features and its policy.

    The policy is ``rules`` bound to the model, else the manifest's thresholds with ``on_error``.
    The model scores one row here, so that a model that can't is refused at load and not at the
    first request. ``table_bytes`` is as in load_scorer; ``scorer`` is of the same version, loaded
    before. Raises NotFound, IntegrityError, and
    DeclarationError for rules that read what the model does not have.
    """
    loaded = artefact.load(registry.locate(models, name, version), project)
    manifest = loaded.manifest
    policy: Decides = (
        Policy.from_thresholds(f"{loaded.reference}/thresholds", manifest.thresholds, on_error)
        if rules is None
        else rules.bind(manifest.features)
    )
    known, scorer = scorer, scorer or load_scorer(loaded, table_bytes=table_bytes)
    judge = Judge(
        features=Assembler(project, project.model(name)),
        scorer=scorer,
        model=loaded.reference,
        model_sha256=manifest.sha256,
        policy=policy,
        definition_hash=manifest.definition_hash,
        lists=lists,
    )
    if known is not None:
        return judge
    probe = np.full(len(manifest.features), np.nan, np.float32)
    if not 0.0 <= scorer.score(probe) <= 1.0:
        raise IntegrityError(
            f"model {loaded.reference} does not give probabilities",
            hint="Train it with objective binary:logistic (XGBoost) or binary (LightGBM).",
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
