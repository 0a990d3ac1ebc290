"""Train a 1-D network on windows of a sensor, a data set of your own. In this folder:

cloud-teacher train --dataset own_dataset:Windows:public --model own_dataset:network --out windows.safetensors
cloud-teacher serve --dataset own_dataset:Windows:public --weights windows.safetensors --model own_dataset:network
python own_dataset.py 127.0.0.1:50051
"""

import sys

import torch
from torch import nn

from edge_student import Distiller


class Windows(torch.utils.data.TensorDataset):
    """Windows of three axes and 64 samples; the frequency tells resting, walking and running apart."""

    classes = ("resting", "walking", "running")

    def __init__(self, split: str) -> None:
        torch.manual_seed(["public", "private", "test"].index(split))
        labels = torch.randint(3, (300,))
        phase = labels[:, None, None] * torch.arange(64) / 8 + 6 * torch.rand(300, 3, 1)
        super().__init__(phase.sin() + 0.5 * torch.randn(300, 3, 64), labels)


def network(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """Return a network for windows of this shape."""
    return nn.Sequential(
        nn.Conv1d(input_shape[0], 16, 9), nn.ReLU(), nn.AdaptiveMaxPool1d(4), nn.Flatten(), nn.Linear(64, num_classes)
    )


if __name__ == "__main__":
    data = {split: Windows(split) for split in ("private", "public", "test")}
    result = Distiller(network(3, (3, 64)), teacher=sys.argv[1], **data, alpha=0.5, lr=0.02).fit(300)
    print(f"accuracy {result.accuracy:.3f}")
