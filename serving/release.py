"""What is served, as data: which model decides, which ones are tried beside it, by which policy.

A release is the whole ``user_config`` of the deployment, so that replicas take another one without
a restart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from raypipe.errors import ConfigError, UsageError

_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*@[A-Za-z0-9][A-Za-z0-9_.-]*")
_SALT = re.compile(r"[!-~]{1,64}")
_SHAPE = 'As in {"champion": "fraud@VERSION"}; `raypipe release show --json` prints a whole one.'


class Challenger(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model version that decides about a share of the keys, greater than 0."""

    model: str
    share: float


class Release(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One choice of versions; ``name@version`` names each of them.

    ``policy`` None means the thresholds of each model's manifest. ``shadows`` score and decide
    nothing. ``salt`` names the experiment: with another one, other keys go to the challengers.
    ``experiments`` run, each as ``name@version``. ``number`` is that in the history; 0 for one that
    isn't recorded there.

    Raises ConfigError for a reference that can be none, a model or an experiment that is named
    twice, shares that are over 1 together, challengers without a salt.
    """

    champion: str
    policy: str | None = None
    challengers: tuple[Challenger, ...] = ()
    shadows: tuple[str, ...] = ()
    salt: str = ""
    number: int = 0
    experiments: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        policies = (self.policy,) if self.policy else ()
        for reference in (*self.models, *policies, *self.experiments):
            if not _REFERENCE.fullmatch(reference):
                raise ConfigError(f"{reference!r} names no version", hint="Write NAME@VERSION.")
        names = [e.partition("@")[0] for e in self.experiments]
        if len(set(names)) < len(names):
            raise ConfigError(
                f"an experiment is named twice: {', '.join(self.experiments)}",
                hint="One version of it runs at a time.",
            )
        doubled = {m for m in self.models if self.models.count(m) > 1}
        if doubled:
            raise ConfigError(
                f"{', '.join(sorted(doubled))} is named twice in a release",
                hint="A version is the champion, a challenger or a shadow.",
            )
        shares = [c.share for c in self.challengers]
        if any(not 0.0 < s <= 1.0 for s in shares) or sum(shares) > 1.0 + 1e-9:
            raise ConfigError(
                f"the challengers' shares are {', '.join(f'{s:g}' for s in shares)}",
                hint="Each is above 0, and together they are at most 1: the champion has the rest.",
            )
        if self.challengers and not _SALT.fullmatch(self.salt):
            raise ConfigError(
                f"the salt is {self.salt!r}", hint="Use 1 to 64 printable characters, no spaces."
            )
        if self.number < 0:
            raise ConfigError(f"a release can't be number {self.number}", hint="Leave it out.")

    @property
    def models(self) -> tuple[str, ...]:
        """All model versions, the champion first."""
        return (*self.deciding, *self.shadows)

    @property
    def deciding(self) -> tuple[str, ...]:
        """The model versions that decide where no experiment says otherwise."""
        return (self.champion, *(c.model for c in self.challengers))

    def describe(self) -> dict[str, Any]:
        """Plain data, from which ``read`` makes it again."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found

    def changes(self, other: Release) -> Iterator[str]:
        """In words, in what ``other`` differs from this one."""
        for name in ("champion", "policy", "challengers", "shadows", "salt", "experiments"):
            before, after = _told(getattr(self, name)), _told(getattr(other, name))
            if before != after:
                yield f"{name}: {before} -> {after}"


def read(data: object) -> Release:
    """A release from plain data; raises ConfigError for anything else."""
    try:
        return msgspec.convert(data, Release)
    except msgspec.ValidationError as e:
        cause = e.__cause__
        if isinstance(cause, ConfigError):
            raise cause from None
        raise ConfigError(f"this is no release: {e}", hint=_SHAPE) from None


def split_reference(reference: str) -> tuple[str, str]:
    """Name and version; raises UsageError for a text that has not both."""
    if not _REFERENCE.fullmatch(reference):
        raise UsageError(f"{reference!r} names no version", hint="Write NAME@VERSION.")
    name, _, version = reference.partition("@")
    return name, version


def _told(value: Any) -> str:
    if isinstance(value, tuple):
        parts = [v if isinstance(v, str) else f"{v.model} ({v.share:g})" for v in value]
        return ", ".join(parts) or "none"
    return str(value) if value else "none"
