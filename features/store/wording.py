"""Sentences for the catalogue: what a column of a window view means."""

from __future__ import annotations

from raypipe.windows.spec import Column, Op, WindowView

_PHRASES = {
    Op.COUNT: "number of {event} events",
    Op.SUM: "sum of {column}",
    Op.MEAN: "mean of {column}",
    Op.MIN: "smallest {column}",
    Op.MAX: "largest {column}",
    Op.STD: "population standard deviation of {column}",
    Op.DISTINCT: "estimated number of different {column}",
}


def column_text(view: WindowView, column: Column) -> str:
    """One sentence about one column.

    >>> from raypipe.windows.spec import count, spans
    >>> view = WindowView("card", "card", "payment", "card_id", (count(),), spans("1h/1m"))
    >>> column_text(view, view.columns[0])
    'number of payment events of the same card_id over 1h (hop 60 s)'
    """
    aggregate = column.aggregate
    events = aggregate.of or " or ".join(view.events)
    source = f"{events}.{aggregate.column}"
    place = "newest" if column.step == 1 else f"newest but {column.step - 1}"
    if column.op is Op.SINCE_LAST:
        text = f"seconds since the {place} {events} event of the same {view.key}"
    elif column.op is Op.LAST:
        text = f"{source} of the {place} event of the same {view.key}"
    else:
        what = _PHRASES[column.op].format(event=events, column=source)
        span = view.spans[column.span]
        text = f"{what} of the same {view.key} over {span.label} (hop {span.hop} s)"
        if column.minus >= 0:
            text += f" without the newest {view.spans[column.minus].label}"
    return f"{text}, where {aggregate.where}" if aggregate.where else text


def view_text(view: WindowView, moment: str) -> str:
    """What a view holds, and as of which moment."""
    about = view.description or f"{' or '.join(view.events)} events by {view.key}"
    return f"{about}; {moment}"
