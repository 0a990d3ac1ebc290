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
        """Return the logits, float32 [B, classes]."""
        logits: torch.Tensor = self.model(normalize(samples, self.card.preprocessing))
        return logits


def load_student(path: str | Path, model: nn.Module | None = None) -> Student:
    """Load the student of a run, `student.safetensors`, in evaluation mode.

    `model` is a module of the same architecture; without it, the model of the name in the file is built. Raises ValueError if the
    file is damaged, has no model card, or does not fit the model, and OSError if it cannot be read.
    """
    path = Path(path)
    card = read_card(path)
    if card is None:
        raise ValueError(f"{path} has no model card: use the student.safetensors of a run")
    if model is None:
        model = build_model(card.model, num_classes=card.num_classes, input_shape=card.input_shape, seed=0)
    load_weights(model, path)
    return Student(model, card).eval()


def needs_code(path: Path) -> str:
    """Return the name of the user's code that `load_student` would import; empty if it imports none."""
    card = read_card(path)
    return card.model if card is not None and is_user_model(card.model) else ""
