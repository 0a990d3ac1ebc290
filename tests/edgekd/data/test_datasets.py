"""Data sets by name: the same samples in the same order on every machine, and no sample in two splits."""

import gzip
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from edgekd.data import sources
from edgekd.data.datasets import load_dataset
from edgekd.data.preprocessing import Preprocessing
from edgekd.data.tensors import to_input
from edgekd.errors import WorldError

TINY = "synthetic:classes=3,size=2,samples=2,channels=1"


def write_idx(path: Path, array: npt.NDArray[np.uint8]) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Fashion-MNIST of 30 training and 5 test images, each filled with its number."""
    for prefix, numbers in (("train", np.arange(30)), ("t10k", np.arange(100, 105))):
        images = np.broadcast_to(numbers[:, None, None], (len(numbers), 28, 28)).astype(np.uint8)
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", (numbers % 10).astype(np.uint8))
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path)
    return tmp_path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two classes of ten images of 20 x 10 and 10 x 20 pixels, each in a different red."""
    for label, name in enumerate(("cats", "dogs")):
        (tmp_path / name).mkdir()
        for number in range(10):
            size = (20, 10) if label else (10, 20)
            Image.new("RGB", size, (10 * label + number, 0, 255)).save(tmp_path / name / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("spec", "shape", "digest"),
    [
        ("digits", (1438, 1, 8, 8), "46b6f42c541fa21062e439bbfacd0c9ccf8a472f5afd5df530b524bf9328fdd2"),
        ("digits:public", (479, 1, 8, 8), "e645954287f09c972c1f05aeec4e664c40faac804f63d720fded9e471d32cc8a"),
        ("digits:private", (959, 1, 8, 8), "91040043d64f329bf0ed74d109ce53a2ae6ed88eef03a61f487ce7251531b1f6"),
        ("digits:test", (359, 1, 8, 8), "9df8e5b1adec28200908211ce089065b96abebe48c3cd1de51ab25cd23a50a03"),
        (
            "synthetic:classes=10,size=32,samples=512:public",
            (512, 3, 32, 32),
            "ea9f422249fadc05eee9948e2beae122c15d0783df6a77ad9295c6c532f412d9",
        ),
    ],
)
def test_a_name_means_these_bytes_everywhere(spec: str, shape: tuple[int, ...], digest: str) -> None:
    dataset = load_dataset(spec)
    assert dataset.name == spec
    assert dataset.inputs.shape == shape
    assert dataset.labels.shape == shape[:1]
    assert (dataset.inputs.dtype, dataset.labels.dtype) == (np.uint8, np.int64)
    assert dataset.inputs.flags.c_contiguous
    assert dataset.digest == digest


def test_synthetic_noise_has_these_values_everywhere() -> None:
    parts = {split: load_dataset(f"{TINY}:{split}") for split in ("public", "private", "test")}
    assert {split: part.inputs.reshape(2, 4).tolist() for split, part in parts.items()} == {
        # The first eight bytes of RandomState(0), (1) and (2).
        "public": [[172, 10, 127, 140], [47, 170, 196, 151]],
        "private": [[37, 244, 193, 106], [235, 128, 71, 255]],
        "test": [[168, 92, 157, 111], [15, 138, 97, 47]],
    }


def test_synthetic_labels_take_turns() -> None:
    assert load_dataset("synthetic:classes=3,size=1,samples=7:public").labels.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_more_synthetic_samples_begin_with_the_fewer() -> None:
    few = load_dataset("synthetic:classes=2,size=5,samples=3:test")
    many = load_dataset("synthetic:classes=2,size=5,samples=9:test")
    assert many.inputs[:3].tobytes() == few.inputs.tobytes()


@pytest.mark.parametrize("name", ["digits", TINY, "fashion-mnist"])
def test_without_a_split_it_is_public_followed_by_private(name: str, fashion: Path) -> None:
    whole, public, private = (load_dataset(name + split) for split in ("", ":public", ":private"))
    assert whole.inputs.tobytes() == public.inputs.tobytes() + private.inputs.tobytes()
    assert whole.labels.tolist() == [*public.labels.tolist(), *private.labels.tolist()]


def test_splits_of_a_set_with_its_own_test_part_are_disjoint_and_leave_none_out(fashion: Path) -> None:
    numbers = {split: load_dataset(f"fashion-mnist:{split}").inputs[:, 0, 0, 0].tolist() for split in ("public", "private", "test")}
    assert numbers["test"] == [100, 101, 102, 103, 104]
    assert len(numbers["public"]) == 10
    assert sorted(numbers["public"] + numbers["private"]) == list(range(30))


