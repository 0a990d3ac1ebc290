"""Exports a student with its preprocessing, and checks the file on real samples against the torch student."""

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edge_student.inference.data import load_samples
from edge_student.inference.runtimes import BATCH, FORMATS, open_exported, predictor_of
from edge_student.inference.student import Student, load_student
from edge_student.settings.inference import ExportConfig
from edgekd.data.dataset import Dataset
from edgekd.errors import WorldError
from edgekd.files import expanded, replace_atomically

logger = logging.getLogger(__name__)

_MOST = 1000
"""Samples on which an exported student is checked."""
_TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest logit."""


def export(config: ExportConfig) -> int:
    """Write the student in another format, check it, and print the largest difference. Returns the exit status."""
    student = load_student(expanded(config.student), config.model)
    out = expanded(config.out or config.student.with_suffix(FORMATS[config.format]))
    export_student(student, load_samples(config.data, student), config.format, out)
    return 0


def export_student(student: Student, data: Dataset, format_name: str, out: Path) -> float:
    """Write the student in a format of `FORMATS`, and check it on up to 1,000 samples. Returns the largest difference of a logit.

    `data` has the size of the student's input (`load_samples`). Raises ValueError if the model cannot be exported, a package is
    missing, or `out` has another suffix, WorldError for a file that differs too much, which is not kept, and OSError.
    """
    samples = data.inputs
    first = np.ascontiguousarray(samples[slice(2)])
    example = torch.from_numpy(first if len(first) > 1 else np.concatenate([first, first]))
    if out.suffix != FORMATS[format_name]:
        raise ValueError(f"--out is {out}, must end in {FORMATS[format_name]} for --format {format_name}")
    rows = samples[slice(_MOST)]

    differences: list[float] = []

    def write_and_check(fresh: Path) -> None:
        _write(student, example, format_name, fresh)
        difference, largest, agreement = _compare(student, fresh, rows)
        differences.append(difference)
        print(
            f"{out}: {fresh.stat().st_size:,} bytes. On {len(rows)} samples of {data.name}, logits differ by at most "
            f"{difference:.2g}, of {largest:.3g} for the largest, and {100 * agreement:.2f} % of the predicted classes agree."
        )

    replace_atomically(out, write_and_check)
    return differences[0]


def _compare(student: Student, path: Path, rows: npt.NDArray[Any]) -> tuple[float, float, float]:
    """Return the largest difference of a logit from torch, the largest logit, and the share of equal predicted classes.

    Raises WorldError for a file that differs too much, which is then not kept.
    """
    theirs, ours = open_exported(path), predictor_of(student)
    parts = [rows[begin : begin + BATCH] for begin in range(0, len(rows), BATCH)]
    expected, found = (np.concatenate([predict(part) for part in parts]) for predict in (ours, theirs))
    difference, largest = float(np.abs(expected - found).max()), float(np.abs(expected).max())
    most = _TOLERANCE * max(1.0, largest)
    if not difference <= most:
        raise WorldError(f"the exported student differs from torch by {difference:.2g}, must be at most {most:.2g}: it is not kept")
    return difference, largest, float((expected.argmax(axis=1) == found.argmax(axis=1)).mean())


def _write(student: Student, example: torch.Tensor, format_name: str, path: Path) -> None:
    """Write one format. Raises ValueError if the model cannot be exported or a package is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporters warn about their own deprecations
            {"onnx": _write_onnx, "pt2": _write_pt2, "executorch": _write_executorch}[format_name](student, example, path)
    except ImportError as error:
        raise ValueError(f"--format {format_name} needs a package: pip install edgekd[{format_name}] ({error})") from None
    except OSError:
        raise
    except Exception as error:  # the exporters raise errors of many types for a model that they do not support
        raise ValueError(f"{student.card.model} cannot be exported as {format_name}: {type(error).__name__}: {error}") from error


def _exported(student: Student, example: torch.Tensor, *, is_dynamic: bool) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(student, (example,), dynamic_shapes=({0: batch},) if is_dynamic else None)


def _write_pt2(student: Student, example: torch.Tensor, path: Path) -> None:
    with path.open("wb") as file:
        torch.export.save(_exported(student, example, is_dynamic=True), file)


def _write_onnx(student: Student, example: torch.Tensor, path: Path) -> None:
    program = torch.onnx.export(
        student,
        (example,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        input_names=["samples"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None
    program.save(str(path), external_data=False)


def _write_executorch(student: Student, example: torch.Tensor, path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = to_edge_transform_and_lower(
        _exported(student, example[:1], is_dynamic=False), partitioner=[XnnpackPartitioner()]
    ).to_executorch()
    path.write_bytes(program.buffer)
