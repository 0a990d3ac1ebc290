"""The way to the teacher: who it is, whether it lets us in, how long a question takes, and how fast logits come.

It connects, asks, receives a few batches and throws them away. `find_*` are pure; everything else talks to the teacher.
"""

import contextlib
import logging
import socket
import ssl
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from edge_student.certificate import Certificate, parse_der, parse_pem
from edge_student.doctor_config import DoctorConfig
from edge_student.finding import Finding, note, ok, problem, unknown, warning
from edge_student.messages import Configure, Described
from edge_student.probe import find_cause
from edge_student.receiver import Receiver
from edge_student.ring import RingShape, Slot
from edgekd.address import is_loopback, parse_address
from edgekd.tls import TlsFiles, read_token

T = TypeVar("T")
logger = logging.getLogger(__name__)

_NUM_QUESTIONS = 7
_WINDOW = 64
_LONG_ENOUGH_S = 5.0  # for a rate; a window of a slow link would take minutes
_HANGS_S = 30.0  # without a batch
_FAR_S = 0.1
_SOON_DAYS = 30
_CONNECT_S = 5.0
_CHECKS = ("link.reach", "link.round-trip", "link.throughput")


@dataclass(frozen=True, slots=True, kw_only=True)
class Papers:
    """The certificates that were read, each with what to call it; and why one could not be read."""

    ours: Certificate | None
    authority: Certificate | None
    teacher: Certificate | None
    trouble: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """What came in how long."""

    num_batches: int
    num_bytes: int
    seconds: float


def look_at_link(config: DoctorConfig, now: float) -> Iterator[Finding]:
    """All findings of the link, one after the other as they are made. `now` in seconds since 1970."""
    if config.teacher is None:
        for check in ("link.tls", *_CHECKS):
            yield unknown(check, "not looked at, because no teacher was named", "name its address with --teacher HOST:PORT")
        return
    host, port = parse_address(config.teacher, flag="--teacher", lowest_port=1)
    papers = read_papers(config.tls, host, port)
    yield find_papers(papers, config.tls, host, now)
    try:
        config.check_secrets()
    except ValueError as error:
        yield problem(
            "link.reach", f"what is to open the connection cannot be used: {error}", "name the right file, or make it readable"
        )
        yield from _not_made(_CHECKS[1:])
        return
    cause = find_cause(host, port, config.tls, timeout_s=_CONNECT_S)
    if cause is not None:
        remedy = "mend what that sentence names; `deploy/certs.sh` makes certificates"
        if not cause.is_final:
            remedy = "start `cloud-teacher serve` there, and look at --teacher and at the network and firewall in between"
        yield problem("link.reach", cause.text, remedy, is_final=cause.is_final)
        yield from _not_made(_CHECKS[1:])
        return
    how = "over TLS" if config.tls else "in plaintext"
    yield ok("link.reach", f"a gRPC server answers at {config.teacher} {how}", teacher=config.teacher, tls=bool(config.tls))
    yield from _ask_and_receive(config)


def _not_made(checks: tuple[str, ...]) -> Iterator[Finding]:
    for check in checks:
        yield unknown(check, "not looked at, because there is no way to the teacher", "mend the finding before this one first")


def read_papers(tls: TlsFiles, host: str, port: int) -> Papers:
    """The certificates in our own files, and the one that the teacher shows, believed or not."""
    trouble = []

    def read(path: Path | None) -> Certificate | None:
        try:
            return None if path is None else parse_pem(path.expanduser().read_text(encoding="ascii", errors="replace"))
        except OSError as error:
            trouble.append(f"{path}: {error.strerror}")
        except ValueError as error:
            trouble.append(f"{path}: {error}")
        return None

    ours, authority = read(tls.cert), read(tls.ca)
    teacher = None
    with contextlib.suppress(OSError, ValueError):  # why there is none is what link.reach says
        teacher = _shown_by(host, port) if tls else None
    return Papers(ours=ours, authority=authority, teacher=teacher, trouble="; ".join(trouble))


