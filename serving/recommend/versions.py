"""Which version of both stages answers: the lake's pointer, and replicas that are told of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from raypipe.errors import NotFound
from serving import rollout
from serving.promotion import join
from serving.release import split_reference
from training import registry
from training.recommend.ranking import artefact

if TYPE_CHECKING:
    from raypipe.config import Settings
    from raypipe.lake import Place

NAME = "shop"
"""Of the recommender."""

APPLICATION = "recommendations"
DEPLOYMENT = "recommendations"
TARGET = rollout.Target(APPLICATION, DEPLOYMENT)


def located(lake: Place, reference: str) -> Place:
    """The folder of ``name@version``; raises UsageError and NotFound."""
    name, version = split_reference(reference)
    return registry.existing(lake / artefact.FOLDER, name, version, noun="recommender")


def current(lake: Place) -> str | None:
    """What a start serves, ``name@version``; None before the first fit."""
    version = registry.current(lake / artefact.FOLDER, NAME)
    return None if version is None else f"{NAME}@{version}"


def manifests(lake: Place) -> list[artefact.Manifest]:
    """Of all versions, oldest first."""
    folder = lake / artefact.FOLDER
    return [artefact.read_manifest(folder / NAME / v) for v in registry.versions(folder, NAME)]


def wanted(lake: Place, given: str) -> str:
    """``name@version`` of a version that may be given by its version alone.

    Raises NotFound when there is none.
    """
    reference = given if "@" in given else f"{NAME}@{given}"
    return f"{NAME}@{located(lake, reference).name}"


def show(settings: Settings, given: str | None) -> dict[str, Any]:
    """A version in plain data, by default the current one, and what replicas answer by."""
    reference = require_current(settings.lake) if given is None else wanted(settings.lake, given)
    manifest = artefact.read_manifest(located(settings.lake, reference))
    plain: dict[str, Any] = msgspec.to_builtins(manifest)
    for name in ("files", "beside", "manifest_sha256"):
        plain.pop(name)
    return {
        "reference": reference,
        "current": reference == current(settings.lake),
        "replicas": served(settings),
        **plain,
    }


def promote(settings: Settings, given: str) -> dict[str, Any]:
    """Make a version the one that answers, in running replicas and at the next start.

    All replicas load it before the first one answers by it: raises what one says that can't, and
    then nothing has changed. Without a running recommender it is only what the next start serves.
    """
    reference = wanted(settings.lake, given)
    before = current(settings.lake)
    plain = {"version": reference}
    if not (join(settings) and rollout.running(TARGET)):
        _point(settings.lake, reference)
        return {"version": reference, "before": before, "replicas": 0}
    rollout.exchange(TARGET, plain, lambda: _point(settings.lake, reference))
    return {"version": reference, "before": before, "replicas": len(rollout.served(TARGET))}


def served(settings: Settings) -> list[str]:
    """What running replicas answer by; empty where none runs, or none has a version yet."""
    if not (join(settings) and rollout.running(TARGET)):
        return []
    found = [plain["version"] for plain in rollout.served(TARGET)]
    return [str(version) for version in found if version is not None]


def require_current(lake: Place) -> str:
    """What a start serves; raises NotFound before the first fit."""
    found = current(lake)
    if found is None:
        raise NotFound(
            "there is no version of the recommender", hint="`raypipe recommend fit` makes one."
        )
    return found


def _point(lake: Place, reference: str) -> None:
    name, version = split_reference(reference)
    registry.promote(lake / artefact.FOLDER, name, version)
