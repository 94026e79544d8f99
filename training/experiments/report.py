"""The report of an experiment at one look: ``report.json`` and one self-contained HTML page."""

from __future__ import annotations

import msgspec

from raypipe.experiments.results import Analysis, State
from raypipe.lake import Place
from training.experiments.plots import Band, band, name, whiskers
from training.pages import page

_TEMPLATE = "experiments/report.html.j2"

_TONE = {
    State.INVALID: "bad",
    State.HARMFUL: "bad",
    State.WORSE: "bad",
    State.BETTER: "good",
    State.NO_EFFECT: "open",
    State.UNDECIDED: "open",
    State.RUNNING: "open",
}


def write(analysis: Analysis, folder: Place) -> None:
    """Write both files into the folder."""
    text = msgspec.json.format(msgspec.json.encode(analysis), indent=2)
    (folder / "report.json").write(text)
    (folder / "report.html").write(render(analysis).encode())


def render(analysis: Analysis) -> str:
    """The HTML page."""
    return page(
        _TEMPLATE,
        a=analysis,
        tone=_TONE[analysis.verdict.state],
        bands=_bands(analysis),
        lifts=whiskers(analysis.findings),
        segments=whiskers(analysis.segments),
        name=name,
    )


def _bands(analysis: Analysis) -> list[Band]:
    arms = dict.fromkeys(look.arm for look in analysis.looks)
    return [
        band(f"{analysis.primary} of {arm} less the control's", mine)
        for arm in arms
        if len(mine := [look for look in analysis.looks if look.arm == arm]) > 1
    ]
