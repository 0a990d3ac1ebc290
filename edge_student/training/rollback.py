"""What a Forward changes although no step has been taken: the student's buffers, batch normalisation's means for example, and the
random state, which dropout draws from. Kept as they were at the last cycle's end, so that a cycle that was broken off can begin
again as if it had not begun.
"""

from collections.abc import Mapping

import torch


class RollbackState:
    """Copies of a student's buffers, by name, and of the random state, as `remember` last found them."""

    def __init__(self, student: torch.nn.Module, device: str) -> None:
        # Looked up once: to walk through a large model takes as long as to copy.
        self._owners = [
            (f"{prefix}.{name}" if prefix else name, module, name)
            for prefix, module in student.named_modules()
            for name, _ in module.named_buffers(recurse=False)
        ]
        self._device = device
        self.buffers = {path: getattr(module, name).detach().clone() for path, module, name in self._owners}
        self.random = random_state(device)

    def remember(self) -> None:
        """This is a boundary: copy anew."""
        with torch.no_grad():
            for path, module, name in self._owners:
                self.buffers[path].copy_(getattr(module, name))
        self.random = random_state(self._device)


def random_state(device: str) -> dict[str, torch.Tensor]:
    """The states, uint8, of the generators that a student on `device` draws from."""
    states = {"cpu": torch.get_rng_state()}
    if torch.device(device).type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random(states: Mapping[str, torch.Tensor], device: str) -> None:
    """Draw on from these states; those of a device that is not used are left. ValueError for one that is none, or missing."""
    for name in random_state(device):
        if name not in states:
            if name == "cpu":
                raise ValueError("the random state is missing")
            continue  # written on another device, whose numbers nobody can draw here
        try:
            if name == "cpu":
                torch.set_rng_state(states[name])
            else:
                torch.cuda.set_rng_state(states[name], device)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"the random state of {name} is none: {error}") from None
