"""Requests to lists, one after the other on the event loop.

A list is some milliseconds of small steps that hold the interpreter. In a thread of their own they
would get and give it back all the time: on the loop lists are made half as fast again.
"""

from __future__ import annotations

import asyncio
import logging
import math
import uuid
from collections.abc import Mapping
from contextlib import nullcontext

import numpy as np

from raypipe.clock import Clock
from raypipe.errors import NotFound, RaypipeError, Unavailable
from serving.deadlines import Budget
from serving.presence import Presence
from serving.recommend.body import FilterBody, Item, Listed, Models, Wanted, Why
from serving.recommend.engine import Found, Reason, Wish
from serving.recommend.exploration import seed_of
from serving.recommend.profile import Read
from serving.recommend.record import Recorder
from serving.recommend.rules import Filters, no_codes
from serving.recommend.shelf import Shelf
from serving.recommend.stage import Stage

FOLLOW_S = 0.2
"""How often the log is followed beside requests: what one has to catch up with stays little."""

RECORD_SHARE = 0.8
"""Of the budget that is left: so long a record may take, the rest is for answering without it."""

_DID = {"view": "viewed", "cart": "put into your cart", "order": "ordered"}
_log = logging.getLogger("raypipe.recommend")


class Desk:
    """Answers for the version in use; ``use`` exchanges it between two requests.

    Args:
        recorder: writes what was shown.
        clock: says when that was.
        presence: whether the worker, which records, is there; None: it is waited for.
    """

    def __init__(self, recorder: Recorder, clock: Clock, presence: Presence | None = None) -> None:
        self._recorder = recorder
        self._clock = clock
        self._presence = presence
        self._stage: Stage | None = None

    @property
    def stage(self) -> Stage:
        """What is in use; raises Unavailable before anything is."""
        if self._stage is None:
            raise Unavailable(
                "no version of the recommender is loaded yet",
                hint="Wait until readyz answers 200; `raypipe recommend fit` makes the first one.",
            )
        return self._stage

    def use(self, stage: Stage) -> None:
        """Answer by another version from the next request on."""
        old, self._stage = self._stage, stage
        if old is not None:
            old.close()

    async def follow(self) -> None:
        """Follow the log until cancelled."""
        while True:
            await asyncio.sleep(FOLLOW_S)
            try:
                self.stage.catch_up()
            except (RaypipeError, OSError) as e:
                _log.warning("the log can't be followed: %s", e)

    async def recommend(self, wanted: Wanted, tenant: str, budget: Budget) -> Listed:
        """A list for a visitor, recorded.

        Raises NotFound for another tenant than the version's, Unavailable when the budget is over.
        """
        self._require(tenant)
        name = f"rec_{uuid.uuid4().hex}"
        now = self._second()
        known = await self._profile(wanted, tenant, name)
        listed = self._listed(wanted, name, now, budget, known, explore=True)
        if not self._recorder.on or await self._recorded(
            listed, wanted, tenant, budget, now, known
        ):
            return listed
        return _without_record(self._listed(wanted, name, now, budget, known, explore=False))

    async def _profile(self, wanted: Wanted, tenant: str, name: str) -> Read:
        """What the online store says of the visitor; nothing where the ranker reads no profile."""
        stage = self.stage
        if stage.profile is None:
            return Read()
        visitor = wanted.user
        if visitor is None and wanted.session is not None:
            self._caught_up(stage)  # the session may just have named its customer
            visitor = stage.histories.owner(wanted.session)
        return await stage.profile.read(visitor, tenant, name)

    async def _recorded(
        self, listed: Listed, wanted: Wanted, tenant: str, budget: Budget, now: int, known: Read
    ) -> bool:
        """Whether the list is durable; soon false while the worker is known to be away."""
        presence = self._presence
        if presence is not None and not presence.worth_asking:
            return False
        try:
            async with asyncio.timeout(budget.left * RECORD_SHARE) as limit:
                with nullcontext() if presence is None else presence.asking(limit):
                    await self._recorder.record(
                        listed, tenant, wanted.user, wanted.session, now, known.time
                    )
        except (Unavailable, TimeoutError) as e:
            _log.warning("a list can't be recorded: %s", e or "no answer in time")
            if presence is not None:
                presence.in_vain()
            return False
        except RaypipeError as e:
            _log.error("a list was not recorded: %s", e)
            return False
        return True

    def similar(self, item_id: str, k: int, tenant: str, budget: Budget) -> Listed:
        """Items like one. Raises NotFound for an unknown one."""
        self._require(tenant)
        _in_time(budget)
        stage = self.stage
        missing = self._caught_up(stage)
        code = stage.engine.code(item_id)
        found = stage.engine.similar(code, Wish(k=k, seed=0), self._second())
        return _told(stage, found, None, missing)

    def trending(self, wanted: Wanted, tenant: str, budget: Budget) -> Listed:
        """Items that are wanted more than before."""
        self._require(tenant)
        _in_time(budget)
        stage = self.stage
        missing = self._caught_up(stage)
        found = stage.engine.trending(_wish(stage, wanted, 0, {}), self._second(), stage.offset)
        return _told(stage, found, None, missing)

    def close(self) -> None:
        """Let the log go."""
        if self._stage is not None:
            self._stage.close()
            self._stage = None

    def _listed(
        self, wanted: Wanted, name: str, now: int, budget: Budget, known: Read, *, explore: bool
    ) -> Listed:
        _in_time(budget)
        stage = self.stage
        missing = self._caught_up(stage)
        if known.missing:
            missing.append("profile")
        wish = _wish(stage, wanted, seed_of(name), known.values)
        found = stage.engine.recommend(wish, now, stage.offset, explore=explore)
        _in_time(budget)
        return _told(stage, found, name if self._recorder.on else None, missing)

    @staticmethod
    def _caught_up(stage: Stage) -> list[str]:
        try:
            stage.catch_up()
        except (RaypipeError, OSError) as e:
            _log.warning("the log can't be followed: %s", e)
            return ["log"]
        return []

    def _second(self) -> int:
        """The time as of which a list is made: the begun second, so that lists share what was read
        of windows."""
        return self._clock.now_ms() // 1_000 * 1_000

    def _require(self, tenant: str) -> None:
        mine = self.stage.engine.loaded.manifest.tenant
        if tenant != mine:
            raise NotFound(
                "there are no recommendations for this tenant",
                hint="A version is fitted on one tenant's events; serve another one for others.",
            )


