"""A folder whose files are sent: whoever writes one there may forget about it.

A file is taken when its size and time stayed the same for a while; names with a leading dot and
those that end in .tmp, .part or .partial are left alone. It moves to ``done`` when all its rows are
durable or refused (then ``NAME.reasons`` beside it says which), and to ``failed`` when it couldn't
be sent to its end, with the cause in ``NAME.reasons``.

There is no other state. Killed before the move, the same file is sent again with the same keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from raypipe.aborts import reach
from raypipe.errors import Conflict, InputError, RaypipeError, UsageError
from raypipe.sources.feed import Fed
from raypipe.sources.files import Changed, EventFile, error_text, reasons_text

DONE, FAILED = "done", "failed"
UNFINISHED = (".tmp", ".part", ".partial", ".reasons")
SETTLED_S = 2.0


class Watched:
    """One folder.

    Args:
        open_file: reads a file's head; may raise InputError or UsageError.
        send: sends a whole file.
        settled_s: for how long a file must not have changed.
    """

    def __init__(
        self,
        folder: Path,
        open_file: Callable[[Path], EventFile],
        send: Callable[[EventFile], Fed],
        clock: Callable[[], float],
        settled_s: float = SETTLED_S,
    ) -> None:
        if not folder.is_dir():
            raise UsageError(f"there is no folder {folder}")
        self._folder = folder
        self._open = open_file
        self._send = send
        self._clock = clock
        self._settled_s = settled_s
        self._seen: dict[Path, tuple[tuple[int, int], float]] = {}
        for name in (DONE, FAILED):
            (folder / name).mkdir(exist_ok=True)

    def ready(self) -> list[Path]:
        """Files that can be taken now, by name."""
        now, looks = self._clock(), {}
        for path in sorted(self._folder.iterdir()):
            if path.name.startswith(".") or path.name.endswith(UNFINISHED) or not path.is_file():
                continue
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            look = (stat.st_size, stat.st_mtime_ns)
            before = self._seen.get(path)
            looks[path] = before if before is not None and before[0] == look else (look, now)
        self._seen = looks
        return [path for path, (_, since) in looks.items() if now - since >= self._settled_s]

    @property
    def waiting(self) -> bool:
        """Whether files were seen that have not settled."""
        return bool(self._seen)

    def take(self, path: Path) -> Fed | RaypipeError | None:
        """Send a file and move it; its counts, or why it failed, or None if it changed meanwhile.

        Raises what says that the system is away: the file stays then.
        """
        try:
            file = self._open(path)
            fed = self._send(file)
        except Changed:
            self._seen.pop(path, None)
            return None
        except (InputError, UsageError, Conflict) as e:
            self._move(path, FAILED, error_text(e), _sha256(path))
            return e
        reach("watch.sent")
        self._move(path, DONE, reasons_text(fed.refused), file.sha256)
        return fed

    def _move(self, path: Path, where: str, reasons: str, sha256: str) -> None:
        target = self._folder / where / path.name
        if target.exists():
            # The same content again takes the same name, however often it was tried.
            target = target.with_name(f"{sha256[:12]}-{path.name}")
        if reasons:
            beside = target.with_name(f"{target.name}.reasons")
            unfinished = beside.with_name(f".{beside.name}.tmp")
            unfinished.write_text(reasons)
            unfinished.replace(beside)
        reach("watch.explained")
        path.replace(target)
        self._seen.pop(path, None)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
