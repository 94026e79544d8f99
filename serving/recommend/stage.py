"""A version at work: its engine, what it keeps account of, and the log that it follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raypipe.lake import Place
from raypipe.log.opening import open_log
from raypipe.ownership.claim import require_single
from serving.recommend.engine import Engine, Found, Wish
from serving.recommend.follow import Follower
from serving.recommend.live_windows import LiveWindows
from serving.recommend.profile import StoredProfile
from serving.recommend.shelf import Shelf
from serving.recommend.visitors import Histories
from training.recommend.ranking import artefact

if TYPE_CHECKING:
    from collections.abc import Sequence

    from raypipe.config import Settings
    from raypipe.log.port import EventLog
    from raypipe.profiles import Profile
    from raypipe.project import Project
    from serving.recommend.selection import Selection
    from training.recommend.ranking.fit import Plan


@dataclass
class Stage:
    """One thread's: nothing here waits for a lock. Requests first catch up with the log."""

    engine: Engine
    histories: Histories
    windows: LiveWindows
    shelf: Shelf
    follower: Follower
    log: EventLog
    profile: StoredProfile | None = None
    """What the ranker reads of visitors, if it was fitted with it."""

    @classmethod
    def open(
        cls,
        settings: Settings,
        project: Project,
        version: Place,
        plan: Plan,
        selection: Selection,
        sponsored: Sequence[str] = (),
    ) -> Stage:
        """Load a version, check it, and follow the log to its present end.

        Raises NotFound, IntegrityError and Unavailable as the parts do, UsageError for a log of
        several workers.
        """
        cache = _cache(settings, version)
        loaded = artefact.load(settings.lake, version, plan.views, plan.profiles, cache=cache)
        manifest, known = loaded.manifest, loaded.known
        codes = loaded.retriever.codes
        histories = Histories(known.users, known.sessions, dict(known.owners))
        windows = LiveWindows(
            plan.item_views, plan.user_views, known.windows, loaded.retriever.items, manifest.tenant
        )
        shelf = Shelf(known.catalogue)
        paid = [codes[item] for item in sponsored if item in codes]
        profile = next((p for p in plan.profiles if p.name in manifest.profiles), None)
        names = () if profile is None else profile.column_names
        engine = Engine(loaded, histories, windows, shelf, selection, paid, names)
        log = open_log(settings.log_url, settings.log_cache, create=False, workers=settings.workers)
        try:
            require_single(log, "recommendations")
            follower = Follower(
                log,
                project,
                plan.retrieval.sources,
                manifest.tenant,
                codes,
                histories,
                windows,
                shelf,
                log_id=manifest.log_id,
                offset=manifest.log_end,
            )
            follower.catch_up()
            stage = cls(engine, histories, windows, shelf, follower, log)
            stage.warm(manifest.as_of_ms)
            if profile is not None:
                stage.profile = _stored(settings, profile)
        except BaseException:
            log.close()
            raise
        return stage

    def warm(self, now_ms: int) -> None:
        """Touch and compile what requests need, so that none of them waits for it."""
        users = self.engine.loaded.known.users
        user = users.ids[int(np.argmax(np.diff(users.starts)))].as_py() if len(users) else None
        for visitor in (user, None):
            self.engine.recommend(Wish(k=10, seed=0, user=visitor), now_ms, self.offset)
        # Also where nobody is known well enough for the ranker.
        self.engine.ranked(Wish(k=10, seed=0, user=user), now_ms, self.offset)
        self.engine.similar(0, Wish(k=1, seed=0), now_ms)

    @property
    def offset(self) -> int:
        """Everything in the log before it counts."""
        return self.follower.offset

    def catch_up(self) -> int:
        """See Follower.catch_up."""
        return self.follower.catch_up()

    def recommend(self, wish: Wish, now_ms: int, *, explore: bool = True) -> Found:
        """See Engine.recommend; as of the log's present end."""
        self.catch_up()
        return self.engine.recommend(wish, now_ms, self.offset, explore=explore)

    def trending(self, wish: Wish, now_ms: int) -> Found:
        """See Engine.trending; as of the log's present end."""
        self.catch_up()
        return self.engine.trending(wish, now_ms, self.offset)

    def close(self) -> None:
        """Let the log and the online store go."""
        self.log.close()
        if self.profile is not None:
            self.profile.close()


def _stored(settings: Settings, profile: Profile) -> StoredProfile:
    from features.profiles.lookup import ProfileReader
    from serving.profiles import OnlineProfiles

    reader = ProfileReader((profile,), settings.home, settings.online_url)
    return StoredProfile(profile, OnlineProfiles(reader, settings.tenant))


def _cache(settings: Settings, version: Place) -> Place | None:
    """Files of an object store are fetched once a node."""
    if version.local is not None:
        return None
    return Place.at(settings.home / "cache" / "recommend")
