from __future__ import annotations

import io
import threading

import pytest

from raypipe.runtime.progress import Live, Plain, Quiet, Stage, duration, reporter, significant


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Hand:
    """A clock in seconds, cranked by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_plain_stage_says_one_line_at_its_start_and_one_at_its_end() -> None:
    out, clock = io.StringIO(), Hand()
    with Plain(out, clock).stage("load", total=1_000, unit="rows") as stage:
        stage.advance(400)
        stage.advance(600)
        clock.now += 4
        stage.say("3 refused")
    assert out.getvalue().splitlines() == [
        "load       started",
        "load       1,000 rows in 4.0 s (250/s): 3 refused",
    ]


def test_a_long_plain_stage_says_how_far_it_is() -> None:
    class Watched(io.StringIO):
        def write(self, text: str) -> int:
            if "left" in text:
                seen.set()
            return super().write(text)

    seen, out, clock = threading.Event(), Watched(), Hand()
    with Plain(out, clock, heartbeat_s=0.001).stage("load", total=1_000, unit="rows") as stage:
        clock.now += 12
        stage.reach(600)
        assert seen.wait(30)
    assert "load       12.0 s  600 of 1,000 rows (60 %), 50/s, 8.0 s left" in out.getvalue()
    assert out.getvalue().splitlines()[-1].startswith("load       600 rows in 12.0 s")


@pytest.mark.parametrize(
    ("error", "word"), [(ValueError, "failed"), (KeyboardInterrupt, "stopped")]
)
@pytest.mark.parametrize("kind", [Plain, Live])
def test_an_error_ends_the_stage_and_goes_on(
    kind: type[Plain] | type[Live], error: type[BaseException], word: str
) -> None:
    out, clock = io.StringIO(), Hand()

    def work() -> None:
        with kind(out, clock).stage("train"):
            clock.now += 2
            raise error

    with pytest.raises(error):
        work()
    assert out.getvalue().splitlines()[-1] == f"train      {word} after 2.0 s"


def test_a_terminal_shows_a_moving_line_and_keeps_the_last_one() -> None:
    out, clock = Terminal(), Hand()
    progress = reporter(stream=out)
    assert isinstance(progress, Live)
    with Live(out, clock).stage("load", total=10, unit="rows") as stage:
        stage.advance(5)
        clock.now += 1
    assert "5 rows in 1.0 s" in out.getvalue().splitlines()[-1]
    assert "\x1b[" in out.getvalue()


def test_no_terminal_means_no_control_codes() -> None:
    out = io.StringIO()
    progress = reporter(stream=out)
    with progress.stage("load", total=10, unit="rows"):
        progress.note("hello")
    assert "hello" in out.getvalue()
    assert "\x1b" not in out.getvalue()
    assert "\r" not in out.getvalue()


def test_quiet_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    progress = reporter(quiet=True)
    assert isinstance(progress, Quiet)
    with progress.stage("load") as stage:
        stage.advance(5)
        progress.note("hello")
    assert capfd.readouterr() == ("", "")


def test_progress_goes_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with reporter().stage("load"):
        pass
    out, err = capfd.readouterr()
    assert out == ""
    assert "load" in err


def test_a_total_may_become_known_later_and_be_passed() -> None:
    clock = Hand()
    stage = Stage("load", None, "rows", clock)
    assert stage.describe() == ""
    clock.now += 1
    stage.reach(50)
    assert stage.describe() == "50 rows, 50/s"
    stage.reach(120, 100)
    assert stage.describe() == "120 of 100 rows (100 %), 120/s"


def test_a_stage_without_a_unit_or_a_count_tells_only_the_time() -> None:
    clock = Hand()
    stage = Stage("feast", None, "", clock)
    clock.now += 61
    assert stage.summary() == "1 min 01 s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.00 s"), (59.94, "59.9 s"), (59.96, "1 min 00 s"), (3599.6, "1 h 00 min")],
)
def test_durations_round_into_the_next_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.001234, "0.00123"), (99.96, "100"), (1_234_567.0, "1,230,000")]
)
def test_three_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text
