"""Experiment files: YAML text becomes an experiment, every refusal names the file and the line."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from raypipe.errors import DeclarationError
from raypipe.experiments.spec import (
    BUILT_IN,
    Arm,
    Cap,
    Direction,
    Experiment,
    Kind,
    Metric,
)
from raypipe.yaml_nodes import Node, documents, nearest, read_text
from raypipe.yaml_nodes import Place as Lines

EXPERIMENT_KEYS = (
    *("name", "version", "description", "owner", "unit", "layer", "start", "salt", "arms"),
    *("holdout", "eligible", "segments", "metrics", "guardrails", "minimum_effect"),
    *("horizon", "before", "alpha", "power"),
)
NEEDED = ("name", "version", "unit", "arms", "metrics", "minimum_effect", "horizon")
ARM_KEYS = ("share", "model", "policy")
METRIC_KEYS = (
    *("name", "of", "kind", "direction", "value", "where", "key", "cap", "within", "maturity"),
)
CAP_KEYS = ("quantile", "value")

MOST_ARMS = 16
RESERVED = frozenset({"unit", "arm", "exposed_at", "tenant", "propensity"})
"""Columns of the table of units, which no metric or segment may be called."""

_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*@[A-Za-z0-9][A-Za-z0-9_.-]*")
_SALT = re.compile(r"[!-~]{1,64}")
_SLACK = 1e-9
_DAY_MS = 86_400_000
_LONGEST_MS = 366 * _DAY_MS


def read_experiment(path: Path) -> Experiment:
    """The experiment of a file; raises DeclarationError that names the line."""
    return parse_experiment(read_text(path, "experiment"), str(path))


def parse_experiment(text: str, file: str = "experiment") -> Experiment:
    """The experiment of a YAML text; raises DeclarationError that names the line."""
    found = documents(text, file)
    if len(found) != 1:
        raise DeclarationError(
            f"{file} holds {len(found)} documents", hint="One experiment is expected."
        )
    return _experiment(found[0])


def _experiment(at: Node) -> Experiment:
    raw = at.mapping("an experiment", EXPERIMENT_KEYS)
    _need(at, raw, "the experiment", NEEDED)
    lines = {"": at.line, **{name: node.line for name, node in raw.items()}}
    arms = _arms(raw["arms"], lines)
    start = _place(raw, "start")
    share = sum(a.share for a in arms)
    if start + share > 1.0 + _SLACK:
        raw["arms"].fail(
            f"the arms take {share:g} of the layer from {start:g} on",
            "They end at 1 at the latest: lower the shares or the start.",
        )
    metrics = _metrics(raw["metrics"], lines)
    return Experiment(
        name=raw["name"].name("name"),
        version=raw["version"].whole("version"),
        unit=raw["unit"].name("unit"),
        arms=arms,
        metrics=metrics,
        horizon_ms=_duration(raw, "horizon"),
        minimum_effect=_between(raw, "minimum_effect", 0.0, 10.0, 0.0),
        layer=_given(raw, "layer", Node.name),
        start=start,
        salt=_given(raw, "salt", _salt),
        holdout=_place(raw, "holdout"),
        eligible=_expression(raw, "eligible"),
        segments=_segments(raw.get("segments"), [m.name for m in metrics]),
        guardrails=_guardrails(raw.get("guardrails"), metrics, lines),
        before_ms=_duration(raw, "before"),
        alpha=_between(raw, "alpha", 0.0, 0.5, 0.05),
        power=_between(raw, "power", 0.5, 1.0, 0.8),
        description=_given(raw, "description", Node.text),
        owner=_given(raw, "owner", Node.text),
        place=Lines(at.file, lines),
    )


def _arms(at: Node, lines: dict[str, int]) -> tuple[Arm, ...]:
    found = []
    for name, node in at.mapping("arms", None).items():
        raw = node.mapping(f"arm {name!r}", ARM_KEYS)
        _need(node, raw, f"arm {name!r}", ("share",))
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", name):
            node.fail(f"an arm is called {name!r}", "Lower-case letters, digits and _.")
        share = raw["share"].number(f"the share of {name!r}")
        if not 0.0 < share <= 1.0:
            raw["share"].fail(
                f"the share of {name!r} is {share:g}", "Above 0, at most 1: half is 0.5."
            )
        lines[f"arms.{name}"] = node.line
        model, policy = (_reference(raw, part, name) for part in ("model", "policy"))
        found.append(Arm(name, share, model, policy))
    if not 2 <= len(found) <= MOST_ARMS:
        at.fail(
            f"there {'is 1 arm' if len(found) == 1 else f'are {len(found)} arms'}",
            f"An experiment has 2 to {MOST_ARMS}; the first one is the control.",
        )
    return tuple(found)


def _reference(raw: Mapping[str, Node], part: str, arm: str) -> str | None:
    if part not in raw:
        return None
    reference = raw[part].text(f"{part} of {arm!r}")
    if not _REFERENCE.fullmatch(reference):
        raw[part].fail(
            f"{part} of {arm!r} is {reference!r}",
            "Write NAME@VERSION; an arm that is served what the release serves has none.",
        )
    return reference


def _metrics(at: Node, lines: dict[str, int]) -> tuple[Metric, ...]:
    found = tuple(_metric(node, lines) for node in at.items())
    names = [m.name for m in found]
    doubled = sorted({n for n in names if names.count(n) > 1})
    if doubled:
        at.fail(f"metrics have a name twice: {', '.join(doubled)}", "Names are unique.")
    if not found:
        at.fail("there are no metrics", "The first one is what the verdict is about.")
    return found


def _metric(at: Node, lines: dict[str, int]) -> Metric:
    raw = at.mapping("a metric", METRIC_KEYS)
    _need(at, raw, "the metric", ("name", "of"))
    name, of = raw["name"].name("the metric's name"), raw["of"].name("of")
    if name in RESERVED or "__" in name:
        raw["name"].fail(f"a metric is called {name!r}", "That is a column of the table of units.")
    lines[f"metrics.{name}"] = at.line
    lines |= {f"metrics.{name}.{key}": node.line for key, node in raw.items()}
    known = BUILT_IN.get(of)
    if known is None:
        _need(at, raw, f"metric {name!r} of events", ("kind", "direction"))
    elif "key" in raw:
        raw["key"].fail(f"metric {name!r} of {of} has a key", "The decisions have the unit itself.")
    elif known.priced != ("value" in raw):
        at.fail(
            f"metric {name!r} of {of} {'lacks' if known.priced else 'has'} a value",
            "Write what a decision is worth, as `value: amount`."
            if known.priced
            else "It counts by itself: leave the value out.",
        )
    return Metric(
        name=name,
        of=of,
        kind=_kind(raw.get("kind"), known.kind if known else Kind.MEAN),
        direction=_direction(raw.get("direction"), known.direction if known else Direction.UP),
        value=_expression(raw, "value"),
        where=_expression(raw, "where"),
        key=raw["key"].name("key") if "key" in raw else "",
        cap=_cap(raw["cap"], name) if "cap" in raw else Cap(),
        within_ms=_duration(raw, "within"),
        maturity_ms=_duration(raw, "maturity") if "maturity" in raw else None,
    )


def _kind(at: Node | None, default: Kind) -> Kind:
    return default if at is None else Kind(at.one_of("kind", tuple(Kind)))


def _direction(at: Node | None, default: Direction) -> Direction:
    return default if at is None else Direction(at.one_of("direction", tuple(Direction)))


def _cap(at: Node, metric: str) -> Cap:
    raw = at.mapping(f"the cap of {metric!r}", CAP_KEYS)
    if len(raw) != 1:
        at.fail(
            f"the cap of {metric!r} has {len(raw)} rules",
            "Write one: {quantile: 0.99} or {value: 100000}.",
        )
    (rule, node), *_ = raw.items()
    value = node.number(rule)
    if rule == "quantile" and not 0.5 <= value < 1.0:
        node.fail(f"quantile is {value:g}", "From 0.5 to below 1: 0.99 cuts the highest of 100.")
    if rule == "value" and value <= 0.0:
        node.fail(f"value is {value:g}", "Above 0, in the units of the metric.")
    return Cap(**{rule: value})


def _segments(at: Node | None, metrics: list[str]) -> tuple[str, ...]:
    found = [] if at is None else [node.name("a segment") for node in at.items()]
    for name in found:
        if at is not None and (found.count(name) > 1 or name in RESERVED or name in metrics):
            at.fail(f"segment {name!r} is named twice, or as something else", "Names are unique.")
    return tuple(found)


def _guardrails(
    at: Node | None, metrics: tuple[Metric, ...], lines: dict[str, int]
) -> Mapping[str, float]:
    names = [m.name for m in metrics]
    found = {}
    for name, node in ({} if at is None else at.mapping("guardrails", None)).items():
        if name not in names:
            node.fail(f"a guardrail of unknown metric {name!r}", nearest(name, names))
        lines[f"guardrails.{name}"] = node.line
        found[name] = node.number(name)
        if not 0.0 <= found[name] < 1.0:
            node.fail(
                f"guardrail {name!r} tolerates {found[name]:g}",
                "A relative loss from 0 to below 1: 0.02 is two percent.",
            )
    return found


def _between(raw: Mapping[str, Node], name: str, low: float, high: float, default: float) -> float:
    """A number above ``low`` and below ``high``."""
    if name not in raw:
        return default
    value = raw[name].number(name)
    if not low < value < high:
        raw[name].fail(f"{name} is {value:g}", f"Above {low:g} and below {high:g} is expected.")
    return value


def _place(raw: Mapping[str, Node], name: str) -> float:
    value = raw[name].number(name) if name in raw else 0.0
    if not 0.0 <= value < 1.0:
        raw[name].fail(f"{name} is {value:g}", "A share from 0 to below 1 is expected.")
    return value


def _given(raw: Mapping[str, Node], name: str, read: Callable[[Node, str], str]) -> str:
    """A text that may be left out or empty."""
    return "" if name not in raw or raw[name].node.value == "" else read(raw[name], name)


def _duration(raw: Mapping[str, Node], name: str) -> int:
    at = raw.get(name)
    if at is None or at.node.value == "":
        return 0
    found = at.duration(name)
    if found > _LONGEST_MS:
        at.fail(f"{name} is {found // _DAY_MS} days", "366 days at most.")
    return found


def _expression(raw: Mapping[str, Node], name: str) -> str:
    if name not in raw:
        return ""
    at = raw[name]
    # `value: 1` is an expression too.
    text = str(at.node.value) if at.node.tag.endswith((":int", ":float")) else at.text(name)
    return " ".join(text.split())


def _salt(at: Node, name: str) -> str:
    salt = at.text(name)
    if not _SALT.fullmatch(salt):
        at.fail(f"the salt is {salt!r}", "Use 1 to 64 printable characters, no spaces.")
    return salt


def _need(at: Node, raw: Mapping[str, Node], what: str, names: tuple[str, ...]) -> None:
    for name in names:
        if name not in raw:
            at.fail(f"{what} lacks {name!r}", "It needs " + ", ".join(names) + ".")
