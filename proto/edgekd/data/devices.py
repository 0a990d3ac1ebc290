"""Where a model computes, as both ends let the user say it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def choose_device(name: str) -> "torch.device":
    """The device of "cpu", "cuda" or "auto", which takes a GPU if there is one. Raises ValueError for "cuda" without a GPU."""
    import torch  # here, because command lines are read before torch may be loaded

    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise ValueError("--device is cuda, but torch finds no GPU here; use --device cpu or auto")
    return torch.device("cuda" if has_gpu and name != "cpu" else "cpu")
