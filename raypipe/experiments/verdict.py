"""What an analysis means, in plain words.

The order is that of what may be believed: units that are lost make every figure void, a broken
guardrail ends an experiment whatever it gains, and only then the primary metric is asked.
"""

from __future__ import annotations

from collections.abc import Sequence

from raypipe.experiments.results import Finding, Guard, Guarding, Ratio, State, Verdict
from raypipe.experiments.sequential import FIRST_UNITS
from raypipe.experiments.spec import Direction


def judge(
    ratio: Ratio,
    primary: Sequence[Finding],
    guards: Sequence[Guard],
    *,
    minimum_effect: float,
    over: bool,
) -> Verdict:
    """The verdict.

    Args:
        primary: the primary metric of each arm; none while there are too few units.
        minimum_effect: relative to the control.
        over: whether the horizon has passed.
    """
    if ratio.mismatch:
        return Verdict(State.INVALID, "The figures don't count: units are lost.", _lost(ratio))
    kept = tuple(_guard_words(g) for g in guards)
    broken = [g for g in guards if g.state is Guarding.BROKEN]
    if broken:
        worst = broken[0]
        return Verdict(
            State.HARMFUL,
            f"Stop {worst.arm}: it harms {worst.metric} by more than is tolerated.",
            (*(_guard_words(g) for g in broken), *map(_words, primary)),
            worst.arm,
        )
    words = (*(_words(f) for f in primary), *kept)
    if not primary:
        return Verdict(
            State.UNDECIDED if over else State.RUNNING,
            "Too few units to say anything.",
            (f"Each arm needs {FIRST_UNITS} units whose outcome is complete.", *kept),
        )
    shown = [f for f in primary if f.significant]
    better = [f for f in shown if f.good]
    if better:
        best = max(better, key=lambda f: abs(f.difference))
        return Verdict(State.BETTER, f"{best.arm} is better on {best.metric}.", words, best.arm)
    if shown and len(shown) == len(primary):
        worst_arm = max(shown, key=lambda f: abs(f.difference))
        headline = f"{worst_arm.arm} is worse on {worst_arm.metric}."
        return Verdict(State.WORSE, headline, words, worst_arm.arm)
    if all(f.significant or _within(f, minimum_effect) for f in primary):
        headline = f"No effect of {_percent(minimum_effect)} or more on {primary[0].metric}."
        return Verdict(State.NO_EFFECT, headline, words)
    if over:
        return Verdict(State.UNDECIDED, "The time is over, and nothing was shown.", words)
    return Verdict(State.RUNNING, "Nothing is shown yet; it may run on.", words)


def _within(finding: Finding, minimum: float) -> bool:
    low, high = finding.lift_low, finding.lift_high
    return low is not None and high is not None and -minimum < low and high < minimum


def _words(f: Finding) -> str:
    change = "higher" if f.difference > 0 else "lower"
    if f.lift is None or f.lift_low is None or f.lift_high is None:
        size = f"{abs(f.difference):.4g} {change}"
        range_ = f"{f.low:.4g} to {f.high:.4g}"
    else:
        size = f"{_percent(abs(f.lift))} {change}"
        range_ = f"{_signed(f.lift_low)} to {_signed(f.lift_high)}"
    sure = f"from {range_} with {_sure(f.level)} confidence, at any look"
    wanted = "wanted" if f.direction is Direction.UP else "not wanted"
    judged = (
        f"shown, and {'good' if f.good else 'bad'}: higher is {wanted}"
        if f.significant
        else "not told from chance"
    )
    return f"{f.metric} of {f.arm} is {size} than the control's, {sure}: {judged}."


def _guard_words(g: Guard) -> str:
    limit = f"a loss of {_percent(g.tolerated)}"
    said = {
        Guarding.BROKEN: f"has lost more than {_percent(g.tolerated)}",
        Guarding.KEPT: f"is safe from {limit}",
        Guarding.OPEN: f"is not yet known to be safe from {limit}",
    }[g.state]
    if g.lift_low is None or g.lift_high is None:
        return f"Guardrail {g.metric} of {g.arm} {said}."
    return (
        f"Guardrail {g.metric} of {g.arm} {said}: from {_signed(g.lift_low)} to "
        f"{_signed(g.lift_high)} with {_sure(g.level)} confidence."
    )


def _lost(ratio: Ratio) -> tuple[str, ...]:
    units = ", ".join(
        f"{name} has {n:,} units where {ratio.expected[name]:,.0f} were expected"
        for name, n in ratio.units.items()
    )
    return (
        f"{units}: chance does that in less than {max(ratio.p, 1e-12):.2g} of experiments.",
        "Look for what drops or delays the units of one arm: eligibility that an arm changes, "
        "failing replicas, filters behind the exposure.",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.0f} %"


def _signed(share: float) -> str:
    return f"{100 * share:+.2f} %"


def _sure(level: float) -> str:
    return f"{100 * (1 - level):.4g} %"
