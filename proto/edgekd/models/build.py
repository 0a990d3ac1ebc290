"""Models by name, and the model cards of weights that a name includes.

A model takes float32 [B, ...], preprocessed samples (preprocessing.py), and returns raw logits [B, num_classes].
"""

import math
from collections.abc import Callable, Sequence
from typing import Any
from urllib.error import URLError

import torch
from torch import nn

from edgekd.cli.settings import closest, parse_numbers
from edgekd.data.preprocessing import Preprocessing, ResizeRule
from edgekd.data.user_modules import import_attribute
from edgekd.errors import WorldError
from edgekd.models.card import ModelCard, parse_card

_FORMS = "cnn[:width=16], torchvision:NAME[@WEIGHTS], timm:NAME[@pretrained] or package.module:callable"
_MAX_WIDTH = 1024
# The coarsest grid of the built-in model. Halving it further would discard the position of features in the image.
_GRID = 4


def build_model(spec: str, *, num_classes: int, input_shape: Sequence[int], seed: int) -> nn.Module:
    """Build a model in training mode on the CPU. Its initial weights depend on `seed` only.

    spec is one of cnn[:width=16], torchvision:NAME[@WEIGHTS], timm:NAME[@pretrained] and package.module:callable, which is called
    with num_classes and input_shape, the shape of one preprocessed sample. Keeps torch's random state unchanged.
    Raises ValueError for an unknown model, and for one that does not map such a sample to num_classes logits, and WorldError if
    weights cannot be downloaded.
    """
    shape = tuple(input_shape)
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed every GPU as well.
        torch.default_generator.manual_seed(seed)
        model = _builder(spec)(num_classes, shape)
        if not isinstance(model, nn.Module):
            raise ValueError(f"model '{spec}' returned a {type(model).__name__}, must be a torch.nn.Module")
        check_output(spec, model, num_classes, shape)
    return model.train()


def card_of(spec: str) -> ModelCard | None:
    """Return the card of the weights that a model's name includes: those of torchvision, of timm, or of a callable with a `card`.

    `card` is an attribute of the callable, with the fields of a model card. Returns None for a name without weights. Raises
    ValueError as `check_model`, and for an invalid card.
    """
    _builder(spec)
    kind, _, name = spec.partition(":")
    base, at, weights = name.partition("@")
    if kind == "torchvision":
        return _torchvision_card(base, weights) if at else None
    if kind == "timm":
        return _timm_card(base) if at else None
    fields = None if kind == "cnn" else getattr(_import(spec, kind, name), "card", None)
    return None if fields is None else parse_card(fields, f"of {spec}")


def is_user_model(spec: str) -> bool:
    """Return whether the name is package.module:callable, which may return trained weights."""
    return spec.partition(":")[0] not in ("cnn", "torchvision", "timm")


def check_model(spec: str) -> None:
    """Raise ValueError, as `build_model` does, for an unknown model name. Does not build the model."""
    _builder(spec)


def _builder(spec: str) -> Callable[[int, tuple[int, ...]], Any]:
    kind, colon, name = spec.partition(":")
    if kind == "cnn":
        width = parse_numbers("model cnn", name, {"width": 16})["width"]
        if width > _MAX_WIDTH:
            raise ValueError(f"model cnn: width={width} is too large, must be in 1 .. {_MAX_WIDTH}")
        return lambda num_classes, shape: _Cnn(num_classes, shape, width)
    if kind == "torchvision" and colon:
        base, _, weights = name.partition("@")
        _check_torchvision(base, weights)
        return lambda num_classes, shape: _torchvision(base, weights, num_classes)
    if kind == "timm" and colon:
        base, _, weights = name.partition("@")
        _check_timm(base, weights)
        return lambda num_classes, shape: _timm(base, weights, num_classes, shape)
    if not kind or not name:
        raise ValueError(f"model '{spec}' is unknown, must be {_FORMS}{closest(kind, ['cnn', 'torchvision', 'timm'])}")
    factory = _import(spec, kind, name)
    return lambda num_classes, shape: _call(spec, factory, num_classes, shape)


def check_output(spec: str, model: nn.Module, num_classes: int, shape: tuple[int, ...]) -> None:
    """Run one sample of zeros, so that a model of another input or output shape fails now and not in the first step.

    The model is left in evaluation mode. Raises ValueError.
    """
    size = "x".join(map(str, shape))
    try:
        with torch.inference_mode():
            logits = model.eval()(torch.zeros(1, *shape))
    except Exception as error:  # third-party code may raise anything; all of it means that the model does not fit
        raise ValueError(f"model '{spec}' cannot take samples of {size}: {error}") from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, num_classes):
        output = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"model '{spec}' returns {output} for a sample of {size}, must be [1, {num_classes}] logits")


class _Cnn(nn.Sequential):
    """At least three convolutions, with stride 2 until the grid is 4 x 4. The second and the third double the channels.

    Strides instead of pooling, because at the same width a step takes a third of the time, and time is scarce at an edge.
    """

    def __init__(self, num_classes: int, input_shape: tuple[int, ...], width: int) -> None:
        if len(input_shape) != 3:
            raise ValueError(
                f"model 'cnn' is for images, but samples have shape {list(input_shape)}: name your own package.module:callable"
            )
        channels, height, breadth = input_shape
        side = max(height, breadth)
        num_halvings = math.ceil(math.log2(max(side / _GRID, 1)))
        layers: list[nn.Module] = []
        for index in range(max(3, num_halvings)):
            out = width * min(2**index, 4)
            stride = 2 if index < num_halvings else 1
            layers += [nn.Conv2d(channels, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
            channels = out
        # 2 x 2 averages instead of one: 1 to 3 percentage points of accuracy on Fashion-MNIST at almost no cost.
        layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, num_classes)]
        super().__init__(*layers)


