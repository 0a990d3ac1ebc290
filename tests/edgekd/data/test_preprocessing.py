"""Preprocessing: the same inputs as torchvision's transforms give, from rules that are text in a card, a flag and a digest."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from edgekd.data.preprocessing import Preprocessing, ResizeRule, parse_preprocessing
from edgekd.data.tensors import resized_image, to_input
from edgekd.models.card import ModelCard, parse_card
from edgekd.models.input import choose_preprocessing
from edgekd.models.weights import weights_digest

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (4, 3, 40, 56), np.uint8)
IMAGENET = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def by_torchvision(image: np.ndarray, *steps: object) -> torch.Tensor:
    tensor: torch.Tensor = transforms.Compose([*steps, transforms.ToTensor(), IMAGENET])(Image.fromarray(image.transpose(1, 2, 0)))
    return tensor


def test_imagenet_normalization_is_that_of_torchvision() -> None:
    inputs = to_input(IMAGES, parse_preprocessing("imagenet"))
    assert torch.equal(inputs, torch.stack([by_torchvision(image) for image in IMAGES]))


@pytest.mark.parametrize(
    ("rule", "steps"),
    [
        ("24", [transforms.Resize(24), transforms.CenterCrop(24)]),
        ("32/24", [transforms.Resize(32), transforms.CenterCrop(24)]),
        ("32/24:bicubic", [transforms.Resize(32, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(24)]),
        ("20x36", [transforms.Resize((20, 36))]),
    ],
)
def test_resize_rules_are_those_of_torchvision_with_pillow(rule: str, steps: list[object]) -> None:
    rules = parse_preprocessing("imagenet", rule)
    assert torch.equal(to_input(IMAGES, rules), torch.stack([by_torchvision(image, *steps) for image in IMAGES]))
    assert rules.shape_of(IMAGES.shape[1:]) == to_input(IMAGES, rules).shape[1:]


def test_signed_is_the_former_conversion_and_unit_is_0_to_1() -> None:
    former = torch.from_numpy(IMAGES).to(torch.float32).div_(127.5).sub_(1.0)
    assert torch.equal(to_input(IMAGES, Preprocessing()), former)
    assert torch.equal(to_input(IMAGES, parse_preprocessing("unit")), torch.from_numpy(IMAGES) / 255)


def test_grey_images_are_repeated_and_colours_become_grey() -> None:
    grey = IMAGES[:, :1]
    repeated = to_input(grey, parse_preprocessing("imagenet", channels=3))
    assert torch.equal(repeated, to_input(np.repeat(grey, 3, axis=1), parse_preprocessing("imagenet")))
    luma = to_input(IMAGES, parse_preprocessing("unit", channels=1)) * 255
    by_pillow = np.stack([np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L")) for image in IMAGES])
    assert np.abs(luma[:, 0].numpy() - by_pillow).max() <= 1


def test_float_samples_are_unchanged_or_normalized_by_channel() -> None:
    windows = RNG.standard_normal((5, 2, 30)).astype(np.float32)
    unchanged = to_input(windows, parse_preprocessing("none"))
    assert torch.equal(unchanged, torch.from_numpy(windows))
    assert unchanged.data_ptr() != windows.ctypes.data, "a model that works in place must not change the data set"
    expected = (windows - np.array([1, 2], np.float32)[:, None]) / np.array([3, 4], np.float32)[:, None]
    assert np.allclose(to_input(windows, parse_preprocessing("1,2/3,4")).numpy(), expected)


@pytest.mark.parametrize("text", ["224", "256/224", "256/224:bicubic", "20x36", "20x36:bicubic"])
def test_a_resize_rule_survives_its_text(text: str) -> None:
    assert str(ResizeRule.parse(text)) == text


@pytest.mark.parametrize("text", ["", "0", "x", "10/20", "20x", "4000", "224:nearest", "256/0", "0x5", "-1", "224/224/3"])
def test_an_impossible_resize_rule_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="--resize is"):
        ResizeRule.parse(text)


@pytest.mark.parametrize("text", ["", "x", "0.5", "0.5/0", "0.5/-1", "1,2/3", "nan/1", "0.5/inf", "Imagenet"])
def test_an_impossible_normalization_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="--normalize is"):
        parse_preprocessing(text)


@pytest.mark.parametrize("normalize", ["imagenet", "signed", "unit", "none", "0.1307/0.3081", "0.5,0.25,0.125/1.0,2.0,3.0"])
def test_a_card_keeps_the_rules(normalize: str) -> None:
    rules = parse_preprocessing(normalize, "32/24", 3)
    card = ModelCard(preprocessing=rules, model="cnn", input_shape=(3, 24, 24), class_names=("a", "b"), num_classes=2)
    assert parse_card(card.as_json(), "x") == card


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([], "must be a JSON object"),
        ({}, "lacks normalize"),
        ({"normalize": 3}, "normalize is '3', must be str"),
        ({"normalize": "foo"}, "--normalize is 'foo'"),
        ({"normalize": "unit", "input_shape": [3, "a"]}, "input_shape must have positive integers"),
        ({"normalize": "unit", "class_names": ["a"], "num_classes": 2}, "num_classes is 2, but class_names has 1"),
        ({"normalize": "unit", "channels": 2}, "channels is 2"),
    ],
)
def test_an_invalid_card_is_rejected_with_its_name(fields: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"model card somewhere.*{message}"):
        parse_card(fields, "somewhere")


CARD = ModelCard(preprocessing=parse_preprocessing("imagenet", "32/24"), input_shape=(3, 24, 24))


def test_the_card_decides_and_flags_may_only_repeat_it() -> None:
    rules = choose_preprocessing("cnn", (3, 40, 56), np.uint8, card=CARD, normalize="imagenet", resize="32/24")
    assert rules == CARD.preprocessing
    with pytest.raises(ValueError, match="--normalize is signed, but the model card has imagenet: omit it"):
        choose_preprocessing("cnn", (3, 40, 56), np.uint8, card=CARD, normalize="signed")
    with pytest.raises(ValueError, match="--resize is 28, but the model card has 32/24: omit it"):
        choose_preprocessing("cnn", (3, 40, 56), np.uint8, card=CARD, resize="28")


def test_a_card_of_another_size_is_rejected_with_both_sizes() -> None:
    card = replace(CARD, preprocessing=parse_preprocessing("imagenet"))
    with pytest.raises(ValueError, match=r"inputs of shape \[3, 24, 24\], but the data set gives \[3, 40, 56\].*--resize 24"):
        choose_preprocessing("cnn", (3, 40, 56), np.uint8, card=card)


def test_a_network_of_three_channels_gets_grey_images_repeated() -> None:
    assert choose_preprocessing("torchvision:resnet18", (1, 28, 28), np.uint8).shape_of((1, 28, 28)) == (3, 28, 28)
    assert choose_preprocessing("cnn", (1, 28, 28), np.uint8).shape_of((1, 28, 28)) == (1, 28, 28)
    assert choose_preprocessing("cnn", (1, 28, 28), np.uint8, normalize="imagenet").shape_of((1, 28, 28)) == (3, 28, 28)
    one = ModelCard(preprocessing=Preprocessing(), input_shape=(1, 28, 28))
    assert choose_preprocessing("cnn", (3, 28, 28), np.uint8, card=one).channels == 1


@pytest.mark.parametrize(
    ("shape", "dtype", "rules", "message"),
    [
        ((6, 30), np.float32, {"resize": "24"}, "only images of 1 or 3 channels"),
        ((3, 8, 8), np.float32, {"resize": "24"}, "only uint8 images can be resized"),
        ((3, 8, 8), np.uint8, {"normalize": "none"}, "normalization is none, but the samples are uint8"),
        ((3, 8, 8), np.uint8, {"normalize": "123.7/58.4"}, "uint8 samples are divided by 255: divide both by 255"),
        ((6, 30), np.float32, {"normalize": "imagenet"}, "has 3 channels, but the model's input has 6"),
    ],
)
def test_rules_that_do_not_fit_the_samples_are_rejected(
    shape: tuple[int, ...], dtype: type, rules: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        choose_preprocessing("some:model", shape, dtype, **rules)


def test_a_resized_image_of_the_right_size_is_the_same() -> None:
    image = Image.fromarray(IMAGES[0].transpose(1, 2, 0))
    assert np.array_equal(resized_image(image, ResizeRule.parse("40x56")), IMAGES[0])


def test_float_samples_are_in_the_digest_with_their_rules() -> None:
    model = torch.nn.Linear(1, 1)
    rules = [parse_preprocessing(text) for text in ("signed", "none", "unit", "0.5/0.5", "0.5,0.5/0.5,0.5")]
    digests = [weights_digest("x", model, rule) for rule in rules]
    assert digests[0] == digests[3] == weights_digest("x", model), "the former rules keep the former digest"
    assert len({*digests}) == 4
    assert weights_digest("x", model, rules[0], [1, 0]) != weights_digest("x", model, rules[0], [0, 1])
