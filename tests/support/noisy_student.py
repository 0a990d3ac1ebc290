"""A student whose training depends on more than its parameters: batch normalisation, dropout, stochastic depth, a counter."""

import torch
from torchvision.ops import StochasticDepth


class NoisyStudent(torch.nn.Module):
    """Changes batch-normalisation means, draws random numbers, and has an int64 buffer and a parameter that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.5)
        )
        self.block = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), StochasticDepth(0.5, "row"))
        self.head = torch.nn.Linear(16, 10)
        self.unused = torch.nn.Parameter(torch.ones(3))
        self.register_buffer("constant", torch.tensor([0.1, float("inf")]))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features = self.features(inputs)
        return self.head(features + self.block(features))
