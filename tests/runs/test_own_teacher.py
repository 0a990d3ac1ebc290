"""A teacher that was trained elsewhere, on the user's pictures: what used to go wrong in silence is refused, or right."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import run, student_command, teacher
from sklearn.datasets import load_digits

from edgekd.data.datasets import load_dataset
from edgekd.data.preprocessing import parse_preprocessing
from edgekd.data.tensors import to_input

pytestmark = pytest.mark.slow
NAMES = ["nought", "one", "two"]
MODULE = """
import torch
def build(num_classes, input_shape):
    layers = torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 16), torch.nn.ReLU(), torch.nn.Linear(16, num_classes)
    return torch.nn.Sequential(*layers)
"""


def write_pictures(folder: Path, names: list[str]) -> None:
    """Write three digits as pictures, in a folder named after each class."""
    digits = load_digits()
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        if label < len(names):
            path = folder / names[label] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 15.9).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, a module with the network, and its weights, trained by hand with ImageNet's mean and std."""
    home = tmp_path_factory.mktemp("own")
    write_pictures(home / "pictures", NAMES)
    (home / "own_teacher_net.py").write_text(MODULE)
    dataset = load_dataset(f"imagefolder:{home / 'pictures'},size=8:public")
    namespace: dict[str, object] = {}
    exec(MODULE, namespace)
    torch.manual_seed(0)
    model = namespace["build"](3, (3, 8, 8))  # type: ignore[operator]
    inputs, labels = to_input(dataset.inputs[:], parse_preprocessing("imagenet")), torch.from_numpy(dataset.labels)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    torch.save(model.state_dict(), home / "weights.pt")
    right = float((model(inputs).argmax(1) == labels).float().mean())
    (home / "accuracy.json").write_text(json.dumps(right))
    return home


@pytest.fixture
def in_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(home)
    return home


def serve_command(home: Path, store: Path, *flags: str) -> list[str]:
    command = [sys.executable, "-m", "cloud_teacher", "precompute", "--dataset", f"imagefolder:{home / 'pictures'},size=8:public"]
    return [*command, "--model", "own_teacher_net:build", "--store", str(store), *flags]


def own_teacher(home: Path, store: Path, *flags: str, dataset: str = "pictures", log: Path | None = None):
    flags = ("--model", "own_teacher_net:build", "--weights", str(home / "weights.pt"), "--normalize", "imagenet", *flags)
    return teacher(store, *flags, dataset=f"imagefolder:{home / dataset},size=8:public", log=log, is_warm=False)


def train(address: str, home: Path, out: Path, *flags: str, private: str = "pictures") -> tuple[int, str, dict[str, object]]:
    command = student_command(address, out, "--private", f"imagefolder:{home / private},size=8:private", "--cycles", "60", *flags)
    command[command.index("--private") : command.index("--private") + 2] = []  # the data set of TINY
    command += ["--model", "cnn:width=8", "--lr", "0.1"]
    finished = run(command)
    path = out / "result.json"
    return finished.returncode, finished.stderr, json.loads(path.read_text()) if path.exists() else {}


def test_foreign_weights_need_their_normalization(in_home: Path, tmp_path: Path) -> None:
    finished = run(serve_command(in_home, tmp_path, "--weights", "weights.pt"))
    assert finished.returncode == 2
    assert "the normalization of weights.pt is not known: give --normalize imagenet, signed, unit or MEAN/STD" in finished.stderr


def test_the_served_accuracy_is_that_of_plain_torch(in_home: Path, tmp_path: Path) -> None:
    finished = run(serve_command(in_home, tmp_path, "--weights", "weights.pt", "--normalize", "imagenet"))
    assert finished.returncode == 0, finished.stderr
    share = float(re.search(r"agrees with (\S+) % of the labels", finished.stderr)[1])  # type: ignore[index]
    accuracy = json.loads((in_home / "accuracy.json").read_text())
    assert accuracy > 0.9
    assert share == pytest.approx(100 * accuracy, abs=0.06)


def test_a_teacher_without_class_names_needs_a_confirmed_order(in_home: Path, tmp_path: Path) -> None:
    flags = (
        "--model",
        "own_teacher_net:build",
        "--weights",
        str(in_home / "weights.pt"),
        "--normalize",
        "imagenet",
        "--classes",
        "3",
    )
    public = f"unlabelled:{in_home / 'pictures'},size=8"
    with teacher(tmp_path / "store", *flags, dataset=public, is_warm=False) as running:
        status, stderr, _ = train(running.address, in_home, tmp_path / "a", "--public", public)
        assert status == 2
        assert "have no names, so nothing checks" in stderr
        assert "or confirm the order with --class-map order" in stderr
        status, stderr, result = train(running.address, in_home, tmp_path / "b", "--public", public, "--class-map", "order")
        assert status == 0, stderr
        assert result["accuracy"] > 0.8


