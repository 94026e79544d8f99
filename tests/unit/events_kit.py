"""A small project and the mapping of a small table to it, for the tests of loading."""

from __future__ import annotations

from raypipe.clock import DAY_MS
from raypipe.events.mapping import Mapping, parse_mapping
from raypipe.events.schema import EventType, Field, Kind
from raypipe.project import Entity, Label, Model, Project
from raypipe.windows.spec import WindowView, count

CARD = Field("card", Kind.STRING)
AMOUNT = Field("amount", Kind.AMOUNT, minimum=0)
CURRENCY = Field("currency", Kind.CURRENCY)
SALE = EventType(
    "sale",
    (
        CARD,
        AMOUNT,
        CURRENCY,
        Field("way", Kind.CHOICE, required=False, choices=("pos", "online")),
        Field("gift", Kind.BOOLEAN, required=False),
        Field("items", Kind.INTEGER, required=False),
        Field("weight", Kind.NUMBER, required=False),
        Field("due", Kind.TIME, required=False),
    ),
)
DISPUTE = EventType("dispute", (Field("sale_id", Kind.STRING), CARD, AMOUNT, CURRENCY))
VIEW = WindowView("card", "card", "sale", "card", (count(),))
PROJECT = Project(
    name="sales",
    events=(SALE, DISPUTE),
    entities=(Entity("card"),),
    views=(VIEW,),
    derived=(),
    decision="sale",
    label=Label("dispute", "sale_id", 7 * DAY_MS),
    models=(Model("fraud", VIEW.column_names),),
)

SALES = """
[[stream]]
event = "sale"
[stream.columns]
event_id = { from = "ID", prefix = "s" }
event_time = "AT"
card = "CARD"
amount = { from = "AMOUNT", unit = "major" }
currency = { const = "EUR" }
"""
DISPUTES = """
[[stream]]
event = "dispute"
where = { FRAUD = 1 }
shift = "7d"
[stream.columns]
event_id = { from = "ID", prefix = "d" }
sale_id = { from = "ID", prefix = "s" }
event_time = "AT"
card = "CARD"
amount = { from = "AMOUNT", unit = "major" }
currency = { const = "EUR" }
"""


def mapping(text: str = SALES + DISPUTES) -> Mapping:
    """A mapping onto PROJECT."""
    return parse_mapping(text, PROJECT, "map.toml")
