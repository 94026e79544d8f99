"""Places of a replica: lent while nobody else wants them, shared when all are taken."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from raypipe.errors import Overloaded, Unavailable
from serving.fairness import Gate


def run(story: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(story())  # type: ignore[arg-type]


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


class Crowd:
    """Requests of tenants at one gate, with what became of them."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.running: list[str] = []
        self.refused: list[tuple[str, type[Exception]]] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def come(self, tenant: str, seconds: float = 60.0) -> None:
        self.tasks.append(asyncio.create_task(self._come(tenant, seconds)))
        await settle()

    async def _come(self, tenant: str, seconds: float) -> None:
        try:
            turn = self.gate.enter(tenant)
            if turn is not None:
                await self.gate.wait(tenant, turn, seconds)
        except (Overloaded, Unavailable) as e:
            self.refused.append((tenant, type(e)))
        else:
            self.running.append(tenant)

    async def finish(self, tenant: str) -> None:
        self.running.remove(tenant)
        self.gate.leave(tenant)
        await settle()


def test_one_tenant_may_have_all_places_while_no_other_comes() -> None:
    async def story() -> None:
        crowd = Crowd(Gate(3, 2))
        for _ in range(6):
            await crowd.come("a")
        assert crowd.running == ["a"] * 3
        assert (crowd.gate.running, crowd.gate.queued) == (3, 2)
        assert crowd.refused == [("a", Unavailable)]  # it is busy, and nobody is cheated

    run(story)


def test_a_newcomer_gets_the_next_places_and_a_queue_that_another_had_filled() -> None:
    async def story() -> None:
        crowd = Crowd(Gate(2, 2))
        for _ in range(4):
            await crowd.come("greedy")
        await crowd.come("modest")
        assert crowd.refused == [("greedy", Overloaded)]
        await crowd.finish("greedy")
        assert sorted(crowd.running) == ["greedy", "modest"]
        await crowd.come("greedy")
        await crowd.come("greedy")
        assert crowd.refused[1:] == [("greedy", Overloaded)]

    run(story)


def test_places_go_round_by_weight() -> None:
    async def story() -> None:
        crowd = Crowd(Gate(6, 60, {"big": 2.0}))
        for _ in range(20):
            for tenant in ("small", "big"):
                await crowd.come(tenant)
        served: Counter[str] = Counter()
        for _ in range(20):
            await crowd.finish(crowd.running[0])
        served.update(crowd.running)
        assert served == {"big": 4, "small": 2}

    run(story)


def test_waiting_ends_with_the_time_and_leaves_nothing_behind() -> None:
    async def story() -> None:
        crowd = Crowd(Gate(1, 5))
        await crowd.come("a")
        await crowd.come("b", 0.01)
        await asyncio.gather(*crowd.tasks)
        assert crowd.refused == [("b", Unavailable)]
        assert (crowd.gate.running, crowd.gate.queued) == (1, 0)
        await crowd.come("b")
        crowd.tasks[-1].cancel()
        await settle()
        assert (crowd.gate.running, crowd.gate.queued) == (1, 0)
        await crowd.finish("a")
        assert crowd.gate.running == 0

    run(story)


@pytest.mark.parametrize("seed", range(20))
def test_nobody_below_its_share_is_refused_while_another_waits_with_more(seed: int) -> None:
    """Against counts kept beside the gate, in any order of coming and going."""

    async def story() -> None:
        rng = random.Random(seed)
        places, queue = rng.randrange(1, 5), rng.randrange(1, 8)
        weights = {"a": 1.0, "b": 1.0, "c": 3.0}
        crowd = Crowd(Gate(places, queue, weights))
        inside: Counter[str] = Counter()
        for _ in range(300):
            if crowd.running and rng.random() < 0.4:
                tenant = rng.choice(crowd.running)
                inside[tenant] -= 1
                await crowd.finish(tenant)
                continue
            tenant, before = rng.choice("aabc"), len(crowd.refused)
            was = Counter(crowd.running)
            waited = inside - was
            inside[tenant] += 1
            await crowd.come(tenant)
            for loser, _ in crowd.refused[before:]:
                most = inside[loser] / weights[loser]
                others = [inside[t] / weights[t] for t in waited if t != loser]
                assert most >= max(others, default=0)
                inside[loser] -= 1
            assert crowd.gate.running == len(crowd.running) <= places
            assert crowd.gate.queued == inside.total() - len(crowd.running) <= queue
            assert not crowd.gate.queued or crowd.gate.running == places
        for task in crowd.tasks:
            task.cancel()

    run(story)
