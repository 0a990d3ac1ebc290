"""The teacher: computes logits of one public data set by sample id, with a model in evaluation mode.

The service and the store get it as a function of ids. An import contract keeps torch out of `service` and `monitoring`.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cloud_teacher.logits.store import ROWS_PER_FORWARD, StoreKey
from edgekd.data.image_dataset import ImageDataset
from edgekd.data.models import weights_digest
from edgekd.data.tensors import to_input

# Every forward has exactly this many samples; smaller requests are padded. Kernels choose their order of summation by shape.
# With one shape, a sample's logits do not depend on the size of the request, and a lost store is rebuilt bit for bit.
_BLOCK = ROWS_PER_FORWARD


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Teacher:
    """A model on its device, and the data set for which it computes logits."""

    model: torch.nn.Module
    dataset: ImageDataset
    device: torch.device
    key: StoreKey

    def logits(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the raw logits of the samples `ids`: float32 [len(ids), num_classes]."""
        rows = np.empty((len(ids), self.key.num_classes), np.float32)
        for begin in range(0, len(ids), _BLOCK):
            block = ids[begin : begin + _BLOCK]
            padded = np.resize(block, _BLOCK)
            rows[begin : begin + len(block)] = self._forward(padded)[: len(block)]
        return rows

    @torch.inference_mode()
    def _forward(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        inputs = to_input(self.dataset.images[ids]).to(self.device)
        logits: npt.NDArray[np.float32] = self.model(inputs).float().cpu().numpy()
        return logits


def make_teacher(model: torch.nn.Module, *, spec: str, dataset: ImageDataset, device: torch.device) -> Teacher:
    """Put `model`, built from `spec` for `dataset`, into evaluation mode on `device`."""
    key = StoreKey(
        teacher_digest=weights_digest(spec, model),
        dataset_digest=dataset.digest,
        num_samples=len(dataset.images),
        num_classes=dataset.num_classes,
    )
    return Teacher(model=model.eval().to(device), dataset=dataset, device=device, key=key)
