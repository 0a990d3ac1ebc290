"""The user's own data: folders with splits, images without labels, arrays, tables and PyTorch data sets; in memory or on disk."""

import multiprocessing
import os
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgekd.data import arrays, decoded, splits
from edgekd.data.dataset import Dataset
from edgekd.data.datasets import load_dataset, resized
from edgekd.data.preprocessing import parse_preprocessing
from edgekd.data.rows import FileRows
from edgekd.errors import WorldError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("decoded")
    monkeypatch.setattr(decoded, "CACHE", folder)
    monkeypatch.setattr(arrays, "DIGESTS", folder / "digests")
    return folder


def write_image(path: Path, value: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = (value, 0, 255) if mode == "RGB" else value
    Image.new(mode, size, colour).save(path)


def write_images(folder: Path, names: str, count: int, first: int = 0) -> None:
    for label, name in enumerate(names.split()):
        for number in range(count):
            write_image(folder / name / f"{number}.png", first + count * label + number)


def send_rows(pipe: Connection, rows: FileRows) -> None:
    pipe.send(rows[np.array([1, 0])])


def values_of(dataset: Dataset) -> set[int]:
    """Return the red of each image, which identifies it."""
    return set(dataset.inputs[:][:, 0, 0, 0].tolist())


# Folders


def test_split_folders_are_splits_and_not_classes(tmp_path: Path) -> None:
    write_images(tmp_path / "train", "cat dog", 9)
    write_images(tmp_path / "val", "cat dog", 3, first=100)
    splits = {split: load_dataset(f"imagefolder:{tmp_path},size=8:{split}") for split in ("public", "private", "test")}
    assert {dataset.class_names for dataset in splits.values()} == {("cat", "dog")}
    assert values_of(splits["test"]) == set(range(100, 106))
    assert values_of(splits["public"]) | values_of(splits["private"]) == set(range(18))
    assert not values_of(splits["public"]) & values_of(splits["private"])


@pytest.mark.parametrize("names", ["train_images test_images", "Train_1 val2", "test val", "holdout dev"])
def test_folders_that_look_like_splits_are_no_classes(tmp_path: Path, names: str) -> None:
    for number, name in enumerate(names.split()):
        write_images(tmp_path / name, "cat dog", 2, first=50 * number)
    with pytest.raises(ValueError, match="with the same folders in each, as splits have: name them train and test"):
        load_dataset(f"imagefolder:{tmp_path},size=8")


def test_folders_within_classes_are_allowed(tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog")):
        write_images(tmp_path / name, "indoor outdoor", 2, first=50 * number)
    assert load_dataset(f"imagefolder:{tmp_path},size=8:all").class_names == ("cat", "dog")


def test_all_of_split_folders_is_not_one_of_them(tmp_path: Path) -> None:
    for number, name in enumerate(("training", "testing")):
        write_images(tmp_path / name, "cat dog", 3, first=50 * number)
    assert values_of(load_dataset(f"imagefolder:{tmp_path},size=8:test")) == set(range(50, 56))
    with pytest.raises(ValueError, match="it has split folders: name one of them, testing, training"):
        load_dataset(f"imagefolder:{tmp_path},size=8:all")


def test_a_mistyped_split_of_a_folder_is_named(tmp_path: Path) -> None:
    write_images(tmp_path, "cat dog", 3)
    with pytest.raises(
        ValueError, match=r"split 'tset' is unknown, must be one of public, private, test, all, cat, dog \(did you mean test\?\)"
    ):
        load_dataset(f"imagefolder:{tmp_path}:tset")
    with pytest.raises(ValueError, match=r"split 'tset' is unknown"):
        load_dataset(f"imagefolder:{tmp_path},size=8:tset")


def test_links_to_folders_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    write_images(tmp_path / "real", "cat", 3)
    write_images(tmp_path / "data", "dog", 2, first=50)
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "real" / "cat")
    (tmp_path / "data" / "dog" / "circle").symlink_to(tmp_path / "data")
    dataset = load_dataset(f"imagefolder:{tmp_path}/data,size=8:all")
    assert sorted(dataset.inputs[:][:, 0, 0, 0].tolist()) == [0, 1, 2, 50, 51]


def test_a_public_folder_leaves_the_training_folder_to_private(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "public", "test")):
        write_images(tmp_path / split, "cat dog", 4, first=50 * number)
    public, private = (load_dataset(f"imagefolder:{tmp_path},size=8:{split}") for split in ("public", "private"))
    assert (values_of(public), values_of(private)) == (set(range(50, 58)), set(range(8)))


