"""Every error that raypipe raises on purpose.

RaypipeError                  code, headline, HTTP status, exit code; detail and hint per instance
├── UsageError           400  the caller's flags, settings or declarations are wrong (exit 2)
│   ├── ConfigError           a setting
│   └── DeclarationError      a declared event, window, expression, model or policy
├── InputError           422  data from outside breaks the declared schema
│   ├── MalformedBody    400  not readable at all
│   ├── BodyTooLarge     413
│   ├── UnsupportedMedia 415
│   └── InvalidRequest        a body that is no event breaks its schema
├── Unauthenticated      401
├── Forbidden            403
├── NotFound             404
│   └── Expired          410  (log.port) events that retention deleted
├── Conflict             409  the same id came with another body
│   └── DuplicateId      409  (log.port) a logged row's id came again
├── Overloaded           429  more is in work than may be; send it again later
├── Unavailable          503  a part that is needed is away; retry
│   ├── EventLost             a worker died before it committed the event; observe it again
│   └── LogUnwritable         (log.port) the medium refused a write
├── IntegrityError       500  stored bytes are not what was written
│   └── Fenced           503  (log.port) a writer of another epoch owns the partition
├── LeakageError         500  a training column knows its own future
└── StageError           500  a step of a pipeline failed
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule of a schema, with a JSON pointer (RFC 6901) to the place."""

    pointer: str
    reason: str
    code: str = "invalid"


class RaypipeError(Exception):
    """Base of all deliberate errors: what happened (detail) and what to do (hint)."""

    code: ClassVar[str] = "internal"
    headline: ClassVar[str] = "Internal error"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(
        self, detail: str, *, hint: str = "", violations: tuple[Violation, ...] = ()
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint
        self.violations = violations

    def __str__(self) -> str:
        lines = [f"{self.headline}: {self.detail}"]
        lines += [f"  {v.pointer}: {v.reason}" for v in self.violations]
        if self.hint:
            lines.append(f"  {self.hint}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword arguments do not survive pickling between Ray processes otherwise.
        return (_rebuild, (type(self), self.detail, self.hint, self.violations))


def _rebuild(
    kind: type[RaypipeError], detail: str, hint: str, violations: tuple[Violation, ...]
) -> RaypipeError:
    return kind(detail, hint=hint, violations=violations)


class UsageError(RaypipeError):
    """The call itself is wrong; nothing was done."""

    code = "usage"
    headline = "Wrong usage"
    status = 400
    exit_code = 2


class ConfigError(UsageError):
    """A setting has a value that can't work."""

    code = "config"
    headline = "Wrong setting"


class DeclarationError(UsageError):
    """A declared event, window, expression, model or policy contradicts itself or another."""

    code = "declaration"
    headline = "Wrong declaration"


class InputError(RaypipeError):
    """Data from outside breaks the declared schema."""

    code = "invalid_event"
    headline = "Invalid event"
    status = 422


class MalformedBody(InputError):
    """A body that can't be read at all: bad JSON, bad UTF-8, truncated."""

    code = "malformed_body"
    headline = "Unreadable body"
    status = 400


class BodyTooLarge(InputError):
    """A body over the configured limit."""

    code = "body_too_large"
    headline = "Body too large"
    status = 413


class UnsupportedMedia(InputError):
    """A content type that this route doesn't read."""

    code = "unsupported_media_type"
    headline = "Unsupported media type"
    status = 415


class InvalidRequest(InputError):
    """A body that is no event breaks its schema."""

    code = "invalid_request"
    headline = "Invalid request"


class Unauthenticated(RaypipeError):
    """No key, or one that isn't known."""

    code = "unauthenticated"
    headline = "Not authenticated"
    status = 401


class Forbidden(RaypipeError):
    """A known key without the needed scope."""

    code = "forbidden"
    headline = "Not allowed"
    status = 403


class NotFound(RaypipeError):
    """Nothing of that name exists, or not for this tenant."""

    code = "not_found"
    headline = "Not found"
    status = 404


class Conflict(RaypipeError):
    """The id is taken by another body."""

    code = "conflict"
    headline = "Conflict"
    status = 409


class Overloaded(RaypipeError):
    """So much is in work that nothing more is taken; the same request may come again later."""

    code = "overloaded"
    headline = "Too much at once"
    status = 429


class Unavailable(RaypipeError):
    """A part that the answer needs is away; a retry with the same id is safe."""

    code = "unavailable"
    headline = "Unavailable"
    status = 503


class EventLost(Unavailable):
    """A worker died before it committed the event: nothing was answered, observe it again."""

    code = "event_lost"
    headline = "Unfinished request lost"


class IntegrityError(RaypipeError):
    """Stored bytes don't match their checksum or manifest."""

    code = "integrity"
    headline = "Integrity check failed"


class LeakageError(RaypipeError):
    """A training column saw its own event or a later one."""

    code = "leakage"
    headline = "Leakage"


class StageError(RaypipeError):
    """A step of a pipeline failed; the steps before it keep their results."""

    code = "stage_failed"
    headline = "Stage failed"


def error_of(code: str) -> type[RaypipeError]:
    """The kind of error that another process named by its code; RaypipeError for a strange one."""
    kinds = [RaypipeError]
    for kind in kinds:  # grows meanwhile, level by level
        if kind.code == code:
            return kind
        kinds += kind.__subclasses__()
    return RaypipeError
