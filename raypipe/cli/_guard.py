"""What stands around every verb: signals in, exit codes and readable errors out."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any, cast

import typer
from typer.core import TyperGroup

from raypipe import __version__
from raypipe.cli import _output
from raypipe.cli._signals import interruptible
from raypipe.errors import RaypipeError

PARTIAL = 3
"""Exit code of a verb that did some of its work."""


class Guarded(TyperGroup):
    """Runs a verb; its return value is the exit code. No error reaches the user as a traceback."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Answer `--version` and `VERB --help`; everything else is parsed as ever.

        These two don't need Typer's parser, which imports pydantic: half of `--help`'s time.
        """
        if args[:1] == ["--version"]:
            _output.write_text(f"raypipe {__version__}")
            raise typer.Exit
        if "--help" in args and args[0] in self.commands:
            about, verb = ctx, cast("Any", self)
            for name in args:
                if name not in getattr(verb, "commands", {}):
                    break
                verb = verb.commands[name]
                about = verb.context_class(verb, info_name=name, parent=about)
            _output.write_text(verb.get_help(about))
            raise typer.Exit
        rest: list[str] = super().parse_args(ctx, args)
        return rest

    def invoke(self, ctx: Any) -> Any:
        """Run the verb that the arguments name. Raises typer.Exit unless the code is 0."""
        options: dict[str, Any] = ctx.ensure_object(dict)
        try:
            with interruptible(), _output.reserved():
                code = super().invoke(ctx)
        except KeyboardInterrupt:
            sys.stderr.write("Stopped before the end. What was finished is kept.\n")
            raise typer.Exit(PARTIAL) from None
        except Exception as e:
            if type(e).__module__.partition(".")[0] in ("typer", "click"):
                raise
            raise typer.Exit(report(e, as_json=options.get("json", False))) from None
        if code:
            raise typer.Exit(code)
        return code


def report(error: Exception, *, as_json: bool) -> int:
    """Tell an error on stderr, and as a JSON object on stdout if asked; returns the exit code."""
    cause = unwrap(error)
    known = isinstance(cause, RaypipeError)
    if os.environ.get("RAYPIPE_DEBUG"):
        traceback.print_exception(error)
    text = str(cause) if known else _unexpected(cause)
    sys.stderr.write(text + "\n")
    if as_json:
        _output.write_json({"error": _describe(cause)})
    return cause.exit_code if isinstance(cause, RaypipeError) else 1


def unwrap(error: BaseException) -> BaseException:
    """The error that was raised inside a Ray task or actor, without Ray's wrapping."""
    # Looked up, not imported: without Ray in this process there is nothing to unwrap.
    exceptions = sys.modules.get("ray.exceptions")
    while exceptions is not None and isinstance(error, exceptions.RayTaskError):
        if not isinstance(error.cause, BaseException):
            break
        error = error.cause
    return error


def _describe(error: BaseException) -> dict[str, Any]:
    if not isinstance(error, RaypipeError):
        return {"code": "internal", "detail": f"{type(error).__name__}: {error}"}
    return {
        "code": error.code,
        "headline": error.headline,
        "detail": error.detail,
        "hint": error.hint,
        "violations": [
            {"pointer": v.pointer, "reason": v.reason, "code": v.code} for v in error.violations
        ],
    }


def _unexpected(error: BaseException) -> str:
    message = str(error).strip() or "no message"
    return (
        f"Unexpected error: {type(error).__name__}: {message}\n"
        "  This is a defect of raypipe, or of a library under it. Please report it at\n"
        f"  {_issues()}\n"
        "  with what the same command prints under RAYPIPE_DEBUG=1, and `raypipe doctor --json`."
    )


def _issues() -> str:
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        urls = metadata("raypipe").get_all("Project-URL") or []
    except PackageNotFoundError:
        urls = []
    for entry in urls:
        label, _, url = str(entry).partition(",")
        if label.strip() == "Issues":
            return url.strip()
    return "the issue tracker that CONTRIBUTING.md names"
