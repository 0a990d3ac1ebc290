"""Models by name, and their weights in files.

A model takes float32 [B, C, H, W] in [-1, 1] and returns raw logits [B, num_classes]. Weights are saved as safetensors. A .pt file
is read too, but only plain tensors from it, because an untrusted pickle can run arbitrary code.
"""

import hashlib
import importlib
import math
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from edgekd.cli.settings import closest, parse_numbers
from edgekd.files import replace_atomically

_FORMS = "cnn[:width=16], torchvision:NAME, timm:NAME or package.module:callable"
_MAX_WIDTH = 1024
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# The coarsest grid of the built-in model. Halving it further would discard the position of features in the image.
_GRID = 4


def build_model(spec: str, *, num_classes: int, input_shape: Sequence[int], seed: int) -> nn.Module:
    """Build a model in training mode on the CPU. Its initial weights depend on `seed` only.

    spec is one of cnn[:width=16], torchvision:NAME, timm:NAME and package.module:callable, which is called with
    num_classes and input_shape, the (C, H, W) of one image. Keeps torch's random state unchanged.
    Raises ValueError for an unknown model, and for one that does not map such an image to num_classes logits.
    """
    shape = tuple(input_shape)
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reseed every GPU as well.
        torch.default_generator.manual_seed(seed)
        model = _builder(spec)(num_classes, shape)
        if not isinstance(model, nn.Module):
            raise ValueError(f"model '{spec}' returned a {type(model).__name__}, must be a torch.nn.Module")
        _check_output(spec, model, num_classes, shape)
    return model.train()


def check_model(spec: str) -> None:
    """Raise ValueError, as `build_model` does, for an unknown model name. Does not build the model."""
    _builder(spec)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write parameters and buffers as safetensors, atomically.

    Raises ValueError for a name without .safetensors, and OSError if the file cannot be written.
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"weights file '{path}' must end in .safetensors, the only format that is written")
    # Copies, because safetensors rejects tensors that share memory, as tied weights do.
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    data = safetensors.torch.save(state)
    replace_atomically(path, lambda fresh: fresh.write_bytes(data))


def load_weights(model: nn.Module, path: Path) -> None:
    """Read weights into `model`. An error leaves the model unchanged.

    Raises ValueError naming the first mismatch if the file does not fit the model, and OSError if it cannot be read.
    """
    state = _read_state(path)
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in state:
            raise ValueError(f"{path} does not fit the model: '{name}' is missing; was it saved from another --model?")
        if state[name].shape != tensor.shape:
            saved, expected_shape = list(state[name].shape), list(tensor.shape)
            raise ValueError(
                f"{path} does not fit the model: '{name}' is {saved}, must be {expected_shape}; was it saved from another --model?"
            )
        if not _is_convertible(state[name], tensor):
            raise ValueError(f"{path} does not fit the model: '{name}' is {_kind(state[name])}, must be {_kind(tensor)}")
    unexpected = [name for name in state if name not in expected]
    if unexpected:
        raise ValueError(f"{path} does not fit the model, which has no {unexpected[0][:80]!r}; was it saved from another --model?")
    model.load_state_dict(state)


def _is_convertible(saved: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether a saved tensor is dense, on the CPU and not quantized, and has the expected dtype or both are floats."""
    is_plain = saved.layout is torch.strided and saved.device.type == "cpu" and not saved.is_quantized
    return is_plain and (saved.dtype == expected.dtype or (saved.dtype in _FLOATS and expected.dtype in _FLOATS))


def _kind(tensor: torch.Tensor) -> str:
    """Describe a tensor's dtype, layout and device for an error message."""
    place = "" if tensor.device.type == "cpu" else f" on {tensor.device.type}"
    layout = "" if tensor.layout is torch.strided else f" ({tensor.layout})"
    return f"{tensor.dtype}{layout}{place}"


def weights_digest(spec: str, model: nn.Module) -> str:
    """Return the SHA-256 over the spec and each tensor's name, dtype, shape and bytes, sorted by name, in lower-case hex."""
    digest = hashlib.sha256(f"edgekd weights {spec}\n".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _builder(spec: str) -> Callable[[int, tuple[int, ...]], Any]:
    kind, colon, name = spec.partition(":")
    if kind == "cnn":
        width = parse_numbers("model cnn", name, {"width": 16})["width"]
        if width > _MAX_WIDTH:
            raise ValueError(f"model cnn: width={width} is too large, must be in 1 .. {_MAX_WIDTH}")
        return lambda num_classes, shape: _Cnn(num_classes, shape, width)
    if kind == "torchvision" and colon:
        _check_torchvision(name)
        return lambda num_classes, shape: _torchvision(name, num_classes, shape)
    if kind == "timm" and colon:
        _check_timm(name)
        return lambda num_classes, shape: _timm(name, num_classes, shape)
    if not kind or not name:
        raise ValueError(f"model '{spec}' is unknown, must be {_FORMS}{closest(kind, ['cnn', 'torchvision', 'timm'])}")
    factory = _import(spec, kind, name)
    return lambda num_classes, shape: _call(spec, factory, num_classes, shape)


def _check_output(spec: str, model: nn.Module, num_classes: int, shape: tuple[int, ...]) -> None:
    """Run one image of zeros, so that a model of another input or output shape fails now and not in the first step."""
    size = "x".join(map(str, shape))
    try:
        with torch.inference_mode():
            logits = model.eval()(torch.zeros(1, *shape))
    except Exception as error:  # third-party code may raise anything; all of it means that the model does not fit
        raise ValueError(f"model '{spec}' cannot take images of {size}: {error}") from error
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, num_classes):
        output = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"model '{spec}' returns {output} for an image of {size}, must be [1, {num_classes}] logits")


