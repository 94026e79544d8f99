"""HTML pages of reports: no scripts, no outside references, light and dark."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path


def page(template: str, **values: object) -> str:
    """Fill a template of this folder; a name that it does not get is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=_percent,
        signed=_signed,
        figure=_figure,
        number=_number,
        moment=_moment,
        day=_day,
        days=_days,
    )
    return environment.get_template(template).render(**values)


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def _signed(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{100 * value:+.{digits}f} %"


def _figure(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _day(ms: int) -> str:
    return _moment(ms)[:10]


def _days(ms: int) -> str:
    return f"{ms / 86_400_000:.1f} days"
