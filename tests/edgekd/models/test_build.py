"""Models by name, initialized from a seed only; weights that are validated before they are loaded."""

import hashlib
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from edgekd.data.datasets import load_dataset
from edgekd.data.preprocessing import Preprocessing
from edgekd.data.tensors import to_input
from edgekd.models.build import build_model
from edgekd.models.input import choose_preprocessing
from edgekd.models.weights import load_weights, save_weights, weights_digest

SHAPE = (1, 8, 8)


def cnn(seed: int = 0, spec: str = "cnn") -> nn.Module:
    return build_model(spec, num_classes=10, input_shape=SHAPE, seed=seed)


def tiny(*, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    """A user-defined model."""
    channels, height, width = input_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, num_classes))


def too_few_logits(*, num_classes: int, input_shape: tuple[int, int, int]) -> nn.Module:
    return tiny(num_classes=num_classes - 1, input_shape=input_shape)


def no_module(*, num_classes: int, input_shape: tuple[int, int, int]) -> int:
    return 3


class PairOfLogits(nn.Module):
    def __init__(self, *, num_classes: int, input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.model = tiny(num_classes=num_classes, input_shape=input_shape)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.model(images), self.model(images)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread, because on a busy machine two threads of such small models mostly wait for each other."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def user_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install this file as the module `user.models`."""
    module = ModuleType("user.models")
    for factory in (tiny, too_few_logits, no_module, PairOfLogits):
        setattr(module, factory.__name__, factory)
    module.answer = 42  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "user", ModuleType("user"))
    monkeypatch.setitem(sys.modules, "user.models", module)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 20, 51), (3, 224, 224)])
def test_the_built_in_model_takes_images_of_any_size_and_learns_from_them(shape: tuple[int, int, int]) -> None:
    model = build_model("cnn:width=4", num_classes=7, input_shape=shape, seed=0)
    assert model.training
    logits = model(torch.rand(2, *shape))
    assert logits.shape == (2, 7)
    nn.functional.cross_entropy(logits, torch.tensor([0, 6])).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_built_in_model_learns_digits_in_a_hundred_steps() -> None:
    train, test = load_dataset("digits"), load_dataset("digits:test")
    inputs, labels = to_input(train.inputs, Preprocessing()), torch.from_numpy(train.labels)
    model = cnn(spec="cnn:width=8")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    order = torch.arange(100 * 64) % len(labels)
    for ids in order.split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[ids]), labels[ids]).backward()
        optimizer.step()
    with torch.inference_mode():
        right = model.eval()(to_input(test.inputs, Preprocessing())).argmax(1) == torch.from_numpy(test.labels)
    assert right.float().mean().item() > 0.9


def test_width_scales_the_built_in_model() -> None:
    assert cnn(spec="cnn:width=16").state_dict()["0.weight"].shape == cnn().state_dict()["0.weight"].shape == (16, 1, 3, 3)
    assert cnn(spec="cnn:width=5").state_dict()["0.weight"].shape == (5, 1, 3, 3)


def test_the_same_seed_draws_the_same_weights_and_another_seed_others() -> None:
    digests = [weights_digest("cnn", cnn(seed)) for seed in (0, 0, 1, 2**64 - 1)]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_building_leaves_torchs_random_state_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    cnn(seed=9)
    assert torch.rand(3).tolist() == expected.tolist()


def test_a_torchvision_model_takes_grey_and_coloured_images() -> None:
    model = build_model("torchvision:squeezenet1_1", num_classes=5, input_shape=(3, 32, 32), seed=0).eval()
    grey = np.zeros((2, 1, 32, 32), np.uint8)
    with torch.inference_mode():
        for images in (grey, np.repeat(grey, 3, axis=1)):
            rules = choose_preprocessing("torchvision:squeezenet1_1", images.shape[1:], images.dtype)
            assert model(to_input(images, rules)).shape == (2, 5)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_a_torchvision_model_with_side_outputs_trains_with_its_main_one(name: str) -> None:
    model = build_model(f"torchvision:{name}", num_classes=5, input_shape=(3, 80, 80), seed=0)
    assert model(torch.rand(2, 3, 80, 80)).shape == (2, 5)


