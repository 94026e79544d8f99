"""``raypipe policy``: check, compare, try and publish rule sets, and keep their lists."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raypipe.cli import _output, _policy_backtest, _policy_lists, release
from raypipe.cli._options import Json
from raypipe.cli._shared import settled

if TYPE_CHECKING:
    from raypipe.config import Settings
    from raypipe.policy.spec import PolicySpec
    from raypipe.project import Project

app = typer.Typer(
    name="policy",
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Check, compare, try and publish policies, and keep their lists.",
)
File = Annotated[Path, typer.Argument(metavar="FILE", help="A policy (YAML).")]
Reference = Annotated[
    str, typer.Argument(metavar="POLICY", help="A file, name@version, or name for the newest.")
]


@app.command()
@settled
def lint(settings: Settings, file: File, json: Json = False) -> int:
    """Check a policy against the events and features of the project.

    Errors: what can't be read, unknown names. Warnings: rules of one rank that can both fire and
    contradict each other, rules and segments that never apply, lists that are not used or of
    another kind than those of the setting tenant, overrides that are over. Exits with
    1 if there is a finding.
    """
    from dataclasses import asdict

    from raypipe.clock import SystemClock
    from raypipe.policy.lint import lint as check
    from raypipe.policy.list_store import ListStore

    kinds = ListStore(settings.lake, settings.tenant).refresh().kinds
    spec, found = check(file, _project(settings), SystemClock().now_ms(), kinds)
    texts = [f"{f.level}: {f.detail}\n  {f.hint}".rstrip() for f in found]
    errors = sum(f.level == "error" for f in found)
    summary = f"Errors: {errors}. Warnings: {len(found) - errors}."
    _output.write(
        {
            "ok": not found,
            "policy": spec.id if spec else None,
            "sha256": spec.sha256 if spec else None,
            "findings": [asdict(f) for f in found],
        },
        as_json=json,
        text="\n".join([*texts, summary]),
    )
    return 1 if found else 0


@app.command()
@settled
def publish(settings: Settings, file: File, json: Json = False) -> int:
    """Put a policy into the lake as name@version, for good.

    The same policy again changes nothing; another one under a version that is taken is refused.
    """
    from raypipe.clock import SystemClock
    from raypipe.policy import registry
    from raypipe.policy.reading import read_policy

    spec = read_policy(file)
    manifest, new = registry.publish(
        settings.lake, spec, file.read_bytes(), _project(settings), SystemClock().now_ms()
    )
    _output.write(
        {"policy": spec.id, "sha256": manifest.sha256, "new": new},
        as_json=json,
        text=f"{spec.id} is published: sha256 {manifest.sha256}"
        if new
        else f"{spec.id} was published before, and is the same.",
    )
    return 0


@app.command("list")
@settled
def list_(settings: Settings, json: Json = False) -> int:
    """List the published policies."""
    from raypipe.policy.registry import POLICIES
    from raypipe.policy.spec import iso

    found = list(POLICIES.manifests(settings.lake))
    rows = [(m.id, iso(m.published_ms), m.project, m.sha256[:12]) for m in found]
    policies = [{"policy": m.id, "published_ms": m.published_ms, "sha256": m.sha256} for m in found]
    table = _output.table(("POLICY", "PUBLISHED", "PROJECT", "SHA256"), rows)
    _output.write({"policies": policies}, as_json=json, text=table if rows else "None.")
    return 0


@app.command()
@settled
def show(settings: Settings, policy: Reference, json: Json = False) -> int:
    """Show a policy: its rules in the order in which they are looked at, its thresholds."""
    spec = _spec(settings, policy)
    _output.write(spec.describe() | {"sha256": spec.sha256}, as_json=json, text=_text(spec))
    return 0


@app.command()
@settled
def diff(settings: Settings, a: Reference, b: Reference, json: Json = False) -> int:
    """Say in words what changes from one policy to another."""
    from raypipe.policy.diff import diff as compare

    before, after = _spec(settings, a), _spec(settings, b)
    changes = compare(before, after)
    _output.write(
        {"from": before.id, "to": after.id, "changes": changes},
        as_json=json,
        text="\n".join([f"{before.id} -> {after.id}", *(f"- {c}" for c in changes)])
        if changes
        else f"{before.id} and {after.id} decide alike.",
    )
    return 0


@app.command("test")
@settled
def try_(
    settings: Settings,
    file: File,
    cases: Annotated[
        Path | None,
        typer.Option("--cases", metavar="FILE", help="Its cases [NAME.cases.yaml beside it]."),
    ] = None,
    json: Json = False,
) -> int:
    """Run a policy's test cases; exits with 1 if one comes out otherwise."""
    from raypipe.clock import SystemClock
    from raypipe.policy import cases as policy_cases
    from raypipe.policy.reading import read_policy
    from raypipe.policy.rules import RuleSet

    project = _project(settings)
    spec = read_policy(file)
    source = cases or policy_cases.cases_file(file)
    found = policy_cases.run(
        RuleSet(spec, project),
        policy_cases.read_cases(source, spec, project, SystemClock().now_ms()),
    )
    wrong = [r for r in found if r.wrong]
    fired = {rule for r in found for rule in r.verdict.rules}
    untried = [r.name for r in spec.ordered if r.name not in fired]
    texts = [policy_cases.told(r, source) for r in wrong]
    if untried:
        texts.append(f"No case has these rules fire: {', '.join(untried)}.")
    _output.write(
        {
            "ok": not wrong,
            "cases": [
                {"name": r.case.name, "action": r.verdict.action.value, "wrong": list(r.wrong)}
                for r in found
            ],
            "untried_rules": untried,
        },
        as_json=json,
        text="\n".join([*texts, f"Cases: {len(found)}. Wrong: {len(wrong)}."]),
    )
    return 1 if wrong else 0


