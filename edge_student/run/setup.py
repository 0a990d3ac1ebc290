"""What has to stand before anything can be timed: the data, a teacher that fits them, the trainer and the ring."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from edge_student.ipc.messages import Configure, Described
from edge_student.ipc.ring import RingShape
from edge_student.settings.student import StudentConfig
from edge_student.training.trainer import Recipe, Trainer
from edgekd.data.datasets import load_dataset
from edgekd.data.image_dataset import ImageDataset
from edgekd.data.models import build_model
from scheduler.policies.registry import LaunchOptions

logger = logging.getLogger(__name__)

_MOST_STREAMS = 4


def configure(
    config: StudentConfig,
    address: str | None,
    launch_options: LaunchOptions,
    cores: Sequence[int],
    *,
    dataset_digest: str = "",
    run_id: str = "",
) -> Configure:
    """What a comm worker of a run on `cores` is told: whom to ask and how, and what priority the policy wants for it.

    `address` is None without a teacher; then `dataset_digest` says whose logits are read from the cache. `run_id` names this run.
    """
    return config.configure(
        teacher=address or "",
        batch_size=config.public_batch,
        seed=config.seed,
        niceness=launch_options.comm_niceness,
        is_idle=launch_options.comm_is_idle,
        logits=config.logits,
        dataset_digest=dataset_digest,
        num_streams=config.streams or default_streams(len(cores)),
        run_id=run_id,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """The two data sets of a training step; `public` is None where its inputs travel with the logits."""

    private: ImageDataset
    public: ImageDataset | None


def load_training_data(config: StudentConfig) -> TrainingData:
    """Private and public data. ValueError for a name that is none, or more private samples than there are."""
    private = load_dataset(config.private)
    wanted = config.private_samples
    if wanted is not None and wanted > len(private.labels):
        raise ValueError(f"--private-samples is {wanted}, but {private.name} has {len(private.labels)} samples")
    if wanted is not None:
        private = replace(private, images=private.images[:wanted], labels=private.labels[:wanted])
    public = None if config.input_encoding else load_dataset(config.public_dataset)
    return TrainingData(private=private, public=public)


def default_streams(num_cores: int) -> int:
    """Streams that receive at a time where the user does not say: half as many as there are cores, 4 at most."""
    return max(1, min(num_cores // 2, _MOST_STREAMS))


def check_teacher(described: Described, data: TrainingData, address: str | None) -> None:
    """ValueError unless the teacher serves our public data set, or inputs of the private one's shape, with as many classes.

    `address` is None if a cache speaks for it.
    """
    whose = "the logit cache" if address is None else f"the teacher at {address}"
    private, public = data.private, data.public
    if public is None and described.input_shape != private.images.shape[1:]:
        raise ValueError(
            f"{whose} has inputs of {list(described.input_shape)}, {private.name} of {list(private.images.shape[1:])}: "
            "one forward runs over both, so they must be of one shape"
        )
    if public is not None and described.dataset_digest != public.digest:
        raise ValueError(
            f"{whose} serves {described.dataset_name} (digest {described.dataset_digest[:12]}), "
            f"this edge has {public.name} (digest {public.digest[:12]}): name the same data set with --public"
        )
    if described.num_classes != private.num_classes:
        raise ValueError(
            f"the teacher knows {described.num_classes} classes, {private.name} {private.num_classes}: they must agree"
        )


def make_trainer(
    config: StudentConfig,
    data: TrainingData,
    num_classes: int,
    device: str,
    uninterrupted: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Trainer:
    """A trainer that has warmed up."""
    shape = data.private.images.shape[1:]
    student = build_model(config.model, num_classes=num_classes, input_shape=shape, seed=config.seed)
    recipe = Recipe(
        alpha=config.alpha,
        temperature=config.temperature,
        lr=config.lr,
        momentum=config.momentum,
        batch_size=config.batch_size,
        public_batch=config.public_batch,
        seed=config.seed,
        device=device,
    )
    trainer = Trainer(student=student, private=data.private, public=data.public, recipe=recipe, uninterrupted=uninterrupted)
    trainer.warm_up(num_classes)
    return trainer


def ring_shape(config: StudentConfig, num_classes: int, input_shape: tuple[int, ...]) -> RingShape:
    """Room for as many batches as the user allows, a run needs and the memory holds, of inputs of this shape where they travel."""
    wanted = min(config.prefetch or config.cycles, config.cycles)
    slot = config.slot_shape(batch_size=config.public_batch, num_classes=num_classes, input_shape=input_shape)
    fitting = max(1, (config.ring_mib << 20) // slot.slot_bytes)
    return replace(slot, num_slots=min(wanted, fitting))
