"""Where lists are kept: each change a file of the lake, ``lists/<tenant>/<number>-<random>.json``.

A change is one file that is written as a whole and never again, so none is lost when two people
change lists at once: both files are there, and every reader folds them in the order of their names.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence

import msgspec

from raypipe.clock import Clock, SystemClock
from raypipe.errors import Conflict, IntegrityError, NotFound, RaypipeError, UsageError
from raypipe.lake import Place
from raypipe.policy.lists import EMPTY, Change, Kind, Lists, versions

FOLDER = "lists"

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")
_FILE = re.compile(r"(\d{10})-[0-9a-f]{8}\.json")
_LONGEST_KEY = 256


class ListStore:
    """The lists of one tenant. Reads only what is new; not safe for threads."""

    def __init__(self, lake: Place, tenant: str, clock: Clock | None = None) -> None:
        self._folder = lake / FOLDER / tenant
        self._clock = clock or SystemClock()
        self._changes: dict[str, tuple[str, Change]] = {}
        self.lists = EMPTY
        """As of the last ``refresh``."""

    def refresh(self) -> Lists:
        """Read what others have changed; the lists then.

        Raises:
            IntegrityError: a file is no change of a list.
            Unavailable: an object store can't be reached.
        """
        names = [n for n in self._folder.names() if _FILE.fullmatch(n)]
        new = [n for n in names if n not in self._changes]
        for name in new:
            self._changes[name] = self._read(self._folder / name)
        if new:
            self.lists = Lists(self._changes[n] for n in sorted(self._changes))
        return self.lists

    def add(
        self,
        name: str,
        kind: Kind,
        keys: Sequence[str],
        *,
        who: str,
        why: str,
        expires_ms: int | None = None,
    ) -> Lists:
        """Put keys on a list, which this begins if need be; the lists then.

        A key that is there already gets a new entry. Raises UsageError for an impossible name, key
        or expiry, Conflict when the list is of another kind.
        """
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"list name {name!r} can't work",
                hint="Lower-case letters, digits and _, first a letter.",
            )
        now = self._clock.now_ms()
        if expires_ms is not None and expires_ms <= now:
            raise UsageError("the entry would have expired already", hint="Give a later time.")
        known = self.refresh().kinds.get(name, kind)
        if known is not kind:
            raise Conflict(
                f"list {name!r} is of kind {known}, not {kind}", hint="Use another list."
            )
        return self._write(Change(name, kind, "add", tuple(keys), who, why, now, expires_ms))

    def remove(self, name: str, keys: Sequence[str], *, who: str, why: str) -> Lists:
        """Take keys off a list; the lists then. Raises NotFound when one isn't there."""
        now = self._clock.now_ms()
        kind = self.refresh().kinds.get(name)
        lists = self.lists
        lacking = [k for k in keys if not lists.holds(name, k, now)]
        if kind is None or lacking:
            known = ", ".join(lists.kinds) or "none"
            raise NotFound(
                f"there is no list {name!r}" if kind is None else f"not on {name!r}: {lacking}",
                hint=f"Lists: {known}.",
            )
        return self._write(Change(name, kind, "remove", tuple(keys), who, why, now))

    def history(self, name: str | None = None) -> list[tuple[str, Change]]:
        """Every change, of one list or of all, with the version of the lists after it."""
        self.refresh()
        changes = (self._changes[n] for n in sorted(self._changes))
        return [(v, c) for v, c in versions(changes) if name in (None, c.list)]

    def _write(self, change: Change) -> Lists:
        for key in change.keys:
            if not 0 < len(key) <= _LONGEST_KEY or not key.isprintable():
                raise UsageError(
                    f"key {key!r} can't be on a list",
                    hint=f"1 to {_LONGEST_KEY} printable characters are expected.",
                )
        if not change.keys:
            raise UsageError("no key was given")
        if not change.who.strip() or not change.why.strip():
            raise UsageError("a change says by whom and why", hint="Give --who and --why.")
        numbers = [int(n[:10]) for n in self._changes]
        name = f"{max(numbers, default=0) + 1:010d}-{secrets.token_hex(4)}.json"
        (self._folder / name).write(msgspec.json.encode(change))
        return self.refresh()

    @staticmethod
    def _read(file: Place) -> tuple[str, Change]:
        data = file.read()
        try:
            change = msgspec.json.decode(data, type=Change)
        except msgspec.DecodeError as e:
            raise IntegrityError(
                f"{file.url} is no change of a list: {e}", hint="Restore it from a backup."
            ) from e
        return hashlib.sha256(data).hexdigest(), change


class ListBook:
    """The lists of every tenant, for a process that decides. ``refresh`` runs beside decisions."""

    def __init__(self, lake: Place) -> None:
        self._lake = lake
        self._stores: dict[str, ListStore] = {}
        self._lists: dict[str, Lists] = {}

    def of(self, tenant: str) -> Lists:
        """A tenant's lists as of the last refresh."""
        return self._lists.get(tenant, EMPTY)

    def refresh(self) -> None:
        """Read what was changed; raises like ``ListStore.refresh``.

        A tenant whose lists can't be read keeps those of before, and is no harm to the others.
        """
        failure: RaypipeError | OSError | None = None
        for tenant in (self._lake / FOLDER).names():
            store = self._stores.setdefault(tenant, ListStore(self._lake, tenant))
            try:
                self._lists[tenant] = store.refresh()
            except (RaypipeError, OSError) as e:
                failure = e
        if failure is not None:
            raise failure
