"""Start weights and frozen parts of a student."""

from pathlib import Path

import pytest
import torch
from torch import nn

from edge_student.training.frozen import freeze, set_training
from edge_student.training.initial import head_of, load_initial
from edgekd.models.build import build_model
from edgekd.models.weights import save_weights


def student(num_classes: int = 10, seed: int = 1) -> nn.Module:
    return build_model("cnn:width=2", num_classes=num_classes, input_shape=(1, 8, 8), seed=seed)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_weights(student(seed=7), tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def equal(one: nn.Module, other: nn.Module) -> dict[str, bool]:
    return {name: torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items()}


def test_all_tensors_are_loaded(weights: Path) -> None:
    model = student()
    load_initial(model, weights, [], 10)
    assert all(equal(model, student(seed=7)).values())


def test_the_head_of_other_classes_stays_random(weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    model = student(num_classes=4)
    head = head_of(model, 4)
    with pytest.raises(
        ValueError, match=rf"--init: .* '{head}.weight' is \[10, .*start without the last layer, {head}, with --init-except"
    ):
        load_initial(model, weights, [], 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_initial(model, weights, ["head"], 4)
    same = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
    assert {f"{head}.weight", f"{head}.bias"} <= same
    assert torch.equal(model[0].weight, student(seed=7)[0].weight)
    assert f"random: {head}.weight, {head}.bias" in caplog.text


def test_a_pattern_without_a_match_is_named(weights: Path) -> None:
    with pytest.raises(ValueError, match="--init-except has 'had', which matches no tensor"):
        load_initial(student(), weights, ["had"], 10)
    with pytest.raises(ValueError, match="--freeze has 'nine', which matches no parameter"):
        freeze(student(), ["nine"])
    with pytest.raises(ValueError, match="which matches all"):
        freeze(student(), ["*"])


def test_frozen_batch_normalization_keeps_its_statistics() -> None:
    model = student()
    frozen = freeze(model, ["0", "1"])
    assert frozen == ["0.weight", "1.weight", "1.bias"]
    set_training(model, ["0", "1"])
    assert [module.training for module in model] == [True, False] + [True] * (len(model) - 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model(torch.randn(4, 1, 8, 8)).sum().backward()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert not any(name.startswith(("0.", "1.")) for name in changed)
    assert model[0].weight.grad is None
