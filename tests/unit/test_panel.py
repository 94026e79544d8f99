from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import ks_2samp

from raypipe.clock import ManualClock
from raypipe.config import Settings
from raypipe.errors import NotFound
from raypipe.events.row import RowValidator
from raypipe.lake import Place
from serving import comparison
from serving.decide import Decider
from serving.panel import Panel, load_panel
from serving.release import Challenger, Release
from serving.shadows import SCHEMA, Shadows
from tests.unit.serving_kit import HOT, NOW, PROJECT, READING, Service, body, train

EVENTS = 120


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def versions(home: Path) -> list[str]:
    """Three of them: the third fears nothing."""
    return [
        f"fault@{train(home, rounds=12)}",
        f"fault@{train(home, rounds=20)}",
        f"fault@{train(home, {'review': 1.0}, rounds=30)}",
    ]


def panel(home: Path, release: Release) -> Panel:
    return load_panel(Place.at(home), PROJECT, release, "review")


def use(service: Service, panel: Panel, shadows: Shadows | None = None) -> None:
    service.app.decider = Decider(
        READING,
        RowValidator(READING, "EUR"),
        service.worker,
        panel.champion,
        service.clock,
        5.0,
        chooser=panel,
        onlookers=shadows,
    )


def decided(service: Service) -> dict[str, Any]:
    """Every event's record, after it was asked for twice."""
    for i in range(EVENTS):
        event = body(event_id=f"e-{i}", sensor_id=f"s-{i % 40}", **(HOT if i % 3 else {}))
        first, again = service.post(event).json(), service.post(event).json()
        assert again == first | {"replayed": True}
        detail = service.get(f"/v1/decisions/{first['decision_id']}").json()
        assert {k: detail[k] for k in ("model", "action", "score")} == {
            k: first[k] for k in ("model", "action", "score")
        }
    return {r.event_id: r for r in service.worker.records.values()}


def test_without_challengers_the_champion_decides_and_there_is_no_experiment(
    home: Path, versions: list[str], tmp_path: Path
) -> None:
    service = Service(home, tmp_path / "t.db")
    use(service, panel(home, Release(versions[0])))
    records = decided(service).values()
    assert {(r.model, r.experiment, r.arm) for r in records} == {(versions[0], None, None)}


def test_each_decision_has_one_model_and_each_key_keeps_it(
    home: Path, versions: list[str], tmp_path: Path
) -> None:
    service = Service(home, tmp_path / "t.db")
    release = Release(
        versions[0],
        challengers=(Challenger(versions[1], 0.4), Challenger(versions[2], 0.3)),
        salt="spring",
    )
    use(service, panel(home, release))
    records = decided(service)
    arms: dict[str, set[tuple[str, str]]] = {}
    for i in range(EVENTS):
        record = records[f"e-{i}"]
        assert record.experiment == "spring"
        assert record.arm == ("champion" if record.model == versions[0] else record.model)
        assert record.model_sha256 == sha_of(home, record.model)
        arms.setdefault(f"s-{i % 40}", set()).add((record.model, record.arm))
    assert all(len(found) == 1 for found in arms.values())
    assert {m for found in arms.values() for m, _ in found} == set(versions)
    # Each arm decides by the thresholds of its own manifest.
    assert {records[f"e-{i}"].action for i in range(EVENTS)} > {"approve"}
    fearless = [r for r in records.values() if r.model == versions[2]]
    assert {r.action for r in fearless} == {"approve"}
    # What a newer release says changes no decision that was made.
    use(service, panel(home, Release(versions[2])))
    assert decided(service) == records


def sha_of(home: Path, reference: str) -> str:
    import hashlib

    name, _, version = reference.partition("@")
    return hashlib.sha256((home / "models" / name / version / "model.ubj").read_bytes()).hexdigest()


