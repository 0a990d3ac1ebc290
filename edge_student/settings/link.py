"""Settings of the connection to the teacher: encodings, timeouts and security. All five commands share them."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from edge_student.ipc.messages import Configure, Described
from edge_student.ipc.ring import RingShape
from edgekd.cli.address import format_address, is_loopback, parse_addresses
from edgekd.cli.logs import LogSettings
from edgekd.cli.tls import TlsSettings
from edgekd.wire.codec import Encoding, Format
from edgekd.wire.identity import name_of_host, read_id
from edgekd.wire.inputs import InputEncoding
from edgekd.wire.limits import MAX_ID_LENGTH, MAX_TOP_K, MAX_WINDOW

logger = logging.getLogger(__name__)

DEFAULT_TOP_K = 10
_MAX_SECONDS = 1e7
"""Four months. Timeouts of the kernel are limited to about this value."""

PublicInputs = Literal["local", "stream", "stored"]
_INPUT_ENCODINGS: dict[PublicInputs, InputEncoding] = {"stream": InputEncoding.PIXELS, "stored": InputEncoding.STORED}


class _TeacherAddress:
    """Type of `teacher` for the checks below. Each command declares the field with its own help text."""

    __slots__ = ()
    teacher: str | None


@dataclass(frozen=True, kw_only=True)
class SecuritySettings(TlsSettings, _TeacherAddress):
    """TLS files, token and the consent to plaintext, on the edge's side."""

    help_group: ClassVar[str] = "security"

    tls_ca: Path | None = None
    """CA certificate in PEM that verifies the teacher's certificate. Enables TLS."""
    tls_cert: Path | None = None
    """Certificate of this edge in PEM, for a teacher that requires one. Enables TLS."""
    tls_key: Path | None = None
    """Private key of --tls-cert in PEM, without a password."""
    token_file: Path | None = None
    """File with the token that the teacher requires."""
    insecure: bool = False
    """Allow plaintext to a teacher on another machine. Everyone on the network path can read and change the traffic."""

    def check_secrets(self) -> None:
        """Check the files as TlsSettings does. Log a warning if the token would cross a network in plaintext."""
        super().check_secrets()
        teachers = parse_addresses(self.teacher, flag="--teacher", lowest_port=1) if self.teacher else []
        if self.token_file is not None and not self.tls and not all(is_loopback(host) for host, _ in teachers):
            logger.warning("the token of --token-file goes to %s in plaintext: everyone on the path can read it", self.teacher)

    def check_teacher(self, addresses: str) -> None:
        """Check that these are addresses and that plaintext leaves this machine only with --insecure. Raises ValueError."""
        if self.tls and self.tls_ca is None:
            raise ValueError(
                "--tls-ca is missing: name the CA certificate that signed the teacher's certificate; for a CA of the system "
                "that is /etc/ssl/certs/ca-certificates.crt on Debian"
            )
        for host, port in parse_addresses(addresses, flag="--teacher", lowest_port=1):
            if not (self.tls or self.insecure or is_loopback(host)):
                raise ValueError(
                    f"--teacher is {format_address(host, port)}, on another machine, and the connection would be plaintext: give "
                    "--tls-ca, or --insecure if everyone on this network may read and change the traffic"
                )


