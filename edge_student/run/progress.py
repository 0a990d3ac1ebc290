"""Progress for people: a bar on a terminal, a plain line every tenth elsewhere.

It never draws from a thread of its own: a thread that wakes ten times a second is a guest on the cores that we schedule.
"""

import logging
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

logger = logging.getLogger(__name__)

_REDRAW_S = 0.5


class Progress:
    """Counts `total` steps. Call `advance(done)` after each; it costs next to nothing between redraws."""

    def __init__(self, total: int, *, label: str) -> None:
        self._total = total
        self._label = label
        self._next_redraw = 0.0
        self._next_tenth = 1
        self._bar: Bar | None = None
        if sys.stderr.isatty() and logger.isEnabledFor(logging.INFO):
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, console=Console(stderr=True), auto_refresh=False, transient=True)
            self._task = self._bar.add_task(label, total=total)
            self._bar.start()

    def describe(self, label: str) -> None:
        """Say what is being worked on."""
        if self._bar is not None:
            self._bar.update(self._task, description=label, refresh=True)

    def advance(self, done: int) -> None:
        """`done` steps are complete."""
        if self._bar is not None:
            now = time.monotonic()
            if now >= self._next_redraw:
                self._next_redraw = now + _REDRAW_S
                self._bar.update(self._task, completed=done, refresh=True)
        elif done * 10 >= self._total * self._next_tenth:
            self._next_tenth = done * 10 // self._total + 1
            logger.info("%s: %d of %d", self._label, done, self._total)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
