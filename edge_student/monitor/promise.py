"""Adds a note with the cause to a run that took far longer than its first cycles predicted."""

from collections.abc import Sequence

MUCH_LONGER = 2.0
"""Factor from which a run has a note."""

_SHARE = 0.1
_FEWEST = 10


class Promise:
    """The seconds of the first cycles (a tenth, at least 10) and of the whole run. Times are seconds of one clock."""

    def __init__(self, cycles: int) -> None:
        self._cycles = cycles
        self._num_first = max(round(_SHARE * cycles), _FEWEST)
        self._started = self._first_s = 0.0
        self._first_waits_s = 0.0

    def begin(self, now: float) -> None:
        """Start the clock."""
        self._started = now

    def on_cycle(self, num_cycles: int, now: float, waits_s: float) -> None:
        """Call it at the end of each cycle. `waits_s` is the time that training has waited for logits since the start."""
        if num_cycles == self._num_first:
            self._first_s, self._first_waits_s = now - self._started, waits_s

    def broken(self, num_cycles: int, now: float, waits_s: float, causes: Sequence[str]) -> str | None:
        """Return a note if `num_cycles` cycles took far longer than the first ones promised; `causes` explain slower training."""
        if not self._first_s or num_cycles < 2 * self._num_first:
            return None
        promised = self._first_s / self._num_first * num_cycles
        took = now - self._started
        if took < MUCH_LONGER * promised:
            return None
        waited = waits_s - self._first_waits_s * num_cycles / self._num_first
        waits = [f"training waited {waits_s:.1f} s for logits"] if waited > (took - promised) / 2 else []
        why = "; ".join([*waits, *causes]) or "its steps took longer, and no measured cause explains it"
        return f"took {took / promised:.1f} times as long as its first {self._num_first} cycles promised: {why}"
