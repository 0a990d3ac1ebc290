"""Folders of images: `imagefolder:PATH`, whose subfolders are classes, and `unlabelled:PATH`, any images without labels.

An image folder may have a folder for each split: PATH/train/CLASS and PATH/val/CLASS or PATH/test/CLASS, as PyTorch's examples
have. A split that has no folder of its own is taken from the others, see `_split_folder`.
"""

import logging
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekd.cli.settings import closest, parse_numbers
from edgekd.data.decoded import decode_files
from edgekd.data.loaded import Loaded
from edgekd.data.preprocessing import MAX_SIZE, ResizeRule
from edgekd.data.rows import Samples
from edgekd.data.splits import ALL, SPLITS, TEST_FOLDERS, all_ids, train_ids, whole_ids
from edgekd.data.tensors import resized_image
from edgekd.files import expanded
from edgekd.wire.inputs import open_rgb, square_pixels

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_TRAIN = ("train", "training")
_SPLIT_LIKE = re.compile(r"(train|test|val|eval|dev)", re.IGNORECASE)

IdsOf = Callable[[int], npt.NDArray[np.int64]]

logger = logging.getLogger(__name__)


def image_folder(argument: str, split: str) -> Loaded:
    """PATH[,size=64]: PATH/CLASS/IMAGE, or PATH/SPLIT/CLASS/IMAGE, with classes in the order of their sorted names.

    Each image is converted to RGB, cropped at its centre to a square and scaled to size x size, bilinear. Pillow computes the
    pixels, so both ends need the same version of it. If the pixels differ, the digests differ.
    """
    root, size = _parse("imagefolder", argument)
    folder, ids_of = _split_folder(root, split)
    classes = _class_folders(folder, f"imagefolder:{root}")
    all_files = [file for files in classes.values() for file in files]
    all_labels = np.repeat(np.arange(len(classes)), [len(files) for files in classes.values()])
    ids = ids_of(len(all_files))
    files = tuple(all_files[sample] for sample in ids.tolist())
    inputs = _squares(files, size, f"imagefolder {split}", root)
    return Loaded(inputs, all_labels[ids], tuple(entry.name for entry in classes), files=files, root=root)


def unlabelled_images(argument: str, split: str) -> Loaded:
    """PATH[,size=64]: all images below PATH, decoded as those of `imagefolder:`. Without a split it is all of them."""
    root, size = _parse("unlabelled", argument)
    all_files = _images(root)
    if not all_files:
        raise ValueError(f"unlabelled:{root} has no images, must have files with one of {', '.join(SUFFIXES)}")
    ids = whole_ids(len(all_files), split or ALL)
    files = tuple(all_files[sample] for sample in ids.tolist())
    return Loaded(_squares(files, size, f"unlabelled {split}", root), None, (), files=files, root=root)


def resized_files(files: Sequence[str], rule: ResizeRule, *, root: Path, name: str) -> Samples:
    """Decode the image files of data set `name` by a model's own rule: uint8 [N, 3, height, width]. Raises as `decode_files`."""
    return decode_files(
        files, partial(_resized, rule=rule), shape=(3, *rule.size), rule=f"{name} {len(files)} resize {rule}", root=root
    )


def _resized(file: Path, *, rule: ResizeRule) -> npt.NDArray[np.uint8]:
    return resized_image(open_rgb(file), rule)


def _squares(names: Sequence[str], size: int, part: str, root: Path) -> Samples:
    rule = f"{part} square {size}"
    return decode_files(names, partial(square_pixels, size=size), shape=(3, size, size), rule=rule, root=root)


def _parse(name: str, argument: str) -> tuple[Path, int]:
    """Return folder and size of PATH[,size=64]."""
    path, _, options = argument.partition(",")
    if ":" in options:
        _check_split(name, argument, expanded(Path(path)))
    size = parse_numbers(f"{name}:PATH", options, {"size": 64})["size"]
    if size > MAX_SIZE:
        raise ValueError(f"{name}:{path}: size={size} is too large, must be in 1 .. {MAX_SIZE}")
    if not path or not expanded(Path(path)).is_dir():
        _check_split(name, path, expanded(Path(path.rpartition(":")[0])))
        kind = "a folder of images for each class" if name == "imagefolder" else "images"
        raise ValueError(f"{name}:PATH is '{path}', must be a folder with {kind}")
    return expanded(Path(path)), size


def _check_split(name: str, spec: str, root: Path) -> None:
    """Raise ValueError for a name that ends in an unknown split, if what precedes it is a folder."""
    base, _, split = spec.rpartition(":")
    if base and root.is_dir():
        names = tuple(dict.fromkeys((*SPLITS, ALL, *(entry.name for entry in _subfolders(root)))))
        raise ValueError(
            f"{name}:{spec}: split '{split}' is unknown, must be one of {', '.join(names[:20])}{closest(split, names)}"
        )


