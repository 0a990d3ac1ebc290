"""The table of data sets, and the loaders of those that have a name of their own.

A source is a function of (argument, split) that returns the loaded samples. split is public, private, test, or empty for the whole
training part. Data of the user also have the split all, and image folders have the names of their folders. Loaders of the
user's own files are in folders.py, arrays.py and hugging_face.py.
"""

import contextlib
import gzip
import sys
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.cli.settings import parse_numbers
from edgekd.data.arrays import csv_windows, npy
from edgekd.data.folders import image_folder, unlabelled_images
from edgekd.data.hugging_face import hugging_face
from edgekd.data.loaded import Loaded
from edgekd.data.preprocessing import MAX_SIZE
from edgekd.data.splits import OWN_SOURCES, SPLITS, train_ids, whole_ids
from edgekd.errors import WorldError
from edgekd.wire.limits import MAX_CLASSES

Source = Callable[[str, str], Loaded]

# Generated data lie in memory, that of an edge board beside a model.
MAX_SYNTHETIC_BYTES = 2 << 30
CACHE = Path("~/.cache/edgekd/datasets")
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def _digits(argument: str, split: str) -> Loaded:
    """1,797 handwritten digits of 8x8 pixels that come with scikit-learn (UCI's test set; Alpaydin and Kaynak, 1998)."""
    _reject_argument("digits", argument)
    # The file that scikit-learn's load_digits() reads. Importing that function takes 1.5 s at the start of every run.
    package = find_spec("sklearn")
    assert package is not None
    assert package.origin is not None
    with gzip.open(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.int64)
    rows = rows[whole_ids(len(rows), split)]
    # Pixels are counts in 0 .. 16; the last column is the label.
    images = np.rint(rows[:, :-1] * (255 / 16)).astype(np.uint8)
    return Loaded(images.reshape(-1, 1, 8, 8), rows[:, -1].copy(), tuple(map(str, range(10))))


def _fashion_mnist(argument: str, split: str) -> Loaded:
    """70,000 articles of clothing of 28x28 pixels (Xiao, Rasul and Vollgraf, 2017)."""
    _reject_argument("fashion-mnist", argument)
    if DEBIAN_FASHION_MNIST.is_dir():
        prefix = "t10k" if split == "test" else "train"
        images = _read_idx(DEBIAN_FASHION_MNIST / f"{prefix}-images-idx3-ubyte.gz", num_dims=3)
        labels = _read_idx(DEBIAN_FASHION_MNIST / f"{prefix}-labels-idx1-ubyte.gz", num_dims=1)
    else:
        part = _download("fashion-mnist", "FashionMNIST", split)
        images, labels = part.data.numpy(), part.targets.numpy()
    ids = slice(None) if split == "test" else train_ids(len(labels), split)
    return Loaded(images[ids][:, np.newaxis], labels[ids].astype(np.int64), _FASHION)


def _cifar(num_classes: int) -> Source:
    """60,000 photographs of 32x32 pixels in 10 or 100 classes (Krizhevsky, 2009)."""

    def read(argument: str, split: str) -> Loaded:
        _reject_argument(f"cifar{num_classes}", argument)
        part = _download(f"cifar{num_classes}", f"CIFAR{num_classes}", split)
        labels = np.asarray(part.targets, dtype=np.int64)
        ids = slice(None) if split == "test" else train_ids(len(labels), split)
        return Loaded(part.data[ids].transpose(0, 3, 1, 2), labels[ids], tuple(part.classes))

    return read


def _synthetic(argument: str, split: str) -> Loaded:
    """classes=K,size=S,samples=M[,channels=3]: noise for load tests, M samples in each split, labels 0 .. K-1 repeated.

    numpy's RandomState generates the noise. It is frozen, so that the noise is the same on every version and machine.
    """
    required = {"classes": None, "size": None, "samples": None}
    numbers = parse_numbers("synthetic", argument, {**required, "channels": 3})
    classes, size, samples, channels = (numbers[key] for key in ("classes", "size", "samples", "channels"))
    if classes > MAX_CLASSES:
        raise ValueError(f"synthetic: classes={classes} is too large, must be in 1 .. {MAX_CLASSES}")
    if channels not in (1, 3):
        raise ValueError(f"synthetic: channels={channels}, must be 1 or 3")
    splits = ("public", "private") if split == "" else (split,)
    _check_bytes(f"synthetic:{argument}", samples * len(splits), channels, size)
    images = np.empty((len(splits), samples, channels, size, size), dtype=np.uint8)
    for part, name in zip(images, splits, strict=True):
        noise = np.random.RandomState(SPLITS.index(name))
        for image in part:
            image.flat = np.frombuffer(noise.bytes(image.size), dtype=np.uint8)
    labels = np.tile(np.arange(samples, dtype=np.int64) % classes, len(splits))
    return Loaded(images.reshape(-1, channels, size, size), labels, (), num_classes=classes)


SOURCES: dict[str, Source] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "cifar10": _cifar(10),
    "cifar100": _cifar(100),
    "imagefolder": image_folder,
    "unlabelled": unlabelled_images,
    "npy": npy,
    "csv": csv_windows,
    "hf": hugging_face,
    "synthetic": _synthetic,
}
WITH_ARGUMENT = (*OWN_SOURCES, "synthetic")
"""Sources that are NAME:ARGUMENT[:SPLIT]."""


def _reject_argument(name: str, argument: str) -> None:
    if argument:
        raise ValueError(f"data set '{name}' takes no options, but was given '{argument}'; write {name}[:SPLIT]")


def _check_bytes(spec: str, samples: int, channels: int, size: int) -> None:
    if size > MAX_SIZE:
        raise ValueError(f"{spec}: size={size} is too large, must be in 1 .. {MAX_SIZE}")
    num_bytes = samples * channels * size * size
    if num_bytes > MAX_SYNTHETIC_BYTES:
        raise ValueError(f"{spec}: {samples} images are {num_bytes} bytes, must be at most {MAX_SYNTHETIC_BYTES}")


def _download(name: str, torchvision_name: str, split: str) -> Any:
    """Load torchvision's data set, and download it to CACHE if it is missing."""
    import torchvision

    root = CACHE.expanduser()
    try:
        # torchvision prints to stdout, which is reserved for the program's results.
        with contextlib.redirect_stdout(sys.stderr):
            return getattr(torchvision.datasets, torchvision_name)(root, train=split != "test", download=True)
    except (OSError, RuntimeError) as error:
        raise WorldError(
            f"cannot download data set {name}: {error}; check the network, copy its files into {root} from a machine"
            " that has them, or use digits, which needs no download"
        ) from error


def _read_idx(path: Path, *, num_dims: int) -> npt.NDArray[np.uint8]:
    """Read a uint8 array in the IDX format: magic number, big-endian dimensions, values (LeCun's MNIST page)."""
    try:
        content = gzip.decompress(path.read_bytes())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise WorldError(f"{path} is damaged: {error}; reinstall the package dataset-fashion-mnist") from error
    header = 4 + 4 * num_dims
    if len(content) < header:
        raise WorldError(f"{path} is damaged: it ends within its header; reinstall the package dataset-fashion-mnist")
    shape = tuple(int(length) for length in np.frombuffer(content[4:header], dtype=">u4"))
    if content[:4] != bytes([0, 0, 8, num_dims]) or len(content) - header != np.prod(shape, dtype=np.int64):
        raise WorldError(f"{path} is damaged: not uint8 in {num_dims} dimensions; reinstall dataset-fashion-mnist")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
