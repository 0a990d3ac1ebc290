"""Settings of `train`, `compare` and `calibrate`. The docstring below a field is its help text.

No settings module imports torch: a wrong flag is reported at once, and cores are selected before a library starts threads.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edge_student.settings.link import LinkSettings, PublicInputs
from edge_student.settings.shared import (
    BufferSettings,
    ComputeSettings,
    DataSettings,
    ModelSettings,
    RecipeSettings,
    TrainingSettings,
    check_at_least_one,
)
from edgekd.cli.rate import parse_rate
from edgekd.wire.limits import MAX_STRIDE

LogitsFrom = Literal["online", "hybrid", "offline"]

_MAX_EPOCHS = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentConfig(DataSettings, ModelSettings, TrainingSettings, RecipeSettings, ComputeSettings, BufferSettings, LinkSettings):
    """Settings that `train`, `compare` and `calibrate` share."""

    prefetch: int | None = field(default=None, metadata={"group": "receiving"})
    """Batches that receiving may run ahead of training. (default: as many as fit in --ring-mib)"""
    streams: int | None = field(default=None, metadata={"group": "receiving"})
    """Parallel streams, at most 64. Each has its own connection and thread. (default: half the number of cores, at most 4)"""
    logits: LogitsFrom = field(default="online", metadata={"group": "receiving"})
    """Source of logits: online streams them, hybrid also fills --cache, offline reads --cache without a teacher. `fetch` fills a
    cache too."""

    def __post_init__(self) -> None:
        self.check_data()
        self.check_model_settings()
        self.check_training()
        self.check_recipe()
        self.check_cores()
        self.check_buffer()
        self.check_link_settings()
        if self.shards is not None and self.shards > self.public_batch:
            raise ValueError(f"--shards is {self.shards}, must be at most {self.public_batch}: each has a row of --public-batch")
        if self.shards is not None and self.shards > 1 and self.device != "cpu":
            raise ValueError(f"--shards is {self.shards}, but --device is {self.device}: shards are for the CPU; omit it")
        if self.while_starved == "private" and (self.shards or 1) > 1:
            raise ValueError(f"--shards is {self.shards}, but --while-starved private trains with one team: omit --shards")
        if self.while_starved == "private" and self.alpha == 0:
            raise ValueError("--while-starved is private, but --alpha is 0, so private labels are not used: omit one of them")
        check_at_least_one("--prefetch", self.prefetch)
        check_at_least_one("--streams", self.streams)
        if self.streams is not None and self.streams > MAX_STRIDE:
            raise ValueError(f"--streams is {self.streams}, must be at most {MAX_STRIDE}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(StudentConfig):
    """Train one student under one policy."""

    teacher: str | None = field(default=None, metadata={"group": "receiving"})
    """Teacher address HOST:PORT. Several addresses with the same logits, separated by commas, allow failover. Required unless
    --logits is offline."""
    epochs: float | None = field(default=None, metadata={"group": "training"})
    """Passes over the private data, in place of --cycles."""
    eval_every: int | None = field(default=None, metadata={"group": "training"})
    """Cycles between two measurements of the accuracy. Training waits for them. (default: measured once, at the end)"""
    early_stop: int | None = field(default=None, metadata={"group": "training"})
    """End after this number of measurements of --eval-every without a higher accuracy. (default: train all cycles)"""
    policy: str = field(default="adaptive", metadata={"group": "cores"})
    """Scheduling policy: os-default, os-tuned, os-workers, static:<c>, random, comm-priority, comp-priority, compute-first,
    elastic, dynamic or adaptive."""
    out: Path = field(default=Path("runs/train"), metadata={"group": "output"})
    """Folder for the results, logs and checkpoints of the run. Files of an earlier run are replaced, except with --resume."""
    resume: bool = field(default=False, metadata={"group": "output"})
    """Resume from the checkpoint in --out with the same recipe. Without a checkpoint, start a new run. A higher --cycles extends
    the run."""
    checkpoint_every: float = field(default=60.0, metadata={"group": "output"})
    """Seconds between two checkpoints; 0 disables them. The end of a run, normal or not, also writes one."""

    tensorboard: Path | None = field(default=None, metadata={"group": "output"})
    """Folder for TensorBoard's files; requires the extra edgekd[tensorboard]. metrics.jsonl in --out has the same numbers."""

    def __post_init__(self) -> None:
        StudentConfig.__post_init__(self)
        check_at_least_one("--eval-every", self.eval_every)
        check_at_least_one("--early-stop", self.early_stop)
        if self.early_stop is not None and self.eval_every is None:
            raise ValueError(f"--early-stop is {self.early_stop}, but the accuracy is measured once: name --eval-every CYCLES")
        if self.epochs is not None and not 0 < self.epochs < _MAX_EPOCHS:
            raise ValueError(f"--epochs is {self.epochs}, must be above 0 and below {_MAX_EPOCHS}")
        if not 0 <= self.checkpoint_every < float("inf"):
            raise ValueError(f"--checkpoint-every is {self.checkpoint_every}, must be at least 0 and finite")
        if self.logits == "offline":
            _check_offline(self.teacher)
        elif self.teacher is None:
            raise ValueError("--teacher is missing: name its address HOST:PORT, or train with --logits offline")
        else:
            self.check_teacher(self.teacher)
        _check_public(self.public, self.public_inputs)


