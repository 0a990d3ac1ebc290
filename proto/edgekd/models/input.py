"""Decides how a model's input is made of the samples of a data set: from the model card, from flags, or from the defaults."""

from collections.abc import Sequence
from dataclasses import replace

import numpy.typing as npt

from edgekd.data.preprocessing import Preprocessing, default_preprocessing, parse_normalization, parse_resize
from edgekd.models.card import ModelCard


def choose_preprocessing(
    model: str,
    sample_shape: Sequence[int],
    dtype: npt.DTypeLike,
    *,
    card: ModelCard | None = None,
    normalize: str | None = None,
    resize: str | None = None,
) -> Preprocessing:
    """Return the preprocessing of `model` for samples of this shape and type.

    The card decides if there is one; --normalize and --resize may repeat it. Without a card the flags decide, and then the default
    of models that are trained here. Raises ValueError, with the remedy, if flags contradict the card, or if samples do not fit.
    """
    rules = default_preprocessing(dtype) if card is None else card.preprocessing
    if normalize is not None:
        mean, std = parse_normalization(normalize)
        if card is not None and (mean, std) != (rules.mean, rules.std):
            raise ValueError(f"--normalize is {normalize}, but the model card has {rules.normalization}: omit it")
        rules = replace(rules, mean=mean, std=std)
    if resize is not None:
        rule = parse_resize(resize)
        if card is not None and rules.resize is not None and rule != rules.resize:
            raise ValueError(f"--resize is {resize}, but the model card has {rules.resize}: omit it")
        rules = replace(rules, resize=rule)
    rules = replace(rules, channels=_channels(model, sample_shape, rules, card))
    rules.check(sample_shape, dtype)
    shape = rules.shape_of(sample_shape)
    if card is not None and card.input_shape and shape != card.input_shape:
        raise ValueError(
            f"the model card has inputs of shape {list(card.input_shape)}, but the data set gives {list(shape)}: "
            f"name a data set of this size{_size_hint(card.input_shape)}"
        )
    return rules


def _size_hint(shape: tuple[int, ...]) -> str:
    return f", for example with size={shape[-1]}, or --resize {shape[-1]}" if len(shape) == 3 else ""


def _channels(model: str, sample_shape: Sequence[int], rules: Preprocessing, card: ModelCard | None) -> int:
    """Return the channels that the model needs, 0 if they are those of the samples."""
    if len(sample_shape) != 3 or sample_shape[0] not in (1, 3):
        return 0
    if card is not None and len(card.input_shape) == 3:
        needed = card.input_shape[0]
    elif rules.channels:
        needed = rules.channels
    elif model.startswith("torchvision:"):
        needed = 3
    else:
        needed = max(sample_shape[0], len(rules.mean))
    if needed not in (1, 3):
        raise ValueError(f"normalization has {needed} channels, but images have 1 or 3")
    return needed if needed != sample_shape[0] else 0
