"""The judges of one release: which of them decides about an event, and who only looks on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from raypipe.errors import IntegrityError
from raypipe.lake import Place
from raypipe.policy.registry import load_policy
from raypipe.project import Project
from serving.decide import NO_LISTS, Judge, KnownLists
from serving.lists import WatchedLists
from serving.release import Release, split_reference
from serving.scoring import load_judge
from serving.scoring.scorer import TABLE_BYTES
from serving.split import CHAMPION, Split


class Chosen(NamedTuple):
    """Who decides, and as what: experiment and arm are None where there is nothing to compare."""

    judge: Judge
    experiment: str | None
    arm: str | None


@dataclass(frozen=True)
class Panel:
    """All models of a release, loaded and checked. ``judges`` are the champion's, then those of
    the challengers; ``key`` is the column whose values are split among them."""

    release: Release
    judges: tuple[Judge, ...]
    shadows: tuple[Judge, ...]
    key: str

    @property
    def champion(self) -> Judge:
        """Who decides where no challenger does."""
        return self.judges[0]

    @cached_property
    def _split(self) -> Split:
        return Split(self.release.salt, self.release.challengers)

    def choose(self, event: Mapping[str, Any]) -> Chosen:
        """Who decides about an event; one without a key is split by its id."""
        if len(self.judges) == 1:
            return Chosen(self.champion, None, None)
        place = self._split.arm(event["tenant"], event[self.key] or event["event_id"])
        judge = self.judges[place + 1]
        return Chosen(judge, self.release.salt, CHAMPION if place < 0 else judge.model)


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
        lists: read from now on if the policy needs one; None where nothing is decided.
        table_bytes: as in load_scorer.

    Raises NotFound, IntegrityError and DeclarationError for a version that can't be used.
    """
    rules = None if release.policy is None else load_policy(lake, release.policy, project)
    known: KnownLists = NO_LISTS
    if rules is not None and rules.lists and lists is not None:
        lists.start()
        known = lists
    loaded = []
    for reference in release.models:
        name, version = split_reference(reference)
        judge = load_judge(
            lake / "models",
            project,
            name,
            version,
            on_error,
            rules,
            known,
            table_bytes=table_bytes,
        )
        if judge.model != reference:
            raise IntegrityError(
                f"the folder of {reference} holds {judge.model}", hint="Restore it from a backup."
            )
        loaded.append(judge)
    deciding = 1 + len(release.challengers)
    return Panel(release, tuple(loaded[:deciding]), tuple(loaded[deciding:]), project.views[0].key)
