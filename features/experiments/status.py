"""How often each arm of an experiment was decided with, counted from the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from features.log_files import open_log
from features.store import duck
from raypipe.errors import NotFound
from raypipe.experiments.registry import load_experiment
from raypipe.experiments.spec import Experiment
from raypipe.ledger.exposure import EXPOSURE
from raypipe.project import load_project

if TYPE_CHECKING:
    from raypipe.config import Settings


class Status(NamedTuple):
    """Exposures and units by arm; a unit that saw several arms counts in each."""

    experiment: Experiment
    arms: dict[str, dict[str, int]]


def run(settings: Settings, reference: str) -> Status:
    """The state of a published experiment, for the setting tenant; raises NotFound."""
    project = load_project(settings.project)
    experiment = load_experiment(settings.lake, reference, project)
    try:
        with open_log(settings, project) as files, duck.connect(spill=files.spill) as con:
            con.register("exposures", files.table(EXPOSURE))
            rows = con.execute(
                "SELECT arm, count(*), count(DISTINCT unit) FROM exposures"
                " WHERE experiment = ? GROUP BY arm",
                [experiment.id],
            ).fetchall()
    except NotFound:  # there is no log yet
        rows = []
    return Status(experiment, {arm: {"exposures": n, "units": u} for arm, n, u in rows})
