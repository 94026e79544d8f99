from __future__ import annotations

import threading
from pathlib import Path

import pytest
from scipy.stats import chi2_contingency, chisquare

from raypipe.clock import ManualClock
from raypipe.config import Settings
from raypipe.errors import ConfigError, Conflict, IntegrityError, NotFound, UsageError
from raypipe.lake import Place
from raypipe.policy.reading import read_policy
from raypipe.policy.registry import publish
from raypipe.runtime.progress import Quiet
from serving import promotion
from serving.panel import load_panel
from serving.release import Challenger, Release, read
from serving.releases import Releases, first_or_current
from serving.split import Split
from tests.unit.serving_kit import NOW, PROJECT, train

STRICT = """
name: strict
version: 1
on_error: review
thresholds:
  default: {review: 0.1}
"""
KIT = "tests.unit.serving_kit:PROJECT"
KEYS, FEWER = 1_000_000, 50_000


def test_a_release_is_plain_data_and_comes_back_from_it() -> None:
    whole = Release(
        champion="fault@1",
        policy="strict@3",
        challengers=(Challenger("fault@2", 0.1), Challenger("fault@3", 0.25)),
        shadows=("fault@4",),
        salt="spring",
        number=7,
    )
    assert read(whole.describe()) == whole
    assert read({"champion": "fault@1"}) == Release(champion="fault@1")
    assert whole.models == ("fault@1", "fault@2", "fault@3", "fault@4")
    assert list(Release("fault@1").changes(Release("fault@2", shadows=("fault@1",)))) == [
        "champion: fault@1 -> fault@2",
        "shadows: none -> fault@1",
    ]


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ({}, "champion"),
        ({"champion": "fault"}, "names no version"),
        ({"champion": "a b@1"}, "names no version"),
        ({"champion": "../x@1"}, "names no version"),
        ({"champion": "fault@1", "policy": "strict"}, "names no version"),
        ({"champion": "fault@1", "shadows": ["fault@1"]}, "twice"),
        ({"champion": "fault@1", "model": "fault@1"}, "model"),
        ({"champion": "fault@1", "number": -1}, "number -1"),
        ({"model": "fault", "version": "1"}, "champion|model"),
        (
            {"champion": "f@1", "salt": "s", "challengers": [{"model": "f@2", "share": 0}]},
            "shares",
        ),
        (
            {"champion": "f@1", "salt": "s", "challengers": [{"model": "f@2", "share": -0.1}]},
            "shares",
        ),
        (
            {
                "champion": "f@1",
                "salt": "s",
                "challengers": [{"model": "f@2", "share": 0.6}, {"model": "f@3", "share": 0.5}],
            },
            "shares",
        ),
        ({"champion": "f@1", "challengers": [{"model": "f@2", "share": 0.5}]}, "salt"),
        (
            {"champion": "f@1", "salt": "a b", "challengers": [{"model": "f@2", "share": 0.5}]},
            "salt",
        ),
    ],
)
def test_a_release_that_makes_no_sense_is_refused(data: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        read(data)


def test_shares_of_a_million_keys_are_the_shares_that_were_asked_for() -> None:
    a, b = Challenger("fault@2", 0.1), Challenger("fault@3", 0.25)
    both, alone = Split("spring", [a, b]), Split("spring", [a])
    other_salt = Split("autumn", [a, b])
    counts, seasons, tenants = [0] * 3, [[0] * 3 for _ in range(3)], [[0] * 3 for _ in range(3)]
    for i in range(KEYS):
        key = f"s-{i}"
        arm = both.arm("default", key)
        counts[arm] += 1
        if i < FEWER:
            # One more arm at the end takes no key from the arm that was there.
            assert (alone.arm("default", key) == 0) == (arm == 0)
            seasons[arm][other_salt.arm("default", key)] += 1
            tenants[arm][both.arm("second", key)] += 1
    expected = [0.1 * KEYS, 0.25 * KEYS, 0.65 * KEYS]
    assert chisquare(counts, expected).pvalue > 1e-4
    # Another experiment, and another tenant, split the keys anew.
    assert chi2_contingency(seasons).pvalue > 1e-4
    assert chi2_contingency(tenants).pvalue > 1e-4


def test_a_key_keeps_its_arm_while_others_come_grow_and_go() -> None:
    keys = [f"s-{i}" for i in range(20_000)]
    a, b = Challenger("fault@2", 0.2), Challenger("fault@3", 0.2)

    def arms(*challengers: Challenger) -> list[str]:
        split = Split("spring", challengers)
        names = [c.model for c in challengers]
        return [names[i] if (i := split.arm("t", k)) >= 0 else "champion" for k in keys]

    def moved(before: list[str], after: list[str], arm: str) -> float:
        """The share of an arm's keys that have left it."""
        mine = [y for x, y in zip(before, after, strict=True) if x == arm]
        return sum(y != arm for y in mine) / len(mine)

    assert arms(a, b) == arms(a, b)
    # Growing takes keys from others and gives none of its own away.
    grown = arms(Challenger("fault@2", 0.3), b)
    assert moved(arms(a, b), grown, "fault@2") == 0.0
    assert moved(arms(a, b), arms(a, Challenger("fault@3", 0.4)), "fault@3") == 0.0
    # Without the first arm most keys of the second stay, and its share is the same.
    assert moved(arms(a, b), arms(b), "fault@3") < 0.25
    assert arms(b).count("fault@3") / len(keys) == pytest.approx(0.2, abs=0.01)


def test_all_keys_may_go_to_challengers_and_none_need_to() -> None:
    whole = Split("s", [Challenger("f@2", 0.5), Challenger("f@3", 0.5)])
    assert {whole.arm("t", str(i)) for i in range(2_000)} == {0, 1}
    assert Split("s", [Challenger("f@2", 1.0)]).arm("t", "k") == 0
    assert Split("s", []).arm("t", "k") == -1
    # Where the tenant ends and the key begins matters.
    halves = Split("s", [Challenger("f@2", 0.5)])
    assert any(halves.arm("ab", f"c{i}") != halves.arm("a", f"bc{i}") for i in range(50))


def test_the_history_only_grows_and_one_is_current(tmp_path: Path) -> None:
    clock = ManualClock(NOW)
    releases = Releases(Place.at(tmp_path), clock)
    assert releases.current() is None
    assert releases.history() == []
    first = releases.record(Release("fault@1"), by="ann", reason="begin")
    clock.advance(1_000)
    second = releases.record(Release("fault@2", number=1), by="bo", reason="better")
    assert (first.number, second.number, second.previous) == (1, 2, 1)
    assert releases.current() == second
    assert releases.get(1) == first
    assert releases.history() == [first, second]
    assert (second.by, second.reason, second.at_ms) == ("bo", "better", NOW + 1_000)
    with pytest.raises(NotFound, match="release 3"):
        releases.get(3)
    document = tmp_path / "releases" / "000001.json"
    document.write_text(document.read_text().replace('"number": 1', '"number": 2'))
    with pytest.raises(IntegrityError, match="release 2"):
        releases.get(1)
    document.write_text("{}")
    with pytest.raises(IntegrityError, match="no release"):
        releases.get(1)


def test_of_writers_at_once_one_number_is_given_once(tmp_path: Path) -> None:
    made, refused = [], []

    def write(name: str) -> None:
        releases = Releases(Place.at(tmp_path))
        for _ in range(8):
            try:
                made.append(releases.record(Release(f"{name}@1"), by=name, reason=""))
            except Conflict:
                refused.append(name)

    threads = [threading.Thread(target=write, args=(f"w{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) + len(refused) == 32
    assert len({m.number for m in made}) == len(made) > 0
    releases = Releases(Place.at(tmp_path))
    assert {h.number for h in releases.history()} <= {m.number for m in made}
    assert not [p for p in (tmp_path / "releases").iterdir() if p.name.startswith(".")]


def test_a_document_that_was_not_made_current_is_not_in_the_history(tmp_path: Path) -> None:
    releases = Releases(Place.at(tmp_path))
    first = releases.record(Release("fault@1"), by="a", reason="")
    (tmp_path / "releases" / "current").write_text("0\n")
    assert releases.current() is None
    second = releases.record(Release("fault@2"), by="a", reason="")
    assert second.number == first.number + 1
    assert releases.history() == [second]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    train(tmp_path)
    return tmp_path


def change(home: Path, edit: promotion.Edit, reason: str = "r") -> Release:
    settings = Settings(home=home, project=KIT)
    made, serves = promotion.change(settings, Quiet(), edit, reason=reason, by="me")
    assert not serves  # nothing runs on this home: the next start serves it
    return made.release


def test_the_first_release_is_what_was_served_before_there_were_any(home: Path) -> None:
    settings = Settings(home=home, project=KIT)
    current = (home / "models" / "fault" / "current").read_text().strip()
    first = first_or_current(settings, "fault")
    assert first.release == Release(f"fault@{current}", number=1)
    newer = train(home, rounds=20)
    assert newer != current
    # A newer current version of the model is promoted by somebody or not served at all.
    assert first_or_current(settings, "fault") == first


def test_verbs_make_one_release_of_another(home: Path) -> None:
    settings = Settings(home=home, project=KIT)
    first = first_or_current(settings, "fault").release
    new, third = (f"fault@{train(home, rounds=n)}" for n in (20, 30))
    shadowed = change(home, promotion.shadowed(settings, new))
    assert (shadowed.champion, shadowed.shadows, shadowed.number) == (first.champion, (new,), 2)
    tried = change(home, promotion.challenged(settings, new, 0.1))
    assert (tried.challengers, tried.shadows) == ((Challenger(new, 0.1),), ())
    assert tried.salt
    grown = change(home, promotion.challenged(settings, new, 0.3))
    assert (grown.challengers, grown.salt) == ((Challenger(new, 0.3),), tried.salt)
    more = change(home, promotion.challenged(settings, "fault", 0.2))  # the current version
    assert more.challengers == (Challenger(new, 0.3), Challenger(third, 0.2))
    promoted = change(home, promotion.promoted(settings, new))
    assert (promoted.champion, promoted.challengers) == (new, (Challenger(third, 0.2),))
    ended = change(home, promotion.challenged(settings, third, 0.0))
    assert ended.challengers == ()
    back = change(home, promotion.rolled_back(settings), "too many reviews")
    assert (back.champion, back.challengers) == (promoted.champion, promoted.challengers)
    oldest = change(home, promotion.rolled_back(settings, 1))
    assert oldest == Release(first.champion, number=9)
    history = Releases(settings.lake).history()
    assert [h.number for h in history] == list(range(1, 10))
    assert history[-2].reason == "too many reviews"


def test_a_policy_is_used_until_another_or_none_is(home: Path) -> None:
    settings = Settings(home=home, project=KIT)
    first_or_current(settings, "fault")
    file = home / "strict.yaml"
    file.write_text(STRICT)
    publish(settings.lake, read_policy(file), file.read_bytes(), PROJECT, NOW)
    assert change(home, promotion.with_policy(settings, "strict")).policy == "strict@1"
    with pytest.raises(NotFound, match="no version '2'"):
        promotion.with_policy(settings, "strict@2")
    assert change(home, promotion.with_policy(settings, None)).policy is None
    back = change(home, promotion.rolled_back(settings))
    assert back.policy == "strict@1"
    judge = load_panel(settings.lake, PROJECT, back, "review").champion
    assert judge.policy.id == "strict@1"


def test_what_cant_be_served_is_not_released(home: Path) -> None:
    settings = Settings(home=home, project=KIT)
    first = first_or_current(settings, "fault").release
    new = train(home, rounds=20)
    with pytest.raises(NotFound, match="no version 'v9'"):
        promotion.promoted(settings, "fault@v9")
    with pytest.raises(UsageError, match="declares no model 'flood'"):
        promotion.promoted(settings, "flood@1")
    with pytest.raises(UsageError, match="like that already"):
        change(home, promotion.promoted(settings, first.champion))
    with pytest.raises(UsageError, match="is the champion"):
        change(home, promotion.challenged(settings, first.champion, 0.1))
    with pytest.raises(NotFound, match="no challenger"):
        change(home, promotion.challenged(settings, new_reference(new), 0.0))
    with pytest.raises(NotFound, match="no shadow"):
        change(home, promotion.shadowed(settings, new_reference(new), stop=True))
    with pytest.raises(NotFound, match="before the current"):
        promotion.rolled_back(settings)
    with pytest.raises(NotFound, match="policy"):
        change(home, promotion.with_policy(settings, "strict@1"))
    model = home / "models" / "fault" / new / "model.ubj"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match="sha256"):
        change(home, promotion.promoted(settings, new_reference(new)))
    assert Releases(settings.lake).history() == [first_or_current(settings, "fault")]


def new_reference(version: str) -> str:
    return f"fault@{version}"
