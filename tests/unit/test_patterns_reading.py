"""Pattern files: what is refused says where it stands and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from features import commerce
from raypipe.errors import DeclarationError
from raypipe.patterns.plan import compile_pattern
from raypipe.patterns.reading import parse_patterns, read_patterns
from raypipe.patterns.spec import Pattern, Step
from tests.unit.pattern_stories import SHIPPED

GOOD = """
name: takeover
group_by: customer_id
pattern:
  - name: entry
    event: login
    where: success and new_device
  - name: loot
    event: order
    where: amount > 100 and country != entry.country
within: 1d
reason: "{loot.amount:money} from {entry.device_id}"
"""


def refused(text: str) -> DeclarationError:
    with pytest.raises(DeclarationError) as e:
        read(text)
    return e.value


def read(text: str) -> None:
    for pattern in parse_patterns(text, "p.yaml"):
        compile_pattern(pattern, commerce.project.events)


def test_reads_words_and_defaults() -> None:
    [pattern] = parse_patterns(GOOD)
    assert pattern == Pattern(
        "takeover",
        (("login", "customer_id"), ("order", "customer_id")),
        (
            Step("entry", ("login",), "success and new_device"),
            Step("loot", ("order",), "amount > 100 and country != entry.country"),
        ),
        86_400_000,
        "{loot.amount:money} from {entry.device_id}",
    )
    compile_pattern(pattern, commerce.project.events)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("group_by", "grup_by", "p.yaml:3: a pattern has unknown 'grup_by' | Did you mean 'group_"),
        ("event: login", "event: logn", "p.yaml:6: pattern 'takeover': step 'entry' reads unknown"),
        ("event: login", "event: logn", "Did you mean 'login'?"),
        ("customer_id", "costumer_id", "p.yaml:3: pattern 'takeover': groups by unknown column"),
        ("customer_id", "amount", "groups by unknown column login.amount"),
        ("new_device", "new_devise", "p.yaml:7: pattern 'takeover': unknown column login.new_dev"),
        ("new_device", "new_devise", "Did you mean 'new_device'?"),
        ("amount > 100", "amout > 100", "p.yaml:10: pattern 'takeover': unknown column order.am"),
        ("amount > 100", "absolut(amount) > 1", "calls unknown 'absolut' | Did you mean 'absol"),
        ("amount > 100", "floor(amount, 1)", "gives floor 2 values, it takes 1"),
        ("amount > 100", "amount > '100'", "compares amount > '100' | Text is compared with text"),
        ("amount > 100", "country > 'DE'", "compares country > 'DE'"),
        ("amount > 100", "country", "reads the text country as a number"),
        ("amount > 100", "amount ** 2", "has 'amount ** 2' | Allowed: and, or, not"),
        ("amount > 100", "amount is 2", "has 'amount is 2' | Use < <= > >= == !=."),
        ("amount > 100", "(amount if amount else 1)", "has 'amount if amount else 1'"),
        ("amount > 100", "__import__('os').system('x')", "has \"__import__('os').system('x')\""),
        ("amount > 100", "amount >", "can't be read"),
        ("amount > 100", "amount > True", "has 'True'"),
        ("amount > 100", "seconds_since(5) > 1", "Write seconds_since(STEP)."),
        ("amount > 100", "amount > 1e999", "a number that is too large"),
        ("amount > 100", "(" * 150 + "amount" + ")" * 150 + "> 1" + " + 1" * 9_000, "read"),
        ("entry.country", "exit.country", "'exit' in exit.country is no step | Known: entry"),
        ("entry.country", "loot.country", "is no earlier step"),
        ("entry.country", "entry.contry", "unknown column login.contry | Did you mean 'country'"),
        ("entry.country", "entry.country_max", "'country' is text | entry.country_first is known"),
        ("where: success", "where: entry.count and success", "'entry' in entry.count is no ear"),
        ("within: 1d", "within: 1 day", "p.yaml:11: within is '1 day' | Write a whole number and"),
        ("within: 1d", "within: 500d", "p.yaml:11: pattern 'takeover': within is 43200000000 ms"),
        ("within: 1d", "severity: grave\nwithin: 1d", "severity is 'grave' | Known: low, medium"),
        ("within: 1d", "strict: maybe\nwithin: 1d", "strict is 'maybe', expected true or false"),
        ("within: 1d", "partials: 65\nwithin: 1d", "partials is 65 | 1 to 64 are possible."),
        ("within: 1d", "version: 0\nwithin: 1d", "p.yaml:11: version is 0"),
        ("within: 1d", "name: again\nwithin: 1d", "p.yaml:11: a pattern has 'name' twice"),
        ("within: 1d", "within: [1d", "not YAML"),
        ("name: takeover", "name: Take-over", "p.yaml:2: name is 'Take-over'"),
        ("name: takeover", "name: 12", "name is '12', expected text | Put quotes around it."),
        ("name: loot", "name: entry", "step 'entry' is declared twice"),
        ("event: login", "event: login\n    not: true", "the first step is negated"),
        ("event: login", "event: login\n    times: {min: 3, max: 2}", "takes 3 to 2 events"),
        ("event: login", "event: login\n    times: 64", "the steps need over 64 events"),
        ("event: order", "event: order\n    times: 2\n    not: true", "negated step 'loot' has"),
        ("{loot.amount:money}", "{loot.amont}", "p.yaml:12: pattern 'takeover': unknown column"),
        ("{loot.amount:money}", "{loot.items:money}", "{loot.items} is no amount"),
        ("{loot.amount:money}", "{loot.amount:.2f}", "{loot.amount} has a format"),
        ("{loot.amount:money}", "{amount}", "its reason has {amount} | Write {STEP.count}"),
        ("{loot.amount:money}", "{", "its reason can't be read"),
        ("customer_id", "{login: customer_id}", "group_by lacks event type 'order'"),
        ("customer_id", "{login: customer_id, order: customer_id, cart: x}", "names event type"),
    ],
)  # fmt: skip
def test_refusals_name_the_place_and_the_cure(old: str, new: str, says: str) -> None:
    error = refused(GOOD.replace(old, new))
    assert says in f"{error.detail} | {error.hint}"
    assert error.detail.startswith("p.yaml:")


def test_a_choice_that_does_not_exist_is_refused_with_the_nearest() -> None:
    text = (SHIPPED / "commerce.yaml").read_text().replace("action == 'add'", "action == 'ad'")
    assert "compares cart.action with 'ad'" in refused(text).detail
    assert "Did you mean 'add'?" in refused(text).hint


def test_event_types_may_name_the_key_differently() -> None:
    text = GOOD.replace("customer_id", "{login: device_id, order: customer_id}")
    [pattern] = parse_patterns(text)
    compiled = compile_pattern(pattern, commerce.project.events)
    assert (compiled.key("login"), compiled.key("order")) == ("device_id", "customer_id")


@pytest.mark.parametrize("reason", ["a: #'\"{{}}\\", "kostet 5 € für Zoë \U0001f600", "- x", "yes"])
def test_a_definition_survives_its_text(reason: str) -> None:
    for pattern in [*read_patterns(SHIPPED / "commerce.yaml"), *parse_patterns(GOOD)]:
        changed = Pattern.from_text(pattern.text.replace(pattern.version.__str__(), "1"))
        assert changed == pattern
        assert changed.definition_hash == pattern.definition_hash
        odd = Pattern(**{**vars_of(pattern), "reason": reason, "strict": True})
        assert Pattern.from_text(odd.text) == odd
        assert odd.definition_hash != pattern.definition_hash


def vars_of(pattern: Pattern) -> dict[str, object]:
    return {name: getattr(pattern, name) for name in Pattern.__dataclass_fields__}


def test_files_that_hold_nothing_to_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DeclarationError, match=r"none.yaml can't be read"):
        read_patterns(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DeclarationError, match=r"bytes.yaml can't be read"):
        read_patterns(tmp_path / "bytes.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    with pytest.raises(DeclarationError, match=r"empty.yaml holds no pattern"):
        read_patterns(tmp_path / "empty.yaml")
    with pytest.raises(DeclarationError, match="2 patterns were given"):
        Pattern.from_text(GOOD + "---" + GOOD)
