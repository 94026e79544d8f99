"""One model version in the lake: the model and ``manifest.json``. No pickle is ever loaded.

The model is ``model.ubj``, XGBoost's, or ``model.txt``, LightGBM's.

The manifest is written last, and with it the version exists. It carries the model's sha256 and its
own; a load that finds any byte changed, or features other than the project's, is refused.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as library_version
from typing import TYPE_CHECKING, Any

import msgspec

from raypipe.aborts import reach
from raypipe.errors import Conflict, IntegrityError, NotFound
from raypipe.events.schema import canonical_json
from raypipe.lake import Place
from raypipe.project import Project

if TYPE_CHECKING:
    import lightgbm
    import xgboost

XGBOOST = "model.ubj"
LIGHTGBM = "model.txt"
MANIFEST = "manifest.json"

_LIBRARIES = ("xgboost", "lightgbm", "numpy", "ray", "optuna", "scikit-learn")
_OTHER = "Train a new version, or promote an older one whose declarations match."


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a model is, where it comes from and how it is to be used.

    A default is left out of the JSON, so that a version from before a field existed keeps its
    digest.
    """

    name: str
    version: str
    created_ms: int
    project: str
    sha256: str
    """Of the model's file."""
    features: tuple[str, ...]
    """Inputs in order."""
    definition_hash: str
    """Of the declarations that make the features."""
    training: dict[str, Any]
    """Parts of the history, as-of time, label horizon, rows, positives."""
    data_fingerprint: str
    parameters: dict[str, Any]
    metrics: dict[str, Any]
    thresholds: dict[str, float]
    """Scores strictly above one are flagged: ``review``, ``block``."""
    calibration: dict[str, Any] | None
    libraries: dict[str, str]
    manifest_sha256: str = ""
    """Of the canonical JSON of all other fields."""
    model_file: str = XGBOOST

    def digest(self) -> str:
        """sha256 of everything but itself."""
        body = msgspec.to_builtins(self)
        body.pop("manifest_sha256", None)
        return hashlib.sha256(canonical_json(body)).hexdigest()


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A verified model. ``booster`` wants float32 [n, len(manifest.features)]."""

    booster: xgboost.Booster | lightgbm.Booster
    manifest: Manifest
    place: Place

    @property
    def reference(self) -> str:
        """``name@version``, as decisions record it."""
        return f"{self.manifest.name}@{self.manifest.version}"


def version_of(model: bytes, created_ms: int) -> str:
    """The name of a new version: UTC time and the first digits of the model's sha256.

    Unlike a counter it needs no coordination: two machines never give one name to two models,
    names sort by time, and a copied directory can be told from its content.

    >>> version_of(b"model", 1_700_000_000_000)
    '20231114T221320Z-9372c470'
    """
    time = datetime.fromtimestamp(created_ms / 1000, UTC).strftime("%Y%m%dT%H%M%SZ")
    return f"{time}-{hashlib.sha256(model).hexdigest()[:8]}"


def libraries() -> dict[str, str]:
    """Versions that can change a score."""
    return {"python": platform.python_version()} | {n: library_version(n) for n in _LIBRARIES}


def write(
    models: Place,
    model: bytes,
    *,
    project: Project,
    name: str,
    created_ms: int,
    training: Mapping[str, Any],
    data_fingerprint: str,
    parameters: Mapping[str, Any],
    metrics: Mapping[str, Any],
    thresholds: Mapping[str, float],
) -> Place:
    """Write ``models/<name>/<version>`` as a whole or not at all; the folder.

    Args:
        model: UBJSON of XGBoost, or the text of LightGBM.

    Raises:
        Conflict: this very version exists.
    """
    manifest = Manifest(
        name=name,
        version=version_of(model, created_ms),
        created_ms=created_ms,
        project=project.name,
        sha256=hashlib.sha256(model).hexdigest(),
        features=project.model(name).features,
        definition_hash=project.definition_hash,
        training=dict(training),
        data_fingerprint=data_fingerprint,
        parameters=dict(parameters),
        metrics=dict(metrics),
        thresholds=dict(thresholds),
        calibration=None,
        libraries=libraries(),
        model_file=LIGHTGBM if model.startswith(_LIGHTGBM_BEGIN) else XGBOOST,
    )
    manifest = msgspec.structs.replace(manifest, manifest_sha256=manifest.digest())
    target = models / name / manifest.version
    if (target / MANIFEST).exists():
        raise Conflict(f"model version {target.url} exists", hint="A version never changes.")
    (target / manifest.model_file).write(model)
    reach("training.before_manifest")
    (target / MANIFEST).write(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
    return target


def read_manifest(version: Place) -> Manifest:
    """The manifest of a version's folder, checked against its own sha256."""
    file = version / MANIFEST
    try:
        manifest = msgspec.json.decode(file.read(), type=Manifest)
    except FileNotFoundError as e:
        raise NotFound(f"no model at {version.url}", hint="`raypipe train` makes one.") from e
    except msgspec.DecodeError as e:
        raise IntegrityError(f"{file.url} is not a model manifest: {e}", hint=_OTHER) from e
    if manifest.digest() != manifest.manifest_sha256:
        raise IntegrityError(
            f"{file.url} was changed after it was written",
            hint="Restore it from a backup or train a new version.",
        )
    return manifest


