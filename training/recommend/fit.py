"""From a shop's log to a retriever in use: interactions, figures on the newest days, a version.

What is measured is fitted on the days before; what is written is fitted on all of them, by the
same methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from raypipe.clock import DAY_MS, Clock, SystemClock
from raypipe.errors import StageError
from raypipe.lake import Place
from raypipe.runtime.progress import Progress
from training import registry
from training.recommend import artefact
from training.recommend.blend import Blend, fallback
from training.recommend.catalogue import read_catalogue
from training.recommend.content import NewByContent
from training.recommend.evaluate import Evaluation, evaluate
from training.recommend.events import SHOP_SOURCES, Source, Tables, read_interactions
from training.recommend.interactions import SHOP, Interactions, Weights
from training.recommend.neighbours import RP3Beta
from training.recommend.popularity import Popularity, popular_in_window
from training.recommend.port import Method, Retriever
from training.recommend.products import Run, in_process
from training.recommend.splits import by_time


@dataclass(frozen=True)
class Options:
    """What is fitted, and how it is measured.

    ``test_ms`` are the newest days that are guessed from those before. ``attributes`` are columns
    of the listings by which new items are found; none leaves new items out.
    """

    name: str = "shop"
    sources: Sequence[Source] = SHOP_SOURCES
    weights: Weights = SHOP
    method: Method = field(default_factory=RP3Beta)
    content: NewByContent = field(default_factory=NewByContent)
    attributes: tuple[str, ...] = ("category", "brand")
    price_bands: int = 10
    windows_ms: tuple[int, ...] = (DAY_MS, 7 * DAY_MS, 30 * DAY_MS)
    test_ms: int = 7 * DAY_MS
    ks: tuple[int, ...] = (10, 20)

    def describe(self) -> dict[str, Any]:
        """Plain data for the manifest."""
        return {
            "retrieval": {"method": self.method.name, **self.method.describe()},
            "content": {**self.content.describe(), "attributes": list(self.attributes)},
            "weights": self.weights.describe(),
            "popularity_windows_ms": list(self.windows_ms),
        }


@dataclass(frozen=True)
class Fitted:
    """A written version, and its figures beside those of popularity alone."""

    version: Place
    blend: Evaluation
    popular: Evaluation


def fit(
    tables: Tables,
    lake: Place,
    options: Options,
    progress: Progress,
    *,
    run: Run = in_process,
    clock: Clock | None = None,
    interactions: Interactions | None = None,
) -> Fitted:
    """Fit, measure, write and promote one version.

    Args:
        tables: the log's rows by event type (``features.log_files``).
        lake: the version goes below ``retrieval`` in it.
        options: what to do.
        progress: stages.
        run: where sparse products are computed; ``products.on_ray`` in a Ray session.
        clock: names the version.
        interactions: of these tables, where they were read already.

    Raises:
        NotFound: there are no interactions.
        StageError: there is too little history to guess anything from.
    """
    if interactions is None:
        with progress.stage("interactions", unit="events") as stage:
            interactions = read_interactions(tables, options.sources)
            stage.advance(len(interactions))
    end = int(interactions.time[-1]) + 1
    with progress.stage("measure", unit="users") as stage:
        split = by_time(interactions, end - options.test_ms)
        if not len(split.train):
            raise StageError(
                f"all {len(interactions)} interactions lie in the newest "
                f"{options.test_ms / DAY_MS:g} days, which are to be guessed",
                hint="Load more history, or shorten test_ms.",
            )
        blend, popular = retrievers(tables, split.train, options, end - options.test_ms, run)
        learned = split.train.matrix(options.weights, as_of_ms=end - options.test_ms)
        figures = evaluate(blend, learned, split.truth, ks=options.ks)
        base = evaluate(popular, learned, split.truth, ks=options.ks)
        stage.advance(len(figures.users))
        k = options.ks[-1]
        gain = figures.gain(base, "ndcg", k)
        stage.say(
            f"NDCG@{k} {figures.mean('ndcg', k):.4f}, popularity {base.mean('ndcg', k):.4f}, "
            f"gain {gain.low:.4f} to {gain.high:.4f}"
        )
    with progress.stage("retriever", unit="items") as stage:
        whole, _ = retrievers(tables, interactions, options, end, run)
        version = artefact.write(
            lake / artefact.FOLDER,
            whole,
            interactions.items,
            name=options.name,
            created_ms=(clock or SystemClock()).now_ms(),
            method=options.describe(),
            training={
                "interactions": len(interactions),
                "users": len(interactions.users),
                "first_ms": int(interactions.time[0]),
                "end_ms": end,
                "split": split.protocol,
            },
            data_fingerprint=interactions.fingerprint(),
            metrics={"blend": figures.describe(), "popularity": base.describe()},
        )
        registry.promote(lake / artefact.FOLDER, options.name, version.name)
        stage.advance(whole.width)
        stage.say(version.name)
    return Fitted(version, figures, base)


def retrievers(
    tables: Tables, interactions: Interactions, options: Options, as_of_ms: int, run: Run
) -> tuple[Blend, Popularity]:
    """The blend and its popularity as of a moment, with nothing from after it; items without an
    interaction by then too."""
    weighted = interactions.matrix(options.weights, as_of_ms=as_of_ms)
    popular, _ = popular_in_window(interactions, as_of_ms, options.windows_ms)
    main = options.method.fit(weighted, run)
    content: Retriever | None = None
    if options.attributes:
        catalogue = read_catalogue(tables, interactions.items, as_of_ms=as_of_ms)
        attributes = catalogue.attributes(options.attributes, price_bands=options.price_bands)
        if len(attributes.columns):
            content = options.content.fit(weighted, attributes, run)
    return fallback(main, popular, content=content), popular