def test_shadows_say_what_they_would_have_done_and_change_nothing(
    home: Path, versions: list[str], tmp_path: Path
) -> None:
    counted: Counter[str] = Counter()
    shadows = Shadows(
        Place.at(tmp_path) / "shadows", lambda what, n: counted.update({what: n}), ManualClock(NOW)
    )
    service = Service(home, tmp_path / "t.db")
    made = panel(home, Release(versions[0], shadows=(versions[1], versions[2])))
    shadows.use(made.shadows)
    use(service, made, shadows)
    records = decided(service)
    shadows.close()
    assert counted == {"scored": 2 * EVENTS}
    assert {r.model for r in records.values()} == {versions[0]}
    rows = [
        row
        for file in (tmp_path / "shadows" / "2025-10-09").glob("*.parquet")
        for row in pq.read_table(file).cast(SCHEMA).to_pylist()
    ]
    alone = {v: panel(home, Release(v)).champion for v in versions[1:]}
    for row in rows:
        record = records[row["event_id"]]
        names = ("tenant", "decision_id", "decided_at", "model", "arm", "score", "action")
        assert {n: row[n] for n in names} == {n: getattr(record, n) for n in names}
        seen = service.worker.seen["default", row["event_id"]]
        mine = alone[row["shadow"]].judge(seen, NoneKnown(), service.clock)
        assert (row["shadow_score"], row["shadow_action"]) == (mine.score, mine.action)
        assert not row["shadow_degraded"]

    settings = Settings(home=tmp_path, project="tests.unit.serving_kit:PROJECT")
    first, second = sorted(
        comparison.run(settings, since_ms=0), key=lambda c: versions.index(c.shadow)
    )
    assert (first.model, first.decisions, second.decisions) == (versions[0], EVENTS, EVENTS)
    # The fearless one would approve whatever was not.
    taken = Counter(r.action for r in records.values())
    assert second.actions == {a: {"approve": n} for a, n in taken.items()}
    assert second.disagreed == EVENTS - taken["approve"]
    assert comparison.run(settings, since_ms=0, shadow=versions[2]) == [second]
    scores = [r["score"] for r in rows if r["shadow"] == versions[1]]
    theirs = [r["shadow_score"] for r in rows if r["shadow"] == versions[1]]
    assert first.ks_distance == pytest.approx(ks_2samp(scores, theirs).statistic)
    assert first.quantiles["0.5"] == pytest.approx((np.median(scores), np.median(theirs)))
    assert first.mean_difference == pytest.approx(np.mean(theirs) - np.mean(scores))
    with pytest.raises(NotFound, match="no shadow"):
        comparison.run(settings, since_ms=NOW + 1)
    with pytest.raises(NotFound, match="no shadow"):
        comparison.run(replace_tenant(settings), since_ms=0)


def replace_tenant(settings: Settings) -> Settings:
    return settings.model_copy(update={"tenant": "second"})


class NoneKnown:
    values = ()
    times = ()


class Slow:
    """Features that take their time."""

    def row(self, *_: Any) -> Any:
        time.sleep(0.2)
        raise RuntimeError("and fail")


def test_a_shadow_that_is_behind_drops_and_counts_and_its_errors_are_its_own(
    home: Path, versions: list[str], tmp_path: Path
) -> None:
    counted: Counter[str] = Counter()
    shadows = Shadows(
        Place.at(tmp_path) / "shadows",
        lambda what, n: counted.update({what: n}),
        queue_limit=4,
    )
    made = panel(home, Release(versions[0], shadows=(versions[1],)))
    shadows.use([replace(made.shadows[0], features=Slow())])
    service = Service(home, tmp_path / "t.db")
    use(service, made, shadows)
    for i in range(EVENTS):
        assert service.post(body(event_id=f"e-{i}")).status_code == 200
    shadows.close()
    assert counted["scored"] + counted["dropped"] == EVENTS
    assert counted["dropped"] > 0
    files = (tmp_path / "shadows").glob("*/*.parquet")
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert len(rows) == counted["scored"]
    assert {(r["shadow_degraded"], r["shadow_action"], r["shadow_score"]) for r in rows} == {
        (True, "review", None)
    }


def test_shadows_that_cant_be_written_are_counted_and_judging_goes_on(
    home: Path, versions: list[str], tmp_path: Path
) -> None:
    (tmp_path / "shadows").write_text("a file where a folder should be")
    counted: Counter[str] = Counter()
    shadows = Shadows(Place.at(tmp_path) / "shadows", lambda what, n: counted.update({what: n}))
    made = panel(home, Release(versions[0], shadows=(versions[1],)))
    shadows.use(made.shadows)
    service = Service(home, tmp_path / "t.db")
    use(service, made, shadows)
    assert service.post(body()).status_code == 200
    shadows.close()
    assert counted == {"unwritten": 1}


def test_nobody_looks_on_where_no_shadow_is(tmp_path: Path) -> None:
    shadows = Shadows(Place.at(tmp_path), lambda what, n: pytest.fail(what))
    shadows.use(())
    shadows.offer(None, None, None)  # type: ignore[arg-type]
    shadows.close()
    assert not list(tmp_path.iterdir())
