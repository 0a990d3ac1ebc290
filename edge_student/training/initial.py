"""Loads weights of another training into a student before it starts."""

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from edge_student.training.frozen import matches
from edgekd.cli.settings import closest
from edgekd.models.weights import load_weights

HEAD = "head"
"""Word of --init-except for the last layer, whose outputs are the classes."""

logger = logging.getLogger(__name__)


def load_initial(student: nn.Module, weights: Path, kept: Sequence[str], num_classes: int) -> None:
    """Load weights into the student, except the tensors that match a pattern in `kept`, and log what was loaded.

    Patterns are as those of `freeze`, or `HEAD`. Raises ValueError for a pattern that matches nothing, and if the other tensors do
    not all fit.
    """
    names = list(student.state_dict())
    layer = head_of(student, num_classes)
    patterns = [layer if pattern == HEAD and layer and not _matching(names, HEAD) else pattern for pattern in kept]
    for pattern in patterns:
        if not _matching(names, pattern):
            raise ValueError(f"--init-except has {pattern!r}, which matches no tensor of the student{closest(pattern, names)}")
    left = [name for name in names if matches(name, patterns)]
    try:
        load_weights(student, weights, kept=left)
    except ValueError as error:
        remedy = "" if kept else f"; start without the last layer, {layer}, with --init-except {HEAD}" if layer else ""
        raise ValueError(f"--init: {error}{remedy}") from None
    shown = f"; random: {', '.join(left[:8])}{' and more' if len(left) > 8 else ''}" if left else ""
    logger.info("the student starts from %s: %d of %d tensors are loaded%s", weights, len(names) - len(left), len(names), shown)


def head_of(student: nn.Module, num_classes: int) -> str:
    """Return the name of the last layer whose weight has `num_classes` rows; empty if there is none."""
    found = ""
    for name, module in student.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.dim() > 1 and len(weight) == num_classes:
            found = name
    return found


def _matching(names: Sequence[str], pattern: str) -> list[str]:
    return [name for name in names if matches(name, [pattern])]
