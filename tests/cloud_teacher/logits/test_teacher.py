"""The teacher's logits depend on weights and samples, and on nothing else."""

import numpy as np
import pytest
import torch

from cloud_teacher.logits.teacher import Teacher, make_teacher
from edgekd.data.datasets import load_dataset
from edgekd.data.preprocessing import Preprocessing
from edgekd.data.tensors import to_input
from edgekd.models.build import build_model
from edgekd.models.devices import choose_device
from edgekd.models.weights import weights_digest


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    dataset = load_dataset("synthetic:classes=6,size=8,samples=300:public")
    model = build_model("cnn:width=8", num_classes=6, input_shape=(3, 8, 8), seed=3)
    return make_teacher(
        model, spec="cnn:width=8", dataset=dataset, device=torch.device("cpu"), num_classes=6, preprocessing=Preprocessing()
    )


def test_logits_are_the_models_in_evaluation_mode(teacher: Teacher) -> None:
    ids = np.array([4, 90, 4, 0])
    with torch.inference_mode():
        expected = teacher.model(to_input(teacher.dataset.inputs[ids], Preprocessing())).numpy()
    assert not teacher.model.training
    assert np.allclose(teacher.logits(ids), expected, atol=1e-5)


def test_logits_of_a_sample_do_not_depend_on_other_requested_samples(teacher: Teacher) -> None:
    """Equal bit for bit, because a rebuilt store must lead to the same student."""
    num_samples = teacher.key.num_samples
    together = teacher.logits(np.arange(num_samples))
    rng = np.random.default_rng(0)
    for _ in range(10):
        ids = rng.choice(num_samples, rng.integers(1, num_samples), replace=False)
        assert np.array_equal(teacher.logits(ids), together[ids])


def test_key_names_weights_and_data(teacher: Teacher) -> None:
    assert teacher.key.teacher_digest == weights_digest("cnn:width=8", teacher.model)
    assert teacher.key.dataset_digest == teacher.dataset.digest
    assert (teacher.key.num_samples, teacher.key.num_classes) == (len(teacher.dataset.labels), 6)


def test_device_is_chosen_by_availability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [choose_device(name).type for name in ("cpu", "auto")] == ["cpu", "cpu"]
    with pytest.raises(ValueError, match="finds no GPU"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [choose_device(name).type for name in ("cpu", "auto", "cuda")] == ["cpu", "cuda", "cuda"]
