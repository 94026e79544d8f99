"""``raypipe ingest``: send files of events to the running system, once or as they come."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raypipe.cli import _options, _output
from raypipe.cli._guard import PARTIAL
from raypipe.cli._options import Config, Home, Json, Quiet, Set
from raypipe.errors import RaypipeError, UsageError

if TYPE_CHECKING:
    from raypipe.config import Settings
    from raypipe.runtime.progress import Progress
    from raypipe.runtime.sender import Sender
    from raypipe.sources.feed import Fed
    from raypipe.sources.files import EventFile

LOOK_S = 0.5


def ingest(
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE", help="JSON lines, a JSON array, Parquet or CSV; .gz, .zst."),
    ] = None,
    type_: Annotated[
        str | None,
        typer.Option("--type", metavar="NAME", help="Event type of all rows [each names its own]."),
    ] = None,
    watch: Annotated[
        Path | None,
        typer.Option("--watch", metavar="FOLDER", help="Send what comes into this folder."),
    ] = None,
    kafka: Annotated[
        str | None,
        typer.Option(
            "--kafka", metavar="URL", help="Send the messages of kafka://HOST:PORT/TOPIC, as JSON."
        ),
    ] = None,
    group: Annotated[
        str, typer.Option("--group", metavar="NAME", help="With --kafka: the consumer group.")
    ] = "raypipe",
    once: Annotated[
        bool, typer.Option("--once", help="With --watch or --kafka: end when all was sent.")
    ] = False,
    in_flight: Annotated[
        int,
        typer.Option(
            "--in-flight", metavar="N", min=1, max=64, help="Requests at once; 1 keeps the order."
        ),
    ] = 4,
    tenant: Annotated[
        str | None, typer.Option("--tenant", metavar="NAME", help="Whose events (setting tenant).")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    home: Home = None,
    config: Config = None,
    set_: Set = None,
) -> int:
    """Send files of events to the running system.

    Sending the same file again counts nothing twice, so one that was broken off is simply sent
    again. With --watch, files that come into a folder are sent and moved to its folder `done`, or
    `failed`; files with refused rows get a file NAME.reasons. With --kafka, the group's offsets are
    committed after the messages are durable. Exits with 3 if rows were refused or files failed; the
    rows are in the quarantine.
    """
    if bool(files) + (watch is not None) + (kafka is not None) != 1 or (once and files):
        raise UsageError(
            "name files, a folder or a topic", hint="raypipe ingest FILE, or --watch ., or --kafka."
        )
    settings = _options.settings(home, config, set_, tenant=tenant)
    progress = _options.progress(quiet)
    from raypipe.runtime.sender import Sender

    # A folder waits for as long as it takes; a person may want to know.
    options = {} if files else {"patience_s": None}
    with closing(Sender.of(settings, **options)) as sender:
        line = _Line(settings, progress, sender, type_, in_flight)
        for path in files or []:
            line.add(line.send(line.open(path)))
        if watch is not None:
            line.watch(watch, once=once)
        if kafka is not None:
            line.follow(kafka, group, once=once)
    _output.write(line.result(), as_json=json, text=line.summary())
    return PARTIAL if line.total.rejected or line.failed else 0


class _Line:
    """Files on their way, and what became of all of them."""

    def __init__(
        self,
        settings: Settings,
        progress: Progress,
        sender: Sender,
        kind: str | None,
        in_flight: int,
    ) -> None:
        from raypipe.project import load_project
        from raypipe.sources.feed import Fed

        self._project = load_project(settings.project)
        self._settings = settings
        self._progress = progress
        self._sender = sender
        self._kind = kind
        self._in_flight = in_flight
        self.total = Fed()
        self.files = 0
        self.failed = 0

    def open(self, path: Path) -> EventFile:
        from raypipe.sources.files import EventFile

        settings = self._settings
        return EventFile(
            path, self._project, settings.currency, self._kind, settings.ingest_body_bytes
        )

    def send(self, file: EventFile) -> Fed:
        from raypipe.sources.feed import feed

        with self._progress.stage("ingest", unit="events") as stage:
            fed = feed(file, self._sender.send, self._in_flight, stage.advance, self._sender.halt)
            stage.say(f"{file.path.name}: {_said(fed)}")
        return fed

    def add(self, fed: Fed) -> None:
        self.total.add(fed)
        self.files += 1

    def watch(self, folder: Path, *, once: bool) -> None:
        from raypipe.sources.watch import Watched

        watched = Watched(folder, self.open, self.send, time.monotonic)
        self._progress.note(f"{folder.absolute()}: watched")
        try:
            while True:
                for path in watched.ready():
                    self._count(path, watched.take(path))
                if once and not watched.waiting:
                    return
                time.sleep(LOOK_S)
        except KeyboardInterrupt:
            if once:
                raise
            self._progress.note(f"{folder.absolute()}: no longer watched")

    def follow(self, url: str, group: str, *, once: bool) -> None:
        from raypipe.log.kafka.address import KafkaAddress
        from raypipe.sources.kafka import KafkaSource

        with (
            closing(KafkaSource(KafkaAddress.parse(url), group, self._kind)) as source,
            self._progress.stage("ingest", unit="events") as stage,
        ):
            try:
                for batch, taken in source.run(self._sender.send, once=once):
                    self.total.count(taken)
                    stage.advance(batch.rows)
            except KeyboardInterrupt:
                if once:
                    raise
            stage.say(_said(self.total))

    def _count(self, path: Path, became: Fed | RaypipeError | None) -> None:
        if isinstance(became, RaypipeError):
            self.failed += 1
            self._progress.note(f"{path.name} failed: {became.detail}")
        elif became is not None:
            self.add(became)

    def result(self) -> dict[str, object]:
        return {
            "files": self.files,
            "failed": self.failed,
            "accepted": self.total.accepted,
            "duplicates": self.total.duplicates,
            "refused": self.total.rejected,
            "reasons": dict(self.total.reasons.most_common()),
        }

    def summary(self) -> str:
        lines = [
            f"files       {self.files:,}" + (f", {self.failed:,} failed" if self.failed else ""),
            f"accepted    {self.total.accepted:,}",
            f"duplicates  {self.total.duplicates:,}",
            f"refused     {self.total.rejected:,}",
        ]
        lines += [f"            {n:,} {why}" for why, n in self.total.reasons.most_common(5)]
        return "\n".join(lines)


def _said(fed: Fed) -> str:
    return f"{fed.accepted:,} new, {fed.duplicates:,} known, {fed.rejected:,} refused"
