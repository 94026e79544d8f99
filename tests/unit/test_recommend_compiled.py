"""What a recommender compiles before it is ready is all that requests need."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.unit.compiled_kit import in_new_process

pytest_plugins = ["tests.unit.recommend_fixtures"]

SCRIPT = """
import sys
from pathlib import Path

from features.commerce import project
from serving.recommend.engine import Wish
from serving.recommend.selection import Selection
from serving.recommend.stage import Stage
from tests.unit import recommend_home as home_kit
from tests.unit.compiled_kit import compiled
from training import registry
from training.recommend.ranking import artefact

home = Path(sys.argv[1])
settings = home_kit.settings(home)
version = registry.locate(settings.lake / artefact.FOLDER, "shop")
stage = Stage.open(settings, project, version, home_kit.PLAN, Selection())
before = compiled()
assert before
for day in range(home_kit.DAYS, home_kit.CONFIG.days):
    home_kit.append(home, range(day, day + 1))
    assert stage.catch_up()
    users = stage.engine.loaded.known.users.ids.to_pylist()
    for user in (*users[:50], "nobody", None):
        stage.recommend(Wish(k=10, seed=0, user=user, viewing=3), home_kit.NOW)
    stage.trending(Wish(k=10, seed=0), home_kit.NOW)
    stage.engine.similar(1, Wish(k=5, seed=0), home_kit.NOW)
stage.close()
print(sorted(compiled() - before))
"""


def test_requests_compile_nothing_after_a_version_is_loaded(
    shop_home: Path, tmp_path: Path
) -> None:
    home = Path(shutil.copytree(shop_home, tmp_path / "home"))
    assert in_new_process(SCRIPT, home) == "[]"
