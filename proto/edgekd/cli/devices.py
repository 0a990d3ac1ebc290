"""The values of --device, for settings that must not load torch."""

from typing import Literal

Device = Literal["cpu", "cuda", "auto"]
