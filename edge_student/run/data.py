"""The data of a training: loads both data sets and the test data, and maps their classes to the outputs of the teacher."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from edge_student.ipc.messages import Described
from edge_student.run.objects import NO_OBJECTS, Objects
from edge_student.settings.student import StudentConfig
from edge_student.training.batches import check_same_kind, check_same_shape
from edge_student.workers.shared_dataset import SharedDataset
from edgekd.data.dataset import Dataset
from edgekd.data.datasets import load_dataset, resized
from edgekd.data.preprocessing import Preprocessing
from edgekd.data.splits import is_own
from edgekd.files import expanded, named_by
from edgekd.models.build import card_of
from edgekd.models.card import ModelCard, read_card
from edgekd.models.classes import BY_NAME, IN_ORDER, outputs_of, relabelled
from edgekd.models.input import choose_preprocessing
from edgekd.wire.class_names import digest_of_names

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """The two data sets of a training step, resized, and the student's preprocessing.

    `public` is None if its inputs are received with the logits. `shared` has both in shared memory for compute workers, once they
    are there.
    """

    private: Dataset
    public: Dataset | None
    preprocessing: Preprocessing
    shared: tuple[SharedDataset, SharedDataset | None] | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input of the student."""
        return self.preprocessing.shape_of(self.private.input_shape)

    def close(self) -> None:
        """Close shared memory to further processes, if there is any. The data sets stay readable in this one."""
        for dataset in self.shared or ():
            if dataset is not None:
                dataset.close()

    def share(self) -> "TrainingData":
        """Return the same data sets in shared memory, so that trainer and workers have one copy."""
        private = SharedDataset(self.private)
        public = None if self.public is None else SharedDataset(self.public)
        return replace(self, private=private.dataset, public=None if public is None else public.dataset, shared=(private, public))


def load_training_data(config: StudentConfig, objects: Objects = NO_OBJECTS) -> TrainingData:
    """Load the private and the public data, or take those of the caller.

    Raises ValueError for an unknown name, more --private-samples than exist, samples that do not fit the student's preprocessing,
    and private data without labels unless alpha is 0.
    """
    private = objects.private or load_dataset(config.private)
    limit = config.private_samples
    if limit is not None and limit > len(private.labels):
        raise ValueError(f"--private-samples is {limit}, must be at most {len(private.labels)}, the size of {private.name}")
    if limit is not None:
        private = private.head(limit)
    if not private.is_labelled and (config.loss is not None or objects.loss is not None):
        raise ValueError(
            f"--private {private.name} has no labels, which a loss of your own gets: omit --loss, or name labelled data"
        )
    if not private.is_labelled and config.alpha > 0:
        raise ValueError(
            f"--private {private.name} has no labels, and --alpha is {config.alpha}: train on logits alone with --alpha 0"
        )
    preprocessing = choose_preprocessing(
        config.model,
        private.input_shape,
        private.inputs.dtype,
        card=_start_card(config, objects),
        normalize=config.normalize,
        resize=config.resize,
    )
    public = None if config.input_encoding else objects.public or load_dataset(config.public_dataset)
    return TrainingData(
        private=resized(private, preprocessing),
        public=None if public is None else resized(public, preprocessing),
        preprocessing=preprocessing,
    )


def _start_card(config: StudentConfig, objects: Objects) -> ModelCard | None:
    """Return the card of the weights from which the student starts; None without weights or card.

    Raises ValueError for weights with unknown preprocessing.
    """
    if config.init is None:
        return None if objects.student is not None else card_of(config.model)
    with named_by("--init"):
        card = read_card(expanded(config.init))
    if card is None and config.normalize is None:
        raise ValueError(
            f"the normalization of --init {config.init} is not known: give --normalize imagenet, signed, unit or MEAN/STD, as it "
            "was trained, or a model card"
        )
    return card


def load_test_data(
    config: StudentConfig, data: TrainingData, note: Callable[[str], None], objects: Objects = NO_OBJECTS
) -> Dataset | None:
    """Load the data that measure the accuracy, or take those of the caller; None, with a note, if there are none with labels.

    Raises ValueError for samples of another shape or type.
    """
    if objects.private is not None and objects.test is None and config.test is None:
        note("the accuracy was not measured, because no test data were given")
        return None
    test = objects.test or load_dataset(config.test_dataset)
    if not test.is_labelled:
        note(f"the accuracy was not measured, because {test.name} has no labels; name labelled data with --test")
        logger.warning("%s has no labels, so the accuracy is not measured; name labelled data with --test", test.name)
        return None
    test = resized(test, data.preprocessing)
    check_same_kind(data.private.name, data.private.inputs, test.name, test.inputs)
    return test


