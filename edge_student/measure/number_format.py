"""Format numbers and intervals for tables and pages. A missing value is shown as "-"."""

import math
from collections.abc import Callable, Sequence

MISSING = "-"


def format_number(value: float | None) -> str:
    """Format with three decimals, for wall-clock seconds, ratios and accuracies. None, NaN and infinity are missing."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.3f}"


def format_percent(fraction: float | None) -> str:
    """Format a fraction as a percentage with one decimal: 0.5 is "50.0%"."""
    return MISSING if fraction is None else f"{fraction:.1%}"


def format_duration(seconds: float) -> str:
    """Format with three significant digits, in milliseconds below one second."""
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def format_rate(rate: float) -> str:
    """Format a rate per second with three significant digits. From 1000, all digits before the point are shown; 0 is missing."""
    return MISSING if not rate else f"{rate:.3g}" if rate < 1000 else f"{rate:.0f}"


def format_interval(interval: Sequence[float] | None, format_bound: Callable[[float], str] = format_number) -> str:
    """Format both bounds with `format_bound`: "0.900 .. 1.100"."""
    return MISSING if interval is None else f"{format_bound(interval[0])} .. {format_bound(interval[1])}"


def format_rate_interval(interval: Sequence[float] | None, unit_s: float) -> str:
    """Format bounds in work per second as rates of units that take `unit_s` seconds. An upper bound of 0 is missing."""
    if interval is None or not interval[1]:
        return MISSING
    return format_interval([bound / unit_s for bound in interval], format_rate)