def load(version: Place, project: Project) -> LoadedModel:
    """Load a version's folder after checking every byte and every feature.

    Raises:
        NotFound: there is none.
        IntegrityError: bytes were changed, or the features are not those of the project.
    """
    manifest = read_manifest(version)
    if manifest.definition_hash != project.definition_hash:
        raise IntegrityError(
            f"model {manifest.name}@{manifest.version} was trained on other declarations "
            f"({manifest.definition_hash[:12]}) than project {project.name!r} has now "
            f"({project.definition_hash[:12]})",
            hint=_OTHER,
        )
    declared = project.model(manifest.name).features
    if manifest.features != declared:
        raise IntegrityError(
            f"model {manifest.name}@{manifest.version} wants other features than declared: "
            + _difference(manifest.features, declared),
            hint=_OTHER,
        )
    return open_version(version, manifest)


def open_version(version: Place, manifest: Manifest) -> LoadedModel:
    """Load a version as ``load`` does, whatever the project declares now.

    Raises IntegrityError when bytes were changed.
    """
    if manifest.model_file not in _OPEN:
        raise IntegrityError(
            f"{version.url} has a model in {manifest.model_file!r}",
            hint=f"This release reads {' and '.join(_OPEN)}.",
        )
    file = version / manifest.model_file
    try:
        model = file.read()
    except FileNotFoundError as e:
        raise IntegrityError(f"{version.url} has a manifest but no {file.name}", hint=_OTHER) from e
    found = hashlib.sha256(model).hexdigest()
    if found != manifest.sha256:
        raise IntegrityError(
            f"{file.url} has sha256 {found[:12]}, its manifest says {manifest.sha256[:12]}",
            hint="Restore it from a backup or train a new version.",
        )
    booster, inside = _OPEN[manifest.model_file](model)
    if inside != manifest.features:
        raise IntegrityError(
            f"{file.url} was trained on other features than its manifest lists: "
            + _difference(inside, manifest.features),
            hint="Restore it from a backup or train a new version.",
        )
    return LoadedModel(booster, manifest, version)


def _open_xgboost(model: bytes) -> tuple[xgboost.Booster, tuple[str, ...]]:
    import xgboost

    booster = xgboost.Booster()
    booster.load_model(bytearray(model))
    return booster, tuple(booster.feature_names or ())


def _open_lightgbm(model: bytes) -> tuple[lightgbm.Booster, tuple[str, ...]]:
    import lightgbm

    booster = lightgbm.Booster(model_str=model.decode())
    return booster, tuple(booster.feature_name())


_OPEN: Mapping[str, Callable[[bytes], tuple[Any, tuple[str, ...]]]] = {
    XGBOOST: _open_xgboost,
    LIGHTGBM: _open_lightgbm,
}
_LIGHTGBM_BEGIN = b"tree\n"


def _difference(found: tuple[str, ...], expected: tuple[str, ...]) -> str:
    if len(found) != len(expected):
        return f"{len(found)} features, expected {len(expected)}"
    place = next(i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
    return f"number {place} is {found[place]!r}, expected {expected[place]!r}"