def test_the_test_split_is_never_the_training_folder(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "public")):
        write_images(tmp_path / split, "cat dog", 10, first=50 * number)
    public, private, test = (load_dataset(f"imagefolder:{tmp_path},size=8:{split}") for split in ("public", "private", "test"))
    assert values_of(public) == set(range(50, 70))
    assert values_of(private) | values_of(test) == set(range(20))
    assert not values_of(private) & values_of(test)


def test_split_folders_beside_other_folders_are_refused(tmp_path: Path) -> None:
    for split in ("train", "val", "notes"):
        write_images(tmp_path / split, "cat dog", 4)
    with pytest.raises(ValueError, match="has split folders, train, val, and also notes: move the others away, or name a split"):
        load_dataset(f"imagefolder:{tmp_path},size=8:private")


def test_split_folders_in_capitals_are_refused(tmp_path: Path) -> None:
    for split in ("Train", "Val"):
        write_images(tmp_path / split, "cat dog", 4)
    with pytest.raises(ValueError, match="has the folders Train, Val: write names of split folders in lower case"):
        load_dataset(f"imagefolder:{tmp_path}")


def test_channels_last_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"has samples of \[8, 8, 3\], with channels last: move them first"):
        load_dataset(f"npy:{tmp_path}/x.npy:all")


def test_folders_above_and_hidden_ones_are_no_splits(tmp_path: Path) -> None:
    write_images(tmp_path / "a", "cat dog", 4)
    for name in ("..", ".", ".hidden"):
        with pytest.raises(ValueError, match=r"split '.*' is unknown"):
            load_dataset(f"imagefolder:{tmp_path / 'a'}:{name}")


def test_a_folder_is_a_split_of_its_own_name(tmp_path: Path) -> None:
    write_images(tmp_path / "train", "cat dog", 4)
    write_images(tmp_path / "night", "cat dog", 4, first=50)
    assert values_of(load_dataset(f"imagefolder:{tmp_path},size=8:night")) == set(range(50, 58))


def test_a_class_folder_without_images_is_named(tmp_path: Path) -> None:
    write_images(tmp_path, "cat dog", 4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*/empty has no images .*: add images, or remove it"):
        load_dataset(f"imagefolder:{tmp_path}")


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    write_images(tmp_path, "cat dog", 4)
    (tmp_path / ".cache").mkdir()
    assert load_dataset(f"imagefolder:{tmp_path}").class_names == ("cat", "dog")


def test_images_without_labels_are_in_any_folder(tmp_path: Path) -> None:
    for number in range(10):
        write_image(tmp_path / str(number % 3) / f"{number}.png", number)
    dataset = load_dataset(f"unlabelled:{tmp_path},size=8")
    assert (dataset.is_labelled, dataset.num_classes, dataset.class_names) == (False, 0, ())
    assert values_of(dataset) == set(range(10))
    parts = [load_dataset(f"unlabelled:{tmp_path},size=8:{split}") for split in ("public", "private", "test")]
    assert sum(len(part.labels) for part in parts) == 10
    assert set.union(*map(values_of, parts)) == set(range(10))


def test_a_folder_without_classes_names_the_unlabelled_form(tmp_path: Path) -> None:
    write_image(tmp_path / "0.png", 0)
    with pytest.raises(ValueError, match=f"for images without classes use unlabelled:{tmp_path}"):
        load_dataset(f"imagefolder:{tmp_path}")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match=r"has no images, must have files with one of \.jpg"):
        load_dataset(f"unlabelled:{tmp_path / 'nothing'}")


