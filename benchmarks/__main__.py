"""``python -m benchmarks SUITE [--quick] [--json] [...]``.

Exit codes: 0 measured, 1 a candidate gave a wrong result, 2 usage.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import harness


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one suite and print its result; stdout carries nothing else."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    known = harness.suites()
    name = words[0].replace("-", "_") if words and not words[0].startswith("-") else ""
    if name not in known:
        _list(known, f"Unknown suite {name!r}." if name else "Which suite?")
        return 0 if words in (["-h"], ["--help"]) else 2
    suite = importlib.import_module(f"benchmarks.{name}")
    args = _parser(name, suite).parse_args(words[1:])
    try:
        with harness.quiet_stdout():
            result: harness.Result = suite.run(args)
    except (harness.WrongResult, AssertionError) as e:
        print(f"{name}: wrong result, no figure counts: {e}", file=sys.stderr)
        return 1
    doc = harness.document(result, quick=args.quick, arguments=words[1:])
    print(json.dumps(doc, allow_nan=False) if args.json else harness.table(result))
    if args.save is None:
        args.save = not args.quick
    if args.save:
        print(f"saved {harness.save(doc, args.results)}", file=sys.stderr)
    return 0


def _parser(name: str, suite: object) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {name}", description=suite.__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller input, same checks")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument(
        "--save", action=argparse.BooleanOptionalAction, help="write a result file (default: full)"
    )
    parser.add_argument("--results", type=Path, default=harness.RESULTS, help="where to write it")
    if hasattr(suite, "add_arguments"):
        suite.add_arguments(parser)
    return parser


def _list(known: dict[str, str], headline: str) -> None:
    print(f"{headline} python -m benchmarks SUITE [--quick] [--json]", file=sys.stderr)
    for name, summary in known.items():
        print(f"  {name:12} {summary}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
