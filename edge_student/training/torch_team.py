"""The threads that torch computes with, as the scheduler sees them."""

import torch


class TorchTeam:
    """The OpenMP thread team of the calling thread; implements scheduler.live.binding.ThreadTeam."""

    def size(self) -> int:
        """Return the number of threads, the calling thread included."""
        return torch.get_num_threads()

    def resize(self, num_threads: int) -> None:
        """Set the number of threads. torch applies it to the calling thread only."""
        torch.set_num_threads(num_threads)
