"""What the edge's commands can be told: one typed value each. The sentence under a field is its --help.

Nothing here imports torch, so that a wrong flag is answered at once and cores are chosen before any library starts a thread.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edge_student.settings.link import PublicInputs, Receiving
from edgekd.cli.command import LogFormat, LogLevel
from edgekd.cli.cores import parse_cores
from edgekd.cli.devices import Device
from edgekd.wire.codec import Encoding
from edgekd.wire.identity import name_of_host
from edgekd.wire.limits import MAX_BATCH_SIZE, MAX_STRIDE, MAX_WINDOW

_MAX_SEED = 2**64 - 1
_MAX_PRIVATE_BATCH = 1 << 16
"""Private samples in one step: more than any board holds in memory."""
_MAX_RING_MIB = 1 << 20

LogitsFrom = Literal["online", "hybrid", "offline"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentConfig(Receiving):
    """What to distil, and how: the settings that `train` and `compare` share."""

    private: str
    """Private data set to train on, for example digits:private; its test split measures the accuracy."""
    public: str | None = None
    """Public data set, the one the teacher serves; without it, the public split of the private data set. Not where the teacher
    sends its own (--public-inputs)."""
    private_samples: int | None = None
    """Use only the first so many private samples."""
    model: str = "cnn"
    """Student by name: cnn, cnn:width=32, torchvision:NAME, timm:NAME or package.module:callable."""
    cycles: int = 200
    """Optimiser steps, each with one batch of logits."""
    alpha: float = 0.1
    """Weight of the loss on private labels; the rest weighs the teacher's logits (Eq. 1)."""
    temperature: float = 4.0
    """Temperature that softens the logits of both."""
    lr: float = 0.05
    """Learning rate of SGD."""
    momentum: float = 0.9
    """Momentum of SGD."""
    batch_size: int = 32
    """Private samples in one step."""
    public_batch: int = 128
    """Public samples in one step, which are the logits received in one cycle."""
    seed: int = 0
    """Seed of the initial weights, of both sample orders and of the policy `random`."""
    prefetch: int | None = None
    """Batches that receiving may run ahead of training; without it, as many as fit in --ring-mib."""
    ring_mib: int = 256
    """Most memory for logits that wait, and inputs that came with them, in MiB."""
    cores: str | None = None
    """Cores to use, for example 0-3 or 0,2; without it, all that this process may use."""
    torch_threads: int | None = None
    """Most threads of the training step; 1 makes results independent of how cores are split."""
    device: Device = "cpu"
    """Where the student computes; auto takes a GPU if there is one."""
    profile: Path | None = None
    """Device profile with the rates that `dynamic` and `adaptive` plan with; without it, they learn them in their first cycles."""
    encoding: Encoding = Encoding.FLOAT32
    """How logits travel: float32 is exact, float16 half the bytes, int8 a quarter, topk only the largest of each row."""
    top_k: int | None = None
    """With --encoding topk, how many of each row's logits, fewer than there are classes; without it, 10."""
    logits: LogitsFrom = "online"
    """Where logits come from: online over the wire each time, hybrid over the wire once and then from --cache, or offline from it
    alone, without a teacher; `fetch` fills it."""
    cache: Path = Path("~/.cache/edgekd/edge-logits")
    """Folder of the logit caches of this edge, one for each teacher, data set and encoding; or one of those."""
    public_inputs: PublicInputs = "local"
    """Where the public images come from: local if --public is on this device, stream if they are to travel with their logits as
    pixels, or stored: as the JPEG or PNG files of the teacher's image folder, which are decoded here."""
    streams: int | None = None
    """Streams that receive at a time, each over a connection and in a thread of its own, at most 64; without it, half as many as
    there are cores, 4 at most."""
    window: int = 64
    """Batches asked for in one request."""
    max_wait: float = 60.0
    """Seconds without any success after which an unreachable teacher ends the run."""
    max_silence: float = 30.0
    """Seconds for which a teacher that is there may send nothing, before it is asked again."""
    tls_ca: Path | None = None
    """Authority that signed the teacher's certificate, in PEM; turns TLS on."""
    tls_cert: Path | None = None
    """Certificate of this edge, in PEM, for a teacher that asks for one; turns TLS on."""
    tls_key: Path | None = None
    """Key of --tls-cert, in PEM and without a password."""
    token_file: Path | None = None
    """File with the token that the teacher wants."""
    insecure: bool = False
    """Reach a teacher on another machine in plaintext: everybody on the way can read and change what is sent."""
    edge_id: str = field(default_factory=name_of_host)
    """Name of this edge in the teacher's log; without it, that of this machine."""
    log_level: LogLevel = "info"
    """Least severe message that is shown on stderr."""
    log_format: LogFormat = "text"
    """How messages on stderr look: text for people, json for machines, one object a line."""

    def __post_init__(self) -> None:
        positive = ("cycles", "batch_size", "public_batch", "window", "ring_mib")
        for name in (*positive, "private_samples", "prefetch", "torch_threads", "streams"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {value}, must be at least 1")
        _check_range("--alpha", self.alpha, 0.0, 1.0, "it weighs two losses")
        _check_range("--momentum", self.momentum, 0.0, 1.0, "it is a decay")
        for flag, number in (("--temperature", self.temperature), ("--lr", self.lr)):
            if not 0 < number < float("inf"):
                raise ValueError(f"{flag} is {number}, must be above 0 and finite")
        self.check_timeouts()
        if self.batch_size > _MAX_PRIVATE_BATCH:
            raise ValueError(f"--batch-size is {self.batch_size}, must be at most {_MAX_PRIVATE_BATCH}")
        if self.public_batch > MAX_BATCH_SIZE:
            raise ValueError(f"--public-batch is {self.public_batch}, the protocol allows at most {MAX_BATCH_SIZE}")
        if self.window > MAX_WINDOW:
            raise ValueError(f"--window is {self.window}, the protocol allows at most {MAX_WINDOW}")
        if self.ring_mib > _MAX_RING_MIB:
            raise ValueError(f"--ring-mib is {self.ring_mib}, must be at most {_MAX_RING_MIB}")
        if not 0 <= self.seed < _MAX_SEED:
            raise ValueError(f"--seed is {self.seed}, must be in 0 .. 2^64-2")
        if self.streams is not None and self.streams > MAX_STRIDE:
            raise ValueError(f"--streams is {self.streams}, the protocol allows at most {MAX_STRIDE}")
        self.check_top_k()
        self.check_edge_id()
        if self.cores is not None:
            parse_cores(self.cores)
        for flag, dataset in (("--private", self.private), ("--public", self.public)):
            if dataset is not None and dataset.endswith(":test"):
                raise ValueError(f"{flag} is {dataset}: accuracy is measured on the test split, so nothing may be learned from it")

    @property
    def public_dataset(self) -> str:
        """The public data set's name."""
        return self.public or split_of(self.private, "public")

    @property
    def test_dataset(self) -> str:
        """The name of the test split of the private data set."""
        return split_of(self.private, "test")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(StudentConfig):
    """Train one student under one policy."""

    teacher: str | None = None
    """Teacher's address, HOST:PORT, or several of the same logits with commas between: where one is lost, the next is asked. Not
    with --logits offline."""
    policy: str = "dynamic"
    """Who gets which cores: os-default, os-tuned, static:<c>, random, comm-priority,
    comp-priority, compute-first, dynamic or adaptive."""
    out: Path
    """Folder for result.json, events.jsonl, trace.json, student.safetensors and the checkpoints; files of an earlier run are
    replaced, unless it goes on with --resume."""
    resume: bool = False
    """Go on from the checkpoint in --out, with the same recipe; begin anew if there is none. More --cycles than before train on."""
    checkpoint_every: float = 60.0
    """Seconds between two checkpoints; one is also written when the run ends, however it does. 0: none at all."""

    def __post_init__(self) -> None:
        StudentConfig.__post_init__(self)
        if not 0 <= self.checkpoint_every < float("inf"):
            raise ValueError(f"--checkpoint-every is {self.checkpoint_every}, must be 0 or more seconds, and finite")
        if self.logits == "offline":
            _check_offline(self.teacher)
        elif self.teacher is None:
            raise ValueError("--teacher is missing: name its address, HOST:PORT, or train with --logits offline")
        else:
            self.check_teacher(self.teacher)
        _check_public(self.public, self.public_inputs)


@dataclass(frozen=True, kw_only=True, slots=True)
class HostingConfig(StudentConfig):
    """What to distil, by a command that starts a teacher of its own when none is given."""

    teacher: str | None = None
    """Teacher's address, HOST:PORT, or several with commas between; without it, a small one is trained once and served on
    loopback."""
    teacher_model: str = "cnn:width=32"
    """Model of the teacher that is started when none is given."""
    rate_limit: str | None = None
    """Payload rate of that teacher, for example 20mbit, to see what a slow link does; without it, unlimited."""

    def __post_init__(self) -> None:
        StudentConfig.__post_init__(self)
        if self.logits == "offline":
            _check_offline(self.teacher)
        if self.teacher is not None:
            self.check_teacher(self.teacher)
            _check_public(self.public, self.public_inputs)
        if self.teacher is None and (self.tls or self.token_file is not None):
            raise ValueError("TLS and a token are for a teacher that runs elsewhere, and no --teacher is given; leave them out")
        if self.teacher is not None and self.rate_limit is not None:
            raise ValueError(f"--rate-limit {self.rate_limit} is for a teacher that is started here; give it to your own `serve`")


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareConfig(HostingConfig):
    """Train the same student under several policies and compare their wall-clock."""

    policies: str | None = None
    """Policies to compare, with commas between; os-default is always among them, as the baseline; without it, all that
    the cores allow."""
    repeats: int = 5
    """Runs of each policy; an interval means little below 5."""
    out: Path
    """Folder for report.json and the runs; files of an earlier comparison are replaced."""

    def __post_init__(self) -> None:
        HostingConfig.__post_init__(self)
        if self.repeats < 1:
            raise ValueError(f"--repeats is {self.repeats}, must be at least 1")
        if self.policies is not None:
            parse_policies(self.policies)


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrateConfig(HostingConfig):
    """Measure what this device does in each mode, and save it as a profile."""

    out: Path
    """File for the profile, for example profile.json; an earlier one is replaced, and a plot is drawn beside it."""
    seconds: float = 60.0
    """Seconds to measure for; more when a student's steps are so slow that this would be too few of them."""

    def __post_init__(self) -> None:
        HostingConfig.__post_init__(self)
        if self.logits != "online":
            raise ValueError(f"--logits is {self.logits}, but calibrate measures how fast logits are received; leave it out")
        if not 0 < self.seconds < float("inf"):
            raise ValueError(f"--seconds is {self.seconds}, must be above 0 and finite")
        if self.profile is not None:
            raise ValueError(
                f"--profile is {self.profile}, but calibrate makes a profile and takes none; name the new one with --out"
            )
        if self.out.suffix != ".json":
            raise ValueError(f"--out is {self.out}, must end in .json: the plot takes the same name with .png and .svg")


def _check_public(public: str | None, inputs: PublicInputs) -> None:
    if public is not None and inputs != "local":
        raise ValueError(f"--public is {public}, but with --public-inputs {inputs} the teacher sends its own; leave one out")


def _check_offline(teacher: str | None) -> None:
    if teacher is not None:
        raise ValueError(f"--teacher is {teacher}, but --logits offline needs none; leave it out, or use --logits hybrid")


def split_of(dataset: str, split: str) -> str:
    """The name of another split of the same data set: fashion-mnist:private, test -> fashion-mnist:test."""
    base, colon, last = dataset.rpartition(":")
    if colon and last in ("public", "private", "test"):
        return f"{base}:{split}"
    return f"{dataset}:{split}"


def jsonable(values: dict[str, Any]) -> dict[str, Any]:
    """The same with paths as text, so that a configuration can be written as JSON."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def parse_policies(text: str) -> tuple[str, ...]:
    """Names of the policies in "a,b,c", the baseline os-default first. ValueError if a name is missing or comes twice."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ValueError(f"--policies is {text!r}, must be names with commas between")
    if len(set(names)) < len(names):
        raise ValueError(f"--policies is {text!r}, names a policy twice")
    return ("os-default", *(name for name in names if name != "os-default"))


def _check_range(flag: str, value: float, low: float, high: float, why: str) -> None:
    if not low <= value <= high:
        raise ValueError(f"{flag} is {value}, must lie in {low:g} .. {high:g}: {why}")
