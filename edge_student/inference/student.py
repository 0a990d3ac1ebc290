"""A trained student with its preprocessing, as one module that takes samples as they are stored."""

from pathlib import Path

import torch
from torch import nn

from edgekd.data.preprocessing import Preprocessing
from edgekd.data.tensors import normalize
from edgekd.models.build import build_model, is_user_model
from edgekd.models.card import ModelCard, read_card
from edgekd.models.weights import load_weights


class Student(nn.Module):
    """A student that takes samples [B, ...], uint8 or float32, of the size of its input, and returns logits [B, classes].

    `class_names` has a name for each logit; it is empty if the classes have no names.
    """

    def __init__(self, model: nn.Module, card: ModelCard) -> None:
        super().__init__()
        self.model = model
        self.card = card
        self.class_names = card.class_names

    @property
    def preprocessing(self) -> Preprocessing:
        """The rules that convert stored samples to the model's input."""
        return self.card.preprocessing

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """Return the logits, float32 [B, classes], of samples [B, ...] of the size of the model's input."""
        logits: torch.Tensor = self.model(normalize(samples, self.card.preprocessing))
        return logits


def load_student(path: str | Path, model: nn.Module | str | None = None) -> Student:
    """Load the student of a run, `student.safetensors`, in evaluation mode.

    `model` is a module of the same architecture, or its name. Without it, the model of the name in the file is built, unless that
    name is code: it must be confirmed. Raises ValueError if the file is damaged, has no model card, does not fit the model, or
    names code, and OSError if it cannot be read.
    """
    path = Path(path)
    card = read_card(path)
    if card is None:
        raise ValueError(f"{path} has no model card: use the student.safetensors of a run")
    if model is None and is_user_model(card.model):
        raise ValueError(f"{path} names the code {card.model}: confirm it with --model {card.model}, or in Python with model=")
    if not isinstance(model, nn.Module):
        model = build_model(model or card.model, num_classes=card.num_classes, input_shape=card.input_shape, seed=0)
    load_weights(model, path)
    return Student(model, card).eval()
