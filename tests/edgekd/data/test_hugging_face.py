"""Data sets of the package `datasets`, saved in folders."""

import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from edgekd.data.datasets import load_dataset
from edgekd.data.splits import contains_test, split_of
from edgekd.errors import WorldError


def images(values: range, label: bool = True) -> datasets.Dataset:
    """Return images whose red identifies them, in the classes cat and dog."""
    columns = {"image": [Image.new("RGB", (8, 12), (value, 0, 0)) for value in values], "number": list(values)}
    features = {"image": datasets.Image(), "number": datasets.Value("int64")}
    if label:
        columns["label"] = [value % 2 for value in values]
        features["label"] = datasets.ClassLabel(names=["cat", "dog"])
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.fixture
def saved(tmp_path: Path) -> str:
    datasets.DatasetDict(
        {"train": images(range(30)), "test": images(range(100, 110)), "night": images(range(50, 54))}
    ).save_to_disk(tmp_path / "pets")
    return f"hf:{tmp_path}/pets"


def test_splits_of_a_saved_data_set_are_used(saved: str) -> None:
    loaded = {split: load_dataset(f"{saved},size=8:{split}") for split in ("public", "private", "test", "all", "night")}
    reds = {split: set(dataset.inputs[:][:, 0, 0, 0].tolist()) for split, dataset in loaded.items()}
    assert reds["public"] | reds["private"] == reds["all"] == set(range(30))
    assert not reds["public"] & reds["private"]
    assert (reds["test"], reds["night"]) == (set(range(100, 110)), set(range(50, 54)))
    for dataset in loaded.values():
        assert (dataset.input_shape, dataset.class_names) == ((3, 8, 8), ("cat", "dog"))
        assert (dataset.inputs[:][:, 0, 0, 0] % 2 == dataset.labels).all()


def test_a_data_set_without_splits_is_divided(tmp_path: Path) -> None:
    images(range(30), label=False).save_to_disk(tmp_path / "one")
    parts = [load_dataset(f"hf:{tmp_path}/one,size=8:{split}") for split in ("public", "private", "test")]
    assert sorted(red for part in parts for red in part.inputs[:][:, 0, 0, 0].tolist()) == list(range(30))
    assert not parts[0].is_labelled


def test_arrays_and_text_labels_of_named_columns(tmp_path: Path) -> None:
    rows = {"signal": [[float(row), 0.5] for row in range(12)], "activity": ["walk", "run"] * 6}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "signals")
    dataset = load_dataset(f"hf:{tmp_path}/signals,input=signal,label=activity:all")
    assert (dataset.inputs.dtype, dataset.input_shape, dataset.class_names) == (np.float32, (2,), ("run", "walk"))
    assert [int(row[0]) % 2 for row in dataset.inputs[:]] == [1 - label for label in dataset.labels]


@pytest.mark.parametrize("values", [[0, None] * 6, [[0], [1]] * 6, [0.0, 0.5] * 6])
def test_labels_that_name_no_class_are_refused(tmp_path: Path, values: list[object]) -> None:
    datasets.Dataset.from_dict({"x": [[1.0, 2.0]] * 12, "label": values}).save_to_disk(tmp_path / "odd")
    with pytest.raises(ValueError, match=r"column .label. has the value .*, must have integers or text"):
        load_dataset(f"hf:{tmp_path}/odd")


def test_hidden_labels_are_no_labels(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"x": [[1.0, 2.0]] * 6, "label": [-1] * 6}).save_to_disk(tmp_path / "hidden")
    assert not load_dataset(f"hf:{tmp_path}/hidden").is_labelled


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (",input=imag", r"has no column 'imag' \(did you mean image\?\); it has image, number, label"),
        (",label=labl", r"has no column 'labl' \(did you mean label\?\)"),
        (",size=0", "size is '0', must be in"),
        (",sise=8", "has the option 'sise=8', must be config="),
        (":tset", "split 'tset' is unknown, must be one of public, private, test, all, train, night"),
    ],
)
def test_a_wrong_name_is_explained(saved: str, options: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_dataset(saved + options)


def test_what_cannot_be_loaded_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(WorldError, match=r"^hf:.*empty cannot be loaded: "):
        load_dataset(f"hf:{tmp_path}/empty")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"needs the package datasets, .*: pip install edgekd\[hf\]"):
        load_dataset("hf:mnist")


def test_names_of_other_splits() -> None:
    assert split_of("hf:owner/name,size=8:night", "test") == "hf:owner/name,size=8:test"
    assert split_of("hf:owner/name", "test") == "hf:owner/name:test"
    assert contains_test("hf:owner/name:validation")
    assert not contains_test("hf:owner/name:private")
