"""A trained student is evaluated, predicts, is exported and is watched."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import run, train

from edge_student.inference.evaluate import describe, table
from edge_student.inference.predict import read_samples
from edge_student.inference.student import Student, load_student
from edge_student.watch import spark
from edgekd.data.datasets import load_dataset
from edgekd.data.preprocessing import parse_preprocessing
from edgekd.data.tensors import resized
from edgekd.models.card import ModelCard
from edgekd.models.weights import save_weights

pytestmark = pytest.mark.slow
SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "executorch": ".pte"}


@pytest.fixture(scope="module")
def trained(address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    train(address, out, "--cycles", "60", "--alpha", "0.8", "--lr", "0.1")
    return out


def edge(*args: str) -> tuple[int, str, str]:
    finished = run([sys.executable, "-m", "edge_student", *args])
    return finished.returncode, finished.stdout, finished.stderr


def test_evaluate_agrees_with_the_result_of_the_run(trained: Path, tmp_path: Path) -> None:
    student = str(trained / "student.safetensors")
    status, stdout, stderr = edge("evaluate", "--student", student, "--data", "digits:test", "--out", str(tmp_path))
    assert status == 0, stderr
    accuracy = json.loads((trained / "result.json").read_text())["accuracy"]
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["accuracy"] == pytest.approx(accuracy)
    assert f"accuracy {accuracy:.4f} of 359 samples" in stdout
    confusion = np.array(found["confusion"])
    assert (confusion.sum(), np.trace(confusion) / confusion.sum()) == (359, pytest.approx(accuracy))
    assert [row["samples"] for row in found["classes"]] == confusion.sum(axis=1).tolist()
    with Image.open(tmp_path / "confusion.png") as image:
        assert min(image.size) > 300


@pytest.mark.parametrize("format_name", SUFFIXES)
def test_an_exported_student_agrees_with_torch(format_name: str, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip({"onnx": "onnxruntime", "executorch": "executorch"}.get(format_name, "torch"))
    student, out = str(trained / "student.safetensors"), tmp_path / f"s{SUFFIXES[format_name]}"
    status, stdout, stderr = edge(
        "export", "--student", student, "--data", "digits:test", "--format", format_name, "--out", str(out)
    )
    assert status == 0, stderr
    assert "100.00 % of the predicted classes agree" in stdout
    flags = ("--student", student, "--exported", str(out), "--data", "digits:test", "--out", str(tmp_path))
    status, _, stderr = edge("evaluate", *flags)
    assert status == 0, stderr
    accuracy = json.loads((trained / "result.json").read_text())["accuracy"]
    assert json.loads((tmp_path / "evaluation.json").read_text())["accuracy"] == pytest.approx(accuracy)


def test_predict_reads_images_and_arrays(trained: Path, tmp_path: Path) -> None:
    test = load_dataset("digits:test")
    student = load_student(trained / "student.safetensors")
    np.save(tmp_path / "three.npy", test.inputs[:3])
    Image.fromarray(test.inputs[0, 0]).save(tmp_path / "one.png")
    flags = ("--student", str(trained / "student.safetensors"), "--json")
    status, stdout, stderr = edge("predict", *flags, str(tmp_path / "three.npy"), str(tmp_path / "one.png"))
    assert status == 0, stderr
    lines = [json.loads(line) for line in stdout.splitlines()]
    assert [line["file"] for line in lines] == [*(f"{tmp_path}/three.npy[{n}]" for n in range(3)), f"{tmp_path}/one.png"]
    with torch.inference_mode():
        expected = student(torch.from_numpy(test.inputs[:3])).softmax(dim=1)
    for line, row in zip(lines, [*expected, expected[0]], strict=True):
        assert max(line["classes"], key=line["classes"].get) == str(int(row.argmax()))
        assert max(line["classes"].values()) == pytest.approx(float(row.max()), abs=1e-3)


def test_arrays_are_resized_by_the_rule_of_the_student(tmp_path: Path) -> None:
    rules = parse_preprocessing("imagenet", "8", 3)
    card = ModelCard(preprocessing=rules, input_shape=(3, 8, 8), num_classes=2)
    student = Student(torch.nn.Flatten(), card)
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16), np.uint8)
    np.save(tmp_path / "large.npy", images)
    found = read_samples(tmp_path / "large.npy", student)
    assert np.array_equal(found, resized(images, rules))
    np.save(tmp_path / "plain.npy", images)
    plain = Student(torch.nn.Flatten(), replace(card, preprocessing=parse_preprocessing("imagenet")))
    with pytest.raises(ValueError, match=r"has samples of \[3, 16, 16\], the student takes \[3, 8, 8\]"):
        read_samples(tmp_path / "plain.npy", plain)


def test_code_that_a_file_names_is_not_run(tmp_path: Path) -> None:
    card = ModelCard(preprocessing=parse_preprocessing("unit"), model="os:getcwd", input_shape=(4,), num_classes=2)
    save_weights(torch.nn.Linear(4, 2), tmp_path / "s.safetensors", card)
    with pytest.raises(ValueError, match="names the code os:getcwd: confirm it with --model os:getcwd"):
        load_student(tmp_path / "s.safetensors")
    assert load_student(tmp_path / "s.safetensors", torch.nn.Linear(4, 2))(torch.zeros(1, 4, dtype=torch.uint8)).shape == (1, 2)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("evaluate", "--data", "fashion:test"), "data set 'fashion' is unknown"),
        (("evaluate", "--data", "synthetic:classes=10,size=32,samples=9:test"), "the student takes samples of [1, 8, 8]"),
        (("predict", "none.png"), "none.png"),
        (("export", "--data", "digits:test", "--format", "tflite"), "--format is 'tflite'"),
    ],
)
def test_mistakes_end_in_one_line(args: tuple[str, ...], message: str, trained: Path) -> None:
    status, _, stderr = edge(args[0], "--student", str(trained / "student.safetensors"), *args[1:])
    assert status in (1, 2)
    assert message in stderr
    assert "Traceback" not in stderr


def test_watch_shows_the_newest_record(trained: Path) -> None:
    status, stdout, stderr = edge("watch", str(trained), "--once")
    assert status == 0, stderr
    assert "60 of 60" in stdout
    assert "% of the time" in stdout
    assert "ended" in stdout


def test_metrics_are_records_of_the_run(trained: Path) -> None:
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["cycle"] == 60
    assert records[-1]["loss"] == pytest.approx(json.loads((trained / "result.json").read_text())["loss"])


def test_a_table_by_class_has_the_shares_of_its_counts() -> None:
    counts = np.array([[8, 2, 0], [1, 9, 0], [0, 0, 0]])
    result = describe(counts, ("cat", "dog", "owl"))
    assert result["accuracy"] == pytest.approx(0.85)
    cat, _, owl = result["classes"]
    assert (cat["recall"], cat["precision"]) == (pytest.approx(0.8), pytest.approx(8 / 9))
    assert (cat["most_confused_with"], cat["times"]) == ("dog", 2)
    assert (owl["recall"], owl["precision"], owl["most_confused_with"]) == (None, None, None)
    assert [line.split()[0] for line in table(result)] == ["class", "cat", "dog"]


def test_a_line_of_blocks_shows_the_newest_values() -> None:
    assert spark([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert spark([9, 0, 7], 2) == "▁█"
    assert spark([], 5) == ""
    assert spark([3, 3], 5) == "▁▁"