def _shown_by(host: str, port: int) -> Certificate | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # to look at it; nothing is sent, and nothing believed
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, port), _CONNECT_S) as connection, context.wrap_socket(connection) as secured:
        shown = secured.getpeercert(binary_form=True)
    return None if shown is None else parse_der(shown)


def find_papers(papers: Papers, tls: TlsFiles, host: str, now: float) -> Finding:
    """Whose certificates these are, and how long they hold."""
    check = "link.tls"
    named = {"the teacher's": papers.teacher, "this edge's": papers.ours, "the authority's": papers.authority}
    known = {name: certificate for name, certificate in named.items() if certificate is not None}
    details = {
        name.removesuffix("'s").rpartition(" ")[2]: {
            "subject": paper.subject,
            "issuer": paper.issuer,
            "not_before": paper.not_before,
            "not_after": paper.not_after,
            "days_left": round(paper.days_left(now), 2),
        }
        for name, paper in known.items()
    }
    if papers.trouble:
        return problem(
            check, f"a certificate cannot be read: {papers.trouble}", "name a certificate in PEM, as deploy/certs.sh makes them"
        )
    if not tls:
        if is_loopback(host):
            return ok(check, "no TLS is asked for, and the teacher, or the near end of a tunnel, is on this machine")
        text = "no TLS is asked for, and the wire is plaintext: everybody on the way can read and change what is sent"
        return warning(check, text, "make certificates with deploy/certs.sh, and give --tls-ca, --tls-cert and --tls-key")
    early = [name for name, paper in known.items() if now < paper.not_before]
    if early:
        days = (known[early[0]].not_before - now) / 86400
        text = f"{early[0]} certificate is not valid yet, and will be in {days:.1f} days by the clock of this machine"
        return problem(check, text, "look at the clocks of both machines (machine.clock), then make a new certificate", **details)
    late = [name for name, paper in known.items() if paper.days_left(now) < 0]
    if late:
        text = f"{late[0]} certificate expired {-known[late[0]].days_left(now):.0f} days ago, by the clock of this machine"
        return problem(check, text, "delete its .pem and run deploy/certs.sh again; if it is new, look at the clock", **details)
    said = "; ".join(
        f"{name} is for {paper.subject}, signed by {paper.issuer}, good for {paper.days_left(now):.0f} days"
        for name, paper in known.items()
    )
    if papers.teacher is None:
        return unknown(check, f"the teacher has shown no certificate{'; ' if said else ''}{said}", "see link.reach", **details)
    soon = [name for name, paper in known.items() if paper.days_left(now) < _SOON_DAYS]
    if soon:
        text = f"{soon[0]} certificate expires in {known[soon[0]].days_left(now):.0f} days: {said}"
        return warning(
            check, text, "delete its .pem and run deploy/certs.sh again; a running teacher takes it from the file", **details
        )
    return ok(check, said, **details)


def _ask_and_receive(config: DoctorConfig) -> Iterator[Finding]:
    receiver = Receiver(_configure(config), lambda cause, attempt: logger.debug("attempt %d failed: %s", attempt, cause))
    try:
        try:
            described, first_s, seconds = _patiently_not(receiver, lambda: _ask(receiver))
        except (OSError, ValueError, RuntimeError) as error:
            yield problem("link.round-trip", _plainly(error), "mend what that sentence names, here or at the teacher")
            yield from _not_made(_CHECKS[2:])
            return
        yield find_round_trip(described, first_s, seconds)
        try:
            logger.info("receiving for %g s, to see how fast logits come", _LONG_ENOUGH_S)
            received = _receive(receiver, described, config)
        except (OSError, ValueError, RuntimeError) as error:
            yield problem("link.throughput", _plainly(error), "look at the teacher's own messages: it answers, and does not stream")
            return
        yield find_throughput(received, described, config)
    finally:
        receiver.close()


def _patiently_not(receiver: Receiver, action: Callable[[], T]) -> T:
    """`action`, given up when nothing has come of it for too long: what hangs is told that nobody listens any more."""
    watchdog = threading.Timer(_HANGS_S, receiver.close)
    watchdog.daemon = True
    watchdog.start()
    try:
        return action()
    except Exception as error:
        if watchdog.finished.is_set():
            raise TimeoutError(f"the teacher takes the question, and in {_HANGS_S:g} s no answer came") from error
        raise
    finally:
        watchdog.cancel()


