"""Settings of `evaluate`, `predict` and `export`. The docstring below a field is its help text."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal


@dataclass(frozen=True, kw_only=True)
class _StudentFile:
    """The trained student."""

    help_group: ClassVar[str] = "model"

    student: Path = Path("runs/train/student.safetensors")
    """Trained student, the student.safetensors of a run."""
    model: str | None = None
    """Model of the student, package.module:callable. It confirms that the code which --student names is run. (default: the model
    that --student names, unless it is code)"""


@dataclass(frozen=True, kw_only=True)
class _Exported(_StudentFile):
    """A student, or a file that it was exported to."""

    help_group: ClassVar[str] = "model"

    exported: Path | None = None
    """Use this exported file of the same student, .onnx, .pt2 or .pte, in place of torch. (default: torch)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig(_Exported):
    """Measure the accuracy of a trained student, by class, with its confusion matrix."""

    data: str = field(metadata={"group": "data"})
    """Labelled data set, for example digits:test or imagefolder:PATH:test."""
    out: Path | None = field(default=None, metadata={"group": "output"})
    """Folder for evaluation.json and confusion.png. (default: that of --student)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictConfig(_Exported):
    """Print the most probable classes of images or of NumPy files."""

    positional: ClassVar[tuple[str, ...]] = ("files",)

    files: tuple[str, ...] = field(metadata={"group": "data"})
    """Images, or .npy files of one or more samples."""
    json: bool = field(default=False, metadata={"group": "output"})
    """Print one JSON object for each sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig(_StudentFile):
    """Export a trained student with its preprocessing, and check the file against torch on real samples."""

    data: str = field(metadata={"group": "data"})
    """Data set on whose first 1,000 samples the exported student is checked."""
    format: Literal["onnx", "pt2", "executorch"] = field(default="onnx", metadata={"group": "output"})
    """Format: onnx, pt2 (torch.export) or executorch. onnx and executorch need the extra of that name."""
    out: Path | None = field(default=None, metadata={"group": "output"})
    """File to write. (default: beside --student)"""
