"""Settings of `doctor`. The docstring below a field is its help text.

`doctor` accepts settings files of the other commands, because a device's settings are in such a file.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from edge_student.settings.fetch import FetchConfig
from edge_student.settings.link import LinkSettings
from edge_student.settings.shared import BufferSettings, CoreSettings
from edge_student.settings.student import CalibrateConfig, CompareConfig, TrainConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class DoctorConfig(CoreSettings, BufferSettings, LinkSettings):
    """Check this device and the connection to its teacher, before a measurement."""

    reads_files_of: ClassVar[tuple[type[Any], ...]] = (TrainConfig, CompareConfig, CalibrateConfig, FetchConfig)

    teacher: str | None = field(default=None, metadata={"group": "receiving"})
    """Teacher address HOST:PORT, or several separated by commas. (default: check this device only)"""
    out: Path = field(default=Path(), metadata={"group": "output"})
    """Folder of future runs. Its disk is checked. The folder need not exist, and no file stays in it."""
    json: bool = field(default=False, metadata={"group": "output"})
    """Print the findings as JSON."""

    max_wait: float = field(default=0.0, init=False)  # one attempt: doctor reports the cause of its failure
    edge_id: str = field(default="", init=False)  # the teacher identifies doctor by its address

    def __post_init__(self) -> None:
        if self.teacher is not None:
            self.check_teacher(self.teacher)
        self.check_cores()
        self.check_buffer()
        self.check_transfer()
