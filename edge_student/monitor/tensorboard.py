"""Writes the metrics of a run for TensorBoard. The package tensorboard is optional: edgekd[tensorboard]."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_SCALARS = ("loss", "lr", "cycles_per_s", "waited_s", "buffered")


class TensorBoard:
    """A callback of `Metrics`: one scalar for each number of a record, by cycle. A resumed run replaces what it repeats."""

    def __init__(self, folder: Path) -> None:
        """Prepare the folder. Raises ValueError if the package is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(f"--tensorboard needs the package tensorboard: pip install edgekd[tensorboard] ({error})") from None
        self._open: Callable[[int], Any] = lambda cycle: SummaryWriter(str(folder), purge_step=cycle)
        self._writer: Any = None
        self._accuracy_cycle: int | None = None

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Write one record."""
        self._writer = self._writer or self._open(record["cycle"])
        for name in _SCALARS:
            if record[name] is not None:
                self._writer.add_scalar(name, record[name], record["cycle"])
        if record["accuracy_cycle"] != self._accuracy_cycle:
            self._accuracy_cycle = record["accuracy_cycle"]
            self._writer.add_scalar("accuracy", record["accuracy"], self._accuracy_cycle)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
