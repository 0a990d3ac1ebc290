"""Values of --device, in a module that does not load torch."""

from typing import Literal

Device = Literal["cpu", "cuda", "auto"]
