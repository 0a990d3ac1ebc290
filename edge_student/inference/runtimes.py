"""Runs a student in the form that it was exported to: logits of samples, by torch or by another runtime.

The packages of the other runtimes are optional: edgekd[onnx] and edgekd[executorch].
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edge_student.inference.student import Student
from edgekd.errors import WorldError

Predictor = Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]
"""A function of samples [B, ...] that returns logits, float32 [B, classes]."""

FORMATS = {"onnx": ".onnx", "pt2": ".pt2", "executorch": ".pte"}
"""Suffix of each format."""
BATCH = 64
"""Samples in one call."""


def predictor_of(student: Student) -> Predictor:
    """Return the student itself as a predictor."""

    def predict(samples: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            return student(torch.tensor(samples)).numpy()  # type: ignore[no-any-return]

    return predict


def open_exported(path: Path) -> Predictor:
    """Return a predictor of an exported file. Raises ValueError for an unknown format, a damaged file or a missing package."""
    path.open("rb").close()  # an unreadable file raises the OSError of the operating system
    openers = {".onnx": _open_onnx, ".pt2": _open_pt2, ".pte": _open_executorch}
    if path.suffix not in openers:
        raise ValueError(f"{path} must end in {', '.join(openers)}")
    try:
        return _named(openers[path.suffix](path), path)
    except ImportError as error:
        raise ValueError(f"{path} needs a package that is not installed: {_remedy(path.suffix)} ({error})") from None
    except (ValueError, WorldError, OSError):
        raise
    except Exception as error:  # every runtime has errors of its own
        raise ValueError(f"{path} cannot be loaded: {type(error).__name__}: {str(error)[:300]}") from error


def _named(predictor: Predictor, path: Path) -> Predictor:
    """Return the predictor with errors that name its file."""

    def predict(samples: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        try:
            return predictor(samples)
        except Exception as error:  # every runtime has errors of its own
            problem = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{path} cannot take samples of {samples.dtype} {list(samples.shape[1:])}: was it exported from this student? "
                f"({type(error).__name__}: {problem})"
            ) from error

    return predict


def _remedy(suffix: str) -> str:
    name = next(name for name, known in FORMATS.items() if known == suffix)
    return f"pip install edgekd[{name}]"


def _open_onnx(path: Path) -> Predictor:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()

    def predict(samples: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        return session.run(None, {entry.name: np.ascontiguousarray(samples)})[0]  # type: ignore[no-any-return]

    return predict


def _open_pt2(path: Path) -> Predictor:
    module = torch.export.load(path).module()

    def predict(samples: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            return module(torch.from_numpy(np.ascontiguousarray(samples))).numpy()  # type: ignore[no-any-return]

    return predict


def _open_executorch(path: Path) -> Predictor:
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")

    def predict(samples: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        # The program has a batch of one sample: ExecuTorch plans its memory for one shape.
        rows = [method.execute([torch.from_numpy(np.ascontiguousarray(samples[n : n + 1]))])[0] for n in range(len(samples))]
        return torch.cat([row.clone() for row in rows]).numpy()

    return predict
