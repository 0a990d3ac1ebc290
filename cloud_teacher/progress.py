"""How far a long piece of work is: a bar where somebody watches, plain lines where a file or a journal does. Always on stderr."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)


class Progress:
    """Plain lines: `line` becomes a log message, and so does every tenth of the way if `tenths` is set."""

    def __init__(self, description: str, total: int, *, tenths: bool) -> None:
        self._description = description
        self._total = total
        self._tenths = tenths
        self._done = 0

    def advance(self, steps: int = 1) -> None:
        """So many more of the total are done."""
        before, self._done = self._done, self._done + steps
        if self._tenths and self._done * 10 // self._total > before * 10 // self._total:
            logger.info("%s: %d of %d", self._description, self._done, self._total)

    def line(self, text: str) -> None:
        """A line to keep, for example the result of an epoch."""
        logger.info("%s", text)


@contextmanager
def show_progress(description: str, total: int, *, tenths: bool = False) -> Iterator[Progress]:
    """A Progress of `total` steps, which is a rich bar if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield Progress(description, total, tenths=tenths)
        return
    # rich costs 0.1 s to import, which a server under systemd need not pay.
    import rich.console
    import rich.progress

    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(console=console, transient=True) as bar:
        task = bar.add_task(description, total=total)

        class Bar(Progress):
            def advance(self, steps: int = 1) -> None:
                bar.advance(task, steps)

            def line(self, text: str) -> None:
                console.print(text, highlight=False)

        yield Bar(description, total, tenths=False)
