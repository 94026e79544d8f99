"""From a shop's log to a version of both stages.

The ranker learns as in ``trial``: on candidates of retrievers that were fitted before its moments.
The newest days choose the number of trees and say how good it is; then it learns from those days
too, and what is written comes with a retriever that was fitted on everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from features.commerce_profiles import SHOPPER_PROFILE
from features.commerce_ranking import DEMAND, SHOPPER
from raypipe.clock import DAY_MS, Clock, SystemClock
from raypipe.errors import DeclarationError, StageError
from raypipe.lake import Place
from raypipe.profiles import Profile
from raypipe.runtime.progress import Progress
from raypipe.windows.spec import WindowView
from training import registry
from training.recommend import artefact as retrieval
from training.recommend import fit as retrieval_fit
from training.recommend.evaluate import Evaluation
from training.recommend.events import Tables, read_interactions, until_a_customer
from training.recommend.interactions import Interactions
from training.recommend.products import Run, in_process
from training.recommend.ranking import artefact
from training.recommend.ranking.choosing import (
    Choose,
    Chosen,
    SecondStage,
    from_both,
    least_known,
    plainly,
)
from training.recommend.ranking.known import known
from training.recommend.ranking.profiles import LoggedProfile, is_made
from training.recommend.ranking.spans import FirstStage, History, Span

if TYPE_CHECKING:
    from raypipe.project import Project


@dataclass(frozen=True)
class Plan(FirstStage):
    """What is fitted, and the spans of time of the ranker.

    ``refit_ms``: in longer spans the retrievers are fitted anew so often, None for never.
    ``visits``: moments of each span at most; of more so many are drawn. The table of one takes some
    60 KB, and while it is made three times that.
    ``sessions_ms``: visits that ended longer before the end of the log are over.
    """

    learn_ms: int = 14 * DAY_MS
    choose_ms: int = 7 * DAY_MS
    refit_ms: int | None = None
    visits: int = 20_000
    rounds: int = 400
    k: int = 20
    item_views: tuple[WindowView, ...] = (DEMAND,)
    user_views: tuple[WindowView, ...] = (SHOPPER,)
    profile: Profile | None = SHOPPER_PROFILE
    """Of visitors; without values of the log, its columns are left out."""
    sessions_ms: int = DAY_MS

    @property
    def views(self) -> tuple[WindowView, ...]:
        """All window views."""
        return (*self.item_views, *self.user_views)

    @property
    def profiles(self) -> tuple[Profile, ...]:
        """All profiles."""
        return () if self.profile is None else (self.profile,)


SHOP = Plan()
"""For ``features.commerce``; a start, as its retriever's options are."""


class Log(Protocol):
    """A log's rows of one tenant; features.log_files.LogFiles is one."""

    @property
    def id(self) -> str:
        """Of the log."""

    @property
    def end(self) -> int:
        """The next offset when it was opened."""

    @property
    def tenant(self) -> str:
        """Whose rows."""

    @property
    def table(self) -> Tables:
        """The rows of an event type."""


@dataclass(frozen=True)
class Fitted:
    """A written version; figures of the newest days, by the retriever alone and by both stages.

    These days also chose the trees and where the ranker begins: the latter are a little too good.
    """

    manifest: artefact.Manifest
    retriever: Evaluation
    two_stage: Evaluation
    promoted: bool


