"""Yield points: places between two layers, within a Forward or a Backward, where training can pause or change its cores.

A pre-hook of the module runs before a layer's forward; a pre-hook of the autograd node of its output runs before its backward.
Neither hook touches a tensor, so results do not change. On the CPU both run in the training thread. (Backward hooks of modules wrap
the tensors instead and fail for layers that work in place.)

A hook takes 5 to 10 us, which is a tenth of the step in a model of many small layers. `find_yield_points` therefore selects only
points far enough apart. A single long layer is not split.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

GAP_S = 0.010
"""Minimum time between two yield points: 1000 times the cost of a hook, a tenth of the delay allowed for a new allocation."""

_MIN_CALL_INTERVAL_S = GAP_S / 10
"""A layer called more often than this on average is no yield point, because every call would run the hook."""


@dataclass(frozen=True, slots=True, kw_only=True)
class YieldPoints:
    """Names of the layers with a yield point before their forward, and of those with one before their backward."""

    forward: frozenset[str]
    backward: frozenset[str]


NO_YIELD_POINTS = YieldPoints(forward=frozenset(), backward=frozenset())


def every_layer(model: nn.Module) -> YieldPoints:
    """Return a yield point before each layer. A layer is a module without submodules."""
    names = frozenset(name for name, _ in _layers(model))
    return YieldPoints(forward=names, backward=names)


@contextmanager
def interruptible(model: nn.Module, points: YieldPoints, between_layers: Callable[[], None]) -> Iterator[None]:
    """Call `between_layers` at each of these points while the block runs. An exception from it ends the pass."""
    with ExitStack() as hooks:
        for name, layer in _layers(model):
            if name in points.forward:
                hooks.callback(_before_forward(layer, between_layers).remove)
            if name in points.backward:
                hooks.callback(_before_backward(layer, between_layers).remove)
        yield


def find_yield_points(model: nn.Module, step: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> YieldPoints:
    """Return points of `model` at least GAP_S apart, measured while `step` runs one forward and one backward."""
    forward: list[tuple[str, float]] = []
    backward: list[tuple[str, float]] = []

    def visit(visits: list[tuple[str, float]], name: str) -> None:
        visits.append((name, clock()))

    with ExitStack() as hooks:
        for name, layer in _layers(model):
            hooks.callback(_before_forward(layer, partial(visit, forward, name)).remove)
            hooks.callback(_before_backward(layer, partial(visit, backward, name)).remove)
        step()
    return YieldPoints(forward=select_spaced(forward), backward=select_spaced(backward))


def select_spaced(visits: Sequence[tuple[str, float]]) -> frozenset[str]:
    """Select the layers to yield at from the (layer name, time in seconds) visits of one pass."""
    if not visits:
        return frozenset()
    (_, last), (_, end) = visits[0], visits[-1]
    max_calls = (end - last) / _MIN_CALL_INTERVAL_S
    calls = Counter(name for name, _ in visits)
    chosen = set()
    for name, reached in visits:
        if reached - last >= GAP_S and calls[name] <= max_calls:
            chosen.add(name)
            last = reached
    return frozenset(chosen)


def _layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if not any(True for _ in module.children())]


def _before_forward(layer: nn.Module, call: Callable[[], None]) -> RemovableHandle:
    def hook(module: nn.Module, inputs: Any) -> None:
        call()

    return layer.register_forward_pre_hook(hook)


def _before_backward(layer: nn.Module, call: Callable[[], None]) -> RemovableHandle:
    def before_node(gradients: Any) -> None:
        call()

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        node = _node_of(output)
        if node is not None:
            node.register_prehook(before_node)  # freed with the graph at the end of the step

    return layer.register_forward_hook(hook)


def _node_of(output: Any) -> torch.autograd.graph.Node | None:
    """Return the autograd node of a layer's output, or of its first differentiable tensor; None if there is none."""
    if isinstance(output, torch.Tensor):
        return output.grad_fn
    if isinstance(output, tuple | list):
        return next((node for node in map(_node_of, output) if node is not None), None)
    return None
