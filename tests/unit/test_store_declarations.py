"""What a project asks of the catalogue, as far as it needs no Feast."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from features.commerce import project as commerce
from features.payments import project as payments
from features.store.definitions import key_columns, used_columns
from features.store.repo import settings
from features.store.wording import column_text
from raypipe.clock import DAY_MS
from raypipe.errors import ConfigError, DeclarationError
from raypipe.events.schema import EventType, Field, Kind
from raypipe.project import Entity, Label, Model, Project
from raypipe.vector.expressions import Derived
from raypipe.windows.spec import WindowView, count, mean, spans

SPANS = spans("1h/1m", "1d/30m")
HEAT = Field("heat", Kind.INTEGER, minimum=-100, maximum=100)
READING = EventType(
    "reading",
    (
        Field("plot_id", Kind.STRING),
        Field("hub", Kind.STRING),
        HEAT,
    ),
)
ALARM = EventType("alarm", (Field("reading_id", Kind.STRING), Field("plot_id", Kind.STRING)))


def greenhouse(views: tuple[WindowView, ...], *features: str) -> Project:
    return Project(
        name="greenhouse",
        events=(READING, ALARM),
        entities=tuple(Entity(e) for e in {v.entity: 0 for v in views}),
        views=views,
        derived=(
            Derived("unused", "plot_count_1d + 1"),
            Derived("ratio", "heat / plot_heat_mean_1d"),
            Derived("ratio_twice", "ratio * 2"),
        ),
        decision="reading",
        label=Label("alarm", "reading_id", DAY_MS),
        models=(Model("frost", features),),
    )


PLOT = WindowView("plot", "plot", "reading", "plot_id", (count(), mean("heat")), SPANS)
HUB = WindowView("hub", "hub", "reading", "hub", (count(),), SPANS)


def test_a_model_uses_the_windows_behind_its_derived_features_and_no_others() -> None:
    project = greenhouse((PLOT, HUB), "heat", "ratio_twice", "plot_count_1h")
    assert used_columns(project, project.models[0]) == {
        "plot": ("plot_count_1h", "plot_heat_mean_1d"),
        "hub": (),
    }


def test_an_entity_has_the_key_column_of_its_views() -> None:
    assert key_columns(greenhouse((PLOT, HUB), "heat")) == {"plot": "plot_id", "hub": "hub"}


def test_the_name_of_the_entity_of_events_is_taken() -> None:
    event = WindowView("v", "event", "reading", "hub", (count(),), SPANS)
    with pytest.raises(DeclarationError, match="'event' is taken"):
        key_columns(greenhouse((PLOT, event), "heat"))


@pytest.mark.parametrize("project", [payments, commerce], ids=lambda p: p.name)
def test_every_column_of_a_view_reads_as_a_sentence_of_its_own(project: Project) -> None:
    for view in project.views:
        texts = [column_text(view, c) for c in view.columns]
        assert len(set(texts)) == len(texts)
        assert all(view.key in t for t in texts)


def test_settings_name_absolute_paths_of_the_home(tmp_path: Path) -> None:
    found = settings(tmp_path)
    assert found["registry"]["path"] == f"sqlite:///{tmp_path}/feast/registry.db"
    assert found["online_store"]["url"] == f"sqlite:///{tmp_path}/feast/online.db"
    assert "$" not in str(found)


def test_a_home_that_breaks_globs_or_urls_is_refused(tmp_path: Path) -> None:
    for name in ("a*b", "a[1]", "a?b", "a#b", "a%20b"):
        with pytest.raises(ConfigError, match="contains"):
            settings(tmp_path / name)


def test_importing_the_store_imports_no_feast() -> None:
    modules = ("definitions", "registry", "historical", "state", "repo", "feast_repo")
    names = [f"features.store.{m}" for m in modules] + ["features.materialize", "features.online"]
    heavy = {"feast", "duckdb", "pandas"}
    code = f"import sys, {', '.join(names)}; sys.exit(len({heavy} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=False)
    assert done.returncode == 0
