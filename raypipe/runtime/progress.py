"""One reporter for every stage: a live line on a terminal, one plain line a stage elsewhere.

Everything goes to stderr; stdout belongs to results.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol, TextIO

HEARTBEAT_S = 10.0
"""A stage that runs longer says so this often where no live line can."""

_LEAST_TIMED_S = 0.01
"""A rate over less than this says more about the clock than about the stage."""


class Stage:
    """One running stage. ``done`` counts ``unit`` up to ``total`` (None: not known beforehand)."""

    def __init__(self, name: str, total: int | None, unit: str, clock: Callable[[], float]) -> None:
        self.name = name
        self.total = total
        self.unit = unit
        self.done = 0
        self.result = ""
        self._clock = clock
        self._started = clock()

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self.done += count

    def reach(self, done: int, total: int | None = None) -> None:
        """So many are done altogether, of ``total`` if that became known."""
        self.done = done
        if total is not None:
            self.total = total

    def say(self, result: str) -> None:
        """What the stage's last line tells besides count and time."""
        self.result = result

    @property
    def seconds(self) -> float:
        """Since the stage began."""
        return self._clock() - self._started

    @property
    def rate(self) -> float | None:
        """Units a second so far; None before there is one."""
        return self.done / self.seconds if self.done and self.seconds > _LEAST_TIMED_S else None

    def describe(self) -> str:
        """How far it is: `40,000 of 200,000 events (20 %), 81,000/s, 2 s left`."""
        parts = []
        if self.done and self.total:
            share = f"{min(self.done / self.total, 1):.0%}".replace("%", " %")
            parts.append(
                f"{self.done:,} of {self.total:,} {self.unit} ({share})".replace("  ", " ")
            )
        elif self.done:
            parts.append(f"{self.done:,} {self.unit}".rstrip())
        if self.rate is not None:
            parts.append(f"{significant(self.rate)}/s")
            if self.total and self.total > self.done:
                parts.append(f"{duration((self.total - self.done) / self.rate)} left")
        return ", ".join(parts)

    def summary(self) -> str:
        """How it went: `200,000 events in 2.5 s (80,000/s): 3 files`."""
        count = f"{self.done:,} {self.unit}".rstrip() + " in " if self.done else ""
        rate = f" ({significant(self.rate)}/s)" if self.rate is not None and self.unit else ""
        return f"{count}{duration(self.seconds)}{rate}" + (
            f": {self.result}" if self.result else ""
        )


class Progress(Protocol):
    """What a stage is given to report on."""

    @contextmanager
    def stage(self, name: str, *, total: int | None = None, unit: str = "") -> Iterator[Stage]:
        """Report a stage while the block runs; an exception is reported and goes on."""

    def note(self, text: str) -> None:
        """One line that matters whatever the stage."""


class Plain:
    """A line when a stage begins, every ten seconds, and when it ends."""

    def __init__(
        self,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._heartbeat_s = heartbeat_s

    @contextmanager
    def stage(self, name: str, *, total: int | None = None, unit: str = "") -> Iterator[Stage]:
        """Report a stage while the block runs."""
        stage = Stage(name, total, unit, self._clock)
        self._line(name, "started")
        over = threading.Event()
        beat = threading.Thread(target=self._beat, args=(stage, over), daemon=True)
        beat.start()
        end = stage.summary
        try:
            yield stage
        except BaseException as e:
            end = partial(_broken, stage, e)
            raise
        finally:
            over.set()
            beat.join()
            self._line(name, end())

    def note(self, text: str) -> None:
        """One line."""
        self._line("note", text)

    def _beat(self, stage: Stage, over: threading.Event) -> None:
        while not over.wait(self._heartbeat_s):
            self._line(stage.name, f"{duration(stage.seconds)}  {stage.describe()}".rstrip())

    def _line(self, name: str, text: str) -> None:
        # One write, so that lines of other processes on the same stream don't come in between.
        self._stream.write(f"{name:<10} {text}\n")
        self._stream.flush()


class Live:
    """A line per stage that moves while it runs, by rich."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console

        self._console = Console(file=stream, highlight=False)
        self._clock = clock

    @contextmanager
    def stage(self, name: str, *, total: int | None = None, unit: str = "") -> Iterator[Stage]:
        """Report a stage while the block runs."""
        from rich.live import Live as Display
        from rich.text import Text

        stage = Stage(name, total, unit, self._clock)

        def line() -> Text:
            bar = _bar(stage.done / stage.total) + "  " if stage.total else ""
            text = f"{name:<10} {bar}{duration(stage.seconds)}  {stage.describe()}"
            return Text(text.rstrip(), no_wrap=True, overflow="ellipsis")

        # stdout is left alone: it may be a file that takes the result.
        display = Display(
            get_renderable=line,
            console=self._console,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
        )
        try:
            with display:
                yield stage
        except BaseException as e:
            self._line(name, _broken(stage, e), "red")
            raise
        self._line(name, stage.summary())

    def note(self, text: str) -> None:
        """One line."""
        self._line("note", text)

    def _line(self, name: str, text: str, style: str = "") -> None:
        from rich.text import Text

        self._console.print(Text.assemble((f"{name:<10} ", "bold"), (text, style)), soft_wrap=True)


class Quiet:
    """Nothing at all; errors are still printed where they are caught."""

    @contextmanager
    def stage(self, name: str, *, total: int | None = None, unit: str = "") -> Iterator[Stage]:
        """Run a stage in silence."""
        yield Stage(name, total, unit, time.monotonic)

    def note(self, text: str) -> None:
        """Drop a line."""


def reporter(*, quiet: bool = False, stream: TextIO | None = None) -> Progress:
    """The reporter that fits the stream (stderr by default)."""
    stream = stream or sys.stderr
    if quiet:
        return Quiet()
    return Live(stream) if stream.isatty() else Plain(stream)


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(0.0421), duration(9.97), duration(61), duration(3700)
    ('0.04 s', '10.0 s', '1 min 01 s', '1 h 01 min')
    """
    if seconds < 0.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def significant(value: float) -> str:
    """Three significant digits with thousands separators.

    >>> significant(81234.0), significant(3.14159), significant(0.0)
    ('81,200', '3.14', '0')
    """
    short = float(f"{value:.3g}")
    return f"{short:,.0f}" if short >= 100 or short == int(short) else f"{short:,g}"


def _broken(stage: Stage, error: BaseException) -> str:
    word = "failed" if isinstance(error, Exception) else "stopped"
    return f"{word} after {duration(stage.seconds)}"


def _bar(share: float, width: int = 20) -> str:
    full = round(max(0.0, min(share, 1.0)) * width)
    return f"[{'#' * full}{'.' * (width - full)}]"
