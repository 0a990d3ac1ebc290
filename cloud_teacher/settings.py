"""What the commands can be told: one typed value each. The sentence under a field is its --help.

Nothing here imports torch, so that a wrong flag is answered at once and `--cores` is applied before any library starts a thread.
"""

from dataclasses import dataclass
from pathlib import Path

from cloud_teacher.service.limits import Limits
from cloud_teacher.service.rate_limit import parse_rate
from edgekd.cli.address import is_loopback, parse_address
from edgekd.cli.command import LogFormat, LogLevel
from edgekd.cli.cores import parse_cores
from edgekd.cli.devices import Device
from edgekd.cli.tls import Secrets

_MAX_SEED = 2**64 - 1
# gRPC counts it in milliseconds, 31 bits of them.
_MAX_CONNECTION_AGE_S = 20 * 86400


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Train a teacher on public data and save its weights with a card that says what they are."""

    dataset: str
    """Data set to learn, for example digits:public; without a split, its whole train part."""
    model: str
    """Model by name, for example cnn:width=32 or torchvision:resnet18."""
    out: Path
    """Weights file to write, NAME.safetensors; its card goes beside it as NAME.json."""
    epochs: int = 12
    """Passes over the data set."""
    batch_size: int = 64
    """Samples in one optimiser step."""
    lr: float = 0.1
    """Highest learning rate of the one-cycle schedule."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """Weight decay of SGD."""
    seed: int = 0
    """Seed of the initial weights and of the order of the samples."""
    device: Device = "cpu"
    """Where to compute; auto takes a GPU if there is one."""
    log_level: LogLevel = "info"
    """Least severe message that is shown on stderr."""
    log_format: LogFormat = "text"
    """How messages on stderr look: text for people, json for machines, one object a line."""

    def __post_init__(self) -> None:
        if self.out.suffix != ".safetensors":
            raise ValueError(f"--out is {str(self.out)!r}, must end in .safetensors: weights are saved in no other format")
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


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherConfig:
    """A teacher with its public data set and its logit store: the settings that `serve` and `precompute` share."""

    dataset: str
    """Public data set whose logits are wanted, for example digits:public; the edges need the same one."""
    model: str
    """Teacher's architecture by name, as it was trained."""
    weights: Path | None = None
    """Teacher's weights, .safetensors or .pt; without them the model's initial weights are used, for load tests."""
    store: Path = Path("~/.cache/edgekd/logits")
    """Folder of the logit store, where each logit row is kept once it was computed."""
    device: Device = "cpu"
    """Where the teacher computes; auto takes a GPU if there is one."""
    cores: str | None = None
    """Cores that may be used, for example 0-3 or 0,2; without it, those this was started with."""
    torch_threads: int | None = None
    """Threads that compute logits; without it, one per core that may be used."""
    seed: int = 0
    """Seed of the initial weights where no --weights are given."""
    log_level: LogLevel = "info"
    """Least severe message that is shown on stderr."""
    log_format: LogFormat = "text"
    """How messages on stderr look: text for people, json for machines, one object a line."""

    def __post_init__(self) -> None:
        if self.cores is not None:
            parse_cores(self.cores)
        if self.torch_threads is not None and self.torch_threads < 1:
            raise ValueError(f"--torch-threads is {self.torch_threads}, must be at least 1")
        _check_seed(self.seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecomputeConfig(TeacherConfig):
    """Compute all logits of a teacher into its store, so that serving them costs next to nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig(Secrets, TeacherConfig):
    """Stream a teacher's logits of a public data set to edges."""

    listen: str
    """Address to listen on, HOST:PORT; port 0 takes a free one. Beyond loopback it needs TLS, or --insecure."""
    tls_cert: Path | None = None
    """Certificate of this server, a chain in PEM; turns TLS on. Read again when it changes, as the other files are."""
    tls_key: Path | None = None
    """Key of --tls-cert, in PEM and without a password."""
    tls_ca: Path | None = None
    """Authority that must have signed the certificate of every edge, in PEM; without it edges need none."""
    token_file: Path | None = None
    """File with a token that every edge must send, for example made by `openssl rand -hex 32`."""
    insecure: bool = False
    """Serve plaintext beyond loopback: everybody on the way can read and change what is sent."""
    rate_limit: str | None = None
    """Payload rate of all streams together, for example 100mbit (units bit, kbit, mbit, gbit); without it, unlimited."""
    precompute: bool = False
    """Compute all logits before listening, so that serving costs next to nothing."""
    background: bool = False
    """Compute all logits while serving; what an edge asks for is computed in between."""
    max_streams: int = 64
    """Streams that may be open at a time; one more is told RESOURCE_EXHAUSTED."""
    max_streams_per_edge: int | None = None
    """Of those, streams of one edge: of one certificate under mutual TLS, else of one --edge-id, else of one IP address; without
    it, all of them."""
    max_connection_age: float | None = None
    """Seconds after which a connection is ended, so that its edge makes a new one: with the certificates of then, or to another
    server behind a balancer; streams may run on for 30 s. Without it, connections last."""
    metrics_listen: str | None = None
    """Address for Prometheus, HOST:PORT, with /metrics and /healthz; without it there are none. Plaintext, so beyond loopback it
    needs --metrics-insecure."""
    metrics_insecure: bool = False
    """Serve metrics beyond loopback: everybody on that network can read them."""

    def __post_init__(self) -> None:
        TeacherConfig.__post_init__(self)
        host, _ = parse_listen(self.listen)
        if self.tls_ca is not None and self.tls_cert is None:
            raise ValueError(f"--tls-ca is {self.tls_ca}, but a server that asks for certificates needs its own: --tls-cert")
        if not (self.tls or self.insecure or is_loopback(host)):
            raise ValueError(
                f"--listen is {self.listen}, which other machines can reach, and the wire would be plaintext: give --tls-cert and "
                "--tls-key, or --insecure if everybody on this network may read and change what is sent"
            )
        if self.rate_limit is not None:
            parse_rate(self.rate_limit)
        for flag, number in (("--max-streams", self.max_streams), ("--max-streams-per-edge", self.max_streams_per_edge)):
            if number is not None and number < 1:
                raise ValueError(f"{flag} is {number}, must be at least 1")
        age = self.max_connection_age
        if age is not None and not 1 <= age <= _MAX_CONNECTION_AGE_S:
            raise ValueError(f"--max-connection-age is {age}, must be in 1 .. {_MAX_CONNECTION_AGE_S} seconds")
        if self.metrics_listen is not None:
            host, port = parse_address(self.metrics_listen, flag="--metrics-listen", lowest_port=0)
            if port and self.metrics_listen == self.listen:
                raise ValueError(f"--metrics-listen is {self.metrics_listen}, and so is --listen; metrics need a port of their own")
            if not (self.metrics_insecure or is_loopback(host)):
                raise ValueError(
                    f"--metrics-listen is {self.metrics_listen}, which other machines can reach, in plaintext and without a token: "
                    "listen on loopback, or give --metrics-insecure if everybody on this network may read the metrics"
                )

    @property
    def limits(self) -> Limits:
        """What this server grants."""
        return Limits(
            max_streams=self.max_streams,
            max_streams_per_edge=self.max_streams_per_edge,
            max_connection_age_s=self.max_connection_age,
        )


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port of --listen; port 0 takes a free one. Raises ValueError."""
    return parse_address(text, flag="--listen", lowest_port=0)


def _check_seed(seed: int) -> None:
    if not 0 <= seed <= _MAX_SEED:
        raise ValueError(f"--seed is {seed}, must be in 0 .. 2^64-1")
