"""Draws a live view of a run in another shell, from the files in its folder."""

import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge_student.settings.watch import WatchConfig
from edgekd.files import expanded, is_locked

METRICS, RESULT = "metrics.jsonl", "result.json"
_KEPT = 600
"""Records that the view covers: twenty minutes."""
_QUIET_S = 30.0
"""Seconds without a new record after which the view names them."""
_BLOCKS = " ▁▂▃▄▅▆▇█"


def watch(config: WatchConfig) -> int:
    """Show the run until it has ended, or once. Returns the exit status."""
    from rich.console import Console
    from rich.live import Live

    out = expanded(config.out)
    if not out.is_dir():
        raise ValueError(f"{out} is no folder: name the --out of a run")
    console = Console()
    follower = Follower(out / METRICS)
    follower.read()
    if config.once or not console.is_terminal:
        console.print(render(out, follower, console.width))
        return 0
    with Live(render(out, follower, console.width), console=console, auto_refresh=False) as live:
        while is_locked(out):
            time.sleep(config.every)
            follower.read()
            live.update(render(out, follower, console.width), refresh=True)
        live.update(render(out, follower, console.width), refresh=True)
    return 0


class Follower:
    """Reads the records of metrics.jsonl as they are appended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._inode = -1
        self.records: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self.last_change = 0.0

    def read(self) -> bool:
        """Read the new records; return whether there were any. A file that was replaced is read from its start."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return False
        if status.st_ino != self._inode or status.st_size < self._offset:
            self._inode, self._offset = status.st_ino, 0
            self.records.clear()
        with self._path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        complete = content[: content.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and "cycle" in record:
                self.records.append(record)
        if complete:
            self.last_change = status.st_mtime
        return bool(complete)


def render(out: Path, follower: Follower, width: int) -> Any:
    """Return a panel with the newest record and the course of loss, accuracy, speed and buffer."""
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    if not follower.records:
        return Panel(
            Text(f"no record yet in {out / METRICS}: the run is starting, or is no run of `edge-student train`"), title=str(out)
        )
    record = follower.records[-1]
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, overflow="crop", ratio=1)
    span = max(8, width - 46)
    rows: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("loss", "loss", lambda value: f"{value:.4f}"),
        ("accuracy", "accuracy", lambda value: f"{100 * value:.2f} %"),
        ("cycles/s", "cycles_per_s", lambda value: f"{value:.1f}"),
        ("buffered batches", "buffered", str),
    )
    for label, key, text in rows:
        values = [entry[key] for entry in follower.records if entry.get(key) is not None]
        table.add_row(label, text(values[-1]) if values else "-", spark(values, span))
    table.add_row(
        "cycle", f"{record['cycle']} of {record['cycles']}", f"{record['time_s']:.0f} s, learning rate {record['lr']:.3g}"
    )
    table.add_row(
        "waited",
        f"{record['waited_s']:.1f} s",
        f"{100 * record['waited_s'] / max(1e-9, record['time_s']):.0f} % of the time",
    )
    table.add_row(
        "cores",
        str(record["allocation"]),
        f"{record['policy']}, {record['num_decisions']} decisions, the last by {record['reason']}",
    )
    return Panel(table, title=str(out), subtitle=_state(out, follower))


def spark(values: Sequence[float], width: int) -> str:
    """Draw values as a line of blocks between their smallest and their largest; the newest are at the right."""
    shown = list(values)[-width:]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    scale = (len(_BLOCKS) - 2) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[1 + round((value - low) * scale)] for value in shown)


def _state(out: Path, follower: Follower) -> str:
    if not is_locked(out):
        return "ended" if (out / RESULT).exists() else "ended without a result: it was killed, or the machine was"
    silent = time.time() - follower.last_change
    return f"no record for {silent:.0f} s" if silent > _QUIET_S else "running"
