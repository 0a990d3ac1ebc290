"""Applies the rules of preprocessing: converts stored samples to the input of a model."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgekd.data.preprocessing import NAMED, Preprocessing, ResizeRule
from edgekd.wire.inputs import Inputs

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey (ITU-R BT.601), as in Pillow."""


def to_input(samples: Inputs, rules: Preprocessing) -> "torch.Tensor":
    """Convert samples [B, ...], uint8 or float32, to a model's input: float32 [B, ...]."""
    return normalized(resized(samples, rules), rules)


def resized(samples: Inputs, rules: Preprocessing) -> Inputs:
    """Apply the resize rule to uint8 [B, C, H, W]. Returns the samples unchanged if there is no rule or their size is right."""
    rule = rules.resize
    if rule is None or rule.keeps(samples.shape[2:]):
        return samples
    return np.stack([resized_image(to_image(sample), rule) for sample in samples])


def resized_image(image: "Image", rule: ResizeRule) -> npt.NDArray[np.uint8]:
    """Scale and crop an image, grey or RGB. Returns uint8 [C, height, width], the same as torchvision with Pillow images."""
    from torchvision.transforms import InterpolationMode, functional

    scaled = functional.resize(image, list(rule.scale), InterpolationMode(rule.method))
    pixels = np.asarray(functional.center_crop(scaled, [rule.crop, rule.crop]) if rule.crop else scaled)
    return pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def to_image(sample: npt.NDArray[np.uint8]) -> "Image":
    """Convert uint8 [C, H, W] with 1 or 3 channels to a Pillow image."""
    from PIL import Image

    return Image.fromarray(sample[0] if len(sample) == 1 else np.ascontiguousarray(sample.transpose(1, 2, 0)))


def normalized(samples: Inputs, rules: Preprocessing) -> "torch.Tensor":
    """Convert samples [B, ...] of the right size to a model's input: float32 [B, ...], with its channels and normalization."""
    import torch  # local, so that a program without a model does not spend a second on the import

    # torch warns about read-only memory, even if it only reads.
    return normalize(torch.from_numpy(samples if samples.flags.writeable else samples.copy()), rules)


def normalize(source: "torch.Tensor", rules: Preprocessing) -> "torch.Tensor":
    """Convert a tensor of samples as `normalized` does."""
    import torch

    values = source.to(torch.float32, copy=True)
    is_done = not rules.mean or (rules.mean, rules.std) == NAMED["unit"]
    if source.dtype == torch.uint8:
        if (rules.mean, rules.std) == NAMED["signed"]:
            values.div_(127.5).sub_(1.0)
            is_done = True
        else:
            values.div_(255)
    if rules.channels == 3 and values.shape[1] == 1:
        values = values.expand(-1, 3, *values.shape[2:])
    elif rules.channels == 1 and values.shape[1] == 3:
        values = values.mul(torch.tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    if is_done:
        return values.contiguous()
    shape = (1, -1) + (1,) * (values.ndim - 2)
    return values.sub(torch.tensor(rules.mean).view(shape)).div_(torch.tensor(rules.std).view(shape))
