"""Stochastic gradient descent with momentum: theta <- theta - lr * grad (Eq. 2), by torch.optim's own function.

Its class SGD would do, but making one imports torch's compiler, which nothing here uses: 1 to 2 seconds of a processor and a
hundred megabytes or so at the start of every run, and several times as long on a small board.
"""

from collections.abc import Iterable, Mapping

import torch
from torch.optim.sgd import sgd


class Sgd:
    """Steps of SGD over `parameters`; those without a gradient stay as they are. Bit by bit what torch.optim.SGD does."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], *, lr: float, momentum: float) -> None:
        self._parameters = list(parameters)
        self._buffers: list[torch.Tensor | None] = [None] * len(self._parameters)
        self._lr = lr
        self._momentum = momentum

    @property
    def momentum(self) -> dict[int, torch.Tensor]:
        """The momentum of each parameter that has some, by its number."""
        return {n: buffer for n, buffer in enumerate(self._buffers) if buffer is not None}

    @momentum.setter
    def momentum(self, buffers: Mapping[int, torch.Tensor]) -> None:
        self._buffers = [
            buffers[n].to(parameter.device, copy=True) if n in buffers else None for n, parameter in enumerate(self._parameters)
        ]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Take one step against the gradients."""
        moved = [n for n, parameter in enumerate(self._parameters) if parameter.grad is not None]
        buffers = [self._buffers[n] for n in moved]
        sgd(
            [self._parameters[n] for n in moved],
            [gradient for n in moved if (gradient := self._parameters[n].grad) is not None],
            buffers,
            weight_decay=0.0,
            momentum=self._momentum,
            lr=self._lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        for n, buffer in zip(moved, buffers, strict=True):
            self._buffers[n] = buffer