def test_grey_16_bit_and_transparent_images_are_scaled_to_rgb(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((8, 8), 257 * 100, np.uint16)).save(tmp_path / "a" / "0.png")
    Image.new("L", (8, 8), 100).save(tmp_path / "a" / "1.png")
    Image.new("RGBA", (8, 8), (100, 100, 100, 7)).save(tmp_path / "a" / "2.png")
    assert np.array_equal(load_dataset(f"unlabelled:{tmp_path},size=8").inputs, np.full((3, 3, 8, 8), 100))


def test_images_of_32_bits_are_named(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "deep.tiff")
    with pytest.raises(WorldError, match=r"deep.tiff cannot be read as an image: .*32 bits, must have 8 or 16 bits"):
        load_dataset(f"unlabelled:{tmp_path},size=8")


def test_a_resize_rule_reads_the_files_and_keeps_the_digest(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(5):
        Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8)).save(tmp_path / f"{number}.png")
    small = load_dataset(f"unlabelled:{tmp_path},size=8")
    large = resized(small, parse_preprocessing("unit", "40/32"))
    assert (large.inputs.shape, large.digest) == ((5, 3, 32, 32), small.digest)
    image = Image.open(small.files[0]).resize((53, 40), Image.Resampling.BILINEAR)
    assert np.array_equal(large.inputs[0], np.asarray(image.crop((10, 4, 42, 36))).transpose(2, 0, 1))


# Decoded images on disk


def test_many_images_are_decoded_once_and_read_from_the_disk(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, "cat dog", 60)
    spec = f"imagefolder:{tmp_path},size=8"
    in_memory = load_dataset(spec)
    monkeypatch.setattr(decoded, "MOST_IN_MEMORY", 1000)
    on_disk = load_dataset(spec)
    assert isinstance(on_disk.inputs, FileRows)
    assert on_disk.digest == in_memory.digest
    assert np.array_equal(on_disk.inputs[np.array([5, 0, 90])], in_memory.inputs[[5, 0, 90]])
    assert np.array_equal(on_disk.head(7).inputs[:], in_memory.inputs[:7])
    monkeypatch.setattr(decoded, "_decoded", None)  # the second load decodes nothing
    monkeypatch.setattr(FileRows, "__getitem__", None)  # and reads nothing
    assert load_dataset(spec).digest == in_memory.digest


def test_an_interrupted_decoding_goes_on_where_it_stopped(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, "cat dog", 100)
    spec, decode = f"imagefolder:{tmp_path},size=8", decoded._decoded
    digest = load_dataset(spec).digest
    monkeypatch.setattr(decoded, "MOST_IN_MEMORY", 1000)
    begins = []

    def interrupted(files: object, one: object, begin: int) -> object:
        begins.append(begin)
        for number, batch in enumerate(decode(files, one, begin)):  # type: ignore[arg-type]
            if len(begins) == 1 and number == 1:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(decoded, "_decoded", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_dataset(spec)
    (rows,) = cache.glob("*/rows")
    with rows.open("ab") as file:
        file.write(b"part of a row")
    assert load_dataset(spec).digest == digest
    assert begins[0] == 0
    assert begins[1] > 0


def test_a_changed_folder_is_decoded_again_and_its_former_cache_removed(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoded, "MOST_IN_MEMORY", 1000)
    write_images(tmp_path, "cat dog", 20)
    before = load_dataset(f"imagefolder:{tmp_path},size=8:all")
    load_dataset(f"imagefolder:{tmp_path},size=8:test")
    write_image(tmp_path / "cat" / "0.png", 255)
    after = load_dataset(f"imagefolder:{tmp_path},size=8:all")
    assert 255 in values_of(after)
    assert before.digest != after.digest
    assert len(list(cache.iterdir())) == 2, "the caches of other splits stay"


def test_a_disk_without_the_space_is_named_with_the_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoded, "MOST_IN_MEMORY", 1000)
    monkeypatch.setattr(decoded, "free_bytes", lambda _: 1000)
    write_images(tmp_path, "cat dog", 20)
    with pytest.raises(WorldError, match=r"need 6,144 bytes of disk when decoded, but .* has .*: name a smaller size="):
        load_dataset(f"imagefolder:{tmp_path},size=8")


