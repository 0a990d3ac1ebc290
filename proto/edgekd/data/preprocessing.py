"""The rules of preprocessing: resize, channels, normalization. They belong to the weights and are part of their identity.

A model that gets other pixels than it was trained with returns wrong logits without an error. Preprocessing is therefore saved
in the model card, included in the teacher's digest, and required for weights without a card. tensors.py applies the rules.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_SIZE = 1024
"""Pixels on one side of a resized image."""
_RULE = re.compile(r"(?:(?P<height>\d+)x(?P<width>\d+)|(?P<shorter>\d+)(?:/(?P<crop>\d+))?)(?::(?P<method>bilinear|bicubic))?")
NAMED = {"signed": ((0.5,), (0.5,)), "unit": ((0.0,), (1.0,)), "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
"""Mean and std by name."""
_RULES = "SIZE, SHORTER/CROP or HEIGHTxWIDTH, optionally followed by :bicubic"
_NORMALIZE = "imagenet, signed, unit, none or MEAN/STD, for example 0.5,0.4,0.4/0.2,0.2,0.2"


@dataclass(frozen=True, slots=True)
class ResizeRule:
    """Scales an image and crops its centre, as torchvision's `Resize` and `CenterCrop` do with Pillow images.

    `scale` is the shorter side in pixels, or height and width. `crop` is the side of the centre square, 0 for no crop.
    """

    scale: tuple[int, ...]
    crop: int
    method: str = "bilinear"

    @classmethod
    def parse(cls, text: str) -> "ResizeRule":
        """Parse "224" (shorter side, centre square), "256/224" or "224x320", each with ":bicubic" or not. Raises ValueError."""
        match = _RULE.fullmatch(text)
        if match is None:
            raise ValueError(f"--resize is {text!r}, must be {_RULES}")
        is_both = match["height"] is not None
        scale = tuple(int(match[name]) for name in (("height", "width") if is_both else ("shorter",)))
        crop = 0 if is_both else int(match["crop"] or match["shorter"])
        if not all(1 <= side <= MAX_SIZE for side in scale) or crop > min(scale) or (crop < 1 and not is_both):
            raise ValueError(f"--resize is {text!r}, but its sides must be in 1 .. {MAX_SIZE}, and the crop inside the image")
        return cls(scale, crop, match["method"] or "bilinear")

    def __str__(self) -> str:
        if not self.crop:
            text = "x".join(map(str, self.scale))
        else:
            text = str(self.crop) if self.scale == (self.crop,) else f"{self.scale[0]}/{self.crop}"
        return text if self.method == "bilinear" else f"{text}:{self.method}"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the result."""
        return (self.crop, self.crop) if self.crop else (self.scale[0], self.scale[1])

    def keeps(self, size: tuple[int, ...]) -> bool:
        """Return whether the rule leaves an image of this height and width unchanged."""
        return size == self.size and (not self.crop or self.scale == (self.crop,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """Rules that convert stored samples to a model's input.

    uint8 samples are divided by 255 first. `mean` and `std` have one value for all channels, or one for each. Empty `mean` leaves
    float32 samples unchanged. `channels` is the number of channels of the model, 0 for that of the data: grey images are repeated
    to three channels, and images of three channels are converted to grey.
    """

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    resize: ResizeRule | None = None
    channels: int = 0

    @property
    def normalization(self) -> str:
        """The rule of normalization as text: a name, or MEAN/STD."""
        for name, values in NAMED.items():
            if values == (self.mean, self.std):
                return name
        return "/".join(",".join(map(repr, values)) for values in (self.mean, self.std)) if self.mean else "none"

    def __str__(self) -> str:
        """Describe the rules for people, and for the teacher's digest."""
        resize = f", resize {self.resize}" if self.resize else ""
        channels = f", {self.channels} channels" if self.channels else ""
        return f"normalization {self.normalization}{resize}{channels}"

    @property
    def is_former(self) -> bool:
        """Whether these are the rules that all models had before model cards. They do not change a teacher's digest."""
        return (self.mean, self.std, self.resize) == (*NAMED["signed"], None) and self.channels != 1

    def shape_of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of a model input for a sample of `shape`. Raises ValueError if the sample does not fit."""
        shape = tuple(shape)
        if self.resize is None and not self.channels:
            return shape
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise ValueError(f"samples have shape {list(shape)}, but only images of 1 or 3 channels can be resized or recoloured")
        size = self.resize.size if self.resize else shape[1:]
        return (self.channels or shape[0], *size)

    def check(self, shape: Sequence[int], dtype: npt.DTypeLike) -> None:
        """Raise ValueError, with the rule, if samples of this shape and type cannot be preprocessed so."""
        channels = self.shape_of(shape)[0]
        if np.dtype(dtype) == np.uint8:
            if self.mean and (max(self.mean) > 1 or max(self.std) > 1):
                raise ValueError(f"normalization is {self.normalization}, but uint8 samples are divided by 255: divide both by 255")
            if not self.mean:
                raise ValueError("normalization is none, but the samples are uint8: name imagenet, signed, unit or MEAN/STD")
        elif self.resize is not None:
            raise ValueError(f"resize is {self.resize}, but the samples are {np.dtype(dtype)}: only uint8 images can be resized")
        if len(self.mean) > 1 and len(self.mean) != channels:
            raise ValueError(f"normalization has {len(self.mean)} channels, but the model's input has {channels}")

    def as_json(self) -> dict[str, Any]:
        """Return the fields of a model card."""
        return {"normalize": self.normalization, "resize": str(self.resize) if self.resize else None, "channels": self.channels}


def parse_normalization(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of --normalize, both empty for none. Raises ValueError."""
    if text in NAMED:
        return NAMED[text]
    if text == "none":
        return (), ()
    try:
        mean, std = (tuple(float(value) for value in part.split(",")) for part in text.split("/"))
    except ValueError:
        raise ValueError(f"--normalize is {text!r}, must be {_NORMALIZE}") from None
    if len(mean) != len(std) or not np.isfinite([*mean, *std]).all() or min(std) <= 0:
        raise ValueError(f"--normalize is {text!r}, must have as many finite values for MEAN as for STD, and STD above 0")
    return mean, std


def parse_resize(text: str | None) -> ResizeRule | None:
    """Return the rule of --resize; None for none. Raises ValueError."""
    return None if text in (None, "none") else ResizeRule.parse(text)


def parse_preprocessing(normalize: str, resize: str | None = None, channels: int = 0) -> Preprocessing:
    """Return the preprocessing of these rules. Raises ValueError."""
    mean, std = parse_normalization(normalize)
    rule = parse_resize(resize)
    if channels not in (0, 1, 3):
        raise ValueError(f"channels is {channels}, must be 1 or 3")
    return Preprocessing(mean=mean, std=std, resize=rule, channels=channels)


def default_preprocessing(dtype: npt.DTypeLike) -> Preprocessing:
    """Return the preprocessing of a model that is trained here: [-1, 1] for uint8, unchanged for float32."""
    return Preprocessing() if np.dtype(dtype) == np.uint8 else Preprocessing(mean=(), std=())
