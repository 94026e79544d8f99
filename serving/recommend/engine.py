"""From a visitor to a list, in one process and without HTTP: candidates, columns, order, rules.

The columns are made by the code that made the ranker's training rows, over one moment and the
interactions of one visitor (docs/adr/0031). Not thread-safe.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from raypipe.errors import NotFound
from serving.recommend.diversity import Diversity, Neighbours
from serving.recommend.exploration import Exploration
from serving.recommend.live_windows import LiveWindows
from serving.recommend.rules import Caps, Filters, Integers, Visitor
from serving.recommend.selection import Asked, Selection, Shown, choose
from serving.recommend.shelf import Shelf
from serving.recommend.visitors import Histories
from serving.scoring.xgb import DenseRows
from training.recommend.blend import Blend
from training.recommend.interactions import ORDER, Interactions
from training.recommend.neighbours import NeighbourTable
from training.recommend.port import Retriever
from training.recommend.ranking import artefact
from training.recommend.ranking.features import Columns, Table
from training.recommend.ranking.moments import Moments, histories
from training.recommend.ranking.profiles import KnownProfile
from training.recommend.ranking.ranker import Ranker
from training.recommend.ranking.spans import scored
from training.recommend.ranking.visitors import Done
from training.recommend.rows import Rows, empty

TREND = ("demand_viewed_count_1d", "demand_viewed_count_7d_before_1d", 6.0)
"""Columns of an item's last day and of the days before it, and how many days these are."""

TREND_MS = 30_000
"""So old what is trending may be: to read the windows of all items takes longer than a list."""

Scores = npt.NDArray[np.float32]