class _Cnn(nn.Sequential):
    """At least three convolutions, with stride 2 until the grid is 4 x 4. The second and the third double the channels.

    Strides instead of pooling, because at the same width a step takes a third of the time, and time is scarce at an edge.
    """

    def __init__(self, num_classes: int, input_shape: tuple[int, ...], width: int) -> None:
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


class _GreyToColour(nn.Module):
    """Repeats the one channel of grey images for a model of three channels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits of float32 [B, 1, H, W], repeated to [B, 3, H, W]."""
        logits: torch.Tensor = self.model(images.expand(-1, 3, -1, -1))
        return logits


def _check_torchvision(name: str) -> None:
    from torchvision import models

    names = models.list_models(module=models)
    if name not in names:
        raise ValueError(
            f"model 'torchvision:{name}' is unknown{closest(name, names)}; torchvision.models has {len(names)}, among"
            " them resnet18 and mobilenet_v3_small"
        )


def _torchvision(name: str, num_classes: int, shape: tuple[int, ...]) -> nn.Module:
    from torchvision import models

    # By default these two return a tuple in training mode, and warn about their weight initialization.
    extra = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **extra)
    return _GreyToColour(model) if shape[0] == 1 else model


def _check_timm(name: str) -> None:
    try:
        import timm
    except ImportError:
        raise ValueError(f"model 'timm:{name}' needs timm, which is not installed: pip install edgekd[timm]") from None
    names = timm.list_models()
    if name not in names:
        raise ValueError(f"model 'timm:{name}' is unknown{closest(name, names)}; timm.list_models() names all")


def _timm(name: str, num_classes: int, shape: tuple[int, ...]) -> nn.Module:
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=shape[0])
    return model


def _import(spec: str, module: str, name: str) -> Callable[..., Any]:
    try:
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"model '{spec}' cannot be imported: {error}; must be {_FORMS}, its package installed or on PYTHONPATH"
        ) from error
    if not callable(factory):
        raise ValueError(f"model '{spec}' names a {type(factory).__name__}, must be a callable")
    return factory  # type: ignore[no-any-return]


def _call(spec: str, factory: Callable[..., Any], num_classes: int, shape: tuple[int, ...]) -> Any:
    try:
        return factory(num_classes=num_classes, input_shape=shape)
    except Exception as error:  # the user's code may raise anything, and the user must fix it
        problem = f"{type(error).__name__}: {error}"
        raise ValueError(f"model '{spec}' failed for {num_classes=} and input_shape={shape}: {problem}") from error


def _check_inflation(path: Path) -> None:
    """Raise ValueError for a compressed archive. torch writes none but reads them, and a few kB could expand to gigabytes."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("compressed")


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise ValueError(f"weights file '{path}' must end in .safetensors, .pt or .pth")
    path.open("rb").close()  # an unreadable file raises the OSError of the operating system
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        _check_inflation(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise any error of the layers below
        # torch's own message would explain how to load the untrusted pickle anyway.
        raise ValueError(f"{path} is damaged or holds more than tensors by name; save a model's state_dict()") from error
    # Training scripts often save the weights together with the optimizer's state.
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    is_weights = isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items()
    )
    if not is_weights:
        raise ValueError(f"{path} does not hold tensors by name; save a model's state_dict()")
    weights: dict[str, torch.Tensor] = state
    return weights
