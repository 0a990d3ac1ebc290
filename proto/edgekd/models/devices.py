"""Compute devices by name."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def choose_device(name: str) -> "torch.device":
    """Return the device for "cpu", "cuda" or "auto", which is a GPU if one exists. Raises ValueError for "cuda" without a GPU."""
    import torch  # local, because command lines are parsed before torch may be loaded

    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise ValueError("--device is cuda, but torch finds no GPU here; use --device cpu or auto")
    return torch.device("cuda" if has_gpu and name != "cpu" else "cpu")
