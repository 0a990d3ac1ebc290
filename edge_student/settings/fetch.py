"""Settings of `fetch`. The docstring below a field is its help text. `fetch` needs no student and no core split."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from edge_student.settings.link import LinkSettings
from edge_student.settings.student import CalibrateConfig, CompareConfig, TrainConfig
from edgekd.wire.limits import MAX_BATCH_SIZE


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchConfig(LinkSettings):
    """Download all logits of a teacher into the cache of this edge, for --logits offline or hybrid."""

    reads_files_of: ClassVar[tuple[type[Any], ...]] = (TrainConfig, CompareConfig, CalibrateConfig)

    public: str | None = field(default=None, metadata={"group": "data"})
    """Public data set that the teacher must serve. (default: any)"""
    teacher: str = field(metadata={"group": "receiving"})
    """Teacher address HOST:PORT, or several addresses with the same logits, separated by commas."""
    batch_size: int = field(default=128, metadata={"group": "receiving"})
    """Samples in one received batch."""

    def __post_init__(self) -> None:
        self.check_teacher(self.teacher)
        self.check_link_settings()
        if not 1 <= self.batch_size <= MAX_BATCH_SIZE:
            raise ValueError(f"--batch-size is {self.batch_size}, must be in 1 .. {MAX_BATCH_SIZE}")
