"""Settings that several commands share, by subject. Help groups are defined in edgekd/cli/flags.py (`GROUPS`).

A command's settings inherit from these classes. The docstring below a field is its help text. The classes
have no slots, because Python cannot inherit from several classes with slots.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from edgekd.cli.cores import parse_cores
from edgekd.cli.device_names import Device
from edgekd.cli.optimizer_names import OptimizerName
from edgekd.cli.settings import closest
from edgekd.data.preprocessing import parse_normalization, parse_resize
from edgekd.data.splits import contains_test, overlaps, split_of
from edgekd.data.user_modules import names_callable
from edgekd.wire.limits import MAX_BATCH_SIZE

SCHEDULE_NAMES = ("constant", "cosine", "step")
AUGMENT_NAMES = ("none", "crop-flip")

_MAX_SEED = 2**64 - 1
_MAX_SHARDS = 64
_MAX_PRIVATE_BATCH = 1 << 16
"""Private samples in one step: more than any board holds in memory."""
_MAX_RING_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Data sets of a training step."""

    help_group: ClassVar[str] = "data"

    private: str = "digits:private"
    """Private data set to train on: a name, imagefolder:PATH, unlabelled:PATH, npy:FILE, csv:FILE or package.module:callable."""
    test: str | None = None
    """Data set that measures the accuracy. (default: the test split of --private)"""
    public: str | None = None
    """Public data set; the teacher must serve the same one. Omit it with --public-inputs stream or stored.
    (default: the public split of --private)"""
    private_samples: int | None = None
    """Number of private samples to train on, counted from the first one. (default: all)"""
    class_map: str | None = None
    """JSON file {"class at this edge": "class at the teacher"}. `names` maps equal names of a teacher with more classes, `order`
    the classes of a teacher without names. (default: both must have the same class names)"""

    def check_data(self) -> None:
        """Reject test splits and an empty selection. Raises ValueError."""
        check_at_least_one("--private-samples", self.private_samples)
        for flag, dataset in (("--private", self.private), ("--public", self.public)):
            if dataset is not None and dataset.endswith(":test"):
                raise ValueError(f"{flag} is {dataset}, must not be a test split: accuracy is measured on the test split")
            if dataset is not None and self.test is not None and overlaps(self.test, dataset):
                raise ValueError(f"--test is {self.test}, which contains samples of {flag} {dataset}: name data of their own")
            if dataset is not None and self.test is None and contains_test(dataset):
                raise ValueError(f"{flag} is {dataset}, which contains the test split: name other data with --test, or :private")

    @property
    def public_dataset(self) -> str:
        """Name of the public data set."""
        return self.public or split_of(self.private, "public")

    @property
    def test_dataset(self) -> str:
        """Name of the data set that measures the accuracy."""
        return self.test or split_of(self.private, "test")


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The student."""

    help_group: ClassVar[str] = "model"

    model: str = "cnn"
    """Student model: cnn, cnn:width=32, torchvision:NAME, timm:NAME or package.module:callable."""
    normalize: str | None = None
    """Normalization of the student's input: imagenet, signed (-1 to 1), unit (0 to 1), none, or MEAN/STD. (default: signed for
    images, none for float32 samples)"""
    resize: str | None = None
    """Resize rule of the student's input: SIZE, SHORTER/CROP such as 256/224, or HEIGHTxWIDTH, each with or without :bicubic.
    (default: the size of the data set)"""

    def check_model_settings(self) -> None:
        """Check the rules of preprocessing. Raises ValueError."""
        if self.normalize is not None:
            parse_normalization(self.normalize)
        parse_resize(self.resize)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Loss, optimiser and length of a training."""

    help_group: ClassVar[str] = "training"

    cycles: int = 200
    """Number of optimiser steps. Each step uses one batch of logits."""
    alpha: float = 0.1
    """Weight of the loss on private labels, 0 to 1. The loss on the teacher's logits has the weight 1 - alpha (Eq. 1)."""
    temperature: float = 4.0
    """Softmax temperature of teacher and student logits in the loss."""
    lr: float = 0.05
    """Learning rate."""
    momentum: float = 0.9
    """Momentum of sgd, at least 0 and below 1."""
    batch_size: int = 32
    """Private samples in one step."""
    shards: int | None = None
    """Parts of every batch, each computed by a process of one thread. Results depend on their number, not on the cores. With 1, one
    team of threads computes the whole batch. (default: one per core; 1 with --torch-threads, for a model with many weights for
    few outputs, and for the policies os-default and os-tuned)"""
    seed: int = 0
    """Seed of the initial weights, of both sample orders and of the policy `random`."""

    def check_training(self) -> None:
        """Check ranges. Raises ValueError."""
        check_at_least_one("--cycles", self.cycles)
        check_at_least_one("--batch-size", self.batch_size)
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"--alpha is {self.alpha}, must be in 0 .. 1")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"--momentum is {self.momentum}, must be at least 0 and below 1")
        for flag, number in (("--temperature", self.temperature), ("--lr", self.lr)):
            if not 0 < number < float("inf"):
                raise ValueError(f"{flag} is {number}, must be above 0 and finite")
        if self.shards is not None and not 1 <= self.shards <= min(_MAX_SHARDS, self.batch_size):
            most = min(_MAX_SHARDS, self.batch_size)
            raise ValueError(f"--shards is {self.shards}, must be in 1 .. {most}: each has a private row")
        if self.batch_size > _MAX_PRIVATE_BATCH:
            raise ValueError(f"--batch-size is {self.batch_size}, must be at most {_MAX_PRIVATE_BATCH}")
        if not 0 <= self.seed < _MAX_SEED:
            raise ValueError(f"--seed is {self.seed}, must be in 0 .. 2^64-2")


