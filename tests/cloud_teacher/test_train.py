"""Training a teacher: accuracy, saved files, and interruption."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from warm_start import start

from cloud_teacher.settings import TrainConfig
from cloud_teacher.train import train
from edgekd.data.datasets import load_dataset
from edgekd.models.build import build_model
from edgekd.models.weights import load_weights, weights_digest

TINY = "synthetic:classes=4,size=8,samples=200"


def config(out: Path, **changes: object) -> TrainConfig:
    settings: dict[str, object] = {"dataset": f"{TINY}:public", "model": "cnn:width=4", "out": out, "epochs": 2}
    return TrainConfig(**(settings | changes))


def test_weights_and_card_are_saved_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "new" / "t.safetensors"
    assert train(config(out)) == 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["t.json", "t.safetensors"]
    dataset = load_dataset(f"{TINY}:public")
    model = build_model("cnn:width=4", num_classes=4, input_shape=dataset.inputs.shape[1:], seed=9)
    load_weights(model, out)
    card = json.loads(out.with_suffix(".json").read_text())
    assert card["teacher_digest"] == weights_digest("cnn:width=4", model)
    assert card["dataset_digest"] == dataset.digest
    assert 0 <= card["accuracy"] <= 1
    assert card["wall_clock_s"] > 0
    assert card["versions"]["torch"] == torch.__version__
    assert {name: card[name] for name in ("dataset", "model", "num_classes", "epochs", "seed")} == {
        "dataset": f"{TINY}:public",
        "model": "cnn:width=4",
        "num_classes": 4,
        "epochs": 2,
        "seed": 0,
    }


def test_seed_decides_the_weights(tmp_path: Path) -> None:
    digests = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        out = tmp_path / f"{name}.safetensors"
        train(config(out, seed=seed))
        digests.append(json.loads(out.with_suffix(".json").read_text())["teacher_digest"])
    assert digests[0] == digests[1] != digests[2]


def test_data_set_without_a_split_is_its_whole_train_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    train(config(tmp_path / "t.safetensors", dataset=TINY, epochs=1))
    num_train = len(load_dataset(TINY).labels)
    assert num_train > len(load_dataset(f"{TINY}:public").labels)
    assert f"training on {num_train} samples of {TINY}" in caplog.text


def test_batch_larger_than_the_data_set_is_the_whole_data_set(tmp_path: Path) -> None:
    assert train(config(tmp_path / "t.safetensors", batch_size=100_000, epochs=1)) == 0


def test_test_part_is_not_for_learning(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"train on {TINY}:public or {TINY}"):
        train(config(tmp_path / "t.safetensors", dataset=f"{TINY}:test"))


def test_loss_that_explodes_is_an_error_that_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lower --lr, which is 1e\+30"):
        train(config(tmp_path / "t.safetensors", lr=1e30, epochs=5))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_interrupted_training_saves_its_weights_and_logs_it(tmp_path: Path) -> None:
    out = tmp_path / "t.safetensors"
    flags = ["--dataset", TINY, "--model", "cnn:width=4", "--out", str(out), "--epochs", "1000000"]
    process = start([sys.executable, "-m", "cloud_teacher", "train", *flags], stderr=subprocess.PIPE)
    assert process.stderr is not None
    while "epoch 2/" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "saved the weights of the last step" in errors
    assert json.loads(out.with_suffix(".json").read_text())["epochs"] >= 2
    model = build_model("cnn:width=4", num_classes=4, input_shape=(3, 8, 8), seed=0)
    load_weights(model, out)


@pytest.mark.slow
def test_digits_are_learnt_with_the_defaults(tmp_path: Path) -> None:
    out = tmp_path / "t.safetensors"
    assert train(TrainConfig(dataset="digits:public", model="cnn", out=out)) == 0
    assert json.loads(out.with_suffix(".json").read_text())["accuracy"] >= 0.95