def test_splits_of_a_set_without_a_test_part_are_disjoint_and_leave_none_out(folder: Path) -> None:
    parts = {split: load_dataset(f"imagefolder:{folder}:{split}") for split in ("public", "private", "test")}
    reds = {split: part.inputs[:, 0, 0, 0].tolist() for split, part in parts.items()}
    assert {split: len(red) for split, red in reds.items()} == {"public": 5, "private": 11, "test": 4}
    assert sorted(reds["public"] + reds["private"] + reds["test"]) == list(range(20))


def test_labels_stay_with_their_images(fashion: Path, folder: Path) -> None:
    clothes = load_dataset("fashion-mnist:private")
    assert (clothes.inputs[:, 0, 0, 0] % 10).tolist() == clothes.labels.tolist()
    animals = load_dataset(f"imagefolder:{folder}")
    assert (animals.inputs[:, 0, 0, 0] // 10).tolist() == animals.labels.tolist()


@pytest.mark.needs("fashion-mnist")
def test_fashion_mnist_is_the_published_one() -> None:
    dataset = load_dataset("fashion-mnist:public")
    assert dataset.inputs.shape == (20_000, 1, 28, 28)
    assert dataset.digest == "e43a753a66419706b9ecc471f34adae1100df9b877558e447d20d05e74f4094e"
    assert len(load_dataset("fashion-mnist:private").labels) == 40_000
    assert np.bincount(load_dataset("fashion-mnist:test").labels).tolist() == [1000] * 10


def test_debians_fashion_mnist_is_read_without_torchvision(fashion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    dataset = load_dataset("fashion-mnist:public")
    assert (dataset.inputs.shape, dataset.num_classes) == ((10, 1, 28, 28), 10)


@pytest.mark.parametrize(
    "content", [b"\x00\x00\x08\x03", b"\x00\x00\x08\x01" + bytes(4), b"\x00\x00\x08\x03" + bytes([0, 0, 0, 9] * 3)]
)
def test_a_damaged_file_is_named_with_the_remedy(fashion: Path, content: bytes) -> None:
    damaged = fashion / "train-images-idx3-ubyte.gz"
    damaged.write_bytes(gzip.compress(content))
    with pytest.raises(WorldError, match=rf"^{damaged} is damaged: .*; reinstall"):
        load_dataset("fashion-mnist:public")


def test_a_file_that_was_cut_short_is_named_with_the_remedy(fashion: Path) -> None:
    damaged = fashion / "train-images-idx3-ubyte.gz"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.raises(WorldError, match=rf"^{damaged} is damaged: .*; reinstall"):
        load_dataset("fashion-mnist:public")


class _Photographs:
    """A stand-in for torchvision's CIFAR classes without the download of 170 MB."""

    def __init__(self, root: Path, *, train: bool, download: bool) -> None:
        assert download
        print("Files already downloaded and verified")
        self.data = np.arange(30 if train else 5, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 32, 32, 3), np.uint8)
        self.data[..., 2] = 7
        self.targets = list(range(len(self.data)))
        self.classes = [f"class {number}" for number in range(100)]


def stub_torchvision(monkeypatch: pytest.MonkeyPatch, dataset_class: object) -> None:
    torchvision = ModuleType("torchvision")
    torchvision.datasets = ModuleType("torchvision.datasets")  # type: ignore[attr-defined]
    for name in ("CIFAR10", "CIFAR100", "FashionMNIST"):
        setattr(torchvision.datasets, name, dataset_class)
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)


def test_cifar_is_turned_to_channels_first(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stub_torchvision(monkeypatch, _Photographs)
    dataset = load_dataset("cifar100:public")
    assert (dataset.inputs.shape, dataset.num_classes) == ((10, 3, 32, 32), 100)
    assert dataset.inputs[:, 0, 0, 0].tolist() == dataset.labels.tolist()
    assert np.unique(dataset.inputs[:, 2]).tolist() == [7]
    assert len(load_dataset("cifar10:test").labels) == 5
    assert capsys.readouterr().out == ""


def test_a_failed_download_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **options: object) -> None:
        raise OSError("no route to host")

    stub_torchvision(monkeypatch, no_network)
    monkeypatch.setattr(sources, "DEBIAN_FASHION_MNIST", tmp_path / "not-installed")
    for name in ("cifar10", "fashion-mnist"):
        with pytest.raises(WorldError, match=rf"^cannot download data set {name}: no route to host; check the network"):
            load_dataset(f"{name}:public")


