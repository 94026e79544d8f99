"""One version of both stages in the lake: the ranker, its retriever's version, and what a replica
must know of the shop as of a place in the log.

Below ``ranking``, written and found as retrievers are. It holds the booster with rows that it must
score the same wherever it is loaded, the catalogue, what visitors did, and window states. With
these a replica goes on from the log's offset instead of reading it from its beginning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raypipe.aborts import reach
from raypipe.errors import Conflict, IntegrityError, NotFound
from raypipe.events.schema import canonical_json
from raypipe.lake import Place
from raypipe.profiles import Profile
from raypipe.windows.spec import WindowView
from training.arrays import array_of, write_array
from training.artefact import MANIFEST, libraries, version_of
from training.recommend import artefact as retrieval
from training.recommend.catalogue import Catalogue
from training.recommend.interactions import Weights
from training.recommend.kinds import Stored, put_together, taken_apart
from training.recommend.port import Retriever
from training.recommend.ranking.lambdarank import LightGBMRanker
from training.recommend.ranking.port import Order
from training.recommend.ranking.ranker import Ranker
from training.recommend.ranking.visitors import ARRAYS, Visitors

if TYPE_CHECKING:
    from training.recommend.artefact import LoadedRetriever

FOLDER = "ranking"
"""Of the lake."""

ORDERS: Mapping[str, type[Ranker] | type[LightGBMRanker]] = {
    order.learner: order for order in (Ranker, LightGBMRanker)
}
"""Orders that a version may have, by their learner."""

PROBES = 64
"""Rows whose scores are stored beside the booster."""

_AGAIN = "Restore it from a backup, or fit a new version."


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a version is, where it comes from and how good it was."""

    name: str
    version: str
    created_ms: int
    tenant: str
    retriever: str
    """Version of the same name below ``retrieval``."""
    retriever_sha256: str
    """Of its manifest."""
    learner: str
    """Of ``ORDERS``."""
    columns: tuple[str, ...]
    """What the booster reads, in order."""
    views: dict[str, str]
    """Definition hashes of the window views by name."""
    profiles: dict[str, str]
    """Those of the profiles, none where none was made."""
    beside: dict[str, Stored]
    """Retrievers whose scores the ranker sees besides those of the blend's parts."""
    items: int
    kinds: tuple[str, ...]
    weights: dict[str, Any]
    candidates: int
    least_known: int
    """Items of a visitor from which on the ranker orders; the retriever's order stands below."""
    log_id: str
    log_end: int
    """The next offset when all this was read."""
    as_of_ms: int
    training: dict[str, Any]
    metrics: dict[str, Any]
    libraries: dict[str, str]
    files: dict[str, str]
    """sha256 by file name."""
    manifest_sha256: str = ""
    """Of the canonical JSON of all other fields."""

    def digest(self) -> str:
        """sha256 of everything but itself."""
        body = msgspec.to_builtins(self)
        body.pop("manifest_sha256")
        return hashlib.sha256(canonical_json(body)).hexdigest()

    @property
    def reference(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Known:
    """The shop as of a place in the log.

    ``owners`` maps recent sessions to the customers that they named; ``windows`` are snapshots of
    window states by view.
    """

    catalogue: Catalogue
    users: Visitors
    sessions: Visitors
    owners: Mapping[str, str]
    windows: Mapping[str, pa.Table]


@dataclass(frozen=True)
class Loaded:
    """A verified version over mapped memory."""

    retriever: LoadedRetriever
    beside: Mapping[str, Retriever]
    ranker: Order
    probes: npt.NDArray[np.float32]
    """Rows [n, columns] that any other way of scoring must score as ``scores`` does."""
    weights: Weights
    known: Known
    manifest: Manifest

    @property
    def reference(self) -> str:
        """``name@version``, as answers name it."""
        return self.manifest.reference


def write(
    versions: Place,
    ranker: Order,
    probes: npt.NDArray[np.float32],
    known: Known,
    *,
    about: Mapping[str, Any],
    beside: Mapping[str, Retriever],
    name: str,
    created_ms: int,
) -> Place:
    """Write ``<versions>/<name>/<version>`` as a whole or not at all; the folder.

    Args:
        versions: the folder ``ranking`` of the lake.
        ranker: what was learned.
        probes: rows [n, columns] that it must score the same after loading.
        known: the shop as of the version.
        about: the manifest's fields that this can't know.
        beside: more retrievers.
        name: of the recommender.
        created_ms: names the version, with the booster's bytes.

    Raises Conflict when this very version exists.
    """
    model = ranker.model()
    version = version_of(hashlib.sha256(model).digest(), created_ms)
    target = versions / name / version
    if (target / MANIFEST).exists():
        raise Conflict(f"version {target.url} exists", hint="A version never changes.")
    stored: dict[str, Stored] = {}
    arrays: dict[str, npt.NDArray[Any]] = {}
    for label, retriever in beside.items():
        stored[label], own = taken_apart(retriever, f"beside.{label}.")
        arrays |= own
    rows = np.ascontiguousarray(probes[:PROBES], np.float32)
    arrays |= {"probe_rows": rows, "probe_scores": ranker.scores(rows)}
    tables = {"catalogue": known.catalogue.table, "owners": _owners(known.owners)}
    tables |= {f"windows.{view}": table for view, table in known.windows.items()}
    for label, visitors in (("users", known.users), ("sessions", known.sessions)):
        tables[label] = pa.table({"id": visitors.ids})
        arrays |= {f"{label}.{n}": a for n, a in visitors.arrays().items()}
    (target / ranker.file).write(model)
    for label, table in tables.items():
        retrieval.write_table(target / f"{label}.arrow", table)
    for label, array in arrays.items():
        write_array(target / f"{label}.npy", array)
    names = [ranker.file, *(f"{t}.arrow" for t in tables), *(f"{a}.npy" for a in arrays)]
    manifest = Manifest(
        name=name,
        version=version,
        created_ms=created_ms,
        learner=ranker.learner,
        columns=ranker.names,
        items=len(known.catalogue),
        beside=stored,
        libraries=libraries(),
        files={n: (target / n).sha256() for n in names},
        **about,
    )
    manifest = msgspec.structs.replace(manifest, manifest_sha256=manifest.digest())
    reach("training.before_ranking_manifest")
    (target / MANIFEST).write(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
    return target


def read_manifest(version: Place) -> Manifest:
    """The manifest of a version's folder, checked against its own sha256."""
    file = version / MANIFEST
    try:
        manifest = msgspec.json.decode(file.read(), type=Manifest)
    except FileNotFoundError as e:
        raise NotFound(f"no recommender at {version.url}") from e
    except msgspec.DecodeError as e:
        raise IntegrityError(f"{file.url} is no recommender's manifest: {e}", hint=_AGAIN) from e
    if manifest.digest() != manifest.manifest_sha256:
        raise IntegrityError(f"{file.url} was changed after it was written", hint=_AGAIN)
    return manifest


def load(
    lake: Place,
    version: Place,
    views: tuple[WindowView, ...],
    profiles: tuple[Profile, ...] = (),
    *,
    cache: Place | None = None,
) -> Loaded:
    """Map a version's files and those of its retriever, after checking every byte.

    Args:
        lake: holds the retriever.
        version: the folder.
        views: as they are declared today.
        profiles: as they are declared today; those that it was made without don't matter.
        cache: a folder of this node for files of an object store.

    Raises:
        NotFound: there is none, or not its retriever.
        IntegrityError: bytes were changed or are missing, views or profiles are declared otherwise
            by now, or the booster scores otherwise than where it was made.
    """
    manifest = read_manifest(version)
    declared = {v.name: v.definition_hash for v in views}
    declared |= {p.name: p.definition_hash for p in profiles if p.name in manifest.profiles}
    made_of = manifest.views | manifest.profiles
    if declared != made_of:
        other = sorted(n for n in {*declared, *made_of} if declared.get(n) != made_of.get(n))
        raise IntegrityError(
            f"{manifest.reference} was made with other declarations of {', '.join(other)}",
            hint="Fit a new version: `raypipe recommend fit`.",
        )
    folder = lake / retrieval.FOLDER / manifest.name / manifest.retriever
    found = retrieval.load(folder, cache=cache)
    if found.manifest.manifest_sha256 != manifest.retriever_sha256:
        raise IntegrityError(f"{folder.url} is not the retriever of {version.url}", hint=_AGAIN)
    data = {n: retrieval.checked(version / n, s, cache) for n, s in manifest.files.items()}
    arrays = {n.removesuffix(".npy"): array_of(b) for n, b in data.items() if n.endswith(".npy")}
    tables = {
        n.removesuffix(".arrow"): retrieval.table_of(b)
        for n, b in data.items()
        if n.endswith(".arrow")
    }
    ranker = _ranker(data, manifest)
    if not np.array_equal(ranker.scores(arrays["probe_rows"]), arrays["probe_scores"]):
        raise IntegrityError(
            f"the booster of {manifest.reference} scores otherwise than where it was fitted",
            hint=f"Install the {manifest.learner} that its manifest names, or fit a new version.",
        )
    owners = tables["owners"]
    known = Known(
        Catalogue(tables["catalogue"]),
        _visitors("users", tables, arrays),
        _visitors("sessions", tables, arrays),
        dict(zip(owners["session"].to_pylist(), owners["user"].to_pylist(), strict=True)),
        {view.name: tables[f"windows.{view.name}"] for view in views},
    )
    if len(known.catalogue) != found.retriever.width:
        raise IntegrityError(f"{version.url} has the catalogue of another retriever", hint=_AGAIN)
    beside = {
        name: put_together(stored, arrays, f"beside.{name}.")
        for name, stored in manifest.beside.items()
    }
    weights = Weights(**manifest.weights)
    return Loaded(found, beside, ranker, arrays["probe_rows"], weights, known, manifest)


def _ranker(data: Mapping[str, pa.Buffer], manifest: Manifest) -> Order:
    order = ORDERS.get(manifest.learner)
    if order is None or order.file not in data:
        raise IntegrityError(
            f"{manifest.reference} was learned by {manifest.learner!r}", hint=_AGAIN
        )
    ranker = order.of_model(data[order.file].to_pybytes())
    if ranker.names != manifest.columns:
        raise IntegrityError(
            f"the booster of {manifest.reference} reads other columns", hint=_AGAIN
        )
    return ranker


def _visitors(
    label: str, tables: Mapping[str, pa.Table], arrays: Mapping[str, npt.NDArray[Any]]
) -> Visitors:
    ids = tables[label].column("id").combine_chunks()
    return Visitors.of_arrays(ids, {name: arrays[f"{label}.{name}"] for name in ARRAYS})


def _owners(owners: Mapping[str, str]) -> pa.Table:
    session, user = (
        pa.array(list(owners), pa.string()),
        pa.array(list(owners.values()), pa.string()),
    )
    return pa.table({"session": session, "user": user})
