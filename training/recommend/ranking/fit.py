"""From a shop's log to a version of both stages.

The ranker learns as in ``trial``: on candidates of retrievers that were fitted before its moments.
The newest days choose the number of trees and say how good it is; then it learns from those days
too, and what is written comes with a retriever that was fitted on everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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
from training.recommend.catalogue import read_catalogue
from training.recommend.evaluate import Evaluation
from training.recommend.events import TIME, Source, Tables, Visits, read_interactions, read_visits
from training.recommend.interactions import Interactions
from training.recommend.products import Run, in_process
from training.recommend.ranking import artefact, ranker
from training.recommend.ranking.features import Table
from training.recommend.ranking.profiles import LoggedProfile, is_made
from training.recommend.ranking.spans import FirstStage, History
from training.recommend.ranking.visitors import Done, Visitors
from training.recommend.ranking.windows import state_of
from training.recommend.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raypipe.config import Settings
    from raypipe.project import Project


@dataclass(frozen=True)
class Plan(FirstStage):
    """What is fitted, and the spans of time of the ranker.

    ``sessions_ms``: visits that ended longer before the end of the log are over.
    """

    learn_ms: int = 14 * DAY_MS
    choose_ms: int = 7 * DAY_MS
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


_NEVER = 2**62
"""Ms UTC: all listings of the log came before."""

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
    """A written version; figures of the newest days, of the retriever's order and the ranker's."""

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
    run: Run = in_process,
    clock: Clock | None = None,
) -> Fitted:
    """Fit, measure and write a version of both stages. The first one of a lake becomes current.

    Args:
        log: what is learned from.
        lake: versions go below ``retrieval`` and ``ranking`` in it.
        plan: what to do.
        progress: stages.
        run: where sparse products are computed.
        clock: names the versions.

    Raises:
        NotFound: there are no interactions.
        StageError: there is too little history.
    """
    clock = clock or SystemClock()
    options = plan.retrieval
    with progress.stage("interactions", unit="events") as stage:
        interactions = read_interactions(log.table, options.sources, joined=True)
        stage.advance(len(interactions))
    end = int(interactions.time[-1]) + 1
    choose, learn = end - plan.choose_ms, end - plan.choose_ms - plan.learn_ms
    if int(interactions.time[0]) >= learn:
        raise StageError(
            f"the interactions span {(end - int(interactions.time[0])) / DAY_MS:.1f} days, and the "
            f"newest {(end - learn) / DAY_MS:g} are to learn an order from",
            hint="Load more history.",
        )
    place = retrieval_fit.fit(
        log.table, lake, options, progress, run=run, clock=clock, interactions=interactions
    ).version
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
    with progress.stage("ranker", unit="visits") as stage:
        (learned, _), (chosen, _) = history.visits(learn, choose), history.visits(choose, end)
        stage.advance(len(learned.at) + len(chosen.at))
        first = ranker.fit(learned.table, validation=chosen.table, rounds=plan.rounds)
        train = history.before(choose).matrix()
        base = chosen.figures(chosen.table.candidates, train, plan.k)
        two = chosen.figures(first.ordered(chosen.table, plan.k), train, plan.k)
        trees = first.booster.num_boosted_rounds()
        whole = ranker.fit(_both(learned.table, chosen.table), rounds=trees)
        gain = two.gain(base, "ndcg", plan.k)
        stage.say(
            f"{trees} trees, NDCG@{plan.k} {two.mean('ndcg', plan.k):.4f}, retriever "
            f"{base.mean('ndcg', plan.k):.4f}, gain {gain.low:.4f} to {gain.high:.4f}"
        )
    with progress.stage("version", unit="visitors") as stage:
        known = _known(log, plan, interactions, end)
        stage.advance(len(known.users) + len(known.sessions))
        matrix = interactions.matrix(options.weights, as_of_ms=end)
        found = retrieval.read_manifest(place)
        version = artefact.write(
            lake / artefact.FOLDER,
            whole,
            chosen.table.x,
            known,
            about={
                "tenant": log.tenant,
                "retriever": found.version,
                "retriever_sha256": found.manifest_sha256,
                "views": {v.name: v.definition_hash for v in plan.views},
                "profiles": {
                    p.name: p.definition_hash for p in plan.profiles if profile is not None
                },
                "kinds": interactions.kinds,
                "weights": options.weights.describe(),
                "candidates": plan.candidates,
                "log_id": log.id,
                "log_end": log.end,
                "as_of_ms": end,
                "training": {
                    "interactions": len(interactions),
                    "visits": len(learned.at) + len(chosen.at),
                    "trees": trees,
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


def run(settings: Settings, progress: Progress) -> dict[str, Any]:
    """Fit the shop's recommender on a home's log; what `raypipe recommend fit` tells.

    Raises as ``fit``; DeclarationError for a project without a shop's events.
    """
    from features.log_files import open_log
    from raypipe.project import load_project

    project = load_project(settings.project)
    require_shop(project)
    with open_log(settings, project) as files:
        found = fit(files, settings.lake, SHOP, progress)
    gain = found.two_stage.gain(found.retriever, "ndcg", SHOP.k)
    return {
        "version": found.manifest.reference,
        "retriever": found.manifest.retriever,
        "current": found.promoted,
        "items": found.manifest.items,
        "profiles": sorted(found.manifest.profiles),
        "trees": found.manifest.training["trees"],
        "k": SHOP.k,
        "ndcg_retriever": found.retriever.mean("ndcg", SHOP.k),
        "ndcg_two_stage": found.two_stage.mean("ndcg", SHOP.k),
        "ndcg_gain_low": gain.low,
        "ndcg_gain_high": gain.high,
    }


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


def _both(one: Table, other: Table) -> Table:
    return Table(
        one.names,
        np.concatenate([one.x, other.x]),
        Rows.joined([one.candidates, other.candidates]),
        np.concatenate([one.grade, other.grade]),
    )


def _known(log: Log, plan: Plan, interactions: Interactions, end: int) -> artefact.Known:
    """What a replica starts from: everything that is in the log."""
    tables, sources, items = log.table, plan.retrieval.sources, interactions.items
    visits = read_visits(tables, sources)
    since = end - plan.sessions_ms
    owners = {s: user for s, (user, _) in visits.owners(since).items()}
    return artefact.Known(
        read_catalogue(tables, items, as_of_ms=_NEVER),
        Visitors.of(
            interactions.users,
            interactions.user,
            Done(interactions.item, interactions.kind, interactions.time, interactions.offset),
        ),
        _sessions(visits.anonymous(since), items, sources),
        owners,
        {view.name: state_of(view, tables).snapshot() for view in plan.views},
    )


def _sessions(visits: Visits, items: pa.StringArray, sources: Sequence[Source]) -> Visitors:
    table = visits.table
    ids = pc.unique(table.column("session").cast(pa.string())).sort()
    item = pc.index_in(table.column("item"), items)
    kept = item.is_valid().combine_chunks().to_numpy(zero_copy_only=False)
    table, item, kind = table.filter(kept), item.filter(kept), visits.kind[kept]
    done = Done(
        _numbers(item).astype(np.int32),
        kind,
        table.column(TIME).to_numpy(),
        table.column("offset").to_numpy(),
    )
    return Visitors.of(ids, _numbers(pc.index_in(table.column("session"), ids)), done)


def _numbers(column: Any) -> np.ndarray:
    return np.asarray(column.to_numpy())
