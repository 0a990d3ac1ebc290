"""Keeps the state that a Forward changes before any optimiser step, as it was at the end of the last complete cycle.

This state consists of the student's buffers (for example batch-normalisation means) and the random number generators (used by
dropout). With it, an interrupted cycle can be repeated with the same result.
"""

from collections.abc import Mapping

import torch

from edgekd.wire.order import mix


class RollbackState:
    """Copies of a student's buffers, by name, and of the generator states, from the last call of `save`."""

    def __init__(self, student: torch.nn.Module, device: str) -> None:
        # Looked up once, because walking through a large model takes as long as copying.
        self._owners = [
            (f"{prefix}.{name}" if prefix else name, module, name)
            for prefix, module in student.named_modules()
            for name, _ in module.named_buffers(recurse=False)
        ]
        self._device = device
        self.buffers = {path: getattr(module, name).detach().clone() for path, module, name in self._owners}
        self.generators = generator_states(device)

    def save(self) -> None:
        """Copy the current buffers and generator states. Call it at the end of a cycle."""
        with torch.no_grad():
            for path, module, name in self._owners:
                self.buffers[path].copy_(getattr(module, name))
        self.generators = generator_states(self._device)


def generator_states(device: str) -> dict[str, torch.Tensor]:
    """Return the states (uint8) of the random number generators that a student on `device` uses, by device type."""
    states = {"cpu": torch.get_rng_state()}
    if torch.device(device).type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def seed_generators(device: str, *stream: int) -> None:
    """Seed the generators of a student on `device` for a stream of random numbers, named by whole numbers from 0 on."""
    seed = 0
    for number in stream:
        seed = mix(seed + number)
    torch.default_generator.manual_seed(seed >> 1)
    if torch.device(device).type == "cuda":
        torch.cuda.manual_seed_all(seed >> 1)


def restore_generators(states: Mapping[str, torch.Tensor], device: str) -> None:
    """Set the generators to `states` and ignore states of unused devices. Raises ValueError for a missing or invalid state."""
    for name in generator_states(device):
        if name not in states:
            if name == "cpu":
                raise ValueError("the random generator state is missing")
            continue  # the checkpoint was written on a machine without this device
        try:
            if name == "cpu":
                torch.set_rng_state(states[name])
            else:
                torch.cuda.set_rng_state(states[name], device)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"the random generator state of {name} is invalid: {error}") from None
