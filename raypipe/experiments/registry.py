"""Published experiments in the lake: ``experiments/<name>/<version>/``, immutable once written."""

from __future__ import annotations

from raypipe.experiments.checks import check
from raypipe.experiments.reading import parse_experiment
from raypipe.experiments.spec import Experiment
from raypipe.lake import Place
from raypipe.project import Project
from raypipe.published import Manifest, Shelf

EXPERIMENTS = Shelf("experiments", "experiment", parse_experiment)


def publish(
    lake: Place, experiment: Experiment, source: bytes, project: Project, now_ms: int
) -> tuple[Manifest, bool]:
    """Write a version as a whole or not at all; its manifest, and whether it is new.

    Raises:
        DeclarationError: it does not fit the project.
        Conflict: this version is another experiment.
    """
    check(experiment, project)
    return EXPERIMENTS.publish(lake, experiment, source, project.name, now_ms)


def load_experiment(lake: Place, reference: str, project: Project) -> Experiment:
    """A published experiment that fits the project, by ``name@version`` or a name for the highest
    version; raises NotFound, IntegrityError, DeclarationError."""
    found = EXPERIMENTS.read(lake, reference)
    check(found, project)
    return found
