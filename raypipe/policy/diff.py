"""Two policies compared, in words: what of the one is other in the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from raypipe.policy.policy import Action
from raypipe.policy.spec import Override, PolicySpec, Rule, Thresholds, iso


def diff(a: PolicySpec, b: PolicySpec) -> list[str]:
    """What changes from ``a`` to ``b``, a sentence each; nothing for two that decide alike."""
    return [line for part in _PARTS for line in part(a, b)]


def _about(a: PolicySpec, b: PolicySpec) -> Iterator[str]:
    if a.on_error != b.on_error:
        yield f"without a score: {b.on_error} instead of {a.on_error}"


def _lists(a: PolicySpec, b: PolicySpec) -> Iterator[str]:
    for name, was, now in _pairs(a.lists, b.lists):
        if was is None:
            yield f"list {name!r} ({now}) is declared"
        elif now is None:
            yield f"list {name!r} ({was}) is declared no more"
        elif was != now:
            yield f"list {name!r} is of kind {now} instead of {was}"


def _segments(a: PolicySpec, b: PolicySpec) -> Iterator[str]:
    before, after = {s.name: s.when for s in a.segments}, {s.name: s.when for s in b.segments}
    for name, was, now in _pairs(before, after):
        if was is None:
            yield f"new segment {name!r}: {now}"
        elif now is None:
            yield f"segment {name!r} is gone"
        elif was != now:
            yield f"segment {name!r} is {now!r} instead of {was!r}"
    yield from _order("segments", list(before), list(after))


def _thresholds(a: PolicySpec, b: PolicySpec) -> Iterator[str]:
    for segment, was, now in _pairs(a.thresholds, b.thresholds):
        if was is None:
            yield f"segment {segment!r} gets thresholds of its own: {_of(now)}"
        elif now is None:
            yield f"segment {segment!r} has no thresholds of its own any more"
        else:
            yield from _threshold_changes(f"segment {segment!r}", was, now)


def _threshold_changes(where: str, was: Thresholds, now: Thresholds) -> Iterator[str]:
    for action in (Action.STEP_UP, Action.REVIEW, Action.BLOCK):
        old, new = was.of(action), now.of(action)
        if old == new:
            continue
        if new is None:
            yield f"{where}: no score asks for {action} any more (was above {old:g})"
        elif old is None:
            yield f"{where}: {action} above a score of {new:g}, which none asked for before"
        else:
            turn = "stricter" if new < old else "milder"
            yield f"{where}: {action} above a score of {new:g} instead of {old:g} ({turn})"


def _rules(a: PolicySpec, b: PolicySpec) -> Iterator[str]:
    before, after = {r.name: r for r in a.ordered}, {r.name: r for r in b.ordered}
    for name, was, now in _pairs(before, after):
        if was is None:
            yield f"new rule {name!r}: {_rule(now)}"
        elif now is None:
            yield f"rule {name!r} is gone: {_rule(was)}"
        else:
            yield from _rule_changes(was, now)
    yield from _order("rules", list(before), list(after))


def _rule_changes(was: Rule, now: Rule) -> Iterator[str]:
    where = f"rule {was.name!r}"
    if was.when != now.when:
        yield f"{where} fires when {now.when!r} instead of {was.when!r}"
    if was.action != now.action:
        yield f"{where} asks for {now.action} instead of {was.action}"
    if was.final != now.final:
        yield f"{where} {'ends the evaluation now' if now.final else 'ends the evaluation no more'}"
    if was.rank != now.rank:
        yield f"{where} has rank {now.rank} instead of {was.rank}"
    if was.code != now.code:
        yield f"{where} has code {now.code} instead of {was.code}"
    if was.words != now.words:
        yield f"{where} says {now.words!r} instead of {was.words!r}"


def _reasons(a: PolicySpec, b: PolicySpec) -> Iterator[str]:
    for feature, was, now in _pairs(a.reasons, b.reasons):
        if was is None:
            yield f"feature {feature!r} gets words: {now.code} {now.words!r}"
        elif now is None:
            yield f"feature {feature!r} has no words any more"
        elif was != now:
            said = f"{was.code} {was.words!r}"
            yield f"feature {feature!r} says {now.code} {now.words!r} instead of {said}"


def _overrides(a: PolicySpec, b: PolicySpec) -> Iterator[str]:
    before, after = {o.name: o for o in a.overrides}, {o.name: o for o in b.overrides}
    for name, was, now in _pairs(before, after):
        if was is None:
            yield f"new override {name!r}: {_override(now)}"
        elif now is None:
            yield f"override {name!r} is gone: {_override(was)}"
        elif was != now:
            yield f"override {name!r} is {_override(now)}, instead of {_override(was)}"


def _pairs(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in dict.fromkeys((*a, *b)):
        yield name, a.get(name), b.get(name)


def _order(what: str, a: Sequence[str], b: Sequence[str]) -> Iterator[str]:
    kept = [n for n in a if n in b]
    if kept != [n for n in b if n in a]:
        yield f"{what} are looked at in another order: {', '.join(b)}"


def _rule(rule: Rule) -> str:
    return f"{rule.action}{' at once' if rule.final else ''} when {rule.when}"


def _of(thresholds: Thresholds) -> str:
    return ", ".join(f"{a} above {t:g}" for a, t in thresholds.given) or "none"


def _override(o: Override) -> str:
    changes = [f"without rule {name!r}" for name in o.disable]
    changes += [f"rule {name!r} asks for {action}" for name, action in o.actions.items()]
    changes += [f"segment {name!r}: {_of(t)}" for name, t in o.thresholds.items()]
    return (
        f"{'; '.join(changes)}; from {iso(o.start_ms)} until {iso(o.until_ms)}, by {o.who}: {o.why}"
    )


_PARTS: tuple[Callable[[PolicySpec, PolicySpec], Iterator[str]], ...] = (
    _about,
    _lists,
    _segments,
    _thresholds,
    _rules,
    _reasons,
    _overrides,
)