def fit(
    log: Log,
    lake: Place,
    plan: Plan,
    progress: Progress,
    *,
    choose_order: Choose | None = None,
    run: Run = in_process,
    clock: Clock | None = None,
) -> Fitted:
    """Fit, measure and write a version of both stages. The first one of a lake becomes current.

    Args:
        log: what is learned from.
        lake: versions go below ``retrieval`` and ``ranking`` in it.
        plan: what to do.
        progress: stages.
        choose_order: learns on the first span and chooses on the second; without, XGBoost at the
            settings that are tried first.
        run: where sparse products are computed.
        clock: names the versions.

    Raises:
        NotFound: there are no interactions.
        StageError: there is too little history.
    """
    clock = clock or SystemClock()
    options = plan.retrieval
    with progress.stage("interactions", unit="events") as stage:
        interactions = until_a_customer(
            read_interactions(log.table, options.sources, joined=True, guests=True)
        )
        stage.advance(len(interactions))
    end = int(interactions.time[-1]) + 1
    choose, learn = end - plan.choose_ms, end - plan.choose_ms - plan.learn_ms
    if int(interactions.time[0]) >= learn:
        raise StageError(
            f"the interactions span {(end - int(interactions.time[0])) / DAY_MS:.1f} days, and the "
            f"newest {(end - learn) / DAY_MS:g} are to learn an order from",
            hint="Load more history.",
        )
    profile = _profile(log, lake, plan, interactions, progress)
    history = History(
        interactions,
        log.table,
        log.tenant,
        plan,
        item_views=plan.item_views,
        user_views=plan.user_views,
        profile=profile,
        run=run,
    )
    with progress.stage("visits", unit="visits") as stage:
        learned, chosen = (
            history.visits(start, stop, every_ms=plan.refit_ms, most=plan.visits)[0]
            for start, stop in ((learn, choose), (choose, end))
        )
        stage.advance(len(learned.at) + len(chosen.at))
    first = (choose_order or _plainly(plan.rounds, progress))(learned, chosen)
    with progress.stage("ranker", unit="candidates") as stage:
        train, trees = history.before(choose).matrix(), first.order.trees
        base = chosen.figures(chosen.table.candidates, train, plan.k)
        least = least_known(first.order, chosen, plan.k)
        ranked = SecondStage(first.order, least).ordered(chosen, plan.k)
        two = chosen.figures(ranked, train, plan.k)
        whole = from_both(first, learned, chosen)
        stage.advance(len(learned.table) + len(chosen.table))
        gain = two.gain(base, "ndcg", plan.k)
        stage.say(
            f"{trees} trees, NDCG@{plan.k} {two.mean('ndcg', plan.k):.4f}, retriever "
            f"{base.mean('ndcg', plan.k):.4f}, gain {gain.low:.4f} to {gain.high:.4f}"
        )
    place = retrieval_fit.fit(
        log.table, lake, options, progress, run=run, clock=clock, interactions=interactions
    ).version
    with progress.stage("version", unit="visitors") as stage:
        shop = known(log.table, options.sources, interactions, plan.views, end - plan.sessions_ms)
        stage.advance(len(shop.users) + len(shop.sessions))
        matrix = interactions.matrix(options.weights, as_of_ms=end)
        found = retrieval.read_manifest(place)
        version = artefact.write(
            lake / artefact.FOLDER,
            whole,
            chosen.table.x,
            shop,
            about={
                "tenant": log.tenant,
                "retriever": found.version,
                "retriever_sha256": found.manifest_sha256,
                "views": {v.name: v.definition_hash for v in plan.views},
                "profiles": {p.name: p.definition_hash for p in plan.profiles if profile},
                "kinds": interactions.kinds,
                "weights": options.weights.describe(),
                "candidates": plan.candidates,
                "least_known": least,
                "log_id": log.id,
                "log_end": log.end,
                "as_of_ms": end,
                "training": {
                    "interactions": len(interactions),
                    "visits": len(learned.at) + len(chosen.at),
                    "trees": trees,
                    **first.describe(),
                    "learn_ms": [learn, choose],
                    "choose_ms": [choose, end],
                },
                "metrics": {"retriever": base.describe(), "two_stage": two.describe()},
            },
            beside={name: method.fit(matrix, run) for name, method in plan.beside.items()},
            name=options.name,
            created_ms=clock.now_ms(),
        )
        promoted = registry.current(lake / artefact.FOLDER, options.name) is None
        if promoted:
            registry.promote(lake / artefact.FOLDER, options.name, version.name)
        stage.say(version.name)
    return Fitted(artefact.read_manifest(version), base, two, promoted)


def _plainly(rounds: int, progress: Progress) -> Choose:
    def chosen(learn: Span, choose: Span) -> Chosen:
        with progress.stage("order", unit="trees") as stage:
            found = plainly(rounds)(learn, choose)
            stage.advance(found.order.trees)
        return found

    return chosen


def _profile(
    log: Log, lake: Place, plan: Plan, interactions: Interactions, progress: Progress
) -> LoggedProfile | None:
    profile = plan.profile
    if profile is None:
        return None
    if not is_made(profile, lake, log.id, log.tenant):
        progress.note(
            f"profile {profile.name} has no values of this log: its columns are left out "
            "(`raypipe features` makes them)"
        )
        return None
    return LoggedProfile(profile, lake, interactions.users)


def is_shop(project: Project) -> bool:
    """Whether a project declares all events from which is learned."""
    return not _lacking(project)


def _lacking(project: Project) -> list[str]:
    names = {event.name for event in project.events}
    return [e for e in (*(s.event for s in SHOP.retrieval.sources), "listing") if e not in names]


def require_shop(project: Project) -> None:
    """Raise DeclarationError for a project that lacks events from which is learned."""
    lacking = _lacking(project)
    if lacking:
        raise DeclarationError(
            f"project {project.name!r} declares no {', '.join(lacking)}",
            hint="Recommendations are learned from a shop's events: "
            "RAYPIPE_PROJECT=features.commerce:project.",
        )
