"""Policy files: what is refused and where, what lint sees, what a diff says, cases, publishing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from features import payments
from raypipe.errors import Conflict, DeclarationError, IntegrityError, NotFound
from raypipe.events.schema import EventType, Field
from raypipe.events.schema import Kind as ColumnKind
from raypipe.lake import Place
from raypipe.policy import cases, registry
from raypipe.policy.diff import diff
from raypipe.policy.lint import findings
from raypipe.policy.lists import Kind
from raypipe.policy.names import Names, read_condition
from raypipe.policy.reading import parse_policy, read_policy
from raypipe.policy.rules import RuleSet
from raypipe.policy.spec import PolicySpec
from tests.domains.greenhouse import project

SHIPPED = Path(payments.__file__).parent / "policies" / "payments.yaml"
NOW = 1_790_000_000_000

WATER = """
name: water
version: 3
owner: garden
lists: {trusted: allow, broken: deny}
segments:
  - {name: spray, when: mode == 'spray'}
thresholds:
  default: {review: 0.5, block: 0.9}
  spray: {step_up: 0.2, review: 0.4}
rules:
  - name: broken
    when: in_list("broken", valve)
    action: block
    final: true
    rank: 2
    reason: The valve is broken.
  - name: trusted
    when: in_list("trusted", gardener)
    action: approve
    final: true
    rank: 1
    reason: We know who it is.
  - name: much
    when: litres >= 1000
    action: review
    code: LOT_OF_WATER
    reason: That is a lot of water.
overrides:
  - name: drought
    from: 2026-07-01T00:00:00Z
    until: 2026-08-01T00:00:00Z
    who: ann
    why: no rain
    actions: {much: block}
