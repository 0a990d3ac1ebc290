"""Weights in files: safetensors with a model card, or .pt files. The digest identifies weights, architecture and preprocessing.

A .pt file is read too, but only plain tensors from it, because an untrusted pickle can run arbitrary code.
"""

import hashlib
import json
import logging
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from edgekd.data.preprocessing import Preprocessing
from edgekd.files import replace_atomically
from edgekd.models.card import METADATA_KEY, WEIGHTS_SUFFIXES, ModelCard

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_FORMER_PREFIX = "model."
"""Prefix of all names in files of a former version, for torchvision models of grey images."""

logger = logging.getLogger(__name__)


def save_weights(model: nn.Module, path: Path, card: ModelCard | None = None) -> None:
    """Write parameters and buffers as safetensors, with the card as metadata, atomically.

    Raises ValueError for a name without .safetensors, and OSError if the file cannot be written.
    """
    if path.suffix != ".safetensors":
        raise ValueError(f"weights file '{path}' must end in .safetensors, the only format that is written")
    # Copies, because safetensors rejects tensors that share memory, as tied weights do.
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    data = safetensors.torch.save(state, None if card is None else {METADATA_KEY: json.dumps(card.as_json())})
    replace_atomically(path, lambda fresh: fresh.write_bytes(data))


def load_weights(model: nn.Module, path: Path, *, kept: Collection[str] = ()) -> None:
    """Read weights into `model`, except the tensors of the names in `kept`. An error leaves the model unchanged.

    Raises ValueError naming the first mismatch if the file does not fit the model, and OSError if it cannot be read.
    """
    state = _read_state(path)
    expected = model.state_dict()
    if state and all(name.startswith(_FORMER_PREFIX) for name in state) and not expected.keys() & state.keys():
        logger.info("%s is of a former version: its names are read without the prefix %r", path, _FORMER_PREFIX)
        state = {name.removeprefix(_FORMER_PREFIX): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if name not in kept}
    state |= {name: expected[name] for name in kept}
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


def weights_digest(
    spec: str, model: nn.Module, preprocessing: Preprocessing | None = None, kept_classes: Sequence[int] = ()
) -> str:
    """Return the SHA-256 that identifies a teacher, in lower-case hex.

    It covers the spec, each tensor's name, dtype, shape and bytes, sorted by name, the preprocessing if it is not that of before
    model cards, and the kept classes if not all are kept.
    """
    digest = hashlib.sha256(f"edgekd weights {spec}\n".encode())
    if preprocessing is not None and not preprocessing.is_former:
        digest.update(f"preprocessing {preprocessing}\n".encode())
    if kept_classes:
        digest.update(f"classes {' '.join(map(str, kept_classes))}\n".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_inflation(path: Path) -> None:
    """Raise ValueError for a compressed archive. torch writes none but reads them, and a few kB could expand to gigabytes."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("compressed")


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix not in WEIGHTS_SUFFIXES:
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
