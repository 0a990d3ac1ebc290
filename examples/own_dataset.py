"""Train a 1-D network on windows of a sensor, with a data set of your own at both ends. In this folder:

cloud-teacher train --dataset own_dataset:Windows:public --model own_dataset:network --out windows.safetensors
cloud-teacher serve --dataset own_dataset:Windows:public --model own_dataset:network --weights windows.safetensors \
    --listen 127.0.0.1:50051
python own_dataset.py 127.0.0.1:50051
"""

import sys

import torch

from edge_student import Distiller


class Windows(torch.utils.data.Dataset):
    """Windows of three axes and 64 samples: resting, walking or running, by the frequency of the signal."""

    classes = ("resting", "walking", "running")

    def __init__(self, split: str) -> None:
        random = torch.Generator().manual_seed(["public", "private", "test"].index(split))
        self.labels = torch.randint(3, (300,), generator=random)
        time = torch.arange(64) / 8 * self.labels[:, None, None]
        self.windows = torch.sin(time + 6 * torch.rand(300, 3, 1, generator=random)) + 0.5 * torch.randn(
            300, 3, 64, generator=random
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.windows[index], self.labels[index]


def network(num_classes: int, input_shape: tuple[int, ...]) -> torch.nn.Module:
    """Return a network for windows of this shape."""
    layers = [torch.nn.Conv1d(input_shape[0], 16, 9), torch.nn.ReLU(), torch.nn.AdaptiveMaxPool1d(4), torch.nn.Flatten()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(64, num_classes))


if __name__ == "__main__":
    data = {split: Windows(split) for split in ("private", "public", "test")}
    result = Distiller(network(3, (3, 64)), teacher=sys.argv[1], **data, alpha=0.5, lr=0.02, out="runs/windows").fit(cycles=300)
    print(f"accuracy {result.accuracy:.3f}")
