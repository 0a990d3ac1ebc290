"""Show the progress of long work on stderr: a bar on a terminal, otherwise a log line per tenth of the work and per minute.

Only the calling thread redraws the bar. A thread that wakes ten times a second would disturb the scheduled cores.
"""

import logging
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

logger = logging.getLogger(__name__)

_REDRAW_S = 0.5
_LOG_S = 60.0


class Progress:
    """Count steps up to `total`. Between two redraws a call costs less than a microsecond.

    Use it as a context manager, or call `close` at the end. With `is_logged=False`, only `line` writes to the log. `status` returns
    a short text that is shown with the progress.
    """

    def __init__(self, label: str, total: int, *, is_logged: bool = True, status: Callable[[], str] | None = None) -> None:
        self._label = label
        self._total = total
        self._is_logged = is_logged
        self._status = status
        self._done = 0
        self._next_redraw = 0.0
        self._next_tenth = 1
        self._next_log = time.monotonic() + _LOG_S
        self._bar: Bar | None = None
        if sys.stderr.isatty() and logger.isEnabledFor(logging.INFO):
            # Importing rich takes 0.1 s. A service under systemd does not need it.
            import rich.progress
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.table import Column

            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=None, table_column=Column(ratio=1)),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}", table_column=Column(no_wrap=True)),
                TimeRemainingColumn(),
            )
            console = Console(stderr=True)
            self._bar = rich.progress.Progress(*columns, console=console, auto_refresh=False, transient=True, expand=True)
            self._task = self._bar.add_task(label, total=total, status="")
            self._bar.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def describe(self, label: str) -> None:
        """Set the label of the bar to the current step."""
        if self._bar is not None:
            self._bar.update(self._task, description=label, refresh=True)

    def advance(self, num_steps: int = 1) -> None:
        """Count `num_steps` more completed steps."""
        self.reach(self._done + num_steps)

    def reach(self, num_done: int) -> None:
        """Set the number of completed steps."""
        self._done = num_done
        now = time.monotonic()
        if self._bar is not None:
            if now >= self._next_redraw:
                self._next_redraw = now + _REDRAW_S
                self._bar.update(self._task, completed=num_done, status=self._status() if self._status else "", refresh=True)
        elif self._is_logged and (num_done * 10 >= self._total * self._next_tenth or now >= self._next_log):
            self._next_tenth = num_done * 10 // self._total + 1
            self._next_log = now + _LOG_S
            status = f", {self._status()}" if self._status else ""
            logger.info("%s: %d of %d%s", self._label, num_done, self._total, status)

    def line(self, text: str) -> None:
        """Write a permanent line, for example the result of an epoch. On a terminal it appears above the bar."""
        if self._bar is None:
            logger.info("%s", text)
        else:
            self._bar.console.print(text, highlight=False)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
