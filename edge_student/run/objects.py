"""Objects that a Python program passes to a run in place of names in the settings."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from edge_student.monitor.metrics import Callback
from edge_student.training.augment import Augment
from edge_student.training.loss import OwnLoss
from edge_student.training.schedule import LearningRateSchedule
from edgekd.data.dataset import Dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Objects:
    """Objects of the caller. None means that the settings decide."""

    student: nn.Module | None = None
    private: Dataset | None = None
    public: Dataset | None = None
    test: Dataset | None = None
    loss: OwnLoss | None = None
    augment: Augment | None = None
    schedule: LearningRateSchedule | None = None
    callbacks: tuple[Callback, ...] = ()

    def names(self) -> dict[str, str]:
        """Return the names of the functions, for the recipe of a checkpoint."""
        found = {field.name: getattr(self, field.name) for field in fields(self) if field.name in ("loss", "augment", "schedule")}
        return {name: name_of(function) for name, function in found.items() if function is not None}


NO_OBJECTS = Objects()
"""Those of a command line."""


def name_of(function: Callable[..., Any]) -> str:
    """Return package.module:name of a function or class, or of the class of another callable."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"
