"""The optimizers, through torch.optim's functions: SGD with momentum (Eq. 2), Adam and AdamW.

The classes of torch.optim are not used: creating one imports torch's compiler, which is not needed here. That import takes 1 to 2
CPU seconds and about 100 MB at the start of every run, and several times as long on a small board. The functions are elementwise,
so that a compute worker can update its part of the parameters.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from edgekd.cli.optimizer_names import OptimizerName

_BETAS = (0.9, 0.999)
_EPS = 1e-8


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerRule:
    """An optimizer and its hyperparameters, except the learning rate. `momentum` is for sgd only.

    Adam and AdamW have the betas 0.9 and 0.999, and eps 1e-8 (Kingma and Ba, "Adam", 2015; Loshchilov and Hutter, "Decoupled Weight
    Decay Regularization", 2019).
    """

    name: OptimizerName = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the tensors that it keeps for each parameter, of the same shape."""
        return ("momentum",) if self.name == "sgd" else ("exp_avg", "exp_avg_sq")

    @torch.no_grad()
    def update(
        self,
        parameters: list[torch.Tensor],
        gradients: list[torch.Tensor],
        states: Mapping[str, list[torch.Tensor | None]],
        *,
        lr: float,
        num_steps: int,
    ) -> None:
        """Take one step in place, after `num_steps` earlier ones. A state that is None is created, and put into its list.

        `states` has a list for each of `state_names`, with one tensor for each parameter.
        """
        if self.name == "sgd":
            sgd(
                parameters,
                gradients,
                states["momentum"],
                weight_decay=self.weight_decay,
                momentum=self.momentum,
                lr=lr,
                dampening=0.0,
                nesterov=False,
                maximize=False,
            )
            return
        means, squares = (_filled(states[name], parameters) for name in self.state_names)
        adam(
            parameters,
            gradients,
            means,
            squares,
            [],
            [torch.tensor(float(num_steps)) for _ in parameters],
            foreach=False,
            decoupled_weight_decay=self.name == "adamw",
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=lr,
            weight_decay=self.weight_decay,
            eps=_EPS,
            maximize=False,
        )


def _filled(states: list[torch.Tensor | None], parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the states, with zeros in place of None."""
    filled = [torch.zeros_like(parameter) if state is None else state for state, parameter in zip(states, parameters, strict=True)]
    states[:] = filled
    return filled


class Optimizer:
    """Steps `parameters` by a rule. Parameters without a gradient do not change.

    Results are bit-identical to those of torch.optim's classes for parameters that have a gradient in every step.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], rule: OptimizerRule) -> None:
        self._parameters = list(parameters)
        self._rule = rule
        self._states: dict[str, list[torch.Tensor | None]] = {name: [None] * len(self._parameters) for name in rule.state_names}

    @property
    def state(self) -> dict[str, dict[int, torch.Tensor]]:
        """States by name and parameter number; those of parameters that have not been stepped are absent."""
        return {name: {n: state for n, state in enumerate(states) if state is not None} for name, states in self._states.items()}

    @state.setter
    def state(self, states: Mapping[str, Mapping[int, torch.Tensor]]) -> None:
        for name, found in states.items():
            self._states[name] = [
                found[n].to(parameter.device, copy=True) if n in found else None for n, parameter in enumerate(self._parameters)
            ]

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def clip(self, max_norm: float) -> None:
        """Scale all gradients so that their common norm is at most `max_norm`, as torch.nn.utils.clip_grad_norm_ does."""
        torch.nn.utils.clip_grad_norm_(self._parameters, max_norm, foreach=False)

    def step(self, *, lr: float, num_steps: int) -> None:
        """Take one step against the gradients, in place, at rate `lr`, after `num_steps` earlier ones."""
        updated = [n for n, parameter in enumerate(self._parameters) if parameter.grad is not None]
        states = {name: [kept[n] for n in updated] for name, kept in self._states.items()}
        gradients = [gradient for n in updated if (gradient := self._parameters[n].grad) is not None]
        self._rule.update([self._parameters[n] for n in updated], gradients, states, lr=lr, num_steps=num_steps)
        for name, changed in states.items():
            for n, state in zip(updated, changed, strict=True):
                self._states[name][n] = state