def _in_time(budget: Budget) -> None:
    """Raise Unavailable when nobody waits for the answer any more."""
    if budget.left <= 0:
        raise Unavailable(
            f"the list was not there within {budget.seconds:.3g} s",
            hint="Retry, or wait longer: the header X-Deadline-Ms.",
        )


def _wish(stage: Stage, wanted: Wanted, seed: int, profile: Mapping[str, float]) -> Wish:
    codes = stage.engine.loaded.retriever.codes
    hidden = [codes[i] for i in wanted.filters.exclude if i in codes]
    viewing = wanted.context.item_id
    return Wish(
        k=wanted.k,
        seed=seed,
        user=wanted.user,
        session=wanted.session,
        # An item that is new since the fit says nothing yet.
        viewing=None if viewing is None else codes.get(viewing),
        diversity=wanted.diversity,
        filters=_filters(stage.shelf, wanted.filters),
        hidden=np.array(hidden, np.int64) if hidden else no_codes(),
        profile=profile,
    )


def _filters(shelf: Shelf, asked: FilterBody) -> Filters:
    low, high = asked.price_from, asked.price_to
    return Filters(
        None if asked.categories is None else shelf.codes("category", asked.categories),
        None if asked.brands is None else shelf.codes("brand", asked.brands),
        None if low is None else float(low),
        None if high is None else float(high),
    )


def _told(stage: Stage, found: Found, name: str | None, missing: list[str]) -> Listed:
    engine, shown = stage.engine, found.shown
    ids = engine.loaded.retriever.items
    degraded = [*missing, *found.degraded]
    return Listed(
        recommendation_id=name,
        items=[
            Item(
                ids[code].as_py(),
                None if math.isnan(score) else score,
                propensity,
                sponsored,
                _why(stage, reason),
            )
            for code, score, propensity, sponsored, reason in zip(
                shown.codes.tolist(),
                found.scores.tolist(),
                shown.propensity.tolist(),
                shown.sponsored.tolist(),
                found.reasons,
                strict=True,
            )
        ],
        models=Models(
            engine.loaded.retriever.reference, engine.loaded.reference, engine.selection.reference
        ),
        explored=shown.explored,
        history=found.length,
        degraded=bool(degraded),
        degraded_by=degraded,
    )


def _why(stage: Stage, reason: Reason) -> Why:
    if reason.item is None:
        texts = {
            "popular": "many people take it now",
            "trending": "more people want it than before",
            "sponsored": "sponsored",
        }
        return Why(reason.kind, texts[reason.kind])
    item_id = stage.engine.loaded.retriever.items[reason.item].as_py()
    called = stage.shelf.title(reason.item) or item_id
    if reason.did is None:
        text = f"like {called}"
    else:
        text = f"because you {_DID.get(reason.did, reason.did)} {called}"
        if reason.kind == "new":
            text = f"new, {text}"
    return Why(reason.kind, text, item_id, reason.did)


def _without_record(listed: Listed) -> Listed:
    return Listed(
        recommendation_id=None,
        items=listed.items,
        models=listed.models,
        explored=listed.explored,
        history=listed.history,
        degraded=True,
        degraded_by=[*listed.degraded_by, "record"],
    )
