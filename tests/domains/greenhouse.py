"""A domain that the engine never heard of: garden valves that may flood a greenhouse."""

from raypipe.clock import DAY_MS
from raypipe.events.schema import EventType, Field, Kind
from raypipe.project import Entity, Label, Model, Project
from raypipe.vector.expressions import Derived
from raypipe.windows.spec import WindowView, count, distinct, mean, since_last, spans, std, total

VALVE = Field("valve", Kind.STRING)
GARDENER = Field("gardener", Kind.STRING, required=False)
LITRES = Field("litres", Kind.INTEGER, minimum=0, maximum=1_000_000)
MODE = Field("mode", Kind.CHOICE, required=False, choices=("drip", "spray"))
OPENING = EventType("opening", (VALVE, GARDENER, LITRES, MODE))
FLOOD = EventType("flood", (Field("opening_id", Kind.STRING), VALVE, GARDENER))

SPANS = spans("10m/10s", "1h/1m", "2d/1h")
WATER = (count(), total("litres"), mean("litres", lags=[("2d", "1h")]), std("litres", ["2d"]))
VIEWS = (
    WindowView("valve", "valve", "opening", "valve", (*WATER, distinct("gardener")), SPANS),
    WindowView("gardener", "gardener", "opening", "gardener", (count(), since_last()), SPANS),
    WindowView("floods", "valve", "flood", "valve", (count(),), SPANS),
)
THIRST = Derived("thirst", "litres / valve_litres_mean_2d")
ALONE = Derived("alone", "gardener_count_2d < 1")
INPUTS = ("litres", "mode", "valve_count_2d", "thirst", "alone", "floods_count_2d")
project = Project(
    name="greenhouse",
    events=(OPENING, FLOOD),
    entities=(Entity("valve"), Entity("gardener")),
    views=VIEWS,
    derived=(THIRST, ALONE),
    decision="opening",
    label=Label("flood", "opening_id", 1 * DAY_MS),
    models=(Model("flooding", INPUTS),),
)