def test_images_of_a_folder_get_one_size(folder: Path) -> None:
    assert load_dataset(f"imagefolder:{folder}:test").inputs.shape == (4, 3, 64, 64)
    assert load_dataset(f"imagefolder:{folder},size=16:test").inputs.shape == (4, 3, 16, 16)


def test_the_digest_follows_images_and_class_count_but_not_labels() -> None:
    def digest(spec: str) -> str:
        return load_dataset(f"synthetic:{spec}").digest

    base = digest("classes=3,size=4,samples=6:public")
    assert digest("classes=3,size=4,samples=6:public") == base
    others = ["classes=4,size=4,samples=6:public", "classes=3,size=4,samples=6:private", "classes=3,size=4,samples=7:public"]
    assert base not in map(digest, others)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "digts:public",
            "data set 'digts' is unknown, must be one of digits, fashion-mnist, cifar10, cifar100, imagefolder, unlabelled, "
            "npy, csv, hf, synthetic or package.module:callable"
            " (did you mean digits?)",
        ),
        ("digits:pub", "data set 'digits:pub': split 'pub' is unknown, must be one of public, private, test, or left out"),
        ("digits:size=3:test", "data set 'digits' takes no options, but was given 'size=3'; write digits[:SPLIT]"),
        ("synthetic:test", "synthetic: classes=..., size=..., samples=... missing from ''"),
        ("synthetic:classes=3,size=0,samples=2", "synthetic: size=0 must be a positive whole number"),
        (
            "synthetic:classes=3,size=4,sample=2",
            "synthetic: unknown option 'sample', must be one of classes, size, samples, channels (did you mean samples?)",
        ),
        (f"{TINY}:pubic", "synthetic: channels=1:pubic must be a positive whole number"),
        ("synthetic:classes=3,size=4,samples=2,channels=2", "synthetic: channels=2, must be 1 or 3"),
        (
            "synthetic:classes=300000,size=4,samples=2",
            "synthetic: classes=300000 is too large, must be in 1 .. 262144",
        ),
        (
            "synthetic:classes=3,size=1025,samples=2",
            "synthetic:classes=3,size=1025,samples=2: size=1025 is too large, must be in 1 .. 1024",
        ),
        (
            "synthetic:classes=3,size=1000,samples=1000",
            "synthetic:classes=3,size=1000,samples=1000: 2000 images are 6000000000 bytes, must be at most 2147483648",
        ),
        ("imagefolder", "imagefolder:PATH is '', must be a folder with a folder of images for each class"),
        ("imagefolder:no/where:test", "imagefolder:PATH is 'no/where', must be a folder with a folder of images for each class"),
    ],
)
def test_a_spec_that_breaks_a_rule_is_refused_by_name(spec: str, message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        load_dataset(spec)
    assert str(refusal.value) == message


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs at least one folder, named after a class, and images in each; for images without"):
        load_dataset(f"imagefolder:{tmp_path}")


def test_a_split_without_a_single_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    Image.new("L", (4, 4)).save(tmp_path / "cats" / "only.png")
    with pytest.raises(ValueError, match=r"is empty: it has too few samples for this split; add samples, or use another split$"):
        load_dataset(f"imagefolder:{tmp_path}:test")
    assert load_dataset(f"imagefolder:{tmp_path}:private").labels.tolist() == [0]


def test_pixels_become_numbers_from_minus_one_to_one() -> None:
    images = np.array([0, 51, 255], np.uint8).reshape(3, 1, 1, 1)
    inputs = to_input(images, Preprocessing())
    assert (inputs.dtype, inputs.shape) == (torch.float32, images.shape)
    assert inputs.flatten().tolist() == [-1.0, pytest.approx(-0.6, abs=1e-7), 1.0]


def test_input_is_a_copy_even_of_a_read_only_array() -> None:
    images = np.zeros((1, 1, 2, 2), np.uint8)
    images.flags.writeable = False
    to_input(images, Preprocessing()).fill_(5.0)
    assert images.sum() == 0


def test_the_digits_are_those_of_scikit_learn() -> None:
    """The digits are read from scikit-learn's file without importing it, which would take 1.5 s of every run."""
    from sklearn.datasets import load_digits

    bunch, splits = load_digits(), [load_dataset(f"digits:{split}") for split in ("public", "private", "test")]
    theirs = sorted(
        (np.rint(image * (255 / 16)).astype(np.uint8).tobytes(), int(label))
        for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    ours = sorted((image.tobytes(), int(label)) for part in splits for image, label in zip(part.inputs, part.labels, strict=True))
    assert ours == theirs
