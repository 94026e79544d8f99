"""Interactions and sessions from the events of a shop in the log.

Declared once as data: which event is which kind of interaction, and where it names user and item.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.errors import NotFound
from raypipe.log.port import OFFSET
from training.recommend.interactions import CART, ORDER, VIEW, Interactions

if TYPE_CHECKING:
    from pyarrow.dataset import Dataset

TIME = "event_time"
_GUEST = "\x1f"
Tables = Callable[[str], "Dataset"]
"""The rows of an event type; ``features.log_files.LogFiles.table`` is one."""


@dataclass(frozen=True, slots=True)
class Source:
    """An event type that is one kind of interaction, by the names of its columns.

    Only rows with an item and a user count, and of these only those where every column of
    ``where`` has its value.
    """

    event: str
    kind: str
    user: str = "customer_id"
    session: str | None = "session_id"
    item: str = "item_id"
    where: tuple[tuple[str, str | bool | int], ...] = ()


SHOP_SOURCES = (
    Source("page_view", VIEW),
    Source("cart", CART, where=(("action", "add"),)),
    Source("order_line", ORDER),
)
"""Of ``features.commerce``. An article put into a cart and taken out again still interested."""


def read_interactions(
    tables: Tables,
    sources: Sequence[Source] = SHOP_SOURCES,
    *,
    end_ms: int | None = None,
    sessions: bool = False,
    joined: bool = False,
    guests: bool = False,
    listings: str | None = "listing",
) -> Interactions:
    """All interactions of customers before ``end_ms``, or of sessions.

    Items are those of the interactions, and those that events of type ``listings`` name.

    A visit that logs in half-way is its customer's from then on; with ``joined`` what it did before
    is his too, from the place in the log on at which he became known. By ``sessions`` it is one
    history as a whole, for learning what goes together in a visit.

    Raises NotFound when there is none.
    """
    if joined:
        visits = read_visits(tables, sources, end_ms=end_ms).joined(guests=guests)
        return _interactions(visits.table, visits.kind, tables, sources, listings, end_ms)
    parts = []
    for kind, source in enumerate(sources):
        user = source.session if sessions else source.user
        if user is None:
            continue
        table = _read(tables(source.event), source, user, end_ms)
        parts.append((kind, table))
    whole = pa.concat_tables([t for _, t in parts], promote_options="permissive") if parts else None
    if whole is None or not len(whole):
        raise _nothing("sessions" if sessions else "customers", sources)
    kinds = np.repeat([k for k, _ in parts], [len(t) for _, t in parts]).astype(np.uint8)
    return _interactions(whole, kinds, tables, sources, listings, end_ms)


def _interactions(
    whole: pa.Table,
    kind: npt.NDArray[np.uint8],
    tables: Tables,
    sources: Sequence[Source],
    listings: str | None,
    end_ms: int | None,
) -> Interactions:
    return Interactions.of(
        whole.column("user").combine_chunks(),
        whole.column("item").combine_chunks(),
        kind,
        tuple(s.kind for s in sources),
        whole.column(TIME).to_numpy(),
        offset=whole.column(OFFSET).to_numpy(),
        listed=None if listings is None else _listed(tables(listings), end_ms),
    )


def guest_id(session: str) -> str:
    """The user id of a session that names nobody: no customer has it, so none's windows are read.

    >>> guest_id("visit-9")
    '\\x1fvisit-9'
    """
    return _GUEST + session


def guests_of(interactions: Interactions) -> npt.NDArray[np.bool_]:
    """Which users are sessions that named nobody, [users]."""
    found: npt.NDArray[np.bool_] = pc.starts_with(interactions.users, _GUEST).to_numpy(
        zero_copy_only=False
    )
    return found


def until_a_customer(interactions: Interactions) -> Interactions:
    """Without what strangers looked at after the newest customer: one look that comes long after
    everything else would leave no visits to learn from before it."""
    named = ~guests_of(interactions)[interactions.user]
    if not named.any():
        return interactions
    return interactions.where(interactions.time <= interactions.time[named][-1])


@dataclass(frozen=True)
class Visits:
    """Interactions of customers and of sessions that have none yet, in log order.

    ``table`` has ``user``, ``session`` (each may be null), ``item``, ``event_time``, ``offset``;
    ``kind`` uint8 [n] are places in the sources.
    """

    table: pa.Table
    kind: npt.NDArray[np.uint8]

    def owners(self, since_ms: int = 0) -> dict[str, tuple[str, int]]:
        """Of each session that named a customer: the first one, and the offset of that event.

        ``since_ms``: only of sessions with an event then or later.
        """
        user, session = self.table.column("user"), self.table.column("session")
        both = pc.and_(user.is_valid(), session.is_valid())
        if since_ms:
            both = pc.and_(both, pc.is_in(session, self._lately(since_ms)))
        both = self.table.filter(both)
        found: dict[str, tuple[str, int]] = {}
        for session, user, offset in zip(
            both.column("session").to_pylist(),
            both.column("user").to_pylist(),
            both.column(OFFSET).to_pylist(),
            strict=True,
        ):
            found.setdefault(session, (user, offset))
        return found

    def joined(self, *, guests: bool = False) -> Visits:
        """Those of customers, with what their sessions did before they logged in; with ``guests``
        those of all other sessions too, by ``guest_id``.

        Such an event counts from the place of the login on: before, nobody knew whose it was.
        Raises NotFound when there is none.
        """
        owners = self.owners()
        sessions = self.table.column("session").to_pylist()
        users, offsets = self.table.column("user").to_pylist(), self.table.column(OFFSET).to_numpy()
        offsets = offsets.copy()
        for row, user in enumerate(users):
            if user is not None:
                continue
            owner = owners.get(sessions[row])
            if owner is not None:
                users[row], offsets[row] = owner[0], max(owner[1], offsets[row])
            elif guests:
                users[row] = guest_id(sessions[row])
        named = pa.array(users, pa.string())
        place = self.table.column_names.index
        table = self.table.set_column(place("user"), "user", named)
        table = table.set_column(place(OFFSET), OFFSET, pa.array(offsets))
        kept = named.is_valid()
        table = table.filter(kept)
        if not len(table):
            raise _nothing("customers", ())
        return Visits(table, self.kind[kept.to_numpy(zero_copy_only=False)])

    def anonymous(self, since_ms: int) -> Visits:
        """What sessions that named nobody did, those with an event at ``since_ms`` or later."""
        owned = pa.array(list(self.owners()), pa.string())
        session, user = self.table.column("session"), self.table.column("user")
        mine = pc.and_(user.is_null(), session.is_valid())
        mine = pc.and_(mine, pc.invert(pc.is_in(session, owned)))
        mine = pc.and_(mine, pc.is_in(session, self._lately(since_ms)))
        return Visits(
            self.table.filter(mine),
            self.kind[mine.combine_chunks().to_numpy(zero_copy_only=False)],
        )

    def _lately(self, since_ms: int) -> pa.StringArray:
        lately = self.table.filter(pc.greater_equal(self.table.column(TIME), since_ms))
        return pc.unique(lately.column("session").drop_null())


def read_visits(
    tables: Tables, sources: Sequence[Source] = SHOP_SOURCES, *, end_ms: int | None = None
) -> Visits:
    """All interactions that name a customer or a session, in log order."""
    parts = [_read(tables(s.event), s, None, end_ms) for s in sources]
    whole = pa.concat_tables(parts)
    kind = np.repeat(np.arange(len(parts)), [len(t) for t in parts]).astype(np.uint8)
    order = np.argsort(whole.column(OFFSET).to_numpy(), kind="stable")
    return Visits(whole.take(order).combine_chunks(), kind[order])


def _listed(listings: Dataset, end_ms: int | None) -> pa.Array:
    import pyarrow.dataset as ds

    before = None if end_ms is None else ds.field(TIME) < end_ms
    return listings.to_table(columns=["item_id"], filter=before).column(0).combine_chunks()


def _nothing(who: str, sources: Sequence[Source]) -> NotFound:
    return NotFound(
        f"no interaction of {who} with items is in the log",
        hint="Load " + (", ".join(s.event for s in sources) or "such") + " events.",
    )


def _read(events: Dataset, source: Source, user: str | None, end_ms: int | None) -> pa.Table:
    """Interactions by a column; by None those of customers and of sessions, with both."""
    import pyarrow.dataset as ds

    names = [source.user, *([source.session] if source.session else [])]
    known = ds.field(user or names[0]).is_valid()
    if user is None and source.session is not None:
        known |= ds.field(source.session).is_valid()
    wanted = known & ds.field(source.item).is_valid()
    for column, value in source.where:
        wanted &= ds.field(column) == value
    if end_ms is not None:
        wanted &= ds.field(TIME) < end_ms
    columns = {"user": ds.field(user or source.user)}
    if user is None:
        nobody = pc.scalar(pa.scalar(None, pa.string()))
        columns["session"] = nobody if source.session is None else ds.field(source.session)
    columns |= {
        "item": ds.field(source.item),
        TIME: ds.field(TIME),
        OFFSET: ds.field(OFFSET),
    }
    return events.to_table(columns=columns, filter=wanted)
