"""Settings of the three commands: one frozen dataclass each. The docstring below a field is its help text.

This module does not import torch: a wrong flag is reported at once, and `--cores` takes effect before a library starts threads.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from cloud_teacher.service.limits import Limits
from edgekd.cli.address import is_loopback, parse_address
from edgekd.cli.cores import parse_cores
from edgekd.cli.device_names import Device
from edgekd.cli.logs import LogSettings
from edgekd.cli.rate import parse_rate
from edgekd.cli.tls import TlsSettings
from edgekd.data.preprocessing import parse_normalization, parse_resize

_MAX_SEED = 2**64 - 1
# gRPC counts the age in milliseconds, in 31 bits.
_MAX_CONNECTION_AGE_S = 20 * 86400


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(LogSettings):
    """Train a teacher on public data. Save its weights and a JSON description."""

    dataset: str = field(default="digits:public", metadata={"group": "data"})
    """Data set to learn. A name without a split means its whole train part."""
    test: str | None = field(default=None, metadata={"group": "data"})
    """Data set that measures the accuracy. (default: the test split of --dataset)"""
    model: str = field(default="cnn:width=32", metadata={"group": "model"})
    """Model by name, for example cnn:width=32 or torchvision:resnet18."""
    normalize: str | None = field(default=None, metadata={"group": "model"})
    """Normalization of the input: imagenet, signed (-1 to 1), unit (0 to 1), none, or MEAN/STD. (default: signed for images, none
    for float32 samples)"""
    resize: str | None = field(default=None, metadata={"group": "model"})
    """Resize rule of the input: SIZE, SHORTER/CROP such as 256/224, or HEIGHTxWIDTH, each with or without :bicubic.
    (default: the size of the data set)"""
    epochs: int = field(default=12, metadata={"group": "training"})
    """Passes over the data set."""
    batch_size: int = field(default=64, metadata={"group": "training"})
    """Samples in one optimiser step."""
    lr: float = field(default=0.1, metadata={"group": "training"})
    """Peak learning rate of the one-cycle schedule."""
    momentum: float = field(default=0.9, metadata={"group": "training"})
    """Momentum of SGD, at least 0 and below 1."""
    weight_decay: float = field(default=5e-4, metadata={"group": "training"})
    """Weight decay of SGD."""
    seed: int = field(default=0, metadata={"group": "training"})
    """Seed of the initial weights and of the sample order."""
    device: Device = field(default="cpu", metadata={"group": "cores"})
    """Device that trains the teacher. auto selects a GPU if there is one."""
    out: Path = field(default=Path("teacher.safetensors"), metadata={"group": "output"})
    """Weights file to write, NAME.safetensors. A JSON description (digests, accuracy, versions) is written beside it as
    NAME.json."""

    def __post_init__(self) -> None:
        if self.out.suffix != ".safetensors":
            raise ValueError(f"--out is {str(self.out)!r}, must end in .safetensors, the only format of saved weights")
        for flag, value in (("--epochs", self.epochs), ("--batch-size", self.batch_size)):
            if value < 1:
                raise ValueError(f"{flag} is {value}, must be at least 1")
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"--lr is {self.lr}, must be above 0 and finite")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"--momentum is {self.momentum}, must be at least 0 and below 1")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"--weight-decay is {self.weight_decay}, must be at least 0 and finite")
        _check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(LogSettings):
    """Settings of `serve` and `precompute`: a teacher, its public data set and its logit store."""

    dataset: str = field(default="digits:public", metadata={"group": "data"})
    """Public data set whose logits are computed. Edges need the same data set."""
    store: Path = field(default=Path("~/.cache/edgekd/logits"), metadata={"group": "data"})
    """Folder of the logit store. It keeps every logit row after its first computation."""
    model: str | None = field(default=None, metadata={"group": "model"})
    """Teacher model: cnn:width=32, torchvision:NAME, timm:NAME or package.module:callable. With pretrained weights:
    torchvision:NAME@WEIGHTS or timm:NAME@pretrained. (default: that of the model card of --weights, else cnn:width=32)"""
    weights: Path | None = field(default=None, metadata={"group": "model"})
    """Teacher weights, .safetensors or .pt. (default: those of --model, else untrained initial weights, for load tests only)"""
    normalize: str | None = field(default=None, metadata={"group": "model"})
    """Normalization of the teacher's input: imagenet, signed (-1 to 1), unit (0 to 1), none, or MEAN/STD. Required for weights
    without a model card."""
    resize: str | None = field(default=None, metadata={"group": "model"})
    """Resize rule of the teacher's input: SIZE, SHORTER/CROP such as 256/224, or HEIGHTxWIDTH, each with or without :bicubic.
    (default: that of the model card, else the size of the data set)"""
    classes: str | None = field(default=None, metadata={"group": "model"})
    """Classes of the teacher's outputs: their number, or a text file with one name per line. (default: those of the model card,
    else those of the data set)"""
    keep_classes: str | None = field(default=None, metadata={"group": "model"})
    """Classes to serve, by name or number, separated by commas, or @FILE with one per line. Other outputs are dropped.
    (default: all)"""
    seed: int = field(default=0, metadata={"group": "model"})
    """Seed of the initial weights without --weights."""
    cores: str | None = field(default=None, metadata={"group": "cores"})
    """Cores to use, for example 0-3 or 0,2. (default: all cores that this process may use)"""
    torch_threads: int | None = field(default=None, metadata={"group": "cores"})
    """Threads that compute logits. (default: one per core)"""
    device: Device = field(default="cpu", metadata={"group": "cores"})
    """Device that computes logits. auto selects a GPU if there is one."""

    def __post_init__(self) -> None:
        if self.cores is not None:
            parse_cores(self.cores)
        if self.torch_threads is not None and self.torch_threads < 1:
            raise ValueError(f"--torch-threads is {self.torch_threads}, must be at least 1")
        _check_seed(self.seed)
        if self.normalize is not None:
            parse_normalization(self.normalize)
        if self.resize is not None:
            parse_resize(self.resize)


@dataclass(frozen=True, kw_only=True)
class ServingSettings:
    """Address, computation in advance and limits of a server."""

    help_group: ClassVar[str] = "serving"

    listen: str = "127.0.0.1:50051"
    """Address to listen on, HOST:PORT. Port 0 selects a free port. Beyond loopback it requires TLS or --insecure."""
    rate_limit: str | None = None
    """Total payload rate of all streams, for example 100mbit (units: bit, kbit, mbit, gbit). (default: unlimited)"""
    precompute: bool = False
    """Compute all logits before listening. Edges cannot connect before, and retry for their --max-wait. Serving then costs
    almost no computation."""
    background: bool = False
    """Compute all logits while serving. Rows that edges request have priority."""
    max_streams: int = 64
    """Maximum number of open streams. One more is rejected with RESOURCE_EXHAUSTED."""
    max_streams_per_edge: int | None = None
    """Maximum number of open streams per edge. Edges are identified by client certificate, then --edge-id, then IP address.
    (default: --max-streams)"""
    max_connection_age: float | None = None
    """Seconds after which a connection is closed, with 30 s of grace for open streams. The edge reconnects with current
    certificates, or to another server behind a load balancer. (default: unlimited)"""
    metrics_listen: str | None = None
    """Address HOST:PORT for plaintext /metrics (Prometheus) and /healthz. Beyond loopback it requires --metrics-insecure.
    (default: no metrics server)"""

    @property
    def limits(self) -> Limits:
        """Limits of this server."""
        return Limits(
            max_streams=self.max_streams,
            max_streams_per_edge=self.max_streams_per_edge,
            max_connection_age_s=self.max_connection_age,
        )

    def check_limits(self) -> None:
        """Check the limits. Raises ValueError."""
        if self.rate_limit is not None:
            parse_rate(self.rate_limit)
        for flag, number in (("--max-streams", self.max_streams), ("--max-streams-per-edge", self.max_streams_per_edge)):
            if number is not None and number < 1:
                raise ValueError(f"{flag} is {number}, must be at least 1")
        age = self.max_connection_age
        if age is not None and not 1 <= age <= _MAX_CONNECTION_AGE_S:
            raise ValueError(f"--max-connection-age is {age}, must be in 1 .. {_MAX_CONNECTION_AGE_S} seconds")


@dataclass(frozen=True, kw_only=True)
class SecuritySettings(TlsSettings):
    """TLS files, token and the consent to plaintext, on the server's side."""

    help_group: ClassVar[str] = "security"

    tls_cert: Path | None = None
    """Certificate chain of this server in PEM. Enables TLS. All TLS and token files are read again when they change."""
    tls_key: Path | None = None
    """Private key of --tls-cert in PEM, without a password."""
    tls_ca: Path | None = None
    """CA certificate in PEM that verifies client certificates. (default: edges need no certificate)"""
    token_file: Path | None = None
    """File with a token that every edge must send, for example from `openssl rand -hex 32`."""
    insecure: bool = False
    """Serve plaintext beyond loopback. Everyone on the network path can read and change the traffic."""
    metrics_insecure: bool = False
    """Serve metrics beyond loopback. Everyone on that network can read them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecomputeConfig(TeacherConfig):
    """Compute all logits of a teacher into its store. Serving them then costs almost no computation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig(TeacherConfig, ServingSettings, SecuritySettings):
    """Stream a teacher's logits of a public data set to edges."""

    def __post_init__(self) -> None:
        TeacherConfig.__post_init__(self)
        host, _ = parse_listen(self.listen)
        if self.tls_ca is not None and self.tls_cert is None:
            raise ValueError(f"--tls-ca is {self.tls_ca}, but a server that verifies client certificates needs its own: --tls-cert")
        if not (self.tls or self.insecure or is_loopback(host)):
            raise ValueError(
                f"--listen is {self.listen}, which other machines can reach, and the connection would be plaintext: give "
                "--tls-cert and --tls-key, or --insecure if everyone on this network may read and change the traffic"
            )
        self.check_limits()
        if self.metrics_listen is not None:
            self._check_metrics(self.metrics_listen)

    def _check_metrics(self, address: str) -> None:
        host, port = parse_address(address, flag="--metrics-listen", lowest_port=0)
        if port and address == self.listen:
            raise ValueError(f"--metrics-listen is {address}, the same as --listen; give metrics a port of their own")
        if not (self.metrics_insecure or is_loopback(host)):
            raise ValueError(
                f"--metrics-listen is {address}, which other machines can reach, in plaintext and without a token: "
                "listen on loopback, or give --metrics-insecure if everyone on this network may read the metrics"
            )


def parse_listen(text: str) -> tuple[str, int]:
    """Return host and port of --listen. Port 0 selects a free port. Raises ValueError."""
    return parse_address(text, flag="--listen", lowest_port=0)


def _check_seed(seed: int) -> None:
    if not 0 <= seed <= _MAX_SEED:
        raise ValueError(f"--seed is {seed}, must be in 0 .. 2^64-1")
