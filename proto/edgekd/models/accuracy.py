"""The accuracy of a model, teacher or student."""

import torch

from edgekd.data.dataset import Dataset
from edgekd.data.preprocessing import Preprocessing
from edgekd.data.rows import chunks
from edgekd.data.tensors import normalized

_BATCH, _BATCH_BYTES = 500, 8 << 20


def accuracy(model: torch.nn.Module, test: Dataset, device: torch.device | str, preprocessing: Preprocessing) -> float:
    """Return the fraction of `test` that `model` on `device` classifies correctly. The model stays in evaluation mode.

    The samples of `test` have the size of the model's input.
    """
    model.eval()
    num_right = 0
    with torch.inference_mode():
        for part in chunks(test.inputs, _BATCH_BYTES, _BATCH):
            inputs = normalized(test.inputs[part], preprocessing).to(device)
            predicted = model(inputs).argmax(dim=1).cpu().numpy()
            num_right += int((predicted == test.labels[part]).sum())
    return num_right / len(test.labels)
