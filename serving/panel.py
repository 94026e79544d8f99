"""The judges of one release: which of them decides about an event, and who only looks on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from raypipe.errors import ConfigError, IntegrityError
from raypipe.experiments.assignment import Assignment, check_together
from raypipe.experiments.registry import load_experiment
from raypipe.experiments.spec import Experiment
from raypipe.lake import Place
from raypipe.ledger.record import Exposed
from raypipe.policy.registry import load_policy
from raypipe.project import Project
from serving.decide import NO_LISTS, Judge, KnownLists, Scorer
from serving.lists import WatchedLists
from serving.release import Release, split_reference
from serving.scoring import load_judge
from serving.scoring.scorer import TABLE_BYTES
from serving.split import CHAMPION, Split

Pair = tuple[str, str | None]
"""A model and a policy, None for the thresholds of its manifest."""


class Chosen(NamedTuple):
    """Who decides, and as what: experiment and arm are None where no challenger is; ``exposed``
    are the arms of declared experiments."""

    judge: Judge
    experiment: str | None
    arm: str | None
    exposed: tuple[Exposed, ...] = ()


@dataclass(frozen=True)
class Panel:
    """All models of a release, loaded and checked. ``judges`` are the champion's, then those of
    the challengers; ``key`` is the column whose values are split among them. ``arms`` has a judge
    for every pair that the arms of ``experiments`` can make."""

    release: Release
    judges: tuple[Judge, ...]
    shadows: tuple[Judge, ...]
    key: str
    experiments: tuple[Assignment, ...] = ()
    arms: Mapping[Pair, Judge] = field(default_factory=dict)

    @property
    def champion(self) -> Judge:
        """Who decides where no challenger does."""
        return self.judges[0]

    @property
    def loaded(self) -> tuple[Judge, ...]:
        """Every judge, those of arms and shadows too."""
        return (*self.judges, *self.arms.values(), *self.shadows)

    @cached_property
    def _split(self) -> Split:
        return Split(self.release.salt, self.release.challengers)

    def choose(self, event: Mapping[str, Any]) -> Chosen:
        """Who decides about an event; one without a key is split by its id."""
        chosen = Chosen(self.champion, None, None)
        if len(self.judges) > 1:
            place = self._split.arm(event["tenant"], event[self.key] or event["event_id"])
            judge = self.judges[place + 1]
            chosen = Chosen(judge, self.release.salt, CHAMPION if place < 0 else judge.model)
        return self._in_arms(event, chosen) if self.experiments else chosen

    def _in_arms(self, event: Mapping[str, Any], chosen: Chosen) -> Chosen:
        model, policy = chosen.judge.model, self.release.policy
        exposed = []
        for assignment in self.experiments:
            placed = assignment.place(event)
            if placed is not None:
                arm = assignment.experiment.arms[placed.arm]
                model, policy = arm.model or model, arm.policy or policy
                exposed.append(
                    Exposed(placed.experiment, placed.name, placed.unit, placed.propensity)
                )
        if not exposed:
            return chosen
        return chosen._replace(judge=self.arms[model, policy], exposed=tuple(exposed))


def load_panel(
    lake: Place,
    project: Project,
    release: Release,
    on_error: str,
    lists: WatchedLists | None = None,
    *,
    table_bytes: int = TABLE_BYTES,
) -> Panel:
    """Load every version of a release and have each model score a row.

    Args:
        on_error: of models without a policy.
        lists: read from now on if a policy needs one; None where nothing is decided.
        table_bytes: as in load_scorer.

    Raises NotFound, IntegrityError and DeclarationError for a version that can't be used,
    ConfigError for experiments that can't run together.
    """
    running = tuple(load_experiment(lake, e, project) for e in release.experiments)
    check_together(running)
    _check_challengers(release, running)
    wanted = _pairs(release, running)
    rules = {
        policy: load_policy(lake, policy, project)
        for policy in dict.fromkeys((release.policy, *(p for _, p in wanted)))
        if policy is not None
    }
    known: KnownLists = NO_LISTS
    if lists is not None and any(r.lists for r in rules.values()):
        lists.start()
        known = lists

    def load(pair: Pair, scorer: Scorer | None = None) -> Judge:
        model, policy = pair
        judge = load_judge(
            lake / "models",
            project,
            *split_reference(model),
            on_error,
            None if policy is None else rules[policy],
            known,
            table_bytes=table_bytes,
            scorer=scorer,
        )
        if judge.model != model:
            raise IntegrityError(
                f"the folder of {model} holds {judge.model}", hint="Restore it from a backup."
            )
        return judge

    deciding: dict[Pair, Judge] = {}
    scorers: dict[str, Scorer] = {}
    own = [(m, release.policy) for m in release.deciding]
    for pair in (*own, *wanted):
        if pair not in deciding:
            deciding[pair] = load(pair, scorers.get(pair[0]))
            scorers[pair[0]] = deciding[pair].scorer
    return Panel(
        release,
        tuple(deciding[pair] for pair in own),
        # With scorers of their own: they have a thread of their own.
        tuple(load((m, release.policy)) for m in release.shadows),
        project.views[0].key,
        tuple(Assignment(e, project) for e in running),
        {pair: deciding[pair] for pair in wanted},
    )


def _pairs(release: Release, running: Sequence[Experiment]) -> list[Pair]:
    """Every model and policy that some unit's arms make: at most one arm of each layer."""
    found: dict[Pair, None] = dict.fromkeys((m, release.policy) for m in release.deciding)
    layers: dict[str, list[Experiment]] = {}
    for experiment in running:
        layers.setdefault(experiment.layer_name, []).append(experiment)
    for members in layers.values():
        arms = [arm for experiment in members for arm in experiment.arms]
        found |= dict.fromkeys(
            [(arm.model or model, arm.policy or policy) for model, policy in found for arm in arms]
        )
    return list(found) if running else []


def _check_challengers(release: Release, running: Sequence[Experiment]) -> None:
    if release.challengers:
        for experiment in running:
            if any(arm.model for arm in experiment.arms):
                raise ConfigError(
                    f"{experiment.id} and the challengers both divide the models",
                    hint="Take the challengers out, `raypipe release challenge MODEL --share 0`, "
                    "or make them arms.",
                )
