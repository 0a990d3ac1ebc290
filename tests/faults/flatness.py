"""Tests whether a sampled quantity stays flat over time, and with which certainty."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import theilslopes

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Trend:
    """A straight line through samples, fitted with Theil-Sen, which single peaks do not affect. Slopes are per minute."""

    start: float
    """Median of the first tenth of the samples."""
    end: float
    """Median of the last tenth."""
    slope: float
    low: float
    """Lower end of the slope's interval."""
    high: float
    grown: float
    """What the slope comes to over the whole time."""
    minutes: float
    num_samples: int

    def is_flat(self, allowed: float) -> bool:
        """Return whether the quantity does not grow, or grows by less than `allowed` over the whole time.

        A slope with 0 in its interval is noise, however steep. A significant but tiny slope comes from the allocator: consecutive
        samples are not independent, so the interval is too narrow.
        """
        return self.low <= 0 or self.grown < allowed


def trend(seconds: Sequence[float], values: Sequence[float]) -> Trend:
    """Return the trend of `values`, sampled at `seconds`. Raises ValueError for fewer than ten samples, which are all noise."""
    if len(values) < 10:
        raise ValueError(f"{len(values)} samples, a trend needs at least 10")
    minutes = np.asarray(seconds) / 60
    slope, _, low, high = theilslopes(values, minutes, CONFIDENCE)
    tenth = max(1, len(values) // 10)
    span = float(minutes[-1] - minutes[0])
    return Trend(
        start=float(np.median(values[:tenth])),
        end=float(np.median(values[-tenth:])),
        slope=float(slope),
        low=float(low),
        high=float(high),
        grown=float(slope) * span,
        minutes=span,
        num_samples=len(values),
    )