def test_a_timm_model_is_built_for_the_channels_it_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(name: str, *, pretrained: bool, num_classes: int, in_chans: int) -> nn.Module:
        assert (name, pretrained, in_chans) == ("convnext_tiny", False, 1)
        return tiny(num_classes=num_classes, input_shape=SHAPE)

    timm = ModuleType("timm")
    timm.create_model = create_model  # type: ignore[attr-defined]
    timm.list_models = lambda: ["convnext_tiny"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", timm)
    assert isinstance(cnn(spec="timm:convnext_tiny"), nn.Sequential)
    with pytest.raises(ValueError, match=r"^model 'timm:convnxt_tiny' is unknown \(did you mean convnext_tiny\?\)"):
        cnn(spec="timm:convnxt_tiny")


def test_without_timm_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"needs timm, which is not installed: pip install edgekd\[timm\]$"):
        cnn(spec="timm:resnet18")


def test_a_users_own_callable_is_called_with_classes_and_shape(user_models: None) -> None:
    model = build_model("user.models:tiny", num_classes=4, input_shape=(3, 2, 2), seed=0)
    assert [list(tensor.shape) for tensor in model.state_dict().values()] == [[4, 12], [4]]


FORMS = "cnn[:width=16], torchvision:NAME[@WEIGHTS], timm:NAME[@pretrained] or package.module:callable"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet18", f"model 'resnet18' is unknown, must be {FORMS}"),
        ("", f"model '' is unknown, must be {FORMS}"),
        ("cnn:width=0", "model cnn: width=0 must be a positive whole number"),
        ("cnn:width=1025", "model cnn: width=1025 is too large, must be in 1 .. 1024"),
        ("cnn:depth=3", "model cnn: unknown option 'depth', must be one of width"),
        ("torchvision:resnet81", "model 'torchvision:resnet81' is unknown (did you mean resnet18 or "),
        ("torchvision:alexnet", "model 'torchvision:alexnet' cannot take samples of 1x8x8: "),
        ("not_there:net", f"model 'not_there:net' cannot be imported: No module named 'not_there'; must be {FORMS}"),
        ("user.models:net", "model 'user.models:net' cannot be imported: module 'user.models' has no attribute 'net'"),
        ("user.models:answer", "model 'user.models:answer' names a int, must be a callable"),
        ("user.models:no_module", "model 'user.models:no_module' returned a int, must be a torch.nn.Module"),
        ("user.models:too_few_logits", "model 'user.models:too_few_logits' returns [1, 9] for a sample of 1x8x8, "),
        ("builtins:dict", "model 'builtins:dict' returned a dict, must be a torch.nn.Module"),
        ("os:getcwd", "model 'os:getcwd' failed for num_classes=10 and input_shape=(1, 8, 8): TypeError: "),
    ],
)
def test_a_model_that_cannot_serve_is_refused_by_name(spec: str, message: str, user_models: None) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        cnn(spec=spec)


def test_a_model_that_answers_with_a_tuple_is_refused(user_models: None) -> None:
    with pytest.raises(ValueError, match=r"returns tuple for a sample of 1x8x8, must be \[1, 10\] logits$"):
        build_model("user.models:PairOfLogits", num_classes=10, input_shape=SHAPE, seed=0)


def test_weights_come_back_bit_by_bit(tmp_path: Path) -> None:
    saved, loaded = cnn(0), cnn(1)
    saved(torch.rand(4, *SHAPE))  # moves the running statistics of batch normalisation, which are weights too
    save_weights(saved, tmp_path / "w.safetensors")
    load_weights(loaded, tmp_path / "w.safetensors")
    assert weights_digest("cnn", loaded) == weights_digest("cnn", saved)


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    save_weights(model, tmp_path / "w.safetensors")
    load_weights(model, tmp_path / "w.safetensors")
    assert model[0].weight is model[1].weight


@pytest.mark.parametrize("name", ["w.pt", "w.pth"])
@pytest.mark.parametrize("wrap", [dict, lambda state: {"state_dict": state, "epoch": 3}, lambda state: {"model": state}])
def test_a_torch_checkpoint_is_read(tmp_path: Path, name: str, wrap: Callable[[object], object]) -> None:
    saved, loaded = cnn(0), cnn(1)
    torch.save(wrap(saved.state_dict()), tmp_path / name)
    load_weights(loaded, tmp_path / name)
    assert weights_digest("cnn", loaded) == weights_digest("cnn", saved)


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (subprocess.getoutput, ("echo the pickle ran >&2",))


