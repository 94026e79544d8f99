"""From medians to the figures of the suite ``decide``, whose names never change meaning."""

from __future__ import annotations

from benchmarks.decisions.rounds import CONCURRENCY, Medians

OURS, OURS_ALL = "raypipe", "raypipe, all reasons"
BARE = "bare"
FEAST, FEAST_ALL = "feast stack", "feast stack, all reasons"
SERVE, OURS_BESIDE = "default serve", "raypipe, beside default serve"
JUDGED = (OURS, OURS_ALL, FEAST, FEAST_ALL, SERVE, OURS_BESIDE)
"""Those that decide; the bare server only scores."""

PERCENTILES = (50, 95, 99)


def comparisons(found: Medians) -> dict[str, float]:
    """Ratios to the bare server (ours / its; of QPS: how much of its rate) and gains over the
    others (how many times better)."""

    def gain(ours: str, theirs: str, c: int) -> float:
        return found.ms(theirs, c, 50) / found.ms(ours, c, 50)

    def rate(ours: str, theirs: str, c: int) -> float:
        return found.qps(ours, c) / found.qps(theirs, c)

    ratios = {
        f"p{q}_ratio_bare_c{c}": found.ms(OURS, c, q) / found.ms(BARE, c, q)
        for c in CONCURRENCY
        for q in PERCENTILES
    }
    rates = {f"qps_ratio_bare_c{c}": rate(OURS, BARE, c) for c in CONCURRENCY}
    return {
        **ratios,
        **rates,
        "p50_gain_feast_stack_c1": gain(OURS, FEAST, 1),
        "qps_gain_feast_stack_c8": rate(OURS, FEAST, 8),
        "p50_gain_feast_stack_all_c1": gain(OURS_ALL, FEAST_ALL, 1),
        "qps_gain_feast_stack_all_c8": rate(OURS_ALL, FEAST_ALL, 8),
        "qps_gain_default_serve_c8": rate(OURS_BESIDE, SERVE, 8),
        "p50_gain_default_serve_c8": gain(OURS_BESIDE, SERVE, 8),
    }


def absolutes(found: Medians) -> dict[str, float]:
    """Milliseconds, requests a second and CPU of each candidate; ours without its name."""
    figures = {}
    for name, c in found.samples:
        prefix = "" if name == OURS else name.replace(", ", "_").replace(" ", "_") + "_"
        for q in PERCENTILES:
            figures[f"{prefix}p{q}_ms_c{c}"] = found.ms(name, c, q)
        figures[f"{prefix}qps_c{c}"] = found.qps(name, c)
        figures[f"{prefix}cpu_us_c{c}"] = found.cpu_us(name, c)
    return figures


def cost_per_million(cpu_us: float, price: float) -> float:
    """What a million decisions cost in CPU.

    Args:
        cpu_us: CPU microseconds of all processes for one decision.
        price: of one core for one hour. The result has its currency.

    >>> round(cost_per_million(900.0, 0.04), 4)
    0.01
    """
    return cpu_us / 3_600 * price
