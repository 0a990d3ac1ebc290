"""Freezes parts of a student: they keep their weights and their statistics."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from edgekd.cli.settings import closest


def freeze(student: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Exclude the parameters that match a pattern from training, and return their names.

    A pattern is a name, the name of a module, or a shell pattern such as `layer[12].*`. Raises ValueError for a pattern that
    matches no parameter, and if no parameter is left.
    """
    names = [name for name, _ in student.named_parameters()]
    for pattern in patterns:
        if not any(_matches(name, pattern) for name in names):
            raise ValueError(f"--freeze has {pattern!r}, which matches no parameter{closest(pattern, names)}")
    frozen = [name for name in names if matches(name, patterns)]
    if len(frozen) == len(names):
        raise ValueError(f"--freeze is {','.join(patterns)}, which matches all {len(names)} parameters: leave some to train")
    for name, parameter in student.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    return frozen


def set_training(student: nn.Module, patterns: Sequence[str]) -> nn.Module:
    """Set the student to training mode, except modules with buffers whose parameters are all frozen, and return it.

    So batch normalization in a frozen part uses its running averages, and does not change them.
    """
    student.train()
    if patterns:
        for prefix, module in student.named_modules():
            buffers = [name for name, _ in module.named_buffers(prefix, recurse=False)]
            parameters = [name for name, _ in module.named_parameters(prefix, recurse=False)]
            if buffers and all(matches(name, patterns) for name in parameters or buffers):
                module.eval()
    return student


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether the name of a tensor matches one of the patterns."""
    return any(_matches(name, pattern) for pattern in patterns)


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")