@pytest.mark.promise(number=16)
def test_a_pickle_is_never_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "w.pt"
    torch.save({"weight": Malicious()}, path)
    with pytest.raises(ValueError, match=rf"^{path} is damaged or holds more than tensors by name"):
        load_weights(cnn(), path)
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(ValueError, match=rf"^{path} is damaged or holds more than tensors by name"):
        load_weights(cnn(), path)
    assert capfd.readouterr().err == ""


def refusal_of(model: nn.Module, path: Path) -> str:
    before = weights_digest("", model)
    with pytest.raises(ValueError) as refusal:
        load_weights(model, path)
    assert weights_digest("", model) == before, "weights that were refused must not be half loaded"
    message = str(refusal.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("content", [b"", b"garbage", bytes(100), b"\xff" * 64])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert refusal_of(cnn(), path).startswith(f"{path} is damaged or holds more than tensors by name; ")


def test_a_file_cut_short_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(cnn(), path)
    path.write_bytes(path.read_bytes()[:-1])
    assert refusal_of(cnn(1), path).startswith(f"{path} is damaged or holds more than tensors by name")


@pytest.mark.parametrize("content", [3, [torch.zeros(1)], {"a": 3}, {1: torch.zeros(1)}])
def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "w.pt"
    torch.save(content, path)
    assert refusal_of(cnn(), path) == f"{path} does not hold tensors by name; save a model's state_dict()"


def test_weights_of_another_width_name_the_first_mismatch(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(cnn(spec="cnn:width=4"), path)
    assert refusal_of(cnn(), path) == (
        f"{path} does not fit the model: '0.weight' is [4, 1, 3, 3], must be [16, 1, 3, 3]; was it saved from another --model?"
    )


def test_a_missing_and_a_surplus_tensor_are_named(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    state = {name: tensor.clone() for name, tensor in cnn().state_dict().items()}
    safetensors.torch.save_file({**state, "extra": torch.zeros(1)}, path)
    assert "which has no 'extra'" in refusal_of(cnn(1), path)
    del state["1.running_mean"]
    safetensors.torch.save_file(state, path)
    assert "'1.running_mean' is missing" in refusal_of(cnn(1), path)


@pytest.mark.parametrize("name", ["w.pkl", "w.bin", "w"])
def test_other_file_types_are_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"^weights file '.*{name}' must end in .safetensors, .pt or .pth$"):
        load_weights(cnn(), tmp_path / name)
    with pytest.raises(ValueError, match=rf"^weights file '.*{name}' must end in .safetensors, the only format"):
        save_weights(cnn(), tmp_path / name)


def test_a_missing_file_is_the_operating_systems_to_report(tmp_path: Path) -> None:
    for name in ("w.safetensors", "w.pt"):
        with pytest.raises(FileNotFoundError) as failure:
            load_weights(cnn(), tmp_path / name)
        assert failure.value.filename == str(tmp_path / name)


def test_the_digest_covers_spec_names_types_shapes_and_bytes() -> None:
    def digest(spec: str = "m", **tensors: torch.Tensor) -> str:
        model = nn.Module()
        for name, tensor in tensors.items():
            model.register_buffer(name, tensor)
        return weights_digest(spec, model)

    zeros = torch.zeros(2, 3)
    variants = [
        digest(a=zeros),
        digest("n", a=zeros),
        digest(b=zeros),
        digest(a=zeros.int()),
        digest(a=zeros.T.contiguous()),
        digest(a=zeros + 1),
        digest(a=zeros, b=zeros),
        digest(a=zeros.bfloat16()),
    ]
    assert len(set(variants)) == len(variants)
    assert digest(a=zeros, b=zeros + 1) == digest(b=zeros + 1, a=zeros)
    assert digest(a=torch.arange(6.0).reshape(2, 3)) == digest(a=torch.arange(6.0).reshape(2, 3).T.contiguous().T)
    expected = b"edgekd weights m\na torch.float32 [2, 3]\n" + bytes(24)
    assert digest(a=zeros) == hashlib.sha256(expected).hexdigest()
