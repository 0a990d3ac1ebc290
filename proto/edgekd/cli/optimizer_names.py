"""The names of optimizers, for settings that must not load torch."""

from typing import Literal

OptimizerName = Literal["sgd", "adam", "adamw"]
