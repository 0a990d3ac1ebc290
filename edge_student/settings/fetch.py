"""What `fetch` can be told. The sentence under a field is its --help.

It trains nothing, so it knows the wire and the cache, and neither a student nor cores.
"""

from dataclasses import dataclass, field
from pathlib import Path

from edge_student.settings.link import PublicInputs, Receiving
from edgekd.cli.command import LogFormat, LogLevel
from edgekd.wire.codec import Encoding
from edgekd.wire.identity import name_of_host
from edgekd.wire.limits import MAX_BATCH_SIZE, MAX_WINDOW


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchConfig(Receiving):
    """Receive all logits of a teacher into the cache of this edge, to train from them with --logits offline or hybrid."""

    teacher: str
    """Teacher's address, HOST:PORT, or several of the same logits with commas between."""
    public: str | None = None
    """Public data set that the teacher has to serve, for example digits:public; without it, any."""
    encoding: Encoding = Encoding.FLOAT32
    """How logits travel and are kept: float32 is exact, float16 half the bytes, int8 a quarter, topk only the largest of a row."""
    top_k: int | None = None
    """With --encoding topk, how many of each row's logits, fewer than there are classes; without it, 10."""
    cache: Path = Path("~/.cache/edgekd/edge-logits")
    """Folder of the logit caches of this edge, one for each teacher, data set and encoding."""
    public_inputs: PublicInputs = "local"
    """Where the public images come from: local if they are on this device, stream or stored if they are to be kept in the cache
    too, having travelled as pixels or as the JPEG or PNG files of the teacher's image folder."""
    batch_size: int = 128
    """Samples in a batch on the wire."""
    window: int = 64
    """Batches asked for in one request."""
    max_wait: float = 60.0
    """Seconds without any success after which an unreachable teacher is given up."""
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
        self.check_teacher(self.teacher)
        self.check_top_k()
        self.check_edge_id()
        for flag, value, most in (("--batch-size", self.batch_size, MAX_BATCH_SIZE), ("--window", self.window, MAX_WINDOW)):
            if not 1 <= value <= most:
                raise ValueError(f"{flag} is {value}, must be in 1 .. {most}")
        self.check_timeouts()
