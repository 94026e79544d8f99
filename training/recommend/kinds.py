"""Retrievers as named arrays and back: what a version stores, by the kind of each part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from raypipe.errors import IntegrityError
from training.recommend.blend import Blend, Part
from training.recommend.factors import ItemFactors
from training.recommend.neighbours import NeighbourTable
from training.recommend.popularity import Popularity
from training.recommend.port import Arrays, Retriever


class Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A retriever without its arrays, as JSON; the parts of a blend by name."""

    kind: str
    settings: dict[str, Any]
    arrays: tuple[str, ...]
    parts: dict[str, Stored] = {}


_KINDS: Mapping[str, Callable[[dict[str, Any], Arrays], Retriever]] = {
    NeighbourTable.kind: NeighbourTable.of_arrays,
    ItemFactors.kind: ItemFactors.of_arrays,
    Popularity.kind: Popularity.of_arrays,
}


def taken_apart(retriever: Retriever, prefix: str = "") -> tuple[Stored, dict[str, Any]]:
    """A retriever as plain data, and all its arrays by names like ``main.columns``."""
    own = {f"{prefix}{name}": array for name, array in retriever.arrays().items()}
    parts = {}
    if isinstance(retriever, Blend):
        for part in retriever.parts:
            parts[part.name], arrays = taken_apart(part.retriever, f"{prefix}{part.name}.")
            own |= arrays
    names = tuple(retriever.arrays())
    return Stored(retriever.kind, retriever.settings(), names, parts), own


def put_together(stored: Stored, arrays: Arrays, prefix: str = "") -> Retriever:
    """The retriever again; raises IntegrityError for a kind that this release doesn't know."""
    if stored.kind == Blend.kind:
        weights = stored.settings["weights"]
        parts = tuple(
            Part(
                name,
                put_together(part, arrays, f"{prefix}{name}."),
                tuple((int(n), float(w)) for n, w in weights[name]),
            )
            for name, part in stored.parts.items()
        )
        return Blend(parts, stored.settings["depth"])
    if stored.kind not in _KINDS:
        raise IntegrityError(
            f"a retriever of kind {stored.kind!r} is stored",
            hint=f"This release reads {', '.join([*_KINDS, Blend.kind])}.",
        )
    own = {name: arrays[f"{prefix}{name}"] for name in stored.arrays}
    return _KINDS[stored.kind](stored.settings, own)
