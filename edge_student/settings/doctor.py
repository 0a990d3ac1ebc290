"""What `doctor` can be told. The sentence under a field is its --help.

It reads a settings file that was written for another command of this program, which is where a device's settings stand anyway.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from edge_student.settings.fetch import FetchConfig
from edge_student.settings.link import PublicInputs, Receiving
from edge_student.settings.student import CalibrateConfig, CompareConfig, TrainConfig
from edgekd.cli.command import LogFormat, LogLevel
from edgekd.cli.cores import parse_cores
from edgekd.wire.codec import Encoding
from edgekd.wire.limits import MAX_BATCH_SIZE, MAX_WINDOW


@dataclass(frozen=True, kw_only=True, slots=True)
class DoctorConfig(Receiving):
    """Look at this device, and at the way to its teacher, and say what to mend before anything is measured."""

    reads_files_of: ClassVar[tuple[type[Any], ...]] = (TrainConfig, CompareConfig, CalibrateConfig, FetchConfig)

    teacher: str | None = None
    """Teacher's address, HOST:PORT, or several with commas between; without it, nothing is looked at beyond this device."""
    cores: str | None = None
    """Cores that runs are to use, for example 0-3 or 0,2; without it, all that this process may use."""
    out: Path = Path()
    """Folder where runs are to write, for its disk; nothing stays there, and it need not exist yet."""
    cache: Path = Path("~/.cache/edgekd/edge-logits")
    """Folder of the logit caches of this edge, for its disk."""
    ring_mib: int = 256
    """Most memory for logits that wait, in MiB, as runs are to have it."""
    public_batch: int = 128
    """Public samples in one step, which is the batch that is received to try the link."""
    encoding: Encoding = Encoding.FLOAT32
    """How logits are to travel: float32, float16, int8 or topk."""
    top_k: int | None = None
    """With --encoding topk, how many of each row's logits; without it, 10."""
    public_inputs: PublicInputs = "local"
    """Where the public images are to come from: local, stream or stored."""
    window: int = 64
    """Batches requested in one call."""
    max_silence: float = 30.0
    """Seconds a connected teacher may stay silent before its stream is cancelled."""
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
    json: bool = False
    """Print the findings as JSON."""
    log_level: LogLevel = "info"
    """Least severe message that is shown on stderr."""
    log_format: LogFormat = "text"
    """How messages on stderr look: text for people, json for machines, one object a line."""

    max_wait: float = field(default=0.0, init=False)  # one attempt: doctor reports the cause of its failure
    edge_id: str = field(default="", init=False)

    def __post_init__(self) -> None:
        if self.teacher is not None:
            self.check_teacher(self.teacher)
        if self.cores is not None:
            parse_cores(self.cores)
        if self.ring_mib < 1:
            raise ValueError(f"--ring-mib is {self.ring_mib}, must be at least 1")
        if not 1 <= self.public_batch <= MAX_BATCH_SIZE:
            raise ValueError(f"--public-batch is {self.public_batch}, must be in 1 .. {MAX_BATCH_SIZE}")
        if not 1 <= self.window <= MAX_WINDOW:
            raise ValueError(f"--window is {self.window}, must be in 1 .. {MAX_WINDOW}")
        self.check_max_silence()
        self.check_top_k()
