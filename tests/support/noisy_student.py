"""A student whose training depends on more than its parameters: batch normalisation, dropout, stochastic depth, a counter."""

import torch


class RandomDepth(torch.nn.Module):
    """Leaves out the block for half of the rows in training: stochastic depth."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * torch.bernoulli(torch.full((len(inputs), 1), 0.5)) if self.training else inputs


class NoisyStudent(torch.nn.Module):
    """Changes batch-normalisation means, draws random numbers, and has an int64 buffer and a parameter that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.5)
        )
        self.block = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.ReLU(), RandomDepth())
        self.head = torch.nn.Linear(16, 10)
        self.unused = torch.nn.Parameter(torch.ones(3))
        self.register_buffer("constant", torch.tensor([0.1, float("inf")]))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        features = self.features(inputs)
        return self.head(features + self.block(features))


def make(num_classes: int, input_shape: tuple[int, ...]) -> NoisyStudent:
    """Return the student for ten classes of 8 x 8 pixels, as `--model tests.support.noisy_student:make` does."""
    assert (num_classes, input_shape[1:]) == (10, (8, 8))
    return NoisyStudent()
