"""A model on disk: whole or not there, and refused when a byte or a feature differs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import xgboost

from raypipe.errors import Conflict, IntegrityError, NotFound
from raypipe.lake import Place
from raypipe.project import Model, Project
from tests.unit.training_kit import PROJECT
from training import artefact, registry

NOW_MS = 1_760_000_000_000
FEATURES = PROJECT.model("fraud").features


def booster(names: tuple[str, ...] = FEATURES, seed: int = 0) -> xgboost.Booster:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(300, len(names))).astype(np.float32)
    matrix = xgboost.DMatrix(x, x[:, 0] > 0, feature_names=list(names), nthread=1)
    return xgboost.train({"objective": "binary:logistic", "nthread": 1}, matrix, 5)


def save(models: Path, model: bytes | None = None, now_ms: int = NOW_MS, **other: Any) -> Path:
    about: dict[str, Any] = {
        "project": PROJECT,
        "name": "fraud",
        "training": {"gap_ms": 5},
        "data_fingerprint": "d" * 64,
        "parameters": {"max_depth": 5, "learning_rate": 0.1},
        "metrics": {"test": {"average_precision": 0.5, "precision": None}},
        "thresholds": {"review": 0.25, "block": 0.75},
    }
    model = bytes(booster().save_raw("ubj")) if model is None else model
    place = artefact.write(Place.at(models), model, created_ms=now_ms, **{**about, **other})
    return Path(place.url)


def load(path: Path, project: Project = PROJECT) -> artefact.LoadedModel:
    return artefact.load(Place.at(path), project)


def reseal(path: Path, **changes: Any) -> None:
    """Change a manifest the way a careful forger would."""
    manifest = msgspec.structs.replace(artefact.read_manifest(Place.at(path)), **changes)
    manifest = msgspec.structs.replace(manifest, manifest_sha256=manifest.digest())
    (path / "manifest.json").write_bytes(msgspec.json.encode(manifest))


def test_a_loaded_model_is_the_written_one(tmp_path: Path) -> None:
    original = booster()
    path = save(tmp_path, bytes(original.save_raw("ubj")))
    loaded = load(path)
    x = np.random.default_rng(1).normal(size=(50, len(FEATURES))).astype(np.float32)
    assert loaded.booster.inplace_predict(x).tobytes() == original.inplace_predict(x).tobytes()
    manifest = loaded.manifest
    assert manifest.features == FEATURES
    assert manifest.definition_hash == PROJECT.definition_hash
    assert manifest.thresholds == {"review": 0.25, "block": 0.75}
    assert manifest.sha256 == hashlib.sha256((path / "model.ubj").read_bytes()).hexdigest()
    assert manifest.calibration is None
    assert manifest.libraries["xgboost"] == xgboost.__version__
    assert loaded.reference == f"fraud@{path.name}"


def test_a_manifest_says_what_it_said_before_there_were_other_libraries(tmp_path: Path) -> None:
    path = save(tmp_path)
    written = json.loads((path / "manifest.json").read_bytes())
    assert "model_file" not in written
    digest = written.pop("manifest_sha256")
    text = json.dumps(written, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == digest


def test_a_model_of_a_strange_library_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path)
    reseal(path, model_file="../../model.pkl")
    with pytest.raises(IntegrityError, match=r"model\.pkl") as e:
        load(path)
    assert "model.ubj and model.txt" in e.value.hint


def test_only_the_two_files_are_left(tmp_path: Path) -> None:
    path = save(tmp_path)
    assert sorted(p.name for p in path.iterdir()) == ["manifest.json", "model.ubj"]
    assert [p.name for p in (tmp_path / "fraud").iterdir()] == [path.name]


@pytest.mark.parametrize("place", [0.0, 0.31, 0.5, 0.77, 0.9999])
def test_one_flipped_bit_of_the_model_is_refused(tmp_path: Path, place: float) -> None:
    path = save(tmp_path)
    data = bytearray((path / "model.ubj").read_bytes())
    data[int(place * len(data))] ^= 1
    (path / "model.ubj").write_bytes(data)
    with pytest.raises(IntegrityError, match=r"model\.ubj has sha256") as e:
        load(path)
    assert e.value.hint


def test_one_flipped_bit_anywhere_in_the_manifest_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path)
    original = (path / "manifest.json").read_bytes()
    for place in range(len(original)):
        data = bytearray(original)
        data[place] ^= 1
        (path / "manifest.json").write_bytes(data)
        with pytest.raises(IntegrityError):
            artefact.read_manifest(Place.at(path))
    (path / "manifest.json").write_bytes(original)
    load(path)


def test_a_changed_feature_order_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path)
    a, b, *rest = FEATURES
    reseal(path, features=(b, a, *rest))
    with pytest.raises(IntegrityError, match=f"number 0 is '{b}', expected '{a}'"):
        load(path)


def test_a_model_of_other_features_than_its_manifest_is_refused(tmp_path: Path) -> None:
    a, b, *rest = FEATURES
    path = save(tmp_path, bytes(booster((b, a, *rest)).save_raw("ubj")))
    with pytest.raises(IntegrityError, match="than its manifest lists"):
        load(path)
    path = save(tmp_path, bytes(booster(FEATURES[:-1]).save_raw("ubj")))
    with pytest.raises(IntegrityError, match=f"{len(FEATURES) - 1} features, expected"):
        load(path)


def test_a_project_that_declares_other_features_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path)
    other = dataclasses.replace(PROJECT, models=(Model("fraud", FEATURES[::-1]),))
    assert other.definition_hash == PROJECT.definition_hash
    with pytest.raises(IntegrityError, match="wants other features than declared"):
        load(path, other)


def test_a_model_of_other_declarations_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path)
    other = dataclasses.replace(PROJECT, derived=PROJECT.derived[::-1])
    with pytest.raises(IntegrityError, match="other declarations") as e:
        load(path, other)
    assert "Train a new version" in e.value.hint


@pytest.mark.parametrize("file", ["model.ubj", "manifest.json"])
def test_a_missing_file_is_refused(tmp_path: Path, file: str) -> None:
    path = save(tmp_path)
    (path / file).unlink()
    with pytest.raises((IntegrityError, NotFound)):
        load(path)


def test_a_version_never_changes(tmp_path: Path) -> None:
    save(tmp_path)
    with pytest.raises(Conflict, match="exists"):
        save(tmp_path)


def test_versions_are_listed_in_time_order_without_half_written_ones(tmp_path: Path) -> None:
    paths = [save(tmp_path, now_ms=NOW_MS + i * 1_000) for i in (2, 0, 1)]
    (tmp_path / "fraud" / ".20990101T000000Z-00000000.tmp").mkdir()
    (tmp_path / "fraud" / "20990101T000000Z-00000000").mkdir()
    ordered = [paths[1].name, paths[2].name, paths[0].name]
    assert registry.versions(Place.at(tmp_path), "fraud") == ordered
    assert [m.version for m in registry.manifests(Place.at(tmp_path), "fraud")] == ordered
    assert registry.versions(Place.at(tmp_path), "other") == []


def test_current_is_what_was_promoted_last(tmp_path: Path) -> None:
    assert registry.current(Place.at(tmp_path), "fraud") is None
    with pytest.raises(NotFound, match="no current version"):
        registry.locate(Place.at(tmp_path), "fraud")
    old, new = save(tmp_path), save(tmp_path, now_ms=NOW_MS + 1_000)
    registry.promote(Place.at(tmp_path), "fraud", new.name)
    assert registry.locate(Place.at(tmp_path), "fraud") == Place.at(new)
    registry.promote(Place.at(tmp_path), "fraud", old.name)
    assert registry.current(Place.at(tmp_path), "fraud") == old.name
    assert registry.locate(Place.at(tmp_path), "fraud") == Place.at(old)
    assert registry.locate(Place.at(tmp_path), "fraud", new.name) == Place.at(new)


def test_only_what_exists_can_be_promoted_or_located(tmp_path: Path) -> None:
    path = save(tmp_path)
    with pytest.raises(NotFound, match="no version 'v9'") as e:
        registry.promote(Place.at(tmp_path), "fraud", "v9")
    assert path.name in e.value.hint
    with pytest.raises(NotFound, match="no version 'v9'"):
        registry.locate(Place.at(tmp_path), "fraud", "v9")
    registry.promote(Place.at(tmp_path), "fraud", path.name)
    (path / "manifest.json").unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        registry.locate(Place.at(tmp_path), "fraud")
