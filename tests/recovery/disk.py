"""A disk that fails on order, and what is left of it when the power goes: see disk.c.

The model of a power cut is that of POSIX and of Linux's page cache, and no file system's kindness:
bytes are durable after a sync of their file, a name after a sync of its folder. All else may be
there or not, sector by sector and name by name. A sync that failed leaves its bytes readable, and
no later sync writes them.
"""

from __future__ import annotations

import fcntl
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("disk.c")
MISSING = (
    ""
    if shutil.which("cc") and sys.platform.startswith("linux")
    else "faults of the disk and the clock are injected with a C library that `cc` builds"
)
needed = pytest.mark.skipif(bool(MISSING), reason=MISSING)

SECTOR = 512
_HEAD = struct.Struct("<cHHQQQ")


def preloaded(folder: Path) -> dict[str, str]:
    """Environment of processes that may be given a Disk: the library, built in a folder."""
    built = folder / "disk.so"
    subprocess.run(
        ["cc", "-O1", "-shared", "-fPIC", "-o", built, SOURCE, "-ldl", "-lpthread"], check=True
    )
    return {"LD_PRELOAD": str(built)}


@dataclass
class Disk:
    """What ``preloaded`` processes are given so that their files below ``root`` lie on it."""

    root: Path
    folder: Path
    """Where its own files are; not below root."""

    _rules: dict[Path, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = self.root.resolve()
        self.root.mkdir(exist_ok=True)
        self.folder.mkdir(exist_ok=True)

    def env(
        self, *, rules: Sequence[str] = (), journal: bool = False, clock: bool = False
    ) -> dict[str, str]:
        """Environment of the processes that share these rules."""
        found = {"DISK_ROOT": str(self.root)}
        if journal:
            found["DISK_JOURNAL"] = str(self.journal)
        if rules:
            path = self.folder / f"rules-{len(self._rules)}"
            path.write_text("".join(f"{rule}\n" for rule in rules))
            self._rules[path] = rules
            found["DISK_RULES"] = str(path)
        if clock:
            self.shift_clock(0)
            found["DISK_CLOCK"] = str(self.folder / "clock")
        return found

    @contextmanager
    def still(self) -> Iterator[None]:
        """Nothing changes on it meanwhile: whoever is killed now has made no half a record."""
        with self.journal.open("ab") as journal:
            fcntl.flock(journal, fcntl.LOCK_EX)
            yield

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    @property
    def waiting(self) -> list[str]:
        """The rules that have not taken effect."""
        left: list[str] = []
        for path, rules in self._rules.items():
            fired = Path(f"{path}.fired")
            left += rules[fired.stat().st_size if fired.exists() else 0 :]
        return left

    def mark(self, text: str) -> None:
        """Note in the journal that something was acknowledged."""
        data = text.encode()
        with self.journal.open("ab", buffering=0) as journal:
            journal.write(_HEAD.pack(b"A", 0, 0, 0, 0, len(data)) + data)

    def shift_clock(self, seconds: float) -> None:
        """Have the processes see the time of day with this error, from now on."""
        path = self.folder / "clock"
        path.touch()
        with path.open("r+b", buffering=0) as clock:
            clock.write(struct.pack("<q", int(seconds * 1e9)))


@dataclass(frozen=True)
class Record:
    """One change of the disk, or a mark."""

    op: str
    path: str
    to: str
    inode: int
    number: int
    data: bytes


def records(journal: Path) -> Iterator[Record]:
    """All of a journal, in order."""
    with journal.open("rb") as f:
        while head := f.read(_HEAD.size):
            op, a, b, inode, number, size = _HEAD.unpack(head)
            path, to = f.read(a).decode(), f.read(b).decode()
            yield Record(op.decode(), path, to, inode, number, f.read(size))


@dataclass
class File:
    """What readers see, and what is on the platter; sectors that differ because no sync came."""

    seen: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    dirty: set[int] = field(default_factory=set)

    def write(self, at: int, data: bytes) -> None:
        end = at + len(data)
        if len(self.seen) < end:
            self.seen.extend(bytes(end - len(self.seen)))
        self.seen[at:end] = data
        self.dirty.update(range(at // SECTOR, -(-end // SECTOR)))

    def truncate(self, size: int) -> None:
        self.dirty.update(range(size // SECTOR, -(-len(self.seen) // SECTOR)))
        del self.seen[size:]
        self.seen.extend(bytes(size - len(self.seen)))

    def flush(self, sectors: Sequence[int] | set[int], into: bytearray) -> None:
        """Some sectors as they are seen; one past the seen end is cut off."""
        for sector in sectors:
            low = sector * SECTOR
            part = self.seen[low : low + SECTOR]
            if len(into) < low + len(part):
                into.extend(bytes(low + len(part) - len(into)))
            into[low : low + len(part)] = part

    def sync(self) -> None:
        self.flush(self.dirty, self.durable)
        del self.durable[len(self.seen) :]
        self.durable.extend(bytes(len(self.seen) - len(self.durable)))
        self.dirty.clear()

    def crash(self, rng: random.Random | None) -> bytes:
        """The bytes after a power cut: with a random part of what was not synced, or nothing."""
        left = bytearray(self.durable)
        if rng is not None and self.dirty:
            share = rng.choice((0.0, 0.5, 0.9, 1.0))
            self.flush([s for s in sorted(self.dirty) if rng.random() < share], left)
            if len(self.seen) < len(left) and rng.random() < share:
                del left[len(self.seen) :]
        return bytes(left)


@dataclass
class Folder:
    """Names, seen and durable, and the changes that no sync of the folder has made durable."""

    seen: dict[str, File | Folder] = field(default_factory=dict)
    durable: dict[str, File | Folder] = field(default_factory=dict)
    waiting: list[dict[str, File | Folder | None]] = field(default_factory=list)

    def change(self, names: dict[str, File | Folder | None]) -> None:
        _apply(names, self.seen)
        self.waiting.append(names)

    def sync(self) -> None:
        for names in self.waiting:
            _apply(names, self.durable)
        self.waiting.clear()

    def crash(self, to: Path, rng: random.Random | None) -> None:
        """Write what a power cut leaves."""
        to.mkdir()
        left = dict(self.durable)
        if rng is not None:
            share = rng.choice((0.0, 0.5, 1.0))
            for names in self.waiting:
                if rng.random() < share:
                    _apply(names, left)
        for name, what in left.items():
            if isinstance(what, Folder):
                what.crash(to / name, rng)
            else:
                (to / name).write_bytes(what.crash(rng))


def _apply(names: dict[str, File | Folder | None], to: dict[str, File | Folder]) -> None:
    for name, what in names.items():
        if what is None:
            to.pop(name, None)
        else:
            to[name] = what


class Platter:
    """The disk as a journal tells it, record by record."""

    def __init__(self) -> None:
        self.root = Folder()
        self._files: dict[int, File] = {}

    def _folder(self, path: str) -> tuple[Folder, str]:
        *above, name = path.split("/")
        folder = self.root
        for part in above:
            inner = folder.seen[part]
            assert isinstance(inner, Folder)
            folder = inner
        return folder, name

    def take(self, record: Record) -> None:
        """Go on by one record."""
        match record.op:
            case "C":
                folder, name = self._folder(record.path)
                self._files[record.inode] = File()
                folder.change({name: self._files[record.inode]})
            case "M":
                folder, name = self._folder(record.path)
                folder.change({name: Folder()})
            case "U":
                folder, name = self._folder(record.path)
                folder.change({name: None})
            case "R":
                (before, old), (after, new) = map(self._folder, (record.path, record.to))
                moved = before.seen.get(old)
                if before is after:
                    before.change({old: None, new: moved})
                else:
                    before.change({old: None})
                    after.change({new: moved})
            case "D":
                folder = self.root
                if record.path:
                    above, name = self._folder(record.path)
                    found = above.seen[name]
                    assert isinstance(found, Folder)
                    folder = found
                folder.sync()
            case _ if record.inode in self._files:
                self._change(self._files[record.inode], record)

    def _change(self, file: File, record: Record) -> None:
        match record.op:
            case "W":
                file.write(record.number, record.data)
            case "T":
                file.truncate(record.number)
            case "H":
                if bytes(file.seen) != record.data:
                    file.truncate(0)
                    file.write(0, record.data)
            case "S":
                file.sync()
            case "F":
                file.dirty.clear()

    def crash(self, to: Path, rng: random.Random | None = None) -> None:
        """Write what a power cut at this moment leaves: without ``rng`` nothing that was not
        synced, with it a random part of that."""
        shutil.rmtree(to, ignore_errors=True)
        self.root.crash(to, rng)

    def seen(self) -> dict[str, bytes]:
        """All files as processes see them now, by path."""
        found: dict[str, bytes] = {}

        def walk(folder: Folder, prefix: str) -> None:
            for name, what in folder.seen.items():
                if isinstance(what, Folder):
                    walk(what, f"{prefix}{name}/")
                else:
                    found[prefix + name] = bytes(what.seen)

        walk(self.root, "")
        return found
