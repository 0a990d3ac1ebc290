"""The accuracy of a student."""

import torch

from edgekd.data.image_dataset import ImageDataset
from edgekd.data.tensors import to_input

_BATCH = 500


def accuracy(student: torch.nn.Module, test: ImageDataset, device: str) -> float:
    """Return the fraction of `test` that `student` on `device` classifies correctly. The student stays in evaluation mode."""
    student.eval()
    num_right = 0
    with torch.inference_mode():
        for start in range(0, len(test.labels), _BATCH):
            images = to_input(test.images[start : start + _BATCH]).to(device)
            predicted = student(images).argmax(dim=1).cpu().numpy()
            num_right += int((predicted == test.labels[start : start + _BATCH]).sum())
    return num_right / len(test.labels)
