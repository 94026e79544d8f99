"""One version of a retriever in the lake: its arrays, the items' ids and ``manifest.json``.

Written as models are (``training.artefact``) and found as they are: ``training.registry`` lists,
promotes and locates versions below ``retrieval``. The manifest comes last, and with it the version
exists. Arrays are ``.npy`` files: a replica maps them, so that all replicas of a node share one
copy in the page cache. From an object store they are fetched once a node, into ``cache``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version as library_version
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from raypipe.aborts import reach
from raypipe.errors import Conflict, IntegrityError, NotFound
from raypipe.events.schema import canonical_json
from raypipe.lake import Place
from training.arrays import array_of, write_array
from training.artefact import MANIFEST, libraries, version_of
from training.recommend.kinds import Stored, put_together, taken_apart
from training.recommend.port import Retriever
from training.recommend.rows import Rows

FOLDER = "retrieval"
"""Of the lake."""

ITEMS = "items.arrow"
_LIBRARIES = ("scipy", "numba", "implicit")
_AGAIN = "Restore it from a backup, or fit a new version."


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a retriever is, where it comes from and how good it was."""

    name: str
    version: str
    created_ms: int
    items: int
    retriever: Stored
    method: dict[str, Any]
    """Names and parameters of the methods, and how interactions were weighted."""
    training: dict[str, Any]
    """Interactions, users and the span of time that it learned from."""
    data_fingerprint: str
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


@dataclass(frozen=True)
class LoadedRetriever:
    """A verified version: ids, manifest, and the retriever over mapped memory."""

    retriever: Retriever
    items: pa.StringArray
    manifest: Manifest
    place: Place

    @property
    def reference(self) -> str:
        """``name@version``, as answers record it."""
        return f"{self.manifest.name}@{self.manifest.version}"

    @cached_property
    def codes(self) -> dict[str, int]:
        """The place of each id."""
        return {item: code for code, item in enumerate(self.items.to_pylist())}

    def history(self, weights: Mapping[str, float]) -> Rows:
        """One history by ids; ids that this version doesn't know are left out."""
        known = {self.codes[i]: w for i, w in weights.items() if i in self.codes and w > 0}
        codes, values = np.array(list(known), np.int64), np.array(list(known.values()), float)
        return Rows.of(np.zeros(len(known), np.int64), codes, values, (1, len(self.items)))


def write(
    versions: Place,
    retriever: Retriever,
    items: pa.StringArray,
    *,
    name: str,
    created_ms: int,
    method: Mapping[str, Any],
    training: Mapping[str, Any],
    data_fingerprint: str,
    metrics: Mapping[str, Any],
) -> Place:
    """Write ``<versions>/<name>/<version>`` as a whole or not at all; the folder.

    Raises:
        Conflict: this very version exists.
        IntegrityError: the ids are not as many as the retriever's items.
    """
    if len(items) != retriever.width:
        raise IntegrityError(f"{len(items)} ids for a retriever of {retriever.width} items")
    stored, arrays = taken_apart(retriever)
    # Names the version by its content, as a model's bytes do.
    content = hashlib.sha256()
    for array in arrays.values():
        content.update(np.ascontiguousarray(array).data)
    version = version_of(content.digest(), created_ms)
    target = versions / name / version
    if (target / MANIFEST).exists():
        raise Conflict(f"retriever version {target.url} exists", hint="A version never changes.")
    write_table(target / ITEMS, pa.table({"item": items}))
    for label, array in arrays.items():
        write_array(target / f"{label}.npy", array)
    manifest = Manifest(
        name=name,
        version=version,
        created_ms=created_ms,
        items=len(items),
        retriever=stored,
        method=dict(method),
        training=dict(training),
        data_fingerprint=data_fingerprint,
        metrics=dict(metrics),
        libraries=libraries() | {n: library_version(n) for n in _LIBRARIES},
        files={f: (target / f).sha256() for f in [ITEMS, *(f"{a}.npy" for a in arrays)]},
    )
    manifest = msgspec.structs.replace(manifest, manifest_sha256=manifest.digest())
    reach("training.before_retrieval_manifest")
    (target / MANIFEST).write(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
    return target


def read_manifest(version: Place) -> Manifest:
    """The manifest of a version's folder, checked against its own sha256."""
    file = version / MANIFEST
    try:
        manifest = msgspec.json.decode(file.read(), type=Manifest)
    except FileNotFoundError as e:
        raise NotFound(f"no retriever at {version.url}") from e
    except msgspec.DecodeError as e:
        raise IntegrityError(f"{file.url} is no retriever's manifest: {e}", hint=_AGAIN) from e
    if manifest.digest() != manifest.manifest_sha256:
        raise IntegrityError(f"{file.url} was changed after it was written", hint=_AGAIN)
    return manifest


def load(version: Place, *, cache: Place | None = None) -> LoadedRetriever:
    """Map a version's files after checking every byte.

    Args:
        version: its folder.
        cache: a folder of this node for files of an object store; without it they are in memory.

    Raises:
        NotFound: there is none.
        IntegrityError: bytes were changed or are missing.
    """
    manifest = read_manifest(version)
    data = {n: checked(version / n, sha256, cache) for n, sha256 in manifest.files.items()}
    arrays = {n.removesuffix(".npy"): array_of(b) for n, b in data.items() if n != ITEMS}
    items = table_of(data[ITEMS]).column("item").combine_chunks()
    retriever = put_together(manifest.retriever, arrays)
    if not len(items) == retriever.width == manifest.items:
        raise IntegrityError(f"{version.url} has {len(items)} ids for {retriever}", hint=_AGAIN)
    return LoadedRetriever(retriever, items, manifest, version)


def write_table(place: Place, table: pa.Table) -> None:
    """Make a table an Arrow file, atomically."""
    with place.writing() as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def table_of(data: pa.Buffer) -> pa.Table:
    """The table of such a file, over its bytes."""
    return pa.ipc.open_file(data).read_all()


def checked(file: Place, sha256: str, cache: Place | None) -> pa.Buffer:
    """A file's bytes, mapped where they lie on this node; see ``load``."""
    if file.local is None and cache is not None:
        kept = cache / sha256
        if kept.exists() and kept.sha256() == sha256:
            return kept.buffer()
        data = _verified(file, sha256)
        kept.write(data)
        return kept.buffer()
    return _verified(file, sha256)


def _verified(file: Place, sha256: str) -> pa.Buffer:
    try:
        data = file.buffer()
    except FileNotFoundError as e:
        raise IntegrityError(f"{file.url} is missing", hint=_AGAIN) from e
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise IntegrityError(
            f"{file.url} has sha256 {found[:12]}, its manifest says {sha256[:12]}", hint=_AGAIN
        )
    return data
