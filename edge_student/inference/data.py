"""Loads labelled or unlabelled samples for a trained student."""

import numpy as np

from edge_student.inference.student import Student
from edgekd.data.dataset import Dataset
from edgekd.data.datasets import load_dataset, resized
from edgekd.data.splits import Ids
from edgekd.models.classes import relabelled


def load_samples(spec: str, student: Student) -> Dataset:
    """Load a data set in the size of the student's input. Raises ValueError if the samples do not fit."""
    dataset = load_dataset(spec)
    rules, card = student.preprocessing, student.card
    dataset = resized(dataset, rules)
    rules.check(dataset.input_shape, dataset.inputs.dtype)
    shape = rules.shape_of(dataset.input_shape)
    if shape != card.input_shape:
        remedy = f"; name size={card.input_shape[-1]}" if len(card.input_shape) == 3 else ""
        raise ValueError(f"the student takes samples of {list(card.input_shape)}, {spec} has {list(shape)}{remedy}")
    return dataset


def in_outputs(dataset: Dataset, student: Student) -> Dataset:
    """Return the data set with its labels as outputs of the student, by name. Raises ValueError for labels without a match."""
    if not dataset.is_labelled:
        raise ValueError(f"{dataset.name} has no labels, so there is no accuracy to measure")
    names = student.class_names
    if names and dataset.class_names and dataset.class_names != names:
        if set(dataset.class_names) <= set(names):
            position = {name: number for number, name in enumerate(names)}
            return relabelled(dataset, [position[name] for name in dataset.class_names], names)
        missing = [name for name in dataset.class_names if name not in names]
        raise ValueError(f"{dataset.name} has the class {missing[0]!r}, which the student lacks: it has {', '.join(names[:8])}")
    if dataset.num_classes > student.card.num_classes:
        raise ValueError(f"{dataset.name} has {dataset.num_classes} classes, the student has {student.card.num_classes}")
    return dataset


def count_confusions(labels: Ids, predicted: Ids, num_classes: int) -> Ids:
    """Return the number of samples by label (row) and prediction (column), int64 [classes, classes], of int64 [N] each."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts
