"""Places between two layers of a model, inside a Forward or a Backward, where training may be interrupted for a moment.

Before a layer's forward a pre-hook of the module runs; before its backward, a pre-hook of the autograd node that made its output.
Neither touches a tensor, so results stay what they are, and for a graph on the CPU both run in the thread that trains. (Hooks of
modules for the backward pass wrap the tensors instead, and break where a layer works in place.) A hook takes 5 to 10 us, which in
a model of many small layers is a tenth of its step: `measure` finds the few places that are worth one. One long layer is not split.
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
"""Least time from one place to the next: a thousand times what a hook takes, and a tenth of what a new allocation may wait."""

_CALL_S = GAP_S / 10
"""A layer that is called more often than this, on the average, is no place: every one of its calls would run the hook."""


@dataclass(frozen=True, slots=True, kw_only=True)
class YieldPoints:
    """Layers by name: those before whose forward, and those before whose backward, training may be interrupted."""

    forward: frozenset[str]
    backward: frozenset[str]


NOWHERE = YieldPoints(forward=frozenset(), backward=frozenset())


def everywhere(model: nn.Module) -> YieldPoints:
    """Every layer, which is every module that has no other inside."""
    names = frozenset(name for name, _ in _layers(model))
    return YieldPoints(forward=names, backward=names)


@contextmanager
def interruptible(model: nn.Module, places: YieldPoints, between_layers: Callable[[], None]) -> Iterator[None]:
    """While the block runs, `between_layers` is called at these places. What it raises ends the pass."""
    with ExitStack() as hooks:
        for name, layer in _layers(model):
            if name in places.forward:
                hooks.callback(_before_forward(layer, between_layers).remove)
            if name in places.backward:
                hooks.callback(_before_backward(layer, between_layers).remove)
        yield


def measure(model: nn.Module, step: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> YieldPoints:
    """The places of `model` that lie GAP_S apart, found by running `step`, one forward and one backward of it."""
    forward: list[tuple[str, float]] = []
    backward: list[tuple[str, float]] = []

    def mark(marks: list[tuple[str, float]], name: str) -> None:
        marks.append((name, clock()))

    with ExitStack() as hooks:
        for name, layer in _layers(model):
            hooks.callback(_before_forward(layer, partial(mark, forward, name)).remove)
            hooks.callback(_before_backward(layer, partial(mark, backward, name)).remove)
        step()
    return YieldPoints(forward=spaced(forward), backward=spaced(backward))


def spaced(marks: Sequence[tuple[str, float]]) -> frozenset[str]:
    """Of the layers of one pass, each with the time in seconds when it was reached, those to interrupt at."""
    if not marks:
        return frozenset()
    (_, last), (_, end) = marks[0], marks[-1]
    most_calls = (end - last) / _CALL_S
    calls = Counter(name for name, _ in marks)
    chosen = set()
    for name, reached in marks:
        if reached - last >= GAP_S and calls[name] <= most_calls:
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
            node.register_prehook(before_node)  # it goes with the graph, at the end of the step

    return layer.register_forward_hook(hook)


def _node_of(output: Any) -> torch.autograd.graph.Node | None:
    """The autograd node that made a layer's output, or the first of several; None if there is nothing to differentiate."""
    if isinstance(output, torch.Tensor):
        return output.grad_fn
    if isinstance(output, tuple | list):
        return next((node for node in map(_node_of, output) if node is not None), None)
    return None
