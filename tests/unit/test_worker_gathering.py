"""How long a worker's commit waits for others, by a clock that is set by hand."""

from __future__ import annotations

from raypipe.runtime.worker.gathering import GATHER_S, HOLD_S, Gathering

A, B, C = ("default", "a"), ("default", "b"), ("other", "a")


class Clock:
    """Seconds."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def until(gathering: Gathering, *, asked: bool = True, patient: bool = True) -> float:
    return gathering.until(dirty=True, asked=asked, patient=patient)


def test_a_decision_alone_waits_for_nobody() -> None:
    clock = Clock()
    gathering = Gathering(clock)
    gathering.observed(A)
    assert until(gathering, asked=False) == 100.0 + HOLD_S
    clock.now += HOLD_S / 2
    gathering.decided(A)
    assert until(gathering) == clock.now


def test_it_waits_for_those_that_are_under_way_but_no_longer_than_the_first_may() -> None:
    clock = Clock()
    gathering = Gathering(clock)
    for name in (A, B, C):
        gathering.observed(name)
    gathering.decided(A)
    assert until(gathering) == 100.0 + GATHER_S
    clock.now += GATHER_S / 2
    gathering.decided(B)
    assert until(gathering) == 100.0 + GATHER_S
    gathering.decided(C)
    assert until(gathering) == clock.now
    gathering.committed()
    gathering.observed(A)
    gathering.observed(B)
    gathering.decided(B)
    assert until(gathering) == clock.now + GATHER_S


def test_a_decision_that_does_not_come_is_not_waited_for_again() -> None:
    clock = Clock()
    gathering = Gathering(clock)
    gathering.observed(A)
    clock.now += 2 * HOLD_S
    gathering.observed(B)
    gathering.decided(B)
    assert until(gathering) == clock.now


def test_what_may_not_wait_has_all_committed_at_once() -> None:
    gathering = Gathering(Clock())
    gathering.observed(A)
    assert until(gathering, patient=False) == 100.0
    assert gathering.until(dirty=False, asked=False, patient=True) == 100.0
