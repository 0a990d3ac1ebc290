"""What the commands that receive logits share of their settings: how they travel, from whom, and how safe the wire has to be.

Rules and no fields: each command lists its own, in its own order, because that is the order of its --help.
"""

import logging
from pathlib import Path
from typing import Literal

from edge_student.ipc.messages import Configure
from edge_student.ipc.ring import RingShape
from edgekd.cli.address import format_address, is_loopback, parse_addresses
from edgekd.cli.command import LogFormat, LogLevel
from edgekd.cli.tls import Secrets
from edgekd.wire.codec import Encoding, Format
from edgekd.wire.identity import read_id
from edgekd.wire.inputs import InputEncoding
from edgekd.wire.limits import MAX_ID_LENGTH, MAX_TOP_K

logger = logging.getLogger(__name__)

DEFAULT_TOP_K = 10
_MOST_SECONDS = 1e7
"""Four months. The kernel's waits end at some such number."""

PublicInputs = Literal["local", "stream", "stored"]
_INPUT_ENCODINGS: dict[PublicInputs, InputEncoding] = {"stream": InputEncoding.PIXELS, "stored": InputEncoding.STORED}


class Receiving(Secrets):
    """What a command that receives logits can say of its settings. For a dataclass to inherit from; no fields."""

    __slots__ = ()
    teacher: str | None
    encoding: Encoding
    top_k: int | None
    public_inputs: PublicInputs
    insecure: bool
    cache: Path
    window: int
    max_wait: float
    max_silence: float
    edge_id: str
    log_level: LogLevel
    log_format: LogFormat

    @property
    def form(self) -> Format:
        """How logits travel."""
        if self.encoding is Encoding.TOPK:
            return Format(self.encoding, DEFAULT_TOP_K if self.top_k is None else self.top_k)
        return Format(self.encoding)

    @property
    def input_encoding(self) -> InputEncoding | None:
        """How public inputs travel with the logits; None if they are here."""
        return _INPUT_ENCODINGS.get(self.public_inputs)

    def slot_shape(self, *, batch_size: int, num_classes: int, input_shape: tuple[int, ...]) -> RingShape:
        """Of one batch as it is received: with its inputs, of this shape, where they travel."""
        inputs = input_shape if self.input_encoding else ()
        return RingShape.one_slot(self.form, batch_size=batch_size, num_classes=num_classes, input_shape=inputs)

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
        """Build the configuration of the comm worker. Every command that receives logits uses this method.

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

    def check_secrets(self) -> None:
        """The same as at both ends, and a warning where a token would be no secret for long."""
        super().check_secrets()
        teachers = parse_addresses(self.teacher, flag="--teacher", lowest_port=1) if self.teacher else []
        if self.token_file is not None and not self.tls and not all(is_loopback(host) for host, _ in teachers):
            logger.warning("the token of --token-file goes to %s in plaintext: everybody on the way can read it", self.teacher)

    def check_top_k(self) -> None:
        """ValueError for a k without topk, or one that no teacher accepts."""
        if self.top_k is not None and self.encoding is not Encoding.TOPK:
            raise ValueError(f"--top-k is {self.top_k}, but --encoding is {self.encoding}: it goes with --encoding topk")
        if self.top_k is not None and not 1 <= self.top_k <= MAX_TOP_K:
            raise ValueError(f"--top-k is {self.top_k}, must be in 1 .. {MAX_TOP_K}")

    def check_edge_id(self) -> None:
        """ValueError for a name that no teacher would read."""
        if read_id(self.edge_id) is None:
            raise ValueError(
                f"--edge-id is {self.edge_id!r}, must be 1 to {MAX_ID_LENGTH} characters of A-Z, a-z, 0-9, '.', '_' and '-'"
            )

    def check_teacher(self, addresses: str) -> None:
        """ValueError unless these are addresses, and the wire to each as safe as was asked for."""
        if self.tls and self.tls_ca is None:
            raise ValueError(
                "--tls-ca is missing: name the authority that signed the teacher's certificate; for one of the system's that is "
                "/etc/ssl/certs/ca-certificates.crt on Debian"
            )
        for host, port in parse_addresses(addresses, flag="--teacher", lowest_port=1):
            if not (self.tls or self.insecure or is_loopback(host)):
                raise ValueError(
                    f"--teacher is {format_address(host, port)}, on another machine, and the wire would be plaintext: give "
                    "--tls-ca, or --insecure if everybody on this network may read and change what is sent"
                )

    def check_timeouts(self) -> None:
        """Check --max-wait and --max-silence. Raises ValueError."""
        _check_seconds("--max-wait", self.max_wait)
        self.check_max_silence()

    def check_max_silence(self) -> None:
        """Check --max-silence. Raises ValueError."""
        _check_seconds("--max-silence", self.max_silence)


def _check_seconds(flag: str, seconds: float) -> None:
    if not 0 < seconds <= _MOST_SECONDS:
        raise ValueError(f"{flag} is {seconds}, must be above 0 and at most {_MOST_SECONDS:g} seconds")


def _text_of(path: Path | None) -> str:
    return "" if path is None else str(path.expanduser())
