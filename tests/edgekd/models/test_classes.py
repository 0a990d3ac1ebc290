"""Classes by name: another order is mapped, other names are refused with a remedy."""

import json
from pathlib import Path

import numpy as np
import pytest

from edgekd.data.dataset import Dataset
from edgekd.models.classes import kept_outputs, outputs_of, read_class_names, relabelled

TEACHER = ("dog", "cat", "bird")


def outputs(own: tuple[str, ...], class_map: str | None = None, teacher: tuple[str, ...] = TEACHER) -> list[int]:
    return outputs_of(own, teacher, class_map, edge="mine", source="the teacher")


def write(folder: Path, pairs: object) -> str:
    path = folder / "map.json"
    path.write_text(json.dumps(pairs))
    return str(path)


def test_another_order_is_mapped_by_name() -> None:
    assert outputs(("bird", "cat", "dog")) == [2, 1, 0]
    labels = np.array([0, 0, 2, 1])
    own = Dataset(name="x", inputs=np.zeros((4, 1)), labels=labels, num_classes=3, class_names=("bird", "cat", "dog"), digest="")
    mapped = relabelled(own, [2, 1, 0], TEACHER)
    assert [TEACHER[label] for label in mapped.labels] == [own.class_names[label] for label in labels]
    assert mapped.class_names == TEACHER


def test_other_names_are_refused_with_both_sides_and_a_remedy() -> None:
    with pytest.raises(ValueError, match="only mine has 'cow' and only the teacher has 'bird': write --class-map FILE"):
        outputs(("dog", "cat", "cow"))


def test_fewer_classes_are_refused_with_the_two_remedies() -> None:
    with pytest.raises(ValueError, match=r"only the teacher has 'bird': serve with --keep-classes, or .*--class-map names"):
        outputs(("cat", "dog"))
    assert outputs(("cat", "dog"), "names") == [1, 0]


def test_a_class_map_may_join_classes(tmp_path: Path) -> None:
    path = write(tmp_path, {"tabby": "cat", "siamese": "cat", "hound": "dog"})
    assert outputs(("hound", "siamese", "tabby"), path) == [0, 1, 1]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({"tabby": "cat"}, "lacks 'hound', a class of mine"),
        (
            {"tabby": "cat", "hound": "wolf"},
            "maps 'hound' to 'wolf', which is no class of the teacher: it has 'dog', 'cat', 'bird'",
        ),
        ({"tabby": 1, "hound": "dog"}, "must be a JSON object of names"),
        ([], "must be a JSON object of names"),
    ],
)
def test_an_incomplete_class_map_is_rejected(tmp_path: Path, pairs: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        outputs(("hound", "tabby"), write(tmp_path, pairs))


def test_a_missing_class_map_names_the_flag(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--class-map: .*No such file"):
        outputs(("a",), str(tmp_path / "none.json"))


def test_a_name_of_two_outputs_cannot_be_a_target() -> None:
    with pytest.raises(ValueError, match="'crane', the name of 2 classes"):
        outputs(("crane",), "names", ("crane", "tench", "crane"))


def test_kept_outputs_are_names_numbers_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("bird\n\ndog\n")
    assert kept_outputs("bird, dog", TEACHER, 3) == [2, 0]
    assert kept_outputs("2,0", TEACHER, 3) == [2, 0]
    assert kept_outputs(f"@{tmp_path / 'keep.txt'}", TEACHER, 3) == [2, 0]
    assert kept_outputs("1,0", ("1", "0"), 2) == [0, 1], "a name has priority over a number"
    assert kept_outputs("7", (), 1000) == [7]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cow", "'cow', which is no class of the teacher: it has 'dog', 'cat', 'bird'"),
        ("3", "'3', which is no class"),
        ("0000000000009", "which is no class"),
        ("cat,cat", "must name each class once"),
        ("cat,1", "must name each class once"),
        ("", "'', which is no class"),
    ],
)
def test_an_unknown_or_repeated_class_cannot_be_kept(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kept_outputs(text, TEACHER, 3)
    with pytest.raises(ValueError, match="the name of 2 outputs: select one of 0, 2"):
        kept_outputs("crane", ("crane", "tench", "crane"), 3)


def test_class_names_are_a_number_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("dog\ncat\n")
    assert read_class_names(str(path)) == ("dog", "cat")
    assert read_class_names("3") == ("0", "1", "2")
    path.write_text("dog\ndog\n")
    assert read_class_names(str(path)) == ("dog", "dog"), "names of ImageNet repeat"
    with pytest.raises(ValueError, match="--classes is 0"):
        read_class_names("0")
    path.write_text("\n")
    with pytest.raises(ValueError, match="has no names, must have one per line"):
        read_class_names(str(path))