"""


def changed(*pairs: tuple[str, str]) -> str:
    text = WATER
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new, 1)
    return text


def spec(*pairs: tuple[str, str]) -> PolicySpec:
    return parse_policy(changed(*pairs), "water.yaml")


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("version: 3", "version: x", 3, "version"),
        ("owner:", "ouner:", 4, "Did you mean 'owner'"),
        ("trusted: allow", "trusted: alow", 5, "allow"),
        ("name: spray, when", "name: default, when", 7, "no segment takes"),
        ("  spray: {step_up", "  sprya: {step_up", 10, "Did you mean 'spray'"),
        ("block: 0.9", "block: 0.4", 9, "below review 0.5"),
        ("block: 0.9", "block: 1.5", 9, "from 0 to 1"),
        ("block: 0.9", "approve: 0.9", 9, "unknown 'approve'"),
        ("version: 3", "version: 3\non_error: approve", 4, "on_error"),
        ("    reason: That is a lot of water.\n", "", 24, "lacks 'reason'"),
        ("action: review", "action: revew", 26, "Did you mean 'review'"),
        ("rank: 2", "rank: 1.5", 16, "rank"),
        ("LOT_OF_WATER", "lot", 27, "code"),
        ("name: trusted\n", "name: much\n", 12, "twice"),
        ("    until: 2026-08-01T00:00:00Z\n", "", 30, "lacks 'until'"),
        ("2026-08-01T00:00:00Z", "9999-01-01T00:00:00Z", 32, "within 366 days"),
        ("2026-08-01T00:00:00Z", "2026-07-01T00:00:00Z", 32, "after it began"),
        ("2026-08-01T00:00:00Z", "2026-08-01", 32, "Write a time"),
        ("who: ann", "who: ' '", 30, "by whom"),
        ("actions: {much: block}", "actions: {mutch: block}", 35, "Did you mean 'much'"),
        ("    actions: {much: block}\n", "", 30, "changes nothing"),
    ],
)
def test_a_refusal_names_the_line_and_the_way_out(old: str, new: str, line: int, says: str) -> None:
    with pytest.raises(DeclarationError) as refused:
        spec((old, new))
    assert says in str(refused.value)
    assert f"water.yaml:{line}: " in str(refused.value)


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ("litre >= 5", "Did you mean 'litres'"),
        ("thrist > 1", "Did you mean 'thirst'"),
        ("scor > 0.5", "Did you mean 'score'"),
        ("in_list('trustd', valve)", "Did you mean 'trusted'"),
        ("in_list('trusted', litres)", "Lists hold text columns"),
        ("in_list(valve)", 'Write in_list("name", column)'),
        ("mode > 3", "Write mode == '...'"),
        ("litres == 'much'", "Leave the quotes away"),
        ("mode == 'spary'", "Did you mean 'spray'"),
        ("absolut(litres) > 3", "Did you mean 'absolute'"),
        ("litres.real > 3", "not allowed"),
        ("__import__('os')", "unknown '__import__'"),
        ("[x for x in (1, 2)]", "unknown 'x'"),
        ("litres >", "can't be read"),
        ("_text_0 > 0", "unknown '_text_0'"),
        ("worker_awya and litres > 1", "Did you mean 'worker_away'"),
        ("worker_away == 'yes'", "Leave the quotes away"),
        ("litres in ('a', 3)", "Leave the quotes away"),
    ],
)
def test_a_condition_reads_only_what_there_is(condition: str, says: str) -> None:
    bad = spec(("litres >= 1000", json.dumps(condition)))
    [finding] = [f for f in findings(bad, project, 0) if f.level == "error"]
    assert "water.yaml:25: policy 'water': rule 'much': condition" in finding.detail
    assert says in f"{finding.detail} {finding.hint}"
    with pytest.raises(DeclarationError, match="much"):
        RuleSet(bad, project)


def test_a_condition_that_is_too_long_is_refused() -> None:
    names = Names(project.decision_event, project.feature_names, ())
    for text in (" and ".join(["litres > 1"] * 5_000), "(" * 250 + "litres" + ")" * 250):
        with pytest.raises(DeclarationError):
            read_condition(text, names)


def test_score_means_the_models_even_where_an_event_has_such_a_column() -> None:
    event = EventType(
        "exam", (Field("score", ColumnKind.INTEGER), Field("grade", ColumnKind.STRING))
    )
    when = read_condition("score > 0.5 and grade == 'a'", Names(event, ("score",), ()))
    assert (when.reads_score, when.columns, when.features) == (True, (), ())


def test_worker_away_means_the_decisions_and_needs_no_model() -> None:
    event = EventType("exam", (Field("worker_away", ColumnKind.STRING),))
    when = read_condition("worker_away and not in_list('x', event_id)", Names(event, (), ("x",)))
    assert (when.reads_away, when.independent, when.columns, when.features) == (True, True, (), ())


def codes(*pairs: tuple[str, str], now: int = 0) -> list[tuple[str, str]]:
    return [(f.level, f.code) for f in findings(spec(*pairs), project, now)]


def test_lint_is_silent_about_a_good_policy() -> None:
    assert codes() == []
    assert findings(read_policy(SHIPPED), payments.project, NOW) == []


@pytest.mark.parametrize(
    "condition",
    [
        "litres < 0",  # declared: at least 0
        "litres > 5 and litres < 5",
        "5 < litres <= 5",
        "score > 1",
        "mode == 'spray' and mode == 'drip'",
        "mode in ('spray', 'drip') and mode != 'spray' and mode != 'drip'",
        "in_list('trusted', valve) and not in_list('trusted', valve)",
        "0",
        "worker_away and not worker_away",
        "worker_away == 1 and not worker_away",
        "worker_away > 1",
        "in_list('broken', valve) and litres > 5",  # behind the final rule of the same
        "litres >= 2000 and in_list('broken', valve)",
    ],
)
def test_lint_sees_rules_that_never_fire(condition: str) -> None:
    assert codes(("litres >= 1000", json.dumps(condition))) == [("warning", "dead_rule")]


@pytest.mark.parametrize(
    "condition",
    [
        "litres >= 0 and litres <= 0",
        "score > 0.999 or litres > 3",
        "mode == 'spray' and mode != 'drip'",
        "not in_list('broken', valve)",
        "(alone or thirst != 1) and (not alone or thirst != 1)",
        "in_list('broken', gardener)",
        "score >= 1",
        "is_missing(thirst) and not litres > 5",
        "worker_away and litres > 5",
        "not worker_away and litres > 5",
    ],
)
def test_lint_leaves_rules_that_may_fire(condition: str) -> None:
    assert codes(("litres >= 1000", json.dumps(condition))) == []


def test_lint_sees_rules_of_one_rank_that_contradict_each_other() -> None:
    assert codes(("    rank: 2\n", ""), ("    rank: 1\n", "")) == [
        ("warning", "conflict"),  # broken, trusted
        ("warning", "conflict"),  # trusted, much
    ]
    apart = ('in_list("trusted", gardener)', "\"in_list('trusted', gardener) and litres < 1000\"")
    assert codes(("    rank: 1\n", ""), apart) == []  # broken has a rank of its own


def test_lint_sees_what_is_left_over() -> None:
    assert codes(("broken: deny", "broken: deny, gone: watch")) == [("warning", "unused_list")]
    assert codes(now=1_785_542_400_000) == [("warning", "expired_override")]  # 2026-08-01
    assert codes(now=1_785_542_399_999) == []
    assert codes(("  default: {review: 0.5, block: 0.9}\n", "")) == [("warning", "no_default")]
    kinds = {"broken": Kind.WATCH, "other": Kind.DENY}
    assert [f.code for f in findings(spec(), project, 0, kinds)] == ["list_kind"]
    second = "mode == 'spray'}\n  - {name: wet, when: mode == 'spray' and litres > 9}"
    assert codes(("mode == 'spray'}", second)) == [("warning", "dead_segment")]


def test_the_canonical_form_is_what_was_meant() -> None:
    one, same = spec(), spec(("litres >= 1000", "litres   >=  1000  # a lot"))
    assert one.sha256 == same.sha256
    assert parse_policy(one.text).sha256 == one.sha256
    assert spec(("0.9", "0.91")).sha256 != one.sha256


def test_a_diff_says_what_changes_in_words() -> None:
    assert diff(spec(), spec()) == []
    found = diff(
        spec(),
        spec(
            ("review: 0.5, block: 0.9", "step_up: 0.3, review: 0.6"),
            ("litres >= 1000", "litres >= 900"),
            ("rank: 2", "rank: 0"),
            ("broken: deny", "broken: watch"),
            ("version: 3", "version: 4\non_error: block"),
        ),
    )
    assert found == [
        "without a score: block instead of review",
        "list 'broken' is of kind watch instead of deny",
        "segment 'default': step_up above a score of 0.3, which none asked for before",
        "segment 'default': review above a score of 0.6 instead of 0.5 (milder)",
        "segment 'default': no score asks for block any more (was above 0.9)",
        "rule 'broken' has rank 0 instead of 2",
        "rule 'much' fires when 'litres >= 900' instead of 'litres >= 1000'",
        "rules are looked at in another order: trusted, broken, much",
    ]
    away = spec(("litres >= 1000", "litres >= 1000 or worker_away and litres > 9"))
    assert diff(spec(), away) == [
        "rule 'much' fires when 'litres >= 1000 or worker_away and litres > 9' "
        "instead of 'litres >= 1000'"
    ]
    gone = WATER[: WATER.index("overrides:")]
    assert diff(spec(), parse_policy(gone)) == [
        "override 'drought' is gone: rule 'much' asks for block; "
        "from 2026-07-01T00:00:00.000Z until 2026-08-01T00:00:00.000Z, by ann: no rain"
    ]


CASES = """
- name: a trusted gardener
  event: {gardener: ann, litres: 5000, valve: v-1}
  score: 0.99
  lists: {trusted: [ann]}
  expect: {action: approve, codes: [TRUSTED], segment: default, degraded: false}
