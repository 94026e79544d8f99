"""``raypipe policy backtest``: what a policy would have decided about recorded decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from raypipe.cli import _options, _output, _stage
from raypipe.cli._options import Json, Quiet
from raypipe.cli._shared import settled

if TYPE_CHECKING:
    from raypipe.config import Settings


@settled
def backtest(
    settings: Settings,
    policy: Annotated[
        str, typer.Argument(metavar="POLICY", help="A file, name@version, or name for the newest.")
    ],
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="TIME", help="7d before the newest decision, or 2026-03-01 [all]."
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--until", metavar="TIME", help="As --since [the newest decision]."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Show what a policy would have changed in the recorded decisions.

    Decides again from what was recorded: the score, the features, the event, with the lists as
    they were then. Counts and money from the old to the new action; false positives and false
    negatives where the truth is known by now. Reads the log also while the system serves, and
    writes nothing.
    """
    report = _stage.call(
        "training.backtest:run",
        settings,
        _options.progress(quiet),
        policy,
        since=since,
        until=until,
    )
    import msgspec

    _output.write(msgspec.to_builtins(report), as_json=json, text=_text(report))
    return 0


def _text(report: Any) -> str:
    head = (
        f"{report.policy} over {report.decisions:,} decisions from {report.since} to "
        f"{report.until}: {report.changed:,} would be others"
    )
    parts = [head, _moves(report), _outcomes(report), _segments(report), _rules(report)]
    if report.left_out:
        parts.append("Left out: " + ", ".join(f"{n:,} {why}" for why, n in report.left_out.items()))
    return "\n\n".join(p for p in parts if p)


def _moves(report: Any) -> str:
    rows = [
        (m.before, m.after, f"{m.count:,}", _money(m.amount), f"{m.positives:,}/{m.labelled:,}")
        for m in report.moves
    ]
    header = ("WAS", "WOULD BE", "DECISIONS", "AMOUNT", "POSITIVE/LABELLED")
    return _output.table(header, rows) if rows else ""


def _outcomes(report: Any) -> str:
    rows = [
        (
            what,
            f"{o.false_positives:,}",
            _money(o.false_positive_amount),
            f"{o.false_negatives:,}",
            _money(o.false_negative_amount),
        )
        for what, o in (("was", report.before), ("would be", report.after))
    ]
    header = ("", "FALSE POSITIVES", "AMOUNT", "FALSE NEGATIVES", "AMOUNT")
    return _output.table(header, rows) if report.labelled else ""


def _segments(report: Any) -> str:
    rows = [
        (
            s.segment,
            f"{s.decisions:,}",
            f"{s.changed:,}",
            f"{s.before.false_positives:,} -> {s.after.false_positives:,}",
            f"{s.before.false_negatives:,} -> {s.after.false_negatives:,}",
        )
        for s in report.segments
    ]
    header = ("SEGMENT", "DECISIONS", "CHANGED", "FALSE POSITIVES", "FALSE NEGATIVES")
    return _output.table(header, rows) if len(rows) > 1 else ""


def _rules(report: Any) -> str:
    rows = [(name, f"{count:,}") for name, count in report.rules.items()]
    return _output.table(("RULE", "HITS"), rows) if rows else ""


def _money(amount: dict[str, int]) -> str:
    """Minor units as people write them, two decimals."""
    return ", ".join(f"{value / 100:,.2f} {code}" for code, value in amount.items()) or "-"