def check_teacher(described: Described, data: TrainingData, source: str) -> None:
    """Check that the logits of `source` fit the data.

    Raises ValueError if the public data sets differ, or, if inputs are received, if their shape or type differs from the private
    data.
    """
    private, public = data.private, data.public
    if public is None:
        shape = data.preprocessing.shape_of(described.input_shape)[1:] if data.preprocessing.resize else described.input_shape[1:]
        kind: tuple[int | str, ...] = (*described.input_shape[:1], *shape, described.input_dtype)
        check_same_shape(source, kind, private.name, (*private.input_shape, str(private.inputs.dtype)))
    else:
        check_public(described, public, source)


def check_public(described: Described, public: Dataset, source: str) -> None:
    """Raise ValueError if `source` has the logits of another public data set."""
    if described.dataset_digest != public.digest:
        raise ValueError(
            f"{source} serves {described.dataset_name} (digest {described.dataset_digest[:12]}), "
            f"this edge has {public.name} (digest {public.digest[:12]}): name the same data set with --public"
        )


def map_test_classes(test: Dataset, described: Described, class_map: str | None, source: str) -> Dataset:
    """Return the test data as `map_classes` does. They may lack classes of the teacher, which is logged."""
    missing = [name for name in described.class_names if name not in test.class_names]
    if class_map is None and test.class_names and missing and set(test.class_names) < set(described.class_names):
        logger.warning("%s has no samples of %d classes, among them %r", test.name, len(missing), missing[0])
        class_map = BY_NAME
    return map_classes(test, described, class_map, source)


def map_classes(dataset: Dataset, described: Described, class_map: str | None, source: str) -> Dataset:
    """Return the data set with its labels as outputs of the teacher, by name.

    Without names at one side, the numbers of classes must be equal, and own data need --class-map order, because nothing else can
    check the order. Raises ValueError, with the remedy, if the classes differ or their order is not known.
    """
    if not dataset.is_labelled:
        return dataset
    if class_map == IN_ORDER:
        _check_number(dataset, described, source)
        logger.info("classes of %s are related to those of %s by their order", dataset.name, source)
        return dataset
    own, teacher = dataset.class_names, described.class_names
    if own and teacher:
        outputs = outputs_of(own, teacher, class_map, edge=dataset.name, source=source)
        if outputs == list(range(described.num_classes)):
            return dataset
        logger.info("labels of %s are mapped by class name: %s has another order", dataset.name, source)
        return relabelled(dataset, outputs, teacher)
    if class_map is not None:
        raise ValueError(
            f"--class-map is {class_map}, but {dataset.name if teacher else source} has no class names to map: omit it"
        )
    _check_number(dataset, described, source)
    if own and described.classes_digest:  # too many names to send
        if described.classes_digest != digest_of_names(own):
            raise ValueError(f"{source} has other class names than {dataset.name}, or another order: use the names of the teacher")
    elif own and is_own(dataset.name):
        raise ValueError(
            f"the classes of {source} have no names, so nothing checks that they are in the order of {dataset.name}: serve with "
            f"--classes FILE, or confirm the order with --class-map {IN_ORDER}"
        )
    elif own or teacher:
        logger.warning(
            "the classes of %s have no names: they must be in the order of %s",
            *((source, dataset.name) if own else (dataset.name, source)),
        )
    return dataset


def _check_number(dataset: Dataset, described: Described, source: str) -> None:
    if described.num_classes != dataset.num_classes:
        raise ValueError(
            f"{source} has {described.num_classes} classes, {dataset.name} has {dataset.num_classes}: they must be equal"
        )


def student_card(config: StudentConfig, data: TrainingData, described: Described) -> ModelCard:
    """Return the model card of the student."""
    return ModelCard(
        model=config.model,
        preprocessing=data.preprocessing,
        input_shape=data.input_shape,
        class_names=described.class_names or data.private.class_names,
        num_classes=described.num_classes,
    )


def name_of_source(address: str | None) -> str:
    """Name the source of logits in messages: a teacher, or the cache without one."""
    return "the logit cache" if address is None else f"the teacher at {address}"