def test_two_exchanged_classes_are_named(in_home: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join([NAMES[1], NAMES[0], NAMES[2]]))
    finished = run(serve_command(in_home, tmp_path, "--weights", "weights.pt", "--normalize", "imagenet", "--classes", str(names)))
    assert finished.returncode == 0
    assert re.search(f"WARNING the teacher (agrees|predicts '{NAMES[1]}' for .* public samples of '{NAMES[0]}')", finished.stderr)


def test_classes_in_a_wrong_order_are_noticed(in_home: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join([*NAMES[1:], NAMES[0]]))
    flags = ("--weights", "weights.pt", "--normalize", "imagenet", "--classes", str(names))
    finished = run(serve_command(in_home, tmp_path, *flags))
    assert finished.returncode == 0
    assert re.search(r"WARNING the teacher agrees with .* of the public labels, where guessing would with 33.3 %", finished.stderr)


def test_a_card_beside_the_weights_has_the_rules(in_home: Path, tmp_path: Path) -> None:
    shutil.copy("weights.pt", tmp_path / "w.pt")
    (tmp_path / "w.json").write_text(json.dumps({"normalize": "imagenet", "model": "own_teacher_net:build", "class_names": NAMES}))
    command = serve_command(in_home, tmp_path, "--weights", str(tmp_path / "w.pt"))
    finished = run(command)
    assert finished.returncode == 0, finished.stderr
    assert "preprocessing from the model card: normalization imagenet" in finished.stderr
    command[command.index("--model") : command.index("--model") + 2] = []
    finished = run(command)
    assert finished.returncode == 2
    assert "names own_teacher_net:build, which is code: confirm it with --model" in finished.stderr


def test_folders_in_another_order_are_mapped_by_name(in_home: Path, tmp_path: Path) -> None:
    """The teacher's outputs have the order of its training, and the edge's classes that of sorted folder names."""
    write_pictures(tmp_path / "mine", ["c", "b", "a"])
    write_pictures(tmp_path / "theirs", ["c", "b", "a"])
    names = tmp_path / "names.txt"
    names.write_text("c\nb\na\n")  # the order of the outputs, in which the network was trained
    with own_teacher(
        tmp_path, tmp_path / "store", "--weights", str(in_home / "weights.pt"), "--classes", str(names), dataset="theirs"
    ) as own:
        status, log, result = train(own.address, tmp_path, tmp_path / "out", private="mine")
    assert status == 0, log
    assert "labels of imagefolder" in log
    assert result["accuracy"] > 0.8


def test_other_names_are_refused_until_a_map_relates_them(in_home: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "mine", ["zero", "one", "two"])
    public = ("--public", f"imagefolder:{in_home / 'pictures'},size=8:public")
    with own_teacher(in_home, tmp_path / "store") as own:
        status, log, _ = train(own.address, tmp_path, tmp_path / "out", *public, private="mine")
        assert status == 2
        assert "only imagefolder" in log
        assert "write --class-map FILE" in log
        (tmp_path / "map.json").write_text(json.dumps({"zero": "nought", "one": "one", "two": "two"}))
        flags = (*public, "--class-map", str(tmp_path / "map.json"))
        status, log, result = train(own.address, tmp_path, tmp_path / "out", *flags, private="mine")
        assert (status, result["accuracy"] > 0.8) == (0, True), log
        (tmp_path / "map.json").write_text(json.dumps({"zero": "nought", "one": "two", "two": "one"}))
        status, log, _ = train(own.address, tmp_path, tmp_path / "out", *flags, "--resume", "--cycles", "70", private="mine")
    assert status == 2
    assert "the labels, mapped by class name to the teacher's outputs, differ from the checkpoint" in log


def test_kept_classes_serve_an_edge_with_fewer(in_home: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "mine", ["nought", "one"])
    public = ("--public", f"imagefolder:{in_home / 'pictures'},size=8:public")
    with own_teacher(in_home, tmp_path / "store") as own:
        status, log, _ = train(own.address, tmp_path, tmp_path / "out", *public, private="mine")
        assert (status, "serve with --keep-classes" in log) == (2, True)
        status, log, result = train(own.address, tmp_path, tmp_path / "all", *public, "--class-map", "names", private="mine")
        assert (status, result["accuracy"] > 0.8) == (0, True), log
    with own_teacher(in_home, tmp_path / "store", "--keep-classes", "one,nought") as own:
        status, log, result = train(own.address, tmp_path, tmp_path / "kept", *public, private="mine")
    assert status == 0, log
    assert result["teacher"]["class_names"] == ["one", "nought"]  # type: ignore[index]
    assert result["accuracy"] > 0.8


