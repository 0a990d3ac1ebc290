"""Predicts the class of files with a trained student."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_student.inference.runtimes import BATCH, open_exported, predictor_of
from edge_student.inference.student import Student, load_student
from edge_student.settings.inference import PredictConfig
from edgekd.data.preprocessing import Preprocessing
from edgekd.data.tensors import resized, resized_image
from edgekd.errors import WorldError
from edgekd.files import expanded
from edgekd.wire.inputs import open_rgb, square_pixels

_MOST = 3
"""Classes that are printed for a sample."""


def predict(config: PredictConfig) -> int:
    """Print the most probable classes of each file, one line for each sample. Returns the exit status."""
    student = load_student(expanded(config.student), config.model)
    run = predictor_of(student) if config.exported is None else open_exported(expanded(config.exported))
    names = student.class_names or tuple(map(str, range(student.card.num_classes)))
    for file in config.files:
        samples = read_samples(expanded(Path(file)), student)
        parts = [run(samples[begin : begin + BATCH]) for begin in range(0, len(samples), BATCH)]
        for number, probabilities in enumerate(_softmax(np.concatenate(parts))):
            best = np.argsort(-probabilities, kind="stable")[:_MOST].tolist()
            where = file if len(samples) == 1 else f"{file}[{number}]"
            if config.json:
                print(json.dumps({"file": where, "classes": {names[n]: float(probabilities[n]) for n in best}}))
            else:
                print(f"{where}: {', '.join(f'{names[n]} {probabilities[n]:.3f}' for n in best)}")
    return 0


def read_samples(file: Path, student: Student) -> npt.NDArray[Any]:
    """Return the samples of an image file or of a NumPy file, [B, ...], in the size of the student's input.

    Raises ValueError for samples that do not fit, and WorldError for a file that is no image.
    """
    shape, rules = student.card.input_shape, student.preprocessing
    if file.suffix == ".npy":
        try:
            samples: npt.NDArray[Any] = np.load(file, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{file} is not a NumPy array file: save one with numpy.save") from error
        samples = samples[np.newaxis] if samples.ndim == len(shape) else samples
        if samples.dtype not in (np.dtype(np.uint8), np.dtype(np.float32)):
            raise ValueError(f"{file} has {samples.dtype}, must be uint8 or float32")
        if samples.ndim != 1 + len(shape) or not len(samples):
            raise ValueError(f"{file} has the shape {list(samples.shape)}, must be [samples, {', '.join(map(str, shape))}]")
        rules.check(samples.shape[1:], samples.dtype)
        samples = resized(samples, rules)
    elif len(shape) != 3:
        raise ValueError(f"the student takes samples of {list(shape)}, which are no images: name .npy files")
    else:
        samples = _pixels(file, shape, rules)[np.newaxis]
    if (found := replace(rules, resize=None).shape_of(samples.shape[1:])) != shape:
        raise ValueError(f"{file} has samples of {list(found)}, the student takes {list(shape)}")
    return np.ascontiguousarray(samples)


def _pixels(file: Path, shape: tuple[int, ...], rules: Preprocessing) -> npt.NDArray[np.uint8]:
    """Return the pixels of an image as the data sets decode it, uint8 [C, H, W]."""
    try:
        pixels = square_pixels(file, shape[-1]) if rules.resize is None else resized_image(open_rgb(file), rules.resize)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        raise WorldError(f"{file} cannot be read as an image: {error}") from error
    return _to_grey(pixels) if rules.channels == 0 and shape[0] == 1 else pixels


def _to_grey(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Convert uint8 [3, H, W] to grey, uint8 [1, H, W], as Pillow does."""
    from PIL import Image

    grey = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).convert("L")
    return np.asarray(grey)[np.newaxis]


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    values = np.exp((logits - logits.max(axis=1, keepdims=True)).astype(np.float64))
    return values / values.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]
