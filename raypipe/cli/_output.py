"""Results on stdout: one JSON object, or aligned lines for a person."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

_results: TextIO | None = None


@contextmanager
def reserved() -> Iterator[None]:
    """Keep stdout for results while the block runs: what libraries print goes to stderr."""
    global _results  # noqa: PLW0603 - a process has one stdout
    before, _results = _results, sys.stdout
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _results = before


def write(result: Mapping[str, Any], *, as_json: bool, text: str | None = None) -> None:
    """Write a result: as JSON, else ``text``, else its names and values."""
    if as_json:
        write_json(result)
    else:
        write_text(text if text is not None else lines(result))


def write_json(result: Mapping[str, Any]) -> None:
    """One line, valid JSON: NaN and infinities become null."""
    write_text(json.dumps(plain(result), allow_nan=False, ensure_ascii=False))


def write_text(text: str) -> None:
    """A text and a line's end, at once: a server goes on running after it."""
    stream = _results or sys.stdout
    stream.write(text + "\n")
    stream.flush()


def plain(value: Any) -> Any:
    """Data that JSON knows, out of paths, NumPy scalars, tuples and the like."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if hasattr(value, "item"):
        return plain(value.item())
    return str(value)


def lines(result: Mapping[str, Any], indent: str = "") -> str:
    """Names and values in two columns; nested mappings and lists are indented below their name."""
    width = max(map(len, map(str, result)), default=0)
    out = []
    for name, value in plain(result).items():
        if isinstance(value, dict) and value:
            out += [f"{indent}{name}", lines(value, indent + "  ")]
        elif isinstance(value, list) and any(isinstance(v, dict) for v in value):
            out.append(f"{indent}{name}")
            out += [lines(v, indent + "  ") if isinstance(v, dict) else f"  {v}" for v in value]
        else:
            out.append(f"{indent}{name:<{width}}  {_cell(value)}".rstrip())
    return "\n".join(out)


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Left-aligned columns as wide as their widest cell."""
    cells = [[str(c) for c in header], *([str(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, list):
        return ", ".join(_cell(v) for v in value)
    return "-" if value is None else str(value)
