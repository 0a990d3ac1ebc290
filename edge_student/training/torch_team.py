"""The threads that torch computes with, as the scheduler sees them."""

import torch

_PROBE_ROUNDS = 4
_PROBE_ELEMENTS_PER_THREAD = 1 << 16  # twice ATen's grain size of element-wise operations, so that every thread works


class TorchTeam:
    """The OpenMP thread team of the calling thread; implements scheduler.live.binding.ThreadTeam."""

    def size(self) -> int:
        """Return the number of threads, master included."""
        return torch.get_num_threads()

    def resize(self, num_threads: int) -> None:
        """Set the number of threads. torch applies it to the calling thread only."""
        torch.set_num_threads(num_threads)

    def exercise(self) -> None:
        """Run a few parallel operations that use every thread of the team; takes about 0.1 ms."""
        values = torch.zeros(torch.get_num_threads() * _PROBE_ELEMENTS_PER_THREAD)
        for _ in range(_PROBE_ROUNDS):
            values.add_(1.0)
