"""The teacher: computes logits of one public data set by sample id, with a model in evaluation mode.

The service and the store get it as a function of ids. An import contract keeps torch out of `service` and `monitoring`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from cloud_teacher.logits.public_inputs import InputChangedError
from cloud_teacher.logits.store import ROWS_PER_FORWARD, StoreKey
from edgekd.data.dataset import Dataset
from edgekd.data.preprocessing import Preprocessing
from edgekd.data.tensors import normalized, resized_image, to_input
from edgekd.models.weights import weights_digest
from edgekd.wire.inputs import open_rgb

# Every forward has exactly this many samples; smaller requests are padded. Kernels choose their order of summation by shape.
# With one shape, a sample's logits do not depend on the size of the request, and a lost store is rebuilt bit for bit.
_BLOCK = ROWS_PER_FORWARD


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Teacher:
    """A model on its device, with its preprocessing, and the data set for which it computes logits.

    `kept` are the outputs that are served, all if empty. `class_names` has the name of each served output. `is_trained` is False
    for the initial weights of a load test. `modified_ns` has the modification time of each image file if files are read again for
    the resize rule: a changed file is not the sample that the digest covers.
    """

    model: torch.nn.Module
    dataset: Dataset
    device: torch.device
    key: StoreKey
    preprocessing: Preprocessing
    kept: tuple[int, ...]
    class_names: tuple[str, ...]
    is_trained: bool
    modified_ns: npt.NDArray[np.int64]

    def logits(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the raw logits of the samples `ids`: float32 [len(ids), num_classes]."""
        rows = np.empty((len(ids), self.key.num_classes), np.float32)
        for begin in range(0, len(ids), _BLOCK):
            block = ids[begin : begin + _BLOCK]
            rows[begin : begin + len(block)] = self._forward(block)[: len(block)]
        return rows

    @torch.inference_mode()
    def _forward(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        inputs = self._inputs(ids)[torch.from_numpy(np.resize(np.arange(len(ids)), _BLOCK))].to(self.device)
        logits: npt.NDArray[np.float32] = self.model(inputs).float().cpu().numpy()
        return logits[:, list(self.kept)] if self.kept else logits

    def _inputs(self, ids: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return the model's input for samples. A resize rule is applied to the image files themselves, if there are files."""
        rule, files = self.preprocessing.resize, self.dataset.files
        if rule is None or not files:
            return to_input(self.dataset.inputs[ids], self.preprocessing)
        images = []
        for sample in ids.tolist():
            file = Path(files[sample])
            if not file.exists() or file.stat().st_mtime_ns != self.modified_ns[sample]:
                raise InputChangedError(sample, file)
            images.append(resized_image(open_rgb(file), rule))
        return normalized(np.stack(images), self.preprocessing)


def make_teacher(
    model: torch.nn.Module,
    *,
    spec: str,
    dataset: Dataset,
    device: torch.device,
    num_classes: int,
    preprocessing: Preprocessing,
    kept: Sequence[int] = (),
    class_names: Sequence[str] = (),
    is_trained: bool = True,
) -> Teacher:
    """Put `model`, built from `spec` with `num_classes` outputs, into evaluation mode on `device`."""
    files = dataset.files if preprocessing.resize is not None else ()
    key = StoreKey(
        teacher_digest=weights_digest(spec, model, preprocessing, kept),
        dataset_digest=dataset.digest,
        num_samples=len(dataset.inputs),
        num_classes=len(kept) or num_classes,
    )
    return Teacher(
        model=model.eval().to(device),
        dataset=dataset,
        device=device,
        key=key,
        preprocessing=preprocessing,
        kept=tuple(kept),
        class_names=tuple(class_names),
        is_trained=is_trained,
        modified_ns=np.array([Path(file).stat().st_mtime_ns for file in files], np.int64),
    )
