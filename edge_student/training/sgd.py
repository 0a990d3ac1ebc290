"""Stochastic gradient descent with momentum: theta <- theta - lr * grad (Eq. 2), through torch.optim's function `sgd`.

The class torch.optim.SGD is not used: creating one imports torch's compiler, which is not needed here. That import takes 1 to 2
CPU seconds and about 100 MB at the start of every run, and several times as long on a small board.
"""

from collections.abc import Iterable, Mapping

import torch
from torch.optim.sgd import sgd


def descend(
    parameters: list[torch.Tensor],
    gradients: list[torch.Tensor],
    buffers: list[torch.Tensor | None],
    *,
    lr: float,
    momentum: float,
) -> None:
    """Update parameters and momentum `buffers` in place by Eq. 2. A buffer that is None is created, and put into the list."""
    sgd(
        parameters,
        gradients,
        buffers,
        weight_decay=0.0,
        momentum=momentum,
        lr=lr,
        dampening=0.0,
        nesterov=False,
        maximize=False,
    )


class Sgd:
    """SGD over `parameters`. Parameters without a gradient do not change. Results are bit-identical to torch.optim.SGD."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], *, lr: float, momentum: float) -> None:
        self._parameters = list(parameters)
        self._buffers: list[torch.Tensor | None] = [None] * len(self._parameters)
        self._lr = lr
        self._momentum = momentum

    @property
    def momentum(self) -> dict[int, torch.Tensor]:
        """Momentum buffers by parameter number; parameters that have not been stepped are absent."""
        return {n: buffer for n, buffer in enumerate(self._buffers) if buffer is not None}

    @momentum.setter
    def momentum(self, buffers: Mapping[int, torch.Tensor]) -> None:
        self._buffers = [
            buffers[n].to(parameter.device, copy=True) if n in buffers else None for n, parameter in enumerate(self._parameters)
        ]

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Take one step against the gradients."""
        updated = [n for n, parameter in enumerate(self._parameters) if parameter.grad is not None]
        buffers = [self._buffers[n] for n in updated]
        gradients = [gradient for n in updated if (gradient := self._parameters[n].grad) is not None]
        descend([self._parameters[n] for n in updated], gradients, buffers, lr=self._lr, momentum=self._momentum)
        for n, buffer in zip(updated, buffers, strict=True):
            self._buffers[n] = buffer