_log = logging.getLogger("raypipe.recommend")


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks of the engine, items by code.

    ``user`` and ``session`` may both be None: nothing is known then. ``viewing`` is the item whose
    page he is on. ``diversity``, 0..1, replaces the declared one; ``hidden`` items must not come.
    ``profile`` has what is known of the visitor's profile, by column.
    """

    k: int
    seed: int
    user: str | None = None
    session: str | None = None
    viewing: int | None = None
    diversity: float | None = None
    filters: Filters = field(default_factory=Filters)
    hidden: Integers = field(default_factory=lambda: np.zeros(0, np.int64))
    profile: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an item is there.

    ``because``: like ``item``, which the visitor ``did`` something with (its kind); ``new``: new in
    the catalogue and like it; ``popular``: many take it now; ``sponsored``: somebody pays.
    """

    kind: Literal["because", "new", "popular", "sponsored", "trending"]
    item: int | None = None
    did: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A list: items by code with columns by place, and how it came about.

    ``scores`` are the ranker's, or the retriever's for a history too short for it, float32 [n], NaN
    for a sponsored item that was no candidate.
    ``length`` is how many interactions were known. ``degraded`` names what was missing.
    """

    shown: Shown
    scores: npt.NDArray[np.float32]
    reasons: tuple[Reason, ...]
    length: int
    degraded: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Moment:
    """What is known when a request comes."""

    visitor: Interactions
    at: Moments
    known: Rows
    seen: Rows | None
    windows_of: str | None
    profile: KnownProfile


@dataclass(frozen=True, slots=True)
class _Candidates:
    """One row of candidates, the number of the blend's part that spoke most for each, and what
    single retrievers gave."""

    rows: Rows
    part: npt.NDArray[np.int8]
    lists: Mapping[str, Rows]


class Engine:
    """Answers for one version of both stages.

    Args:
        loaded: the version.
        histories, windows, shelf: as they are now; somebody else feeds them.
        selection: rules, diversity, exploration.
        sponsored: items by code that somebody pays for, the first choice first.
        profile: columns of the visitor's profile that the ranker reads.
    """

    def __init__(
        self,
        loaded: artefact.Loaded,
        histories: Histories,
        windows: LiveWindows,
        shelf: Shelf,
        selection: Selection,
        sponsored: Sequence[int] = (),
        profile: tuple[str, ...] = (),
    ) -> None:
        self.loaded = loaded
        self._profile = profile
        self._histories, self._windows, self._shelf = histories, windows, shelf
        self._selection = selection
        self._sponsored = np.array(sponsored, np.int64)
        retriever = loaded.retriever.retriever
        if not isinstance(retriever, Blend):
            raise TypeError(f"a {type(retriever).__name__} is no blend")
        self._blend = retriever
        parts: dict[str, Retriever] = {p.name: p.retriever for p in retriever.parts}
        self._parts = parts
        self._names = [p.name for p in retriever.parts]
        self._tables = {n: r for n, r in parts.items() if isinstance(r, NeighbourTable)}
        self._score = _scorer(loaded)
        self._rise: tuple[int, npt.NDArray[np.float32]] | None = None
        main = self._tables.get("main")
        self._neighbours = (
            None
            if main is None or not selection.diversity.neighbours
            else Neighbours(main.table.starts, main.table.columns, main.table.values)
        )

    @property
    def width(self) -> int:
        """Items of the version."""
        return self._blend.width

    @property
    def selection(self) -> Selection:
        """How lists are made."""
        return self._selection

    def recommend(self, wish: Wish, now_ms: int, offset: int, *, explore: bool = True) -> Found:
        """The list for a request, as of a time and of all log rows before ``offset``.

        An error in the columns or the ranker leaves the retriever's order, one in retrieval what is
        popular; the answer says so.
        """
        moment = self._moment(wish, now_ms, offset)
        degraded: tuple[str, ...] = ()
        ranks = len(moment.known.columns) >= self.loaded.manifest.least_known
        try:
            found = self._candidates(moment, for_ranker=ranks)
        except Exception:  # noqa: BLE001 - whatever it is, something can still be shown
            _log.exception("retrieval failed: the answer is what is popular")
            found = self._popular(moment)
            degraded = ("retriever", "ranker")
        scores = found.rows.values
        if ranks and not degraded:
            try:
                scores = self.score(moment, found)
            except Exception:  # noqa: BLE001 - as above
                _log.exception("ranking failed: the retriever's order stands")
                degraded = ("ranker",)
        selection = self.selection_of(wish) if explore else self.without_chance(wish)
        shown = self._choose(wish, moment, found.rows, scores, now_ms, selection)
        reasons = self._reasons(moment, shown, found.part)
        own = np.where(shown.candidates >= 0, shown.candidates, 0)
        mine = scores[own] if len(scores) else np.zeros(len(shown), np.float32)
        mine = np.where(shown.candidates >= 0, mine, np.nan).astype(np.float32)
        return Found(shown, mine, reasons, len(moment.visitor), degraded)

    def table(self, wish: Wish, now_ms: int, offset: int) -> Table:
        """The ranker's rows of a request: what parity with training is measured on."""
        moment = self._moment(wish, now_ms, offset)
        return self._table(moment, self._candidates(moment))

    def ranked(self, wish: Wish, now_ms: int, offset: int) -> Scores:
        """The ranker's scores of a request's candidates, however short the history."""
        moment = self._moment(wish, now_ms, offset)
        return self.score(moment, self._candidates(moment))

    def similar(self, item: int, wish: Wish, now_ms: int) -> Found:
        """Items like one, the most similar first; the wish's visitor does not matter."""
        columns, values = np.zeros(0, np.int32), np.zeros(0, np.float32)
        # Both tables: a new item has neighbours by content alone.
        for table in self._tables.values():
            more, similarity = table.table.row(item)
            new = ~np.isin(more, columns)
            floor = float(values.min()) if len(values) else 1.0
            columns = np.concatenate([columns, more[new]])
            values = np.concatenate([values, np.minimum(similarity[new], 1.0) * floor])
        rows = Rows(np.array([0, len(columns)]), columns, values, self.width)
        moment = self._moment(replace(wish, user=None, session=None), now_ms, 0)
        hidden = np.concatenate([wish.hidden, [item]])
        wish = replace(wish, hidden=hidden)
        shown = self._choose(wish, moment, rows, values, now_ms, self._plain())
        reasons = tuple(Reason("because", item) for _ in range(len(shown)))
        return Found(shown, values[shown.candidates], reasons, 0)

    def trending(self, wish: Wish, now_ms: int, offset: int) -> Found:
        """Items that are wanted more on the last day than the days before it would let expect.

        Score: ``(today - expected) / sqrt(expected + 1)``, which for counts of chance is about
        standard normal. Items nobody wanted more are left out.
        """
        rise = self._rising(now_ms, offset)
        order = np.argsort(-rise, kind="stable")[: self.loaded.manifest.candidates]
        order = order[rise[order] > 0]
        rows = Rows(np.array([0, len(order)]), order.astype(np.int32), rise[order], self.width)
        moment = self._moment(replace(wish, user=None, session=None), now_ms, offset)
        shown = self._choose(wish, moment, rows, rows.values, now_ms, self._plain())
        reasons = tuple(Reason("trending") for _ in range(len(shown)))
        return Found(shown, rows.values[shown.candidates], reasons, 0)

    def _rising(self, now_ms: int, offset: int) -> npt.NDArray[np.float32]:
        if self._rise is None or not 0 <= now_ms - self._rise[0] < TREND_MS:
            today, before, days = TREND
            items = np.arange(self.width, dtype=np.int32)
            times, offsets = np.full(self.width, now_ms), np.full(self.width, offset)
            values = self._windows.items(items, times, offsets)
            expected = values[before] / days
            rise = (values[today] - expected) / np.sqrt(expected + 1)
            self._rise = now_ms, rise.astype(np.float32)
        return self._rise[1]

    def selection_of(self, wish: Wish) -> Selection:
        """How lists are made for a request."""
        if wish.diversity is None:
            return self._selection
        knob = replace(self._selection.diversity, relevance=1.0 - wish.diversity)
        return replace(self._selection, diversity=knob)

    def without_chance(self, wish: Wish) -> Selection:
        """The same, always taking the best."""
        return replace(self.selection_of(wish), exploration=Exploration())

    def _plain(self) -> Selection:
        """The order of scores under the shop's rules, without sold places."""
        rules = replace(self._selection.rules, sponsored=(), caps=Caps())
        return replace(
            self._selection, rules=rules, exploration=Exploration(), diversity=Diversity()
        )

    def code(self, item: str) -> int:
        """An item's code; raises NotFound for one that the version lacks."""
        found = self.loaded.retriever.codes.get(item)
        if found is None:
            raise NotFound(
                f"item {item[:100]!r} is not known to {self.loaded.reference}",
                hint="New items are known from the next fit on: `raypipe recommend fit`.",
            )
        return found

    def score(self, moment: _Moment, found: _Candidates) -> npt.NDArray[np.float32]:
        """The ranker's score of each candidate."""
        if not len(found.rows.columns):
            return found.rows.values
        return self._score(self._table(moment, found).x)

    def _table(self, moment: _Moment, found: _Candidates) -> Table:
        windows = self._windows.of_visitor(moment.windows_of)
        columns = Columns(moment.visitor, self._shelf.attributes, windows, moment.profile)
        return columns.table(moment.at, found.rows, lists=found.lists)

    def _moment(self, wish: Wish, now_ms: int, offset: int) -> _Moment:
        done = self._histories.of(wish.user, wish.session)
        kinds = self.loaded.manifest.kinds
        if wish.viewing is not None and (not len(done) or done.item[-1] != wish.viewing):
            # The event about it may still be on its way.
            done = _with(done, wish.viewing, now_ms, offset)
        here = np.zeros(len(done), np.int32)
        items = self.loaded.retriever.items
        visitor = Interactions(
            items[:1], items, kinds, here, done.item, done.kind, done.time, done.offset
        )
        at = Moments(
            np.zeros(1, np.int32),
            np.array([now_ms], np.int64),
            # One more: the page he is on has the last place.
            np.array([offset + 1], np.int64),
            empty(1, self.width),
        )
        known = histories(visitor, at, self.loaded.weights)
        owner = None if wish.session is None else self._histories.owner(wish.session)
        profile = KnownProfile(self._profile, wish.profile)
        return _Moment(visitor, at, known, self._barred(wish, known), wish.user or owner, profile)

    def _barred(self, wish: Wish, known: Rows) -> Rows | None:
        """What retrieval must leave out besides what he has seen: filters over 200 candidates
        would leave too few."""
        items, filters = self._shelf.items, wish.filters
        barred = np.zeros(self.width, np.bool_)
        if not self._selection.rules.show_out_of_stock:
            barred |= ~items.in_stock
        if filters.categories is not None:
            barred |= ~np.isin(items.category, filters.categories)
        if filters.brands is not None:
            barred |= ~np.isin(items.brand, filters.brands)
        # A comparison with NaN is false: an unknown price is in no range.
        if filters.price_from is not None:
            barred |= ~(items.price >= filters.price_from)
        if filters.price_to is not None:
            barred |= ~(items.price <= filters.price_to)
        barred[wish.hidden] = True
        if not barred.any():
            return None
        barred[known.columns] = True
        columns = np.flatnonzero(barred).astype(np.int32)
        return Rows(
            np.array([0, len(columns)]), columns, np.ones(len(columns), np.float32), self.width
        )

    def _candidates(self, moment: _Moment, *, for_ranker: bool = True) -> _Candidates:
        known, seen = moment.known, moment.seen
        count = self.loaded.manifest.candidates
        # Retrievers beside the blend are read by the ranker alone.
        asked = {**self._parts, **self.loaded.beside} if for_ranker else self._parts
        lists = scored(asked, known, count, seen=seen)
        # The blend wants its own depth; a shallower list would fuse otherwise than in training.
        given = lists if 3 * count >= max(count, self._blend.depth) else None
        rows, part = self._blend.explained(known, count, seen=seen, given=given)
        return _Candidates(rows, part, lists)

    def _popular(self, moment: _Moment) -> _Candidates:
        rows = self._parts["popular"].retrieve(
            empty(1, self.width), self.loaded.manifest.candidates, seen=moment.seen
        )
        number = self._names.index("popular")
        return _Candidates(rows, np.full(len(rows.columns), number, np.int8), {})

    def _choose(
        self,
        wish: Wish,
        moment: _Moment,
        candidates: Rows,
        scores: npt.NDArray[np.float32],
        now_ms: int,
        selection: Selection,
    ) -> Shown:
        # Equal scores keep the retriever's order: choose takes the first of equal values.
        asked = Asked(
            k=wish.k,
            now_ms=now_ms,
            seed=wish.seed,
            visitor=self._visitor(moment, wish),
            filters=wish.filters,
            sponsored=self._sponsored if selection.rules.sponsored else np.zeros(0, np.int64),
        )
        shelf = self._shelf.items
        return choose(candidates.columns, scores, shelf, asked, selection, self._neighbours)

    def _visitor(self, moment: _Moment, wish: Wish) -> Visitor:
        kinds = moment.visitor.kinds
        bought = moment.visitor.kind == (kinds.index(ORDER) if ORDER in kinds else 255)
        return Visitor(
            moment.visitor.item[bought].astype(np.int64), moment.visitor.time[bought], wish.hidden
        )

    def _reasons(
        self, moment: _Moment, shown: Shown, part: npt.NDArray[np.int8]
    ) -> tuple[Reason, ...]:
        wanted = shown.codes.astype(np.int32)
        because = {n: t.because_each(moment.known, wanted) for n, t in self._tables.items()}
        out = []
        for place, candidate in enumerate(shown.candidates.tolist()):
            if shown.sponsored[place]:
                out.append(Reason("sponsored"))
                continue
            name = self._names[part[candidate]]
            item = int(because[name][place]) if name in because else -1
            if item < 0 and "main" in because:
                # Found by what is popular, and like something of his all the same.
                name, item = "main", int(because["main"][place])
            if item < 0:
                out.append(Reason("popular"))
                continue
            did = self._did(moment.visitor, item)
            out.append(Reason("new" if name == "content" else "because", item, did))
        return tuple(out)

    def _did(self, visitor: Interactions, item: int) -> str:
        """The weightiest that he did with an item."""
        names = [visitor.kinds[k] for k in np.unique(visitor.kind[visitor.item == item])]
        weights = self.loaded.weights.kinds
        weightiest: str = max(names, key=lambda n: weights.get(n, 0.0))
        return weightiest


def _scorer(loaded: artefact.Loaded) -> Callable[[Scores], Scores]:
    """XGBoost by its C function where that gives the scores of the public way, bit for bit."""
    ranker, probes = loaded.ranker, loaded.probes
    public = ranker.scores
    if not isinstance(ranker, Ranker):
        return public
    most = max(loaded.manifest.candidates, len(probes))
    try:
        fast = DenseRows(ranker.booster, len(ranker.names), most)
        if np.array_equal(fast(probes), public(probes)):
            return fast
    except Exception as e:  # noqa: BLE001 - a later XGBoost may have no such function
        _log.info("XGBoost is asked the public way: %s", e)
    return public


def _with(done: Done, item: int, now_ms: int, offset: int) -> Done:
    return Done(
        np.append(done.item, np.int32(item)),
        np.append(done.kind, np.uint8(0)),
        np.append(done.time, np.int64(now_ms)),
        np.append(done.offset, np.int64(offset)),
    )