def _project(settings: Settings) -> Project:
    from raypipe.project import load_project

    return load_project(settings.project)


def _spec(settings: Settings, reference: str) -> PolicySpec:
    from raypipe.policy.registry import POLICIES

    return POLICIES.find(settings.lake, reference)


def _text(spec: PolicySpec) -> str:
    from raypipe.policy.spec import iso

    about = spec.description or "no description"
    parts = [f"{spec.id}: {about}\nowner {spec.owner or '-'}, sha256 {spec.sha256}"]
    rules: list[tuple[Any, ...]] = [
        (r.name, r.rank, f"{r.action}{' (final)' if r.final else ''}", r.code, r.when)
        for r in spec.ordered
    ]
    if rules:
        parts.append(_output.table(("RULE", "RANK", "ACTION", "CODE", "WHEN"), rules))
    conditions = {s.name: s.when for s in spec.segments}
    thresholds = [
        (name, *(f"> {x:g}" if (x := t.of(a)) is not None else "-" for a in _flags()))
        for name, t in spec.thresholds.items()
    ]
    if thresholds:
        rows = [(*row, conditions.get(str(row[0]), "what no other takes")) for row in thresholds]
        parts.append(_output.table(("SEGMENT", "STEP_UP", "REVIEW", "BLOCK", "WHEN"), rows))
    overrides = [(o.name, iso(o.start_ms), iso(o.until_ms), o.who, o.why) for o in spec.overrides]
    if overrides:
        parts.append(_output.table(("OVERRIDE", "FROM", "UNTIL", "WHO", "WHY"), overrides))
    parts.append(f"without a score: {spec.on_error}")
    return "\n\n".join(parts)


def _flags() -> Any:
    from raypipe.policy.spec import FLAGS

    return FLAGS


app.add_typer(_policy_lists.app)
app.command()(_policy_backtest.backtest)
app.command("use")(release.use_policy)
