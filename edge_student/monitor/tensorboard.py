"""Writes the metrics of a run for TensorBoard. The package tensorboard is optional: edgekd[tensorboard]."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SCALARS = ("loss", "lr", "cycles_per_s", "waited_s", "buffered")


class TensorBoard:
    """A callback of `Metrics`: one scalar for each number of a record, by cycle."""

    def __init__(self, folder: Path) -> None:
        """Open the folder. Raises ValueError if the package is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(f"--tensorboard needs the package tensorboard: pip install edgekd[tensorboard] ({error})") from None
        self._writer = SummaryWriter(str(folder))

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Write one record."""
        for name in _SCALARS:
            if record[name] is not None:
                self._writer.add_scalar(name, record[name], record["cycle"])
        if record["accuracy"] is not None:
            self._writer.add_scalar("accuracy", record["accuracy"], record["accuracy_cycle"])
        self._writer.flush()