def test_rows_on_disk_reach_another_process_though_the_file_is_deleted(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    values = np.arange(24, dtype=np.float32).reshape(6, 4)
    path.write_bytes(values.tobytes())
    rows = FileRows(os.open(path, os.O_RDONLY), sample_shape=(4,), dtype=np.float32, row_ids=np.array([5, 1, 2]))
    path.unlink()
    assert np.array_equal(rows[:], values[[5, 1, 2]])
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=send_rows, args=(theirs, rows.select(slice(2))))
    process.start()
    assert np.array_equal(ours.recv(), values[[1, 5]])
    process.join()


# Arrays


def test_npy_files_have_any_shape_and_labels_of_numbers_or_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(20 * 6, dtype=np.float32).reshape(20, 2, 3)
    np.save(tmp_path / "x.npy", values)
    np.save(tmp_path / "y.npy", np.array(["walk", "run"] * 10))
    np.save(tmp_path / "z.npy", np.array([6, 1, 10, 1] * 5))
    spec = f"npy:{tmp_path}/x.npy,labels={tmp_path}/"
    dataset = load_dataset(f"{spec}y.npy:all")
    assert (dataset.input_shape, dataset.inputs.dtype, dataset.class_names) == ((2, 3), np.float32, ("run", "walk"))
    rows = [int(sample[0, 0]) // 6 for sample in dataset.inputs[:]]
    assert [dataset.class_names[label] for label in dataset.labels] == [("walk", "run")[row % 2] for row in rows]
    assert load_dataset(f"{spec}z.npy").class_names == ("1", "6", "10")
    assert not load_dataset(f"npy:{tmp_path}/x.npy").is_labelled
    monkeypatch.setattr(arrays, "MOST_IN_MEMORY", 10)
    on_disk = load_dataset(f"{spec}y.npy:all")
    assert isinstance(on_disk.inputs, FileRows)
    assert (on_disk.digest, on_disk.labels.tolist()) == (dataset.digest, dataset.labels.tolist())


def test_only_the_first_start_reads_all_rows_of_a_large_npy_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "MOST_IN_MEMORY", 10)
    np.save(tmp_path / "x.npy", np.arange(40, dtype=np.float32).reshape(20, 2))
    spec = f"npy:{tmp_path}/x.npy"
    first = load_dataset(spec).digest
    with monkeypatch.context() as patched:
        patched.setattr(FileRows, "__getitem__", lambda self, ids: pytest.fail("rows were read"))
        assert load_dataset(spec).digest == first
    assert load_dataset(f"{spec}:test").digest != first
    np.save(tmp_path / "x.npy", np.ones((20, 2), np.float32))
    assert load_dataset(spec).digest != first


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 2)), "has float64, must be float32 or uint8; convert it with .astype"),
        (np.zeros((4, 2), ">f4"), "has >f4 in big-endian order, must be float32 or uint8"),
        (np.zeros(4, np.float32), "at least two dimensions"),
        (np.asfortranarray(np.zeros((4, 2), np.float32)), "Fortran order"),
        (np.array([object()]), "is not a NumPy array file"),
        (np.full((4, 2), np.nan, np.float32), "sample 0 contains NaN or infinity"),
    ],
)
def test_an_unusable_npy_file_is_named(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match=message):
        load_dataset(f"npy:{tmp_path}/x.npy:all")