- name: much in the drought
  event: {litres: 5000}
  at: 2026-07-31T23:59:59Z
  expect: {action: block, codes: [LOT_OF_WATER]}
- name: much after it
  event: {litres: 5000}
  at: 2026-08-01T00:00:00Z
  expect: {action: review}
- name: no score
  event: {litres: 1}
  score: null
  expect: {action: review, codes: [NO_SCORE], degraded: true}
"""


def outcome(text: str, folder: Path) -> list[tuple[str, ...]]:
    file = folder / "water.cases.yaml"
    file.write_text(text)
    found = cases.run(RuleSet(spec(), project), cases.read_cases(file, spec(), project, NOW))
    return [r.wrong for r in found]


def test_cases_tell_what_comes_out_otherwise(tmp_path: Path) -> None:
    assert outcome(CASES, tmp_path) == [()] * 4
    wrong = CASES.replace("approve", "block").replace("[NO_SCORE]", "[]")
    assert outcome(wrong, tmp_path) == [
        ("action approve, expected block",),
        (),
        (),
        ("codes NO_SCORE, expected none",),
    ]


def test_a_case_says_whether_the_worker_is_away(tmp_path: Path) -> None:
    rules = spec(("litres >= 1000", "worker_away and litres >= 100"))
    file = tmp_path / "water.cases.yaml"
    file.write_text(
        "- {name: away, event: {litres: 100}, worker_away: true, expect: {action: review}}\n"
        "- {name: here, event: {litres: 100}, worker_away: false, expect: {action: approve}}\n"
        "- {name: unsaid, event: {litres: 100}, expect: {action: approve}}\n"
        "- {name: nothing, event: {litres: 100}, score: null, worker_away: true,"
        " expect: {action: review, codes: [LOT_OF_WATER, NO_SCORE], degraded: true}}\n"
    )
    found = cases.run(RuleSet(rules, project), cases.read_cases(file, rules, project, NOW))
    assert [r.wrong for r in found] == [()] * 4


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("gardener: ann", "gardner: ann", "Did you mean 'gardener'"),
        ("lists: {trusted", "lists: {trustd", "Did you mean 'trusted'"),
        ("score: 0.99", "features: {thrist: 1}", "unknown feature 'thrist'"),
        ("action: approve", "action: let", "action"),
        ("litres: 5000, valve", "litres: wet, valve", "expected a number"),
    ],
)
def test_a_case_that_can_not_be_read_names_its_line(
    old: str, new: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(DeclarationError) as refused:
        outcome(CASES.replace(old, new, 1), tmp_path)
    assert says in str(refused.value)
    assert ".yaml:" in str(refused.value)


def test_the_shipped_cases_come_out_and_try_every_rule() -> None:
    policy = read_policy(SHIPPED)
    rules = RuleSet(policy, payments.project)
    found = cases.run(
        rules, cases.read_cases(cases.cases_file(SHIPPED), policy, payments.project, NOW)
    )
    assert [r.wrong for r in found] == [()] * len(found)
    assert {rule for r in found for rule in r.verdict.rules} >= {r.name for r in policy.rules}
    assert set(rules.features) <= set(payments.project.model("fraud").features)


@pytest.fixture
def lake(tmp_path: Path) -> Place:
    return Place.at(tmp_path)


def publish(lake: Place, text: str = WATER) -> registry.Manifest:
    return registry.publish(lake, parse_policy(text), text.encode(), project, NOW)[0]


def test_a_published_version_never_changes(lake: Place) -> None:
    manifest = publish(lake)
    again, new = registry.publish(lake, spec(), b"# another text", project, NOW + 1)
    assert (again, new) == (manifest, False)
    assert (lake / "policies/water/3/source.yaml").read().decode() == WATER
    with pytest.raises(Conflict, match="write version: 4"):
        publish(lake, changed(("0.9", "0.8")))
    publish(lake, changed(("version: 3", "version: 12"), ("0.9", "0.8")))
    assert registry.POLICIES.versions(lake, "water") == [3, 12]
    assert registry.POLICIES.resolve(lake, "water") == "water@12"
    loaded = registry.load_policy(lake, "water@3", project)
    assert (loaded.id, loaded.sha256, loaded.lists) == (
        "water@3",
        manifest.sha256,
        ("broken", "trusted"),
    )


def test_what_can_not_decide_is_not_published(lake: Place) -> None:
    with pytest.raises(DeclarationError, match="litre"):
        publish(lake, changed(("litres >= 1000", "litre >= 1000")))
    assert registry.POLICIES.names(lake) == []


@pytest.mark.parametrize("reference", ["fire", "water@4", "water@x", "../water", ""])
def test_an_unknown_policy_is_not_found(lake: Place, reference: str) -> None:
    publish(lake)
    with pytest.raises(NotFound):
        registry.load_policy(lake, reference, project)


@pytest.mark.parametrize("file", ["policy.json", "manifest.json"])
def test_changed_bytes_are_not_loaded(lake: Place, file: str) -> None:
    publish(lake)
    place = lake / "policies/water/3" / file
    place.write(place.read().replace(b"water", b"waxer"))
    with pytest.raises(IntegrityError):
        registry.load_policy(lake, "water@3", project)


def test_a_policy_is_bound_to_what_the_model_has_seen() -> None:
    rules = RuleSet(spec(("litres >= 1000", "thirst > 3 and valve_count_2d > 9")), project)
    assert rules.features == ("thirst", "valve_count_2d")
    with pytest.raises(DeclarationError, match="does not have: valve_count_2d"):
        rules.bind(("thirst", "litres"))