def test_unlabelled_public_and_private_pictures(in_home: Path, tmp_path: Path) -> None:
    for number, path in enumerate(sorted((in_home / "pictures").glob("*/*.png"))):
        (tmp_path / "any").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "any" / f"{number % 7}-{number}.png")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    flags = ("--model", "own_teacher_net:build", "--weights", str(in_home / "weights.pt"), "--normalize", "imagenet")
    command = serve_command(in_home, tmp_path / "store", *flags[2:])
    command[command.index("--dataset") + 1] = f"unlabelled:{tmp_path / 'any'},size=8:public"
    finished = run(command)
    assert (finished.returncode, "has no labels: give --classes K or --classes FILE" in finished.stderr) == (2, True)
    flags = (*flags, "--classes", str(tmp_path / "names.txt"))
    with teacher(tmp_path / "store", *flags, dataset=f"unlabelled:{tmp_path / 'any'},size=8:public", is_warm=False) as own:
        public = ("--public", f"unlabelled:{tmp_path / 'any'},size=8:public")
        status, log, result = train(own.address, in_home, tmp_path / "out", *public)
        assert (status, result["accuracy"] > 0.8) == (0, True), log
        private = ("--private", f"unlabelled:{tmp_path / 'any'},size=8:private")
        command = student_command(own.address, tmp_path / "blind", *private, "--private-samples", "64", "--cycles", "5")
        finished = run(command)
        assert finished.returncode == 2
        assert "has no labels, and --alpha is 0.1: train on logits alone with --alpha 0" in finished.stderr
        finished = run([*command, "--alpha", "0"])
        assert finished.returncode == 0, finished.stderr
        assert "accuracy not measured" in finished.stdout
        result = json.loads((tmp_path / "blind" / "result.json").read_text())
        assert result["accuracy"] is None
        assert any("the accuracy was not measured" in note for note in result["notes"])
        test = ("--test", f"imagefolder:{in_home / 'pictures'},size=8:test")
        finished = run([*command, "--alpha", "0", *test])
        assert finished.returncode == 0, finished.stderr
        assert json.loads((tmp_path / "blind" / "result.json").read_text())["accuracy"] is not None


def test_a_time_series_travels_as_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sensor windows of an .npy file, with 1-D convolutions; the public windows come with their logits."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 600)
    phase = rng.uniform(0, 6, (600, 3, 1))
    windows = np.sin(np.arange(20) * (0.3 + 0.5 * labels[:, None, None]) + phase) + rng.normal(0, 0.1, (600, 3, 20))
    np.save("x.npy", windows.astype(np.float32))
    np.save("y.npy", np.array(["slow", "fast"])[labels])
    Path("sensor_net.py").write_text(
        "import torch\n"
        "def build(num_classes, input_shape):\n"
        "    return torch.nn.Sequential(torch.nn.Conv1d(input_shape[0], 8, 5), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool1d(4),\n"
        "        torch.nn.Flatten(), torch.nn.Linear(32, num_classes))\n"
    )
    data = "npy:x.npy,labels=y.npy"
    command = [sys.executable, "-m", "cloud_teacher", "train", "--dataset", f"{data}:public", "--model", "sensor_net:build"]
    finished = run([*command, "--epochs", "30", "--batch-size", "16", "--out", "t.safetensors"])
    assert finished.returncode == 0, finished.stderr
    accuracies, weights = [], []
    with teacher(
        tmp_path / "store", "--model", "sensor_net:build", "--weights", "t.safetensors", dataset=f"{data}:public", is_warm=False
    ) as own:
        for inputs in ("local", "stream"):
            out = tmp_path / inputs
            command = student_command(
                own.address, out, "--private", f"{data}:private", "--private-samples", "320", "--cycles", "80"
            )
            finished = run(
                [*command, "--model", "sensor_net:build", "--lr", "0.2", "--torch-threads", "1", "--public-inputs", inputs]
            )
            assert finished.returncode == 0, finished.stderr
            accuracies.append(json.loads((out / "result.json").read_text())["accuracy"])
            weights.append((out / "student.safetensors").read_bytes())
    assert min(accuracies) > 0.9
    assert weights[0] == weights[1], "inputs that travel give the same weights as local ones"