@dataclass(frozen=True, kw_only=True)
class RecipeSettings:
    """Optimizer, schedule, augmentation and start weights."""

    help_group: ClassVar[str] = "recipe"

    init: Path | None = None
    """Weights from which the student starts, .safetensors or .pt. A file without a model card needs --normalize.
    (default: random weights)"""
    init_except: str | None = None
    """Tensors of --init that keep their random weights, comma-separated: `head` for the last layer, names, names of modules, or
    patterns, for example layer4.*."""
    freeze: str | None = None
    """Parameters that are not trained, comma-separated: names, names of modules, or patterns, for example layer[12].*."""
    optimizer: OptimizerName = "sgd"
    """Optimizer: sgd, adam or adamw. adam and adamw need a smaller --lr, for example 0.001."""
    weight_decay: float = 0.0
    """Weight decay, at least 0. adamw decouples it from the gradient."""
    schedule: str = "constant"
    """Learning rate over the cycles: constant, cosine, or step, a tenth after 1/2 and 3/4 of the cycles. package.module:callable
    gets (cycle, cycles) and returns a factor."""
    warmup: int = 0
    """Cycles in which the learning rate rises linearly from near 0."""
    clip_grad: float | None = None
    """Largest norm of all gradients together; larger ones are scaled down. (default: not limited)"""
    augment: str = "none"
    """Random changes of the private samples: none, crop-flip, or package.module:callable, which gets an array [B, ...] and a NumPy
    generator."""
    loss: str | None = None
    """package.module:callable in place of Eq. 1, which gets (private logits, labels, public logits, teacher logits) and returns a
    mean
    over the rows. --alpha and --temperature are then unused."""

    while_starved: Literal["wait", "private"] = "wait"
    """While no logits are there, wait, or take steps on private data alone. With private, results depend on the link, and one team
    of threads trains."""

    def check_recipe(self) -> None:
        """Check ranges and combinations. Raises ValueError."""
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"--weight-decay is {self.weight_decay}, must be at least 0 and finite")
        if self.clip_grad is not None and not 0 < self.clip_grad < float("inf"):
            raise ValueError(f"--clip-grad is {self.clip_grad}, must be above 0 and finite")
        if self.warmup < 0:
            raise ValueError(f"--warmup is {self.warmup}, must be at least 0")
        if self.init_except is not None and self.init is None:
            raise ValueError(f"--init-except is {self.init_except}, but there is no --init: omit it")
        for flag, value, known in (("--schedule", self.schedule, SCHEDULE_NAMES), ("--augment", self.augment, AUGMENT_NAMES)):
            if value not in known and not names_callable(value):
                raise ValueError(
                    f"{flag} is {value!r}, must be {', '.join(known)} or package.module:callable{closest(value, known)}"
                )
        if self.loss is not None and not names_callable(self.loss):
            raise ValueError(f"--loss is {self.loss!r}, must be package.module:callable")
        for flag, patterns in (("--freeze", self.freeze), ("--init-except", self.init_except)):
            if patterns is not None and not all(part.strip() for part in patterns.split(",")):
                raise ValueError(f"{flag} is {patterns!r}, must be names or patterns separated by commas")

    @property
    def frozen(self) -> tuple[str, ...]:
        """The patterns of --freeze."""
        return tuple(part.strip() for part in (self.freeze or "").split(",") if part.strip())


@dataclass(frozen=True, kw_only=True)
class BufferSettings:
    """Batches of logits and the memory in which they wait."""

    help_group: ClassVar[str] = "receiving"

    public_batch: int = 128
    """Public samples in one step and in one received batch."""
    ring_mib: int = 256
    """Memory limit in MiB for received batches that wait for training."""

    def check_buffer(self) -> None:
        """Check ranges. Raises ValueError."""
        if not 1 <= self.public_batch <= MAX_BATCH_SIZE:
            raise ValueError(f"--public-batch is {self.public_batch}, must be in 1 .. {MAX_BATCH_SIZE}")
        if not 1 <= self.ring_mib <= _MAX_RING_MIB:
            raise ValueError(f"--ring-mib is {self.ring_mib}, must be in 1 .. {_MAX_RING_MIB}")


@dataclass(frozen=True, kw_only=True)
class CoreSettings:
    """The cores that a command may use."""

    help_group: ClassVar[str] = "cores"

    cores: str | None = None
    """Cores to use, for example 0-3 or 0,2. (default: all cores that this process may use)"""

    def check_cores(self) -> None:
        """Check the syntax of --cores. Raises ValueError."""
        if self.cores is not None:
            parse_cores(self.cores)


@dataclass(frozen=True, kw_only=True)
class ComputeSettings(CoreSettings):
    """Where and with how many threads the student trains."""

    help_group: ClassVar[str] = "cores"

    torch_threads: int | None = None
    """Train with one team of at most this number of threads instead of shards. With 1, results do not depend on the core split."""
    device: Device = "cpu"
    """Device that trains the student. auto selects a GPU if there is one."""
    profile: Path | None = None
    """Device profile with the rates for the policy dynamic. (default: it measures rates in its first cycles)"""

    def check_cores(self) -> None:
        """Check --cores and --torch-threads. Raises ValueError."""
        CoreSettings.check_cores(self)
        check_at_least_one("--torch-threads", self.torch_threads)


def check_at_least_one(flag: str, value: int | None) -> None:
    """Raise ValueError for a number below 1. None, the default of an optional flag, is valid."""
    if value is not None and value < 1:
        raise ValueError(f"{flag} is {value}, must be at least 1")
