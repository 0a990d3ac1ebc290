"""Whether a quantity that was sampled over time stays flat, and how sure that is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import theilslopes

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Trend:
    """A straight line through samples: Theil-Sen, which single peaks do not move. Slopes are per minute."""

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
        """Whether it does not grow, or grows by less than `allowed` over the whole time.

        A slope whose interval has 0 in it is noise, however steep. One that is sure but tiny is what an allocator does: samples
        that follow one another are not independent, so the interval is narrower than it ought to be.
        """
        return self.low <= 0 or self.grown < allowed


def trend(seconds: Sequence[float], values: Sequence[float]) -> Trend:
    """The trend of `values`, sampled at `seconds`. ValueError for fewer than ten samples, in which everything is noise."""
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
