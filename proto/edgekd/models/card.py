"""The model card: facts about weights that the weights do not contain. It is part of a safetensors file, or a JSON file beside it.

    {"model": "torchvision:resnet18", "normalize": "imagenet", "resize": "256/224", "input_shape": [3, 224, 224],
     "class_names": ["cat", "dog"], "teacher_digest": "...", "accuracy": 0.914}

Every field is optional in a card that a user writes, except `normalize`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.data.preprocessing import Preprocessing, parse_preprocessing
from edgekd.wire.limits import MAX_CLASSES

WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth")
METADATA_KEY = "edgekd"
"""Key of the card in the metadata of a safetensors file."""
_MAX_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """Architecture, preprocessing, input, classes and origin of weights. An empty field is not known."""

    preprocessing: Preprocessing
    model: str = ""
    """Model by name, as `build_model` takes it."""
    input_shape: tuple[int, ...] = ()
    """Shape of one model input, after preprocessing."""
    class_names: tuple[str, ...] = ()
    """Name of each output, in order."""
    num_classes: int = 0
    digest: str = ""
    """Digest of the weights (`weights_digest`)."""
    accuracy: float | None = None
    """Fraction of the test split that was classified correctly."""

    def as_json(self) -> dict[str, Any]:
        """Return the card as plain values."""
        return {
            "model": self.model,
            **self.preprocessing.as_json(),
            "input_shape": list(self.input_shape),
            "num_classes": self.num_classes,
            "class_names": list(self.class_names),
            "teacher_digest": self.digest,
            "accuracy": self.accuracy,
        }


def parse_card(fields: object, source: Path | str) -> ModelCard:
    """Return the card of parsed JSON. Raises ValueError, naming `source`, for a wrong type or an invalid rule."""
    if not isinstance(fields, Mapping):
        raise ValueError(f"model card {source} must be a JSON object")

    def field(name: str, kinds: tuple[type, ...], default: Any) -> Any:
        value = fields.get(name)
        if value is None:
            return default
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(
                f"model card {source}: {name} is {str(value)[:80]!r}, must be {' or '.join(k.__name__ for k in kinds)}"
            )
        return value

    shape, names = field("input_shape", (list,), []), field("class_names", (list,), [])
    if not all(type(side) is int and side > 0 for side in shape) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"model card {source}: input_shape must have positive integers, class_names must have strings")
    normalize = field("normalize", (str,), None)
    if normalize is None:
        raise ValueError(f"model card {source} lacks normalize, must be imagenet, signed, unit, none or MEAN/STD")
    try:
        preprocessing = parse_preprocessing(normalize, field("resize", (str,), None), field("channels", (int,), 0))
    except ValueError as error:
        raise ValueError(f"model card {source}: {error}") from None
    num_classes = field("num_classes", (int,), len(names))
    if not 0 <= num_classes <= MAX_CLASSES:
        raise ValueError(f"model card {source}: num_classes is {num_classes}, must be in 0 .. {MAX_CLASSES}")
    if len(shape) == 3 and shape[0] not in (1, 3) and normalize != "none":
        raise ValueError(f"model card {source}: input_shape is {shape}, must have 1 or 3 channels, or normalize none")
    if names and num_classes != len(names):
        raise ValueError(f"model card {source}: num_classes is {num_classes}, but class_names has {len(names)} names")
    return ModelCard(
        preprocessing=preprocessing,
        model=field("model", (str,), ""),
        input_shape=tuple(shape),
        class_names=tuple(names),
        num_classes=num_classes,
        digest=field("teacher_digest", (str,), ""),
        accuracy=field("accuracy", (int, float), None),
    )


def read_card(weights: Path) -> ModelCard | None:
    """Return the card in a safetensors file, or else in NAME.json beside the weights; None if there is none.

    Raises ValueError for an invalid card or a name that is not one of weights, and OSError if a file cannot be read. A JSON file
    without `normalize`, as former versions wrote it, counts as a card with the normalization `signed`, which all their models had.
    """
    if weights.suffix not in WEIGHTS_SUFFIXES:
        raise ValueError(f"weights file '{weights}' must end in .safetensors, .pt or .pth")
    weights.open("rb").close()  # an unreadable file raises the OSError of the operating system
    if weights.suffix == ".safetensors" and (text := _metadata(weights)) is not None:
        return parse_card(_parsed(text, weights), weights)
    beside = weights.with_suffix(".json")
    if not beside.exists():
        return None
    if beside.stat().st_size > _MAX_BYTES:
        raise ValueError(f"model card {beside} has more than {_MAX_BYTES} bytes")
    fields = _parsed(beside.read_bytes(), beside)
    if isinstance(fields, dict) and "normalize" not in fields and "teacher_digest" in fields:
        fields = {**fields, "normalize": "signed"}
    return parse_card(fields, beside)


def _metadata(weights: Path) -> str | None:
    import safetensors  # local: the module is loaded by programs without weights too

    try:
        with safetensors.safe_open(weights, "numpy") as file:
            return (file.metadata() or {}).get(METADATA_KEY)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{weights} is damaged: {error}") from None


def _parsed(text: str | bytes, source: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"model card {source} is not valid JSON") from None