@dataclass(frozen=True, kw_only=True)
class LinkSettings(SecuritySettings, LogSettings):
    """How this edge receives logits. Builds the comm worker's configuration."""

    help_group: ClassVar[str] = "receiving"

    encoding: Encoding = Encoding.FLOAT32
    """Encoding of logits: float32 is exact, float16 takes half the bytes, int8 a quarter, topk only the largest of each row."""
    top_k: int | None = None
    """Logits per row with --encoding topk. It must be less than the number of classes. (default: 10)"""
    cache: Path = Path("~/.cache/edgekd/edge-logits")
    """Folder of this edge's logit caches, one per teacher, data set and encoding. Offline training also accepts the folder of one
    cache."""
    public_inputs: PublicInputs = "local"
    """Source of the public images: local reads this edge's copy, stream receives pixels, stored receives the teacher's JPEG or PNG
    files."""
    window: int = 64
    """Batches in one request."""
    max_wait: float = 60.0
    """Seconds without progress after which retries stop and the command fails."""
    max_silence: float = 30.0
    """Seconds a connected teacher may stay silent before its stream is cancelled and retried."""
    edge_id: str = field(default_factory=name_of_host)
    """Identity of this edge in the teacher's logs and stream limits. The name in a client certificate has precedence."""

    @property
    def form(self) -> Format:
        """Encoding of logits with its parameter."""
        if self.encoding is Encoding.TOPK:
            return Format(self.encoding, DEFAULT_TOP_K if self.top_k is None else self.top_k)
        return Format(self.encoding)

    @property
    def input_encoding(self) -> InputEncoding | None:
        """Encoding of public inputs that the teacher sends with the logits; None if they are local."""
        return _INPUT_ENCODINGS.get(self.public_inputs)

    def slot_shape(self, described: Described, *, batch_size: int) -> RingShape:
        """Return the shape of one batch received from this teacher. It includes inputs if the teacher sends them."""
        return RingShape.one_slot(
            self.form,
            batch_size=batch_size,
            num_classes=described.num_classes,
            input_shape=described.input_shape if self.input_encoding else (),
            input_dtype=described.input_dtype,
        )

    def configure(
        self,
        *,
        teacher: str,
        batch_size: int,
        seed: int = 0,
        niceness: int = 0,
        is_idle: bool = False,
        logits: str = "online",
        dataset_digest: str = "",
        num_streams: int = 1,
        run_id: str = "",
    ) -> Configure:
        """Build the comm worker's configuration, for every command that receives logits.

        `teacher` is one address or several, separated by commas. It is empty with `logits="offline"`; then `dataset_digest` selects
        the logit cache. The remaining fields come from these settings. Unset files become empty strings.
        """
        return Configure(
            teacher=teacher,
            batch_size=batch_size,
            seed=seed,
            encoding=self.form.encoding.value,
            top_k=self.form.top_k,
            window=self.window,
            max_wait_s=self.max_wait,
            max_silence_s=self.max_silence,
            log_level=self.log_level,
            log_format=self.log_format,
            niceness=niceness,
            is_idle=is_idle,
            logits=logits,
            cache=str(self.cache),
            dataset_digest=dataset_digest,
            inputs=self.input_encoding or "",
            num_streams=num_streams,
            tls_cert=_text_of(self.tls_cert),
            tls_key=_text_of(self.tls_key),
            tls_ca=_text_of(self.tls_ca),
            token_file=_text_of(self.token_file),
            edge_id=self.edge_id,
            run_id=run_id,
        )

    def check_link_settings(self) -> None:
        """Check all fields of this class. Raises ValueError."""
        self.check_transfer()
        check_seconds("--max-wait", self.max_wait)
        if read_id(self.edge_id) is None:
            raise ValueError(
                f"--edge-id is {self.edge_id!r}, must be 1 to {MAX_ID_LENGTH} characters of A-Z, a-z, 0-9, '.', '_' and '-'"
            )

    def check_transfer(self) -> None:
        """Check --window, --max-silence and --top-k. Raises ValueError."""
        if not 1 <= self.window <= MAX_WINDOW:
            raise ValueError(f"--window is {self.window}, must be in 1 .. {MAX_WINDOW}")
        check_seconds("--max-silence", self.max_silence)
        if self.top_k is not None and self.encoding is not Encoding.TOPK:
            raise ValueError(f"--top-k is {self.top_k}, but --encoding is {self.encoding}: use it with --encoding topk")
        if self.top_k is not None and not 1 <= self.top_k <= MAX_TOP_K:
            raise ValueError(f"--top-k is {self.top_k}, must be in 1 .. {MAX_TOP_K}")


def check_seconds(flag: str, seconds: float) -> None:
    """Raise ValueError for a timeout that is not above 0, or longer than the kernel's waits."""
    if not 0 < seconds <= _MAX_SECONDS:
        raise ValueError(f"{flag} is {seconds}, must be above 0 and at most {_MAX_SECONDS:g} seconds")


def _text_of(path: Path | None) -> str:
    return "" if path is None else str(path.expanduser())