def _plainly(error: Exception) -> str:
    """The first cause of an error: that it was not tried again says nothing here."""
    while isinstance(error.__cause__, OSError | ValueError):
        error = error.__cause__
    return str(error)


def _ask(receiver: Receiver) -> tuple[Described, float, list[float]]:
    """Who the teacher is; seconds of the first question, which connects, and of those that follow."""
    started = time.perf_counter()
    described = receiver.describe()
    first_s = time.perf_counter() - started
    seconds = []
    for _ in range(_NUM_QUESTIONS):
        started = time.perf_counter()
        receiver.describe()
        seconds.append(time.perf_counter() - started)
    return described, first_s, seconds


def find_round_trip(described: Described, first_s: float, seconds: list[float]) -> Finding:
    """How far away the teacher is."""
    check, middle_s = "link.round-trip", statistics.median(seconds)
    details = {
        "dataset": described.dataset_name,
        "num_samples": described.num_samples,
        "num_classes": described.num_classes,
        "teacher_digest": described.teacher_digest,
        "connect_ms": round(first_s * 1000, 3),
        "round_trip_ms": [round(value * 1000, 3) for value in seconds],
    }
    text = (
        f"a question to the teacher of {described.dataset_name} ({described.num_samples} samples, {described.num_classes} classes) "
        f"takes {middle_s * 1000:.1f} ms (median of {len(seconds)}, {min(seconds) * 1000:.1f} to {max(seconds) * 1000:.1f}), and the "
        f"first, which connects, {first_s * 1000:.0f} ms"
    )
    if middle_s > _FAR_S:
        return note(check, text, "keep --window large: every window begins with such a wait", **details)
    return ok(check, text, **details)


def _receive(receiver: Receiver, described: Described, config: DoctorConfig) -> Received:
    """One window, or as much of it as comes in a few seconds; nothing is kept."""
    shape = RingShape.one_slot(
        config.form,
        batch_size=config.public_batch,
        num_classes=described.num_classes,
        input_shape=described.input_shape if config.input_encoding else (),
    )
    slot = Slot.empty(shape)
    started, num_bytes, index = time.perf_counter(), 0, 0
    while index < _WINDOW and time.perf_counter() - started < _LONG_ENOUGH_S:
        num_bytes += _patiently_not(receiver, lambda index=index: receiver.receive(index, _WINDOW, slot, lambda: None))  # type: ignore[misc]
        index += 1
    seconds = time.perf_counter() - started
    receiver.release()
    return Received(num_batches=index, num_bytes=num_bytes, seconds=seconds)


def find_throughput(received: Received, described: Described, config: DoctorConfig) -> Finding:
    """How fast it comes, of teacher, link and this edge's decoding together."""
    rate = received.num_bytes / received.seconds
    batch_ms = received.seconds / received.num_batches * 1000
    return ok(
        "link.throughput",
        f"{received.num_batches} batches of {config.public_batch} came as {config.form} in {received.seconds:.2f} s: "
        f"{rate / 1e6:.2f} MB/s of payload, {batch_ms:.1f} ms a batch; a training step that is shorter waits for them",
        num_batches=received.num_batches,
        num_bytes=received.num_bytes,
        seconds=received.seconds,
        bytes_per_s=rate,
        encoding=str(config.form),
        public_batch=config.public_batch,
    )


def _configure(config: DoctorConfig) -> Configure:
    assert config.teacher is not None
    if config.token_file is not None:
        read_token(config.token_file)
    return Configure(
        teacher=config.teacher,
        batch_size=config.public_batch,
        seed=0,
        encoding=config.form.encoding.value,
        top_k=config.form.top_k,
        window=_WINDOW,
        max_wait_s=0.0,  # one attempt: why it failed is what is asked for
        log_level=config.log_level,
        niceness=0,
        is_idle=False,
        inputs=config.input_encoding or "",
        **config.secret_files,
    )