def _check_torchvision(name: str, weights: str) -> None:
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise ValueError(
            f"model 'torchvision:{name}' is unknown{closest(name, names)}; torchvision.models has {len(names)}, among"
            " them resnet18 and mobilenet_v3_small"
        )
    if weights:
        known = [entry.name for entry in models.get_model_weights(name)]
        if weights not in known:
            raise ValueError(f"weights '{weights}' of model 'torchvision:{name}' are unknown, must be {' or '.join(known)}")


def _torchvision_card(name: str, weights: str) -> ModelCard:
    from torchvision import models

    _check_torchvision(name, weights)
    entry = models.get_model_weights(name)[weights]
    rules = entry.transforms()
    crop = rules.crop_size[0]
    scale = rules.resize_size[0]
    names = tuple(entry.meta["categories"])
    return ModelCard(
        model=f"torchvision:{name}@{weights}",
        preprocessing=Preprocessing(
            mean=tuple(rules.mean),
            std=tuple(rules.std),
            resize=ResizeRule((scale,), crop, rules.interpolation.value),
            channels=3,
        ),
        input_shape=(3, crop, crop),
        class_names=names,
        num_classes=len(names),
    )


def _torchvision(name: str, weights: str, num_classes: int) -> nn.Module:
    from torchvision import models

    if weights:
        entry = models.get_model_weights(name)[weights]
        return _pretrained(f"torchvision:{name}@{weights}", lambda: models.get_model(name, weights=entry))
    # By default these two return a tuple in training mode, and warn about their weight initialization.
    extra = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **extra)
    return model


def _pretrained(spec: str, load: Callable[[], nn.Module]) -> nn.Module:
    """Return a model with its own weights, from the local cache or the network."""
    try:
        model = load()
    except (URLError, OSError, RuntimeError) as error:
        raise WorldError(
            f"the weights of '{spec}' cannot be loaded: {error}; check the network, or copy {torch.hub.get_dir()}/checkpoints or "
            "~/.cache/huggingface from a machine that has them"
        ) from error
    return model


def _check_timm(name: str, weights: str) -> None:
    try:
        import timm
    except ImportError:
        raise ValueError(f"model 'timm:{name}' needs timm, which is not installed: pip install edgekd[timm]") from None
    names = timm.list_models()
    base = name.partition(".")[0]
    if base not in names:
        raise ValueError(f"model 'timm:{name}' is unknown{closest(base, names)}; timm.list_models() names all")
    if weights not in ("", "pretrained"):
        raise ValueError(
            f"model 'timm:{name}@{weights}' must end in @pretrained or have no weights; a tag follows the name: NAME.TAG"
        )


def _timm_card(name: str) -> ModelCard:
    _check_timm(name, "pretrained")
    import timm

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise ValueError(f"model 'timm:{name}' has no pretrained weights; timm.list_pretrained() names those that have")
    data = timm.data.resolve_data_config(pretrained_cfg=config.to_dict())
    channels, height, width = data["input_size"]
    if data["interpolation"] not in ("bilinear", "bicubic") or data["crop_mode"] not in ("center", "squash"):
        rules = f"interpolation {data['interpolation']}, crop mode {data['crop_mode']}"
        raise ValueError(
            f"model 'timm:{name}@pretrained' needs {rules}, which no resize rule expresses: use a callable of your own"
        )
    is_squashed = data["crop_mode"] == "squash" or height != width
    scale = (height, width) if is_squashed else (math.floor(height / data["crop_pct"]),)
    return ModelCard(
        model=f"timm:{name}@pretrained",
        preprocessing=Preprocessing(
            mean=tuple(data["mean"]),
            std=tuple(data["std"]),
            resize=ResizeRule(scale, 0 if is_squashed else height, data["interpolation"]),
            channels=channels,
        ),
        input_shape=(channels, height, width),
        class_names=_timm_class_names(config),
        num_classes=config.num_classes,
    )


def _timm_class_names(config: Any) -> tuple[str, ...]:
    """Return the class names of timm's weights. timm has none for ImageNet-1k, whose order is that of torchvision."""
    if config.label_names:
        return tuple(config.label_names)
    if config.num_classes != 1000 or not (config.tag or "").endswith("in1k"):
        return ()
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


def _timm(name: str, weights: str, num_classes: int, shape: tuple[int, ...]) -> nn.Module:
    import timm

    if weights:
        return _pretrained(f"timm:{name}@{weights}", lambda: timm.create_model(name, pretrained=True))
    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=shape[0])
    return model


def _import(spec: str, module: str, name: str) -> Callable[..., Any]:
    return import_attribute(module, name, what=f"model '{spec}'", forms=_FORMS)  # type: ignore[no-any-return]


def _call(spec: str, factory: Callable[..., Any], num_classes: int, shape: tuple[int, ...]) -> Any:
    try:
        return factory(num_classes=num_classes, input_shape=shape)
    except Exception as error:  # the user's code may raise anything, and the user must fix it
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(f"model '{spec}' failed for {num_classes=} and input_shape={shape}: {problem}") from error