def _split_folder(root: Path, split: str) -> tuple[Path, IdsOf]:
    """Return the folder that has the images of a split, and the function from their number to the ids of the split.

    A split that has a folder of its own consists of all images there. Otherwise the test split is the validation folder, or a fifth
    of the training folder, and public and private share the rest. A folder without split folders is divided as a whole. Raises
    ValueError for a folder that has both split folders and others.
    """
    folders = {folder.name: folder for folder in _subfolders(root)}
    if split and split not in (*SPLITS, ALL):
        return folders[split], all_ids
    known = {*SPLITS, *_TRAIN, *TEST_FOLDERS}
    capitals = [name for name in folders if name not in known and name.lower() in known and any(_subfolders(folders[name]))]
    if capitals:
        raise ValueError(f"imagefolder:{root} has the folders {', '.join(capitals)}: write names of split folders in lower case")
    train, test = (next((folders[name] for name in names if name in folders), None) for names in (_TRAIN, TEST_FOLDERS))
    is_divided = train is not None and any(_subfolders(train)) and (test is not None or "public" in folders)
    if train is None or not (is_divided or folders.keys() == {train.name}):
        _reject_unknown_splits(root, folders)
        return root, partial(whole_ids, split=split)
    if others := sorted(folders.keys() - known):
        raise ValueError(
            f"imagefolder:{root} has split folders, {', '.join(sorted(folders.keys() - {*others}))}, and also {', '.join(others)}: "
            f"move the others away, or name a split, imagefolder:{root}:{others[0]}"
        )
    if not any(_subfolders(train)):  # one class of the name "train"
        return root, partial(whole_ids, split=split)
    logger.info("imagefolder:%s has a folder for each split: %s", root, ", ".join(sorted(folders)))
    if split in folders:
        return folders[split], all_ids
    if split == "test" and test is not None:
        return test, all_ids
    if split == ALL:
        raise ValueError(f"imagefolder:{root}:all: it has split folders: name one of them, {', '.join(sorted(folders))}")
    if split != "test" and "public" in folders:  # private is then all that is not test
        return train, all_ids if test is not None else partial(whole_ids, split="")
    return train, partial(whole_ids if test is None else train_ids, split=split)


def _reject_unknown_splits(root: Path, folders: dict[str, Path]) -> None:
    """Raise ValueError if the folders are probably splits of unknown names: split-like names, and the same folders in each."""
    inner = [{entry.name for entry in _subfolders(folder)} for folder in folders.values()]
    if len(folders) > 1 and any(map(_SPLIT_LIKE.match, folders)) and all(inner) and set.intersection(*inner):
        raise ValueError(
            f"imagefolder:{root} has the folders {', '.join(sorted(folders))}, with the same folders in each, as splits have: name "
            f"them train and test, or one of them, imagefolder:{root}:{min(folders)}; classes must have other names"
        )


def has_folder(argument: str, name: str) -> bool:
    """Return whether PATH[,size=64] has a folder `name` with class folders, which can be used as a split of that name."""
    path = argument.partition(",")[0]
    folders = {folder.name: folder for folder in _subfolders(expanded(Path(path)))} if path else {}
    return name in folders and any(_subfolders(folders[name]))


def _subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted by name, without hidden ones. Empty if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted((entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")), key=lambda e: e.name)


def _class_folders(folder: Path, spec: str) -> dict[Path, list[str]]:
    """Return the image files of each class folder. Raises ValueError if there is no class or a class without images."""
    classes = {entry: _images(entry) for entry in _subfolders(folder)}
    if not classes:
        raise ValueError(
            f"{spec} needs at least one folder, named after a class, and images in each; for images without classes use "
            f"unlabelled:{folder}"
        )
    for entry, files in classes.items():
        if not files:
            raise ValueError(f"{spec}: class folder {entry} has no images ({', '.join(SUFFIXES)}): add images, or remove it")
    return classes


def _images(folder: Path) -> list[str]:
    """Return the image files below a folder, sorted by folder and name. Follows links, except to a folder that contains them."""
    walk = []
    for path, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _contains(os.path.join(path, name), path)]
        walk.append((path, names))
    return [os.path.join(path, name) for path, names in sorted(walk) for name in sorted(names) if name.lower().endswith(SUFFIXES)]


def _contains(link: str, folder: str) -> bool:
    """Return whether a symbolic link leads to `folder` or to a folder above it, so that following it would never end."""
    if not os.path.islink(link):
        return False
    target = os.path.realpath(link)
    return os.path.commonpath([target, os.path.realpath(folder)]) == target