def test_labels_of_another_length_and_unknown_options_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 2), np.float32))
    np.save(tmp_path / "y.npy", np.zeros(5, np.int64))
    with pytest.raises(ValueError, match="has 5 labels for 4 samples"):
        load_dataset(f"npy:{tmp_path}/x.npy,labels={tmp_path}/y.npy")
    with pytest.raises(ValueError, match="has the option 'label=y', must be labels="):
        load_dataset(f"npy:{tmp_path}/x.npy,label=y")
    with pytest.raises(ValueError, match=r"^npy:FILE: .*No such file"):
        load_dataset(f"npy:{tmp_path}/none.npy")


TABLE = "x, y, activity\n" + "".join(f"{row},{row + 0.5},{'walk' if row < 7 else 'run'}\n" for row in range(12))


def test_labels_have_one_order_in_every_process(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 2), np.float32))
    np.save(tmp_path / "y.npy", np.array(["1", "01", "+1", "2"]))
    assert load_dataset(f"npy:{tmp_path}/x.npy,labels={tmp_path}/y.npy").class_names == ("+1", "01", "1", "2")


def test_windows_of_a_table_do_not_span_a_change_of_the_label(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TABLE)
    dataset = load_dataset(f"csv:{tmp_path}/t.csv,window=3,label=activity:all")
    assert (dataset.input_shape, dataset.inputs.dtype, dataset.class_names) == ((2, 3), np.float32, ("run", "walk"))
    found = {
        tuple(sample[0].tolist()): dataset.class_names[label] for sample, label in zip(dataset.inputs, dataset.labels, strict=True)
    }
    assert found == {(0, 1, 2): "walk", (3, 4, 5): "walk", (7, 8, 9): "run"}
    overlapping = load_dataset(f"csv:{tmp_path}/t.csv,window=3,step=1,label=activity:all")
    assert len(overlapping.labels) == 5 + 3
    (tmp_path / "u.csv").write_text("x,y\n" + "1,2\n" * 9)
    assert len(load_dataset(f"csv:{tmp_path}/u.csv,window=3:all").labels) == 3


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (TABLE, "", "needs window=ROWS"),
        (TABLE, ",window=0", "window is '0', must be in 1"),
        (TABLE, ",window=3", "row 2 has a value that is not a number"),
        (TABLE, ",window=3,label=activty", "has no column 'activty' \\(did you mean activity\\?\\)"),
        (TABLE, ",window=30,label=activity", "has no 30 consecutive rows of one label"),
        ("x,y\n1,2\n1\n", ",window=1", "row 3 has 1 values, must have 2"),
        ("x,y\n1,2\n1,nan\n", ",window=1", "row 3 has a value that is not finite"),
        ("x,y\n", ",window=1", "has no numbers"),
        ("1,2\n3,4\n", ",window=1", "the first row has numbers, must have the names of the columns"),
        ("", ",window=1", "has no numbers"),
        ("x,y\n1,\xe9\n", ",window=1", "row 2 has a value that is not a number"),
    ],
)
def test_an_unusable_table_is_named_with_the_row(tmp_path: Path, table: str, options: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(ValueError, match=message):
        load_dataset(f"csv:{tmp_path}/t.csv{options}:all")


# PyTorch data sets

MODULE = """
import torch

class Windows(torch.utils.data.Dataset):
    classes = ["stand", "walk"]
    def __init__(self, split):
        self.first = {"all": 0, "public": 0, "private": 10, "test": 20}[split]
    def __len__(self):
        return 10
    def __getitem__(self, index):
        return torch.full((3, 5), float(self.first + index)), torch.tensor(index % 2)

def whole():
    return torch.utils.data.TensorDataset(torch.arange(30, dtype=torch.uint8).reshape(30, 1), torch.arange(30) % 3)

def unlabelled():
    return [(torch.zeros(2),)] * 6

def uneven():
    return [(torch.zeros(2),), (torch.zeros(3),)]

def doubles():
    return [torch.zeros(2, dtype=torch.float64)] * 6

def words():
    return [(torch.zeros(2), "cat")] * 6

def pictures():
    from PIL import Image
    return [(Image.new("RGB", (8, 8)), 0)] * 6

def scalars():
    return [torch.tensor(1.0)] * 6

def fails():
    raise RuntimeError("no disk")

def endless():
    return iter([])
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = f"own_data_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(MODULE)
    return name


def test_a_data_set_in_the_current_folder_gets_its_split(module: str) -> None:
    dataset = load_dataset(f"{module}:Windows:private")
    assert (dataset.input_shape, dataset.inputs.dtype, dataset.class_names) == ((3, 5), np.float32, ("stand", "walk"))
    assert dataset.inputs[:, 0, 0].tolist() == list(range(10, 20))
    assert dataset.labels.tolist() == [0, 1] * 5


def test_a_data_set_without_splits_is_divided(module: str) -> None:
    parts = [load_dataset(f"{module}:whole:{split}") for split in ("public", "private", "test")]
    assert sorted(value for part in parts for value in part.inputs.ravel().tolist()) == list(range(30))
    assert all(part.class_names == ("0", "1", "2") for part in parts)
    assert all((part.inputs[:, 0] % 3 == part.labels).all() for part in parts)
    assert not load_dataset(f"{module}:unlabelled").is_labelled


def test_a_split_that_a_data_set_does_not_have_is_named(module: str) -> None:
    with pytest.raises(ValueError, match="split 'train' is unknown, must be one of public, private, test or all"):
        load_dataset(f"{module}:whole:train")
    with pytest.raises(ValueError, match="it takes a split, so name one"):
        load_dataset(f"{module}:Windows")


def test_a_large_data_set_is_read_into_a_file(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_memory = load_dataset(f"{module}:whole:private")
    monkeypatch.setattr(arrays, "MOST_IN_MEMORY", 3)
    on_disk = load_dataset(f"{module}:whole:private")
    assert isinstance(on_disk.inputs, FileRows)
    assert (on_disk.digest, on_disk.labels.tolist()) == (in_memory.digest, in_memory.labels.tolist())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("uneven", r"item number 1 is float32 \[.\], the first is float32 \[.\]: all must be equal"),
        ("doubles", r"is a Tensor of float64 \[2\], must be a tensor or array of float32 or uint8"),
        ("words", "the label of item . is cat, must be an integer"),
        ("pictures", "is a Image, must be a tensor or array of float32 or uint8, .*ToTensor"),
        ("scalars", r"is a Tensor of float32 \[\], must be"),
        ("fails", "failed: RuntimeError: no disk"),
        ("endless", "is a list_iterator, must be a map-style data set"),
        ("nothing", "cannot be imported: .*has no attribute 'nothing'"),
    ],
)
def test_an_unusable_data_set_is_named_with_the_cause(module: str, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_dataset(f"{module}:{name}:all")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (",x,activity\n0,1,walk\n", "column 1 has no name: remove it"),
        ("x;activity\n1;walk\n", "is separated by semicolons"),
        ("x,activity\n1,walk\n2,\n", "row 3 has no activity"),
    ],
)
def test_a_table_with_gaps_is_explained(tmp_path: Path, table: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(ValueError, match=message):
        load_dataset(f"csv:{tmp_path}/t.csv,window=1,label=activity")


def test_a_label_that_is_no_class_number_is_refused() -> None:
    with pytest.raises(ValueError, match="things has the label 1000000000000, must be below"):
        arrays.numbered_classes([0, 10**12], "things")
    assert arrays.numbered_classes([0, 2], "things") == ("0", "1", "2")


def test_a_test_set_that_contains_training_data_is_recognised() -> None:
    assert splits.overlaps("fashion-mnist", "fashion-mnist:private")
    assert splits.overlaps("imagefolder:a,size=8:all", "imagefolder:a,size=8:private")
    assert splits.overlaps("imagefolder:a:night", "imagefolder:a:night") == splits.overlaps("npy:a", "npy:a") is True
    assert not splits.overlaps("imagefolder:b:all", "imagefolder:a:private")
    assert not splits.overlaps("fashion-mnist:test", "fashion-mnist:private")
    assert not splits.overlaps("fashion-mnist:public", "fashion-mnist:private")