@dataclass(frozen=True, kw_only=True, slots=True)
class HostingConfig(StudentConfig):
    """Settings of a command that starts a local teacher if no --teacher is given."""

    teacher: str | None = field(default=None, metadata={"group": "receiving"})
    """Teacher address HOST:PORT, or several separated by commas. (default: a small teacher, trained once and served on this
    machine)"""
    teacher_model: str = field(default="cnn:width=32", metadata={"group": "model"})
    """Model of the local teacher."""
    rate_limit: str | None = field(default=None, metadata={"group": "receiving"})
    """Payload rate of the local teacher, for example 20mbit, to simulate a slow link. (default: unlimited)"""

    def __post_init__(self) -> None:
        StudentConfig.__post_init__(self)
        if self.logits == "offline":
            _check_offline(self.teacher)
        if self.teacher is not None:
            self.check_teacher(self.teacher)
            _check_public(self.public, self.public_inputs)
        if self.teacher is None and (self.tls or self.token_file is not None):
            raise ValueError("TLS files and --token-file require --teacher: the local teacher uses neither; omit them")
        if self.teacher is not None and self.rate_limit is not None:
            raise ValueError(
                f"--rate-limit is {self.rate_limit}, but applies to the local teacher only: omit it, "
                "or set --rate-limit of `cloud-teacher serve`"
            )
        if self.rate_limit is not None:
            parse_rate(self.rate_limit)


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareConfig(HostingConfig):
    """Train the same student under several policies and compare their wall-clock."""

    policies: str | None = field(default=None, metadata={"group": "cores"})
    """Policies to compare, separated by commas. The baseline os-default is always included. (default: every
    policy that the number of cores allows)"""
    repeats: int = field(default=5, metadata={"group": "training"})
    """Runs of each policy. Below 5, confidence intervals mean little."""
    out: Path = field(default=Path("runs/compare"), metadata={"group": "output"})
    """Folder for report.json, report.html and the runs. Files of an earlier comparison are replaced."""

    def __post_init__(self) -> None:
        HostingConfig.__post_init__(self)
        check_at_least_one("--repeats", self.repeats)
        if self.policies is not None:
            parse_policies(self.policies)


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrateConfig(HostingConfig):
    """Measure this device's rates in each mode and save them as a device profile."""

    out: Path = field(default=Path("profile.json"), metadata={"group": "output"})
    """Profile file to write, NAME.json. A plot is written beside it. Existing files are replaced."""
    seconds: float = field(default=60.0, metadata={"group": "training"})
    """Seconds of measurement. The command takes longer if the training steps are slow."""

    def __post_init__(self) -> None:
        HostingConfig.__post_init__(self)
        if self.logits != "online":
            raise ValueError(f"--logits is {self.logits}, but calibrate measures the rate of receiving; omit it")
        if not 0 < self.seconds < float("inf"):
            raise ValueError(f"--seconds is {self.seconds}, must be above 0 and finite")
        if self.profile is not None:
            raise ValueError(
                f"--profile is {self.profile}, but calibrate writes a profile and reads none; name the new one with --out"
            )
        if self.out.suffix != ".json":
            raise ValueError(f"--out is {self.out}, must end in .json: the plot gets the same name with .png and .svg")


def _check_public(public: str | None, inputs: PublicInputs) -> None:
    if public is not None and inputs != "local":
        raise ValueError(f"--public is {public}, but with --public-inputs {inputs} the teacher sends its own; omit one of them")


def _check_offline(teacher: str | None) -> None:
    if teacher is not None:
        raise ValueError(f"--teacher is {teacher}, but --logits offline uses no teacher; omit it, or use --logits hybrid")


def jsonable(values: dict[str, Any]) -> dict[str, Any]:
    """Convert paths to text, so that a configuration can be written as JSON."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def parse_policies(text: str) -> tuple[str, ...]:
    """Split "a,b,c" into policy names, the baseline os-default first. Raises ValueError for an empty or repeated name."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ValueError(f"--policies is {text!r}, must be policy names separated by commas")
    if len(set(names)) < len(names):
        raise ValueError(f"--policies is {text!r}, must name each policy once")
    return ("os-default", *(name for name in names if name != "os-default"))
