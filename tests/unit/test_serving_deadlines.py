"""A client's budget, and what of it is kept for deciding without the worker."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from raypipe.errors import MalformedBody
from serving.deadlines import Budget, Reserve, budget_of
from tests.unit.serving_kit import Service, body, train


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, 5.0), ("1", 0.001), (" 250 ", 0.25), ("6000", 5.0), ("9" * 5_000, 5.0)],
)
def test_a_client_may_want_less_and_never_more(header: str | None, seconds: float) -> None:
    assert budget_of(header, 5_000).seconds == seconds


@pytest.mark.parametrize("header", ["", "0", "-5", "1.5", "1e3", "soon", "٣", "0" * 5_000])
def test_anything_else_is_refused(header: str) -> None:
    with pytest.raises(MalformedBody) as caught:
        budget_of(header, 5_000)
    assert caught.value.violations[0].pointer == "/headers/X-Deadline-Ms"


def test_the_route_refuses_it_before_it_reads_the_event(tmp_path: Path) -> None:
    train(tmp_path)
    service = Service(tmp_path, tmp_path / "keys.db")
    answer = service.post(body(), X_Deadline_Ms="soon")
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_body")
    assert not service.worker.seen
    assert service.post(body(), X_Deadline_Ms="4000").status_code == 200


def test_a_budget_runs_from_the_arrival() -> None:
    assert Budget(1.0, time.monotonic() - 3).left < -1.9
    assert 0.9 < Budget(1.0).left <= 1.0


def test_the_reserve_follows_what_was_measured_and_leaves_half() -> None:
    reserve = Reserve(0.01)
    assert reserve.of(10) == 0.01
    assert reserve.of(0.01) == 0.005
    assert reserve.of(-1) == 0
    for _ in range(200):
        reserve.took(0.0001)
    assert reserve.of(10) == 0.01
    for _ in range(8):
        reserve.took(0.2)
    assert 0.2 < reserve.of(10) < 1
