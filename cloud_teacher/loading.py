"""Loads a teacher: data set, model, weights, preprocessing and classes, and checks that they fit each other.

A teacher that gets other inputs than it was trained with, or that has its classes in another order, returns wrong logits without
an error. The facts come from the model card or from flags. An assumption is logged, and the agreement with the public labels
tests it.
"""

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cloud_teacher.logits.store import LogitStore
from cloud_teacher.logits.teacher import Teacher, make_teacher
from cloud_teacher.settings import TeacherConfig
from edgekd.data.dataset import Dataset
from edgekd.data.datasets import load_dataset
from edgekd.data.preprocessing import default_preprocessing
from edgekd.models.build import build_model, card_of, is_user_model
from edgekd.models.card import ModelCard, read_card
from edgekd.models.classes import check_class_names, describe, kept_outputs, read_class_names
from edgekd.models.devices import choose_device
from edgekd.models.input import choose_preprocessing
from edgekd.models.weights import load_weights

_DEFAULT_MODEL = "cnn:width=32"
_FEWEST_OF_CLASS = 5
_SAMPLES = 256
"""Samples whose labels are compared with the teacher, unless all logits are computed."""

logger = logging.getLogger(__name__)


def load_teacher(config: TeacherConfig) -> Teacher:
    """Load data set, model and weights. Raises ValueError, with the remedy, if they do not fit each other or a fact is missing."""
    device = choose_device(config.device)
    card = _card(config)
    spec = config.model or (card.model if card is not None and card.model else _DEFAULT_MODEL)
    if config.model is None and is_user_model(spec):
        raise ValueError(f"the model card of {config.weights} names {spec}, which is code: confirm it with --model {spec}")
    if config.normalize is None and card is None and (config.weights is not None or is_user_model(spec)):
        raise ValueError(
            f"the normalization of {config.weights or spec} is not known: give --normalize imagenet, signed, unit or MEAN/STD, as "
            "it was trained, or a model card"
        )
    dataset = load_dataset(config.dataset)
    names, num_classes = _classes(config, card, dataset)
    preprocessing = choose_preprocessing(
        spec,
        dataset.input_shape,
        dataset.inputs.dtype,
        card=card,
        normalize=config.normalize,
        resize=config.resize,
    )
    shape = preprocessing.shape_of(dataset.input_shape)
    model = build_model(spec, num_classes=num_classes, input_shape=shape, seed=config.seed)
    if config.weights is not None:
        load_weights(model, config.weights)
    is_trained = config.weights is not None or card is not None or is_user_model(spec)
    if not is_trained:
        logger.warning("no --weights: serving the untrained initial weights of %s", spec)
    check_class_names(names, spec)
    kept = [] if config.keep_classes is None else kept_outputs(config.keep_classes, names, num_classes)
    teacher = make_teacher(
        model,
        spec=spec,
        dataset=dataset,
        device=device,
        num_classes=num_classes,
        preprocessing=preprocessing,
        kept=kept,
        class_names=[names[output] for output in kept] if kept and names else names,
        is_trained=is_trained,
    )
    _log(teacher, spec, card)
    return teacher


