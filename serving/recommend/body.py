"""What clients send and get. A body is read strictly: what is unknown is refused."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from raypipe.errors import InvalidRequest, Violation
from raypipe.events.body import parse_object

MOST = 100
"""Items of a list."""

BODY_LIMIT = 65_536
LISTED = 200
"""Ids or words of one filter."""

Id = Annotated[str, Meta(min_length=1, max_length=256)]
Words = Annotated[list[Id], Meta(min_length=1, max_length=LISTED)]
Count = Annotated[int, Meta(ge=1, le=MOST)]
Price = Annotated[int, Meta(ge=0, lt=2**40)]


class Context(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the visitor is. The item whose page is shown counts as viewed, also before the event
    about it has come."""

    item_id: Id | None = None


class FilterBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What may come: items of these categories and brands, of a price, and not these. Prices are
    minor units, both ends are allowed. An item that lacks the attribute does not pass."""

    categories: Words | None = None
    brands: Words | None = None
    price_from: Price | None = None
    price_to: Price | None = None
    exclude: Annotated[list[Id], Meta(max_length=LISTED)] = []


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request for a list, for a customer, for a session that nobody has logged in to, or for
    both: then what the session did is the customer's. `diversity` goes from 0, the order of scores,
    to 1, as different as can be; by default as the shop has declared it."""

    user: Id | None = None
    session: Id | None = None
    k: Count = 10
    diversity: Annotated[float, Meta(ge=0, le=1)] | None = None
    context: Context = Context()
    filters: FilterBody = FilterBody()


class Why(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why an item is there: `because` it is like `item_id`, which the visitor `did` something with;
    `new` and like it; `popular` or `trending` with all; `sponsored`. `text` says it in English."""

    kind: Literal["because", "new", "popular", "trending", "sponsored"]
    text: str
    item_id: str | None = None
    did: str | None = None


class Item(msgspec.Struct, frozen=True):
    """An item of a list. `score` orders candidates of one request and means nothing beyond; null
    for a sponsored item that was no candidate. `propensity` is the probability of this item at this
    place given those above it."""

    item_id: str
    score: float | None
    propensity: float
    sponsored: bool
    reason: Why


class Models(msgspec.Struct, frozen=True):
    """Versions of both stages and of the rules."""

    retriever: str
    ranker: str
    policy: str


class Listed(msgspec.Struct, frozen=True):
    """A list of items, the best first; shorter than k where there is no more to show.

    `recommendation_id` is null for a list that is not recorded. `history` is how many interactions
    of the visitor were known. `degraded_by` names what was missing: `log` (newest events),
    `profile` (the online store did not say in time what it knows of the visitor), `ranker` and
    `retriever` (the order is that of what was left), `record` (the list could not be recorded, so
    chance had no say).
    """

    recommendation_id: str | None
    items: list[Item]
    models: Models
    explored: bool
    history: int
    degraded: bool
    degraded_by: list[str]


class Ready(msgspec.Struct, frozen=True):
    """Which version answers, and up to where it knows the log."""

    status: Literal["ready"]
    retriever: str
    ranker: str
    policy: str
    items: int
    offset: int
    replica: str


class Alive(msgspec.Struct, frozen=True):
    """The process answers."""

    status: Literal["ok"]


def read(body: bytes) -> Wanted:
    """A request's body.

    Raises MalformedBody for what is no JSON, InputError for what is no object, InvalidRequest that
    names the place for anything else.
    """
    try:
        wanted = msgspec.convert(parse_object(body), Wanted)
    except msgspec.ValidationError as e:
        reason, _, place = str(e).partition(" - at `$")
        raise invalid(_pointer(place), reason) from None
    try:
        msgspec.json.encode(wanted)
    except UnicodeEncodeError:
        raise invalid("", "a text has half a character: a surrogate without its other") from None
    filters = wanted.filters
    low, high = filters.price_from, filters.price_to
    if low is not None and high is not None and low > high:
        raise invalid("/filters/price_to", "it is below price_from")
    return wanted


def invalid(pointer: str, reason: str) -> InvalidRequest:
    """A body that breaks its schema at one place."""
    return InvalidRequest(
        "the request breaks its schema; `errors` names the place",
        violations=(Violation(pointer, reason),),
    )


def _pointer(place: str) -> str:
    """msgspec's path as a JSON pointer.

    >>> _pointer(".filters.brands[2]`")
    '/filters/brands/2'
    """
    return (
        place.rstrip("`").replace("[...]", "").replace(".", "/").replace("[", "/").replace("]", "")
    )
