"""The report of recommenders side by side: ``report.json`` and one self-contained HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from raypipe.errors import UsageError
from raypipe.lake import Place
from training.pages import page
from training.recommend.evaluate import Evaluation
from training.recommend.intervals import Interval
from training.whiskers import Row, Whiskers, laid_out

_TEMPLATE = "recommend/report.html.j2"

ALL = "all"
JUDGED = "ndcg"
"""The figure that gains are of."""


def write(title: str, evaluations: Mapping[str, Evaluation], k: int, folder: Place) -> None:
    """Write both files into the folder; arguments and errors as of ``describe``."""
    found = describe(evaluations, k)
    text = json.dumps({"title": title, **found}, indent=2, allow_nan=False)
    (folder / "report.json").write(text.encode())
    (folder / "report.html").write(render(title, found).encode())


def describe(evaluations: Mapping[str, Evaluation], k: int) -> dict[str, Any]:
    """What the page shows, as plain data.

    Args:
        evaluations: by name, of the same users; the first one is what the others are compared with,
            and gains are paired by user.
        k: length of the lists.

    Raises UsageError for no evaluation, for one without lists of that length, and for evaluations
    of different users.
    """
    if not evaluations:
        raise UsageError("a report of no evaluation", hint="Give one or more, by name.")
    for name, one in evaluations.items():
        if k not in one.figures:
            raise UsageError(
                f"{name!r} has no lists of {k}", hint=f"It has {', '.join(map(str, one.figures))}."
            )
    first, *others = evaluations
    base = evaluations[first]
    segments = [ALL, *(s for n, s in enumerate(base.segments) if (base.segment == n).any())]

    def part(name: str, segment: str) -> Evaluation:
        return evaluations[name] if segment == ALL else evaluations[name].only(segment)

    figures: dict[str, Any] = {
        segment: {
            name: {
                figure: part(name, segment).interval(figure, k).describe()
                for figure in base.figures[k]
            }
            for name in evaluations
        }
        for segment in segments
    }
    gains: dict[str, Any] = {
        segment: {
            name: part(name, segment).gain(part(first, segment), JUDGED, k).describe()
            for name in others
        }
        for segment in segments
    }
    return {
        "k": k,
        "users": len(base.users),
        "base": first,
        "figures": figures,
        "gains": gains,
        "beyond": {name: dict(one.beyond[k]) for name, one in evaluations.items()},
    }


def render(title: str, found: Mapping[str, Any]) -> str:
    """The HTML page of what ``describe`` found."""
    return page(
        _TEMPLATE,
        title=title,
        r=found,
        plot_of_figures=_figures(found),
        plot_of_gains=_gains(found),
        shown=lambda gain: Interval(**gain).excludes_zero,
        tone=_tone,
    )


def _figures(found: Mapping[str, Any]) -> Whiskers:
    return laid_out(
        [
            _row(f"{segment} · {name}", figures[JUDGED], "plain")
            for segment, by_name in found["figures"].items()
            for name, figures in by_name.items()
        ]
    )


def _gains(found: Mapping[str, Any]) -> Whiskers | None:
    rows = [
        _row(f"{segment} · {name}", gain, _tone(gain))
        for segment, by_name in found["gains"].items()
        for name, gain in by_name.items()
    ]
    return laid_out(rows) if rows else None


def _row(name: str, figure: Mapping[str, float], kind: str) -> Row:
    mean, low, high = (figure[x] for x in ("mean", "low", "high"))
    text = f"{mean:.4f} ({low:.4f} to {high:.4f}), {figure['users']:,} lists"
    return Row(name, mean, low, high, kind, text)


def _tone(gain: Mapping[str, float]) -> str:
    return "good" if gain["low"] > 0 else "bad" if gain["high"] < 0 else "open"