def measure_agreement(teacher: Teacher, store: LogitStore) -> float | None:
    """Return the share of public labels that the teacher's largest logit equals, and log it.

    Returns None for untrained weights, and where labels are missing or have other classes. Uses all samples if the store has all
    logits, else the first ones, which it computes. Logs a warning if the share is so small that the preprocessing or the order of
    the classes must be wrong.
    """
    labels = _labels_of(teacher) if teacher.is_trained else None
    if labels is None:
        return None
    ids = np.arange(len(labels))
    if len(store.missing(ids)):
        ids = ids[:_SAMPLES]
    ids = ids[labels[ids] >= 0]
    if not len(ids):
        return None
    parts = np.array_split(ids, -(-len(ids) // _SAMPLES))
    predicted = np.concatenate([store.rows(part).argmax(axis=1) for part in parts])
    share, num_classes = float((predicted == labels[ids]).mean()), teacher.key.num_classes
    logger.info("the teacher agrees with %.1f %% of the labels of %d samples of %s", 100 * share, len(ids), teacher.dataset.name)
    least = min(3 / num_classes, (1 + 1 / num_classes) / 2)
    if share < least:
        logger.warning(
            "the teacher agrees with %.1f %% of the public labels, where guessing would with %.1f %%: check --normalize, --resize,"
            " the order of --classes, and --weights",
            *(100 * share, 100 / num_classes),
        )
    else:
        _warn_of_confused_classes(teacher, labels[ids], predicted)
    return share


def _warn_of_confused_classes(teacher: Teacher, labels: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]) -> None:
    """Log a warning for a class most of whose samples are predicted as another one: two classes in a wrong order look so."""
    names = teacher.class_names or tuple(map(str, range(teacher.key.num_classes)))
    for label in np.unique(labels).tolist():
        found = predicted[labels == label]
        values, counts = np.unique(found, return_counts=True)
        most = int(values[counts.argmax()])
        if len(found) >= _FEWEST_OF_CLASS and most != label and counts.max() > len(found) / 2:
            logger.warning(
                "the teacher predicts %r for %d of %d public samples of %r: check the order of the classes",
                *(names[most], int(counts.max()), len(found), names[label]),
            )


def _card(config: TeacherConfig) -> ModelCard | None:
    """Return the card of --weights, or else of the weights that --model includes. Raises ValueError if both have weights."""
    included = None if config.model is None else card_of(config.model)
    if config.weights is None:
        return included
    try:
        card = read_card(config.weights)
    except FileNotFoundError:
        raise ValueError(f"--weights {config.weights}: there is no such file; `cloud-teacher train` makes one") from None
    if config.model is not None and "@" in config.model:
        raise ValueError(f"--weights is {config.weights}, but --model {config.model} includes weights: omit one of them")
    if card is not None and card.model and config.model is not None and config.model != card.model:
        raise ValueError(f"--model is {config.model}, but the model card of {config.weights} has {card.model}: omit --model")
    return card or included


def _classes(config: TeacherConfig, card: ModelCard | None, dataset: Dataset) -> tuple[tuple[str, ...], int]:
    """Return the names of the teacher's outputs, empty if they are not known, and their number."""
    known = card.num_classes if card is not None else 0
    if config.classes is not None:
        names = read_class_names(config.classes)
        if known and len(names) != known:
            raise ValueError(f"--classes has {len(names)} classes, but the model card has {known}")
        if card is not None and card.class_names and not config.classes.isdecimal() and names != card.class_names:
            raise ValueError(f"--classes {config.classes} differs from the class names of the model card: omit it")
        if config.classes.isdecimal():
            return (card.class_names if card is not None else ()) or _assumed(dataset, len(names)), len(names)
        return names, len(names)
    if known:
        assert card is not None
        return card.class_names or _assumed(dataset, known), known
    if not dataset.is_labelled:
        raise ValueError(
            f"the number of classes is not known, because {dataset.name} has no labels: give --classes K or --classes FILE"
        )
    return _assumed(dataset, dataset.num_classes), dataset.num_classes


def _assumed(dataset: Dataset, num_classes: int) -> tuple[str, ...]:
    """Return the class names of the data set for a teacher without names, with a log record; empty if the numbers differ."""
    if dataset.num_classes != num_classes or not dataset.class_names:
        return ()
    logger.info("the outputs of the teacher have no names: assuming the classes of %s, in its order", dataset.name)
    return dataset.class_names


def _labels_of(teacher: Teacher) -> npt.NDArray[np.int64] | None:
    """Return the public labels as outputs of the teacher, -1 for a class that it lacks; None if they cannot be compared."""
    dataset, names = teacher.dataset, teacher.class_names
    if not dataset.is_labelled:
        return None
    if dataset.class_names and names and dataset.class_names != names:
        outputs = _positions(dataset.class_names, names)
        if max(outputs) < 0:
            logger.warning(
                "the teacher and %s have no class name in common: their labels are not compared; the teacher: %s, the data set: %s",
                *(dataset.name, describe(names, len(names)), describe(dataset.class_names, dataset.num_classes)),
            )
            return None
    elif dataset.num_classes == teacher.key.num_classes:
        return dataset.labels
    else:
        logger.info("the labels of %s are not compared with the teacher: the classes have no names", dataset.name)
        return None
    return np.array(outputs, np.int64)[dataset.labels]


def _positions(names: Sequence[str], outputs: Sequence[str]) -> list[int]:
    position = {name: number for number, name in enumerate(outputs)}
    return [position.get(name, -1) for name in names]


def _log(teacher: Teacher, spec: str, card: ModelCard | None) -> None:
    key, rules = teacher.key, teacher.preprocessing
    logger.info("teacher %s on %s, digest %s", spec, teacher.device, key.teacher_digest[:16])
    source = "the model card" if card is not None else "flags"
    if rules != default_preprocessing(teacher.dataset.inputs.dtype):
        logger.info("preprocessing from %s: %s", source, rules)
    if card is None and rules.resize is None and teacher.is_trained and len(teacher.dataset.input_shape) == 3:
        height, width = teacher.dataset.input_shape[1:]
        logger.info("no --resize: assuming that the weights are for images of %d x %d pixels, those of the data set", height, width)
    logger.info(
        "data set %s, %d samples, %d classes, digest %s",
        *(teacher.dataset.name, key.num_samples, key.num_classes, key.dataset_digest[:16]),
    )
